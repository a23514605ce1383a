"""Records: one line an object that was brought, one line a model; JSON Lines and the terminal's table read the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import orjson

from dfagent.errors import DfagentError
from dfagent.redact import redact
from dfagent.types import Detour, Fetched, FetchRequest, Source, Traffic


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall-clock seconds by phase.

    An object has sign, fetch and verify; a model has all, its fetch being the time from its first object's start to
    its last one's end. Objects overlap, so a model's fetch is no sum of theirs.
    """

    list: float = 0.0
    sign: float = 0.0
    fetch: float = 0.0
    verify: float = 0.0
    publish: float = 0.0
    load: float = 0.0


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """How one object came. `object` is its name without a signature, `bytes` its size, `attempts` counts from 1.

    `verified` names the checksum of the store's that the bytes agree with, "unverified" where the store has none;
    `detours` are the transports that were tried before: `tried`, `then`, `why`.
    """

    model: str
    path: str
    object: str
    version: str
    task_id: str
    bytes: int
    transport: str
    source: Source
    traffic: Traffic
    seconds: Seconds
    attempts: int
    verified: str
    detours: tuple[Detour, ...] = ()
    kind: str = "object"

    @classmethod
    def of(cls, model: str, path: str, request: FetchRequest, fetched: Fetched, verify_seconds: float) -> ObjectRecord:
        return cls(
            model=model,
            path=path,
            object=str(request.entry.ref),
            version=request.entry.etag,
            task_id=request.task.id,
            bytes=request.entry.size,
            transport=fetched.transport,
            source=fetched.source,
            traffic=fetched.traffic,
            seconds=Seconds(sign=fetched.sign_seconds, fetch=fetched.fetch_seconds, verify=verify_seconds),
            attempts=fetched.attempts,
            verified=fetched.verified.algorithm if fetched.verified else "unverified",
            detours=fetched.detours,
        )


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What became of one model in one pass.

    `outcome` is "published", "unchanged", "warmed", "removed" or "failed"; `bytes` is the model's size,
    `fetched_bytes` what was brought for it; `source` and `transport` are those of most of the fetched bytes (None, and
    the one that was asked for, where none were fetched).
    """

    model: str
    repository: str
    outcome: str
    bytes: int
    fetched_bytes: int
    objects: int
    transport: str
    source: Source | None
    traffic: Traffic
    seconds: Seconds
    generation: str = ""
    loaded: bool = False
    error: dict[str, str] = field(default_factory=dict)
    kind: str = "model"


def main_way(objects: Iterable[ObjectRecord]) -> tuple[str, Source] | None:
    """The transport and source of most bytes (config.pbtxt always comes directly, so no model is of one alone)."""
    weights: dict[tuple[str, Source], int] = {}
    for record in objects:
        way = record.transport, record.source
        weights[way] = weights.get(way, 0) + record.bytes
    return max(weights, key=lambda way: weights[way]) if weights else None


def error_fields(error: DfagentError) -> dict[str, str]:
    """The error as a record holds it."""
    return {"type": type(error).__name__, "message": redact(error.message), "hint": redact(error.hint)}


def to_json_line(record: ObjectRecord | ModelRecord) -> bytes:
    """One line of JSON with its newline."""
    return orjson.dumps(asdict(record), option=orjson.OPT_APPEND_NEWLINE)
