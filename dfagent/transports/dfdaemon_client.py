"""The gRPC client of the node's dfdaemon: its channel, the questions about a task, and its errors as ours."""

from __future__ import annotations

import errno
import json
import re
from contextlib import suppress
from typing import Any

import grpc
from dragonfly_api import dfdaemon_pb2, dfdaemon_pb2_grpc

from dfagent.errors import (
    ConnectFailed,
    DfagentError,
    NoHardLink,
    Overloaded,
    PeerUnavailable,
    StoreUnavailable,
    Truncated,
)
from dfagent.redact import redact_quote
from dfagent.transports.options import Timeouts
from dfagent.transports.origin import origin_error, seconds_to_wait
from dfagent.transports.traffic import Known, TaskState

_CHANNEL_OPTIONS = (
    # Without an authority dfdaemon resets every stream on a unix socket (PROTOCOL_ERROR).
    ("grpc.default_authority", "localhost"),
    # A dfdaemon that restarts is found again within a retry's pause.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

_SEEN_AS = "`path_map` in dragonfly_config.json tells by which name dfdaemon sees our folder"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_CANT_LINK = frozenset(
    {
        errno.EXDEV,  # another mount, also one of the same disk
        errno.ENOENT,  # dfdaemon does not see the folder
        errno.ENOTDIR,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EMLINK,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
    }
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
        if await self.knows(task_id):
            return TaskState(here=True, elsewhere=Known.NOT_TOLD)
        return TaskState(here=False, elsewhere=await self._elsewhere(task_id))

    async def is_here(self, task_id: str) -> bool:
        """Whether this node has the whole task; False where dfdaemon can't be asked."""
        return bool(await self.knows(task_id))

    async def knows(self, task_id: str) -> bool | None:
        """Whether this node has the whole task; None where dfdaemon can't be asked."""
        question = dfdaemon_pb2.StatLocalTaskRequest(task_id=task_id)
        try:
            answer = await self.stub().StatLocalTask(question, timeout=self._timeouts.connect)
        except grpc.aio.AioRpcError as exc:
            return False if exc.code() is grpc.StatusCode.NOT_FOUND else None
        return bool(answer.HasField("finished_at"))

    async def discard(self, task_id: str) -> bool:
        """Deletes the task from this node's cache; tells whether it is gone, False where dfdaemon can't be asked.

        The scheduler is told as well, so that it sends nobody here for the task. dfdaemon does that first step only
        for a task that it still has, so the deletion on the node alone comes second, for a scheduler that is away.
        """
        stub = self.stub()
        for delete, message in (
            (stub.DeleteTask, dfdaemon_pb2.DeleteTaskRequest(task_id=task_id)),
            (stub.DeleteLocalTask, dfdaemon_pb2.DeleteLocalTaskRequest(task_id=task_id)),
        ):
            with suppress(grpc.aio.AioRpcError):
                await delete(message, timeout=self._timeouts.connect)
            if await self._is_unknown(task_id):
                return True
        return False

    async def _is_unknown(self, task_id: str) -> bool:
        question = dfdaemon_pb2.StatLocalTaskRequest(task_id=task_id)
        try:
            await self.stub().StatLocalTask(question, timeout=self._timeouts.connect)
        except grpc.aio.AioRpcError as exc:
            return bool(exc.code() is grpc.StatusCode.NOT_FOUND)
        return False

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


def link_error(label: str, exc: grpc.aio.AioRpcError, *, forced: bool) -> PeerUnavailable | None:
    """What to say where dfdaemon could not make the file in our folder, None for any other failure.

    It is `NoHardLink` where the link was `forced` and the download has not begun: dfdaemon links first. Its text tells
    no more than the number of the error.
    """
    said = exc.details() or ""
    number = _OS_ERROR.search(said)
    if number is None or int(number[1]) not in _CANT_LINK:
        return None
    if not forced:
        return PeerUnavailable(
            f"{label}: dfdaemon can't make the file in our folder: {redact_quote(said)}", hint=_SEEN_AS
        )
    return NoHardLink(
        f"{label}: dfdaemon can't link its file into our folder: {redact_quote(said)}",
        hint=f"its storage and the model folder have to lie on one mount, which dfdaemon can write to; {_SEEN_AS}",
    )


def has_no_room(exc: grpc.aio.AioRpcError) -> bool:
    """Whether dfdaemon speaks of a full disk: in its own words, those of the system, or those of its database."""
    return "no space left on device" in (exc.details() or "").lower()


def peer_error(label: str, exc: grpc.aio.AioRpcError, heard: bool) -> DfagentError:
    """dfdaemon's gRPC status as a typed error; `heard` tells whether the stream had begun.

    The raw exception is not chained by callers: dfdaemon's texts quote signed URLs.
    """
    code, details = exc.code(), redact_quote(exc.details() or "")
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
    if has_no_room(exc):
        return PeerUnavailable(
            f"{label}: dfdaemon has no room: {details}",
            hint="make room where dfdaemon keeps its cache; its database may need a restart of dfdaemon after that",
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
    return origin_error(label, status, retry_after=_retry_after(backend))


def _retry_after(backend: dict[str, Any]) -> float | None:
    """The store's own Retry-After in seconds, which dfdaemon passes on among the answer's headers."""
    headers = backend.get("header")
    for name, value in headers.items() if isinstance(headers, dict) else ():
        if str(name).lower() == "retry-after":
            return seconds_to_wait(str(value))
    return None


def _backend_detail(exc: grpc.aio.AioRpcError) -> dict[str, Any] | None:
    """The JSON that dfdaemon puts into the status details for an origin's error (errordetails.v2.Backend)."""
    for key, value in exc.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            with suppress(ValueError):
                detail = json.loads(value)
                if isinstance(detail, dict) and "status_code" in detail:
                    return detail
    return None
