"""Records: what a JSON line holds, and which source a model is said to have come from."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import orjson
import pytest

from dfagent.errors import Changed
from dfagent.records import ModelRecord, ObjectRecord, Seconds, error_fields, main_way, to_json_line
from dfagent.types import (
    Checksum,
    Detour,
    Fetched,
    FetchRequest,
    ObjectEntry,
    ObjectRef,
    SignedUrl,
    Source,
    TaskIdentity,
    Traffic,
)


def record(source: Source, size: int, path: str = "1/weights") -> ObjectRecord:
    entry = ObjectEntry(ObjectRef("s3", "host:9000", "bucket", f"repo/net/{path}"), size, '"etag"')

    async def sign() -> SignedUrl:
        return SignedUrl("http://host/?X-Amz-Signature=secret", datetime.now(timezone.utc), ())

    request = FetchRequest(entry, TaskIdentity.of(entry), sign, path)
    fetched = Fetched(None, "dfdaemon", source, Traffic(1, 2, 3), sign_seconds=0.5, fetch_seconds=1.5, attempts=2)
    fetched = replace(fetched, verified=Checksum("crc32c", b"abcd"), detours=(Detour("proxy", "dfdaemon", "it died"),))
    return ObjectRecord.of("net", path, request, fetched, verify_seconds=0.25)


def should_write_everything_of_an_object_into_one_line() -> None:
    written = record(Source.REMOTE, 6, path="1/two\nlines")
    line = to_json_line(written)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert orjson.loads(line) == {
        "kind": "object",
        "model": "net",
        "path": "1/two\nlines",
        "object": "s3://host:9000/bucket/repo/net/1/two%0Alines",
        "version": '"etag"',
        "task_id": written.task_id,
        "bytes": 6,
        "transport": "dfdaemon",
        "source": "remote",
        "traffic": {"origin": 1, "remote_peer": 2, "local_peer": 3},
        "seconds": {"list": 0.0, "sign": 0.5, "fetch": 1.5, "verify": 0.25, "publish": 0.0, "load": 0.0},
        "attempts": 2,
        "verified": "crc32c",
        "detours": [{"tried": "proxy", "then": "dfdaemon", "why": "it died"}],
    }


def should_write_everything_of_a_model_into_one_line() -> None:
    error = error_fields(Changed("overwritten", hint="run again"))
    model = ModelRecord("net", "s3://b/r", "failed", 9, 6, 2, "direct", None, Traffic(), Seconds(), error=error)
    read = orjson.loads(to_json_line(model))
    assert read["error"] == {"type": "Changed", "message": "overwritten", "hint": "run again"}
    assert (read["kind"], read["model"], read["repository"]) == ("model", "net", "s3://b/r")
    assert (read["outcome"], read["source"], read["loaded"], read["generation"]) == ("failed", None, False, "")
    assert (read["bytes"], read["fetched_bytes"], read["objects"]) == (9, 6, 2)


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([], None),
        ([(Source.DIRECT, 0)], Source.DIRECT),
        ([(Source.DIRECT, 10), (Source.REMOTE, 11)], Source.REMOTE),
        ([(Source.REMOTE, 6), (Source.DIRECT, 10), (Source.REMOTE, 6)], Source.REMOTE),
        ([(Source.UNKNOWN, 0), (Source.UNKNOWN, 0), (Source.COLD, 1)], Source.COLD),
    ],
)
def should_name_the_source_of_most_bytes(objects: list[tuple[Source, int]], expected: Source | None) -> None:
    way = main_way(record(source, size) for source, size in objects)
    assert (way[1] if way else None) is expected
