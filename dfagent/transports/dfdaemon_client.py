"""The gRPC client of the node's dfdaemon: its channel, the questions about a task, and its errors as ours."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import grpc
from dragonfly_api import dfdaemon_pb2, dfdaemon_pb2_grpc

from dfagent.errors import (
    ConnectFailed,
    DfagentError,
    NoSpace,
    Overloaded,
    PeerUnavailable,
    StoreUnavailable,
    Truncated,
)
from dfagent.redact import redact
from dfagent.transports.options import Timeouts
from dfagent.transports.origin import origin_error
from dfagent.transports.traffic import Known, TaskState

_CHANNEL_OPTIONS = (
    # Without an authority dfdaemon resets every stream on a unix socket (PROTOCOL_ERROR).
    ("grpc.default_authority", "localhost"),
    # A dfdaemon that restarts is found again within a retry's pause.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class DfdaemonClient:
    """One channel to one dfdaemon, made on first use in the loop that uses it."""

    def __init__(self, socket: str, timeouts: Timeouts) -> None:
        self._socket = socket
        self._timeouts = timeouts
        self._channel: grpc.aio.Channel | None = None

    def stub(self) -> Any:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(f"unix:{self._socket}", options=_CHANNEL_OPTIONS)
        return dfdaemon_pb2_grpc.DfdaemonDownloadStub(self._channel)  # type: ignore[no-untyped-call]

    async def aclose(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def task_state(self, task_id: str) -> TaskState:
        """What is known of the task now. An answer that does not come is `NOT_TOLD`: it never fails a download."""
        if await self._is_here(task_id):
            return TaskState(here=True, elsewhere=Known.NOT_TOLD)
        return TaskState(here=False, elsewhere=await self._elsewhere(task_id))

    async def _is_here(self, task_id: str) -> bool:
        question = dfdaemon_pb2.StatLocalTaskRequest(task_id=task_id)
        try:
            answer = await self.stub().StatLocalTask(question, timeout=self._timeouts.connect)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.HasField("finished_at"))

    async def _elsewhere(self, task_id: str) -> Known:
        question = dfdaemon_pb2.StatTaskRequest(task_id=task_id)
        try:
            task = await self.stub().StatTask(question, timeout=self._timeouts.connect)
        except grpc.aio.AioRpcError as exc:
            # dfdaemon passes the scheduler's NOT_FOUND on as INTERNAL with the words in its text.
            unknown = exc.code() is grpc.StatusCode.NOT_FOUND or "not found" in (exc.details() or "").lower()
            return Known.NOBODY if unknown else Known.NOT_TOLD
        if task.state in ("Running", "Pending"):
            return Known.FETCHING if task.peer_count else Known.NOBODY
        return Known.PEERS if task.state == "Succeeded" and task.peer_count else Known.NOBODY


def peer_error(label: str, exc: grpc.aio.AioRpcError, heard: bool) -> DfagentError:
    """dfdaemon's gRPC status as a typed error; `heard` tells whether the stream had begun.

    The raw exception is not chained by callers: dfdaemon's texts quote signed URLs.
    """
    code, details = exc.code(), redact(exc.details() or "")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Overloaded(f"{label}: dfdaemon sheds load: {details}", hint="lower `concurrency`")
    if code is grpc.StatusCode.UNAVAILABLE:
        if not heard:
            return ConnectFailed(
                f"{label}: dfdaemon does not answer: {details}",
                hint="is dfdaemon running, and is `socket` in dragonfly_config.json its download socket?",
            )
        return PeerUnavailable(
            f"{label}: dfdaemon went away in the middle of the download: {details}",
            hint="look at dfdaemon's log; the next run goes on with the pieces that it kept",
        )
    return _failure(label, exc, details)


def _failure(label: str, exc: grpc.aio.AioRpcError, details: str) -> DfagentError:
    """What stopped the download itself: the disk, the origin, or dfdaemon."""
    if "No space left on device" in details:
        return NoSpace(
            f"{label}: dfdaemon has no room: {details}",
            hint="make room where dfdaemon keeps its cache, or in the model folder",
        )
    backend = _backend_detail(exc)
    if backend is None:
        return PeerUnavailable(
            f"{label}: dfdaemon failed: {exc.code().name}: {details}", hint="dfdaemon's log on this node has the reason"
        )
    if not backend.get("status_code"):
        return StoreUnavailable(
            f"{label}: dfdaemon could not reach the origin: {details}",
            hint="can the node's dfdaemon reach the store's endpoint?",
        )
    status = int(backend["status_code"])
    if status < 300:
        return Truncated(f"{label}: the origin's answer to dfdaemon broke off", hint="is the store still there?")
    return origin_error(label, status)


def _backend_detail(exc: grpc.aio.AioRpcError) -> dict[str, Any] | None:
    """The JSON that dfdaemon puts into the status details for an origin's error (errordetails.v2.Backend)."""
    for key, value in exc.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            with suppress(ValueError):
                detail = json.loads(value)
                if isinstance(detail, dict) and "status_code" in detail:
                    return detail
    return None
