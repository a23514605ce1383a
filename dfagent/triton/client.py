"""Asks a Triton server in explicit mode to load, unload and answer for models, over gRPC."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from dfagent.errors import ConfigError, LoadRejected, LoadTimeout, TritonError, TritonUnavailable, WrongControlMode

_Answer = TypeVar("_Answer")
# What Triton says in poll and in none mode; no other answer of the server tells its mode.
_NOT_EXPLICIT = "explicit model load / unload is not allowed"
# No folder can have this name, so unloading it does nothing.
_NO_MODEL = "dfagent/probe"
# How much longer asyncio waits than gRPC's own deadline, which does not end every kind of silence.
_GRACE_SECONDS = 0.5
_POLL_SECONDS = 0.1
_LONGEST_LINE = 500
_CHANNEL_ARGS = [
    ("grpc.max_receive_message_length", -1),
    # gRPC would back off for up to two minutes from a server that restarts.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Triton is a neighbour: http_proxy in the environment is meant for the store.
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index; version, state and reason are "" for a model that was never loaded."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class LoadResult:
    """How long the load took, and the versions that serve after it, in ascending order."""

    seconds: float
    versions: tuple[str, ...]


class TritonClient:
    """One Triton server, by the `host:port` of its gRPC service.

    Timeouts are in seconds: `load_timeout` bounds a load or unload until the model's state has settled,
    `call_timeout` every other call. Raises only `TritonError` (and `ConfigError` for what can't be an address).
    """

    def __init__(self, address: str, *, call_timeout: float = 10.0, load_timeout: float = 600.0) -> None:
        host, colon, port = address.rpartition(":")
        if not host or not colon or not port.isdecimal() or "/" in address:
            raise ConfigError(
                f"{address!r} is no address of a Triton server", hint="give HOST:PORT of its gRPC service"
            )
        self._address = address
        self._call_timeout = call_timeout
        self._load_timeout = load_timeout
        self._client: Any = None

    @property
    def address(self) -> str:
        """The `host:port` that it was made with."""
        return self._address

    async def check(self) -> None:
        """Returns if the server is live and lets models be loaded; changes nothing there."""
        if not await self._call(lambda client, limit: client.is_server_live(client_timeout=limit)):
            raise TritonUnavailable(f"Triton at {self._address} says that it is not live", hint="see the server's log")
        await self._call(lambda client, limit: client.unload_model(_NO_MODEL, client_timeout=limit))

    async def load(self, model: str) -> LoadResult:
        """Loads the model, or loads it again where its files have changed; returns when it serves.

        Raises `LoadRejected` with Triton's reason (a version that served before goes on serving), `LoadTimeout`.
        """
        started = time.monotonic()
        try:
            await self._call(
                lambda client, limit: client.load_model(model, client_timeout=limit),
                self._load_timeout,
                lambda reason: _rejection(model, reason),
            )
            entries = await self._settled(model, {"LOADING"}, started + self._load_timeout)
        except _Silence as exc:
            raise LoadTimeout(
                f"Triton at {self._address} did not load {model!r} within {self._load_timeout:g} s",
                hint="its log says what it waits for: a long initialize() needs a longer timeout, and a python stub "
                "that can't start makes it wait for ever",
            ) from exc
        versions = _serving(model, entries)
        if not await self.ready(model):
            raise _rejection(model, "it loaded the model, but says that it is not ready")
        return LoadResult(time.monotonic() - started, versions)

    async def unload(self, model: str) -> None:
        """Unloads the model; returns when no version of it serves any more. An unknown model is no error.

        Raises `LoadTimeout` where Triton took the order and the model serves on.
        """
        deadline = time.monotonic() + self._load_timeout
        await self._call(
            lambda client, limit: client.unload_model(model, client_timeout=limit),
            self._load_timeout,
            lambda reason: TritonError(f"Triton refused to unload {model!r}: {_first_line(reason)}"),
        )
        try:
            await self._settled(model, {"LOADING", "READY", "UNLOADING"}, deadline)
        except _Silence as exc:
            raise LoadTimeout(
                f"Triton at {self._address} did not unload {model!r} within {self._load_timeout:g} s",
                hint="it waits for requests under way: its log says more",
            ) from exc

    async def index(self) -> list[IndexEntry]:
        """Every model and version that the server knows of, loaded or not."""
        answer = await self._call(lambda client, limit: client.get_model_repository_index(client_timeout=limit))
        return [IndexEntry(entry.name, entry.version, entry.state, entry.reason) for entry in answer.models]

    async def ready(self, model: str, version: str = "") -> bool:
        """Whether the server would answer an inference now; "" is the version that its policy chooses."""
        answer = await self._call(lambda client, limit: client.is_model_ready(model, version, client_timeout=limit))
        return bool(answer)

    async def aclose(self) -> None:
        """Gives the connection back; the next call would open another."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _settled(self, model: str, moving: set[str], deadline: float) -> list[IndexEntry]:
        """The model's lines of the index as soon as none of them is in a state that it will leave."""
        while True:
            entries = [entry for entry in await self.index() if entry.name == model]
            if not any(entry.state in moving for entry in entries):
                return entries
            if time.monotonic() > deadline:
                raise self._silence(self._load_timeout)
            await asyncio.sleep(_POLL_SECONDS)

    async def _call(
        self,
        call: Callable[[Any, float], Awaitable[_Answer]],
        timeout: float | None = None,
        refused: Callable[[str], TritonError] | None = None,
    ) -> _Answer:
        """Runs one call of the SDK; `refused` makes the error of what the server itself says against it."""
        limit = self._call_timeout if timeout is None else timeout
        client = await self._connected()
        from tritonclient.utils import InferenceServerException

        try:
            return await asyncio.wait_for(call(client, limit), limit + _GRACE_SECONDS)
        except asyncio.TimeoutError as exc:
            raise self._silence(limit) from exc
        except InferenceServerException as exc:
            raise self._translated(exc.status() or "", exc.message() or "", limit, refused) from exc

    async def _connected(self) -> Any:
        if self._client is None:
            sdk = await asyncio.to_thread(importlib.import_module, "tritonclient.grpc.aio")
            # Another call may have been here while the import ran.
            if self._client is None:
                self._client = sdk.InferenceServerClient(self._address, channel_args=_CHANNEL_ARGS)
        return self._client

    def _translated(
        self, status: str, text: str, limit: float, refused: Callable[[str], TritonError] | None
    ) -> TritonError:
        code = status.removeprefix("StatusCode.")
        if _NOT_EXPLICIT in text:
            return WrongControlMode(
                f"Triton at {self._address} does not run in explicit mode, so nobody may load models",
                hint="start it with --model-control-mode=explicit",
            )
        if code == "DEADLINE_EXCEEDED":
            return self._silence(limit)
        if code in ("UNAVAILABLE", "CANCELLED"):
            return TritonUnavailable(
                f"Triton at {self._address} can't be asked: {_first_line(text)}",
                hint="does it run, and is this the port of its gRPC service (8001 by default)?",
            )
        if refused is not None:
            return refused(text)
        return TritonError(f"Triton at {self._address} refused: {_first_line(text)}")

    def _silence(self, limit: float) -> _Silence:
        return _Silence(
            f"Triton at {self._address} did not answer within {limit:g} s", hint="does it hang? its log may say why"
        )


class _Silence(TritonUnavailable):
    """The server took longer than the call may take."""


def _rejection(model: str, reason: str) -> LoadRejected:
    hint = ""
    if "failed to poll from model repository" in reason:
        hint = (
            "Triton can't read the model there: does it run on this folder, and what does its log say of config.pbtxt?"
        )
    return LoadRejected(f"Triton refused {model!r}: {_first_line(reason)}", hint=hint, reason=reason)


def _serving(model: str, entries: list[IndexEntry]) -> tuple[str, ...]:
    serving = [entry.version for entry in entries if entry.state == "READY"]
    if not serving:
        # Only then: beside a version that serves, the index keeps the reasons of old failures.
        reason = "\n".join(f"version {entry.version}: {entry.reason}" for entry in entries if entry.reason)
        raise _rejection(model, reason or "it took the load, but no version of the model is READY in its index")
    return tuple(sorted(serving, key=int))


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "it gave no reason")
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…"
