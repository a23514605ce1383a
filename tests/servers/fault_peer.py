"""An HTTP proxy that answers like dfdaemon's, over a cache of whole tasks, and that misbehaves on demand.

The shapes are those of dfdaemon 1.5.10 (`dragonfly-client/src/proxy`): absolute-form GETs, the task's id from
X-Dragonfly-Content-For-Calculating-Task-ID, errors without a body and with X-Dragonfly-Error-Type.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from tests.servers.fault_answers import CHANGES, WRITERS, Exchange, send_with_fault, with_flipped_bit
from tests.servers.fault_cache import BackendError, CachedTask, PeerCache, ShortPieceError, origin_request_headers
from tests.servers.fault_dfdaemon import FaultDfdaemon
from tests.servers.fault_plan import Fault, FaultPlan
from tests.servers.fault_wire import Answer, Listener, Request, read_request

_CONTENT = "x-dragonfly-content-for-calculating-task-id"
_TASK_ID = "X-Dragonfly-Task-Id"
_ERROR_TYPE = "X-Dragonfly-Error-Type"


@dataclass
class FaultPeer:
    """`async with FaultPeer(folder) as peer`: a peer with its proxy at `peer.proxy` and its gRPC at `peer.socket`.

    Both serve one cache, `peer.cache`; `plan` holds the faults of both. The proxy's are of the op "proxy" and have the
    object's key, without its bucket.
    """

    folder: Path
    piece_length: int = 256 << 10
    origin_timeout: float = 5.0
    plan: FaultPlan = field(default_factory=FaultPlan)
    asked: list[Request] = field(default_factory=list)
    cache: PeerCache = field(init=False)
    dfdaemon: FaultDfdaemon = field(init=False)
    _listener: Listener = field(init=False)

    async def __aenter__(self) -> FaultPeer:
        self.cache = PeerCache(self.folder / "content", self.piece_length, self.origin_timeout)
        self.dfdaemon = FaultDfdaemon(self.folder / "dfdaemon.sock", self.cache, self.plan, self.die)
        self._listener = Listener(self._serve)
        await self._listener.open()
        await self.dfdaemon.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cache.client.close()
        await self._listener.close()
        await self.dfdaemon.close()

    @property
    def proxy(self) -> str:
        return f"http://127.0.0.1:{self._listener.port}"

    @property
    def socket(self) -> Path:
        return self.dfdaemon.socket

    @property
    def connections(self) -> int:
        return self._listener.connections

    @property
    def swallowed(self) -> int:
        return self._listener.swallowed

    def die(self, seconds: float) -> None:
        """The process is gone for a while: proxy and gRPC."""
        self._listener.die(seconds)
        self.dfdaemon.die(seconds)

    async def end_faults(self) -> None:
        """The peer is well from now on; what lies in its cache stays."""
        self.plan.faults.clear()
        await self._listener.revive()
        await self.dfdaemon.revive()

    def start_anew(self) -> None:
        """Forgets tasks, requests and faults."""
        self.plan.clear()
        self.asked.clear()
        self.cache.clear()
        self.dfdaemon.start_anew()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        exchange = Exchange(reader, writer, self._listener)
        while request := await read_request(reader):
            self.asked.append(request)
            if not await self._exchange(exchange, request) or request.is_last:
                return

    async def _exchange(self, exchange: Exchange, request: Request) -> bool:
        key = request.path.removeprefix("/").partition("/")[2]
        fault = self.plan.take("proxy", key)

        def fire() -> None:
            assert fault is not None
            self.plan.fire(fault, "proxy", key)

        if fault and fault.kind == "peer-dies":
            fire()
            self.die(fault.amount / 1000)
            return False
        if fault and (refusal := _refusal(fault)):
            fire()
            return await exchange.send(refusal)
        if fault and fault.kind == "range-ignored" and request.headers.pop("range", ""):
            fire()
        answer = await self._task(request, fault if fault and fault.kind == "corrupt-cache" else None, fire)
        if fault is None:
            return await exchange.send(answer)
        if fault.kind in CHANGES or fault.kind in WRITERS:
            return await send_with_fault(exchange, answer, fault, fire)
        wrong = _wrong(answer, fault)
        if wrong is not None:
            fire()
        return await exchange.send(wrong or answer)

    async def _task(self, request: Request, corrupting: Fault | None, fire: Callable[[], None]) -> Answer:
        content = request.headers.get(_CONTENT, request.target)
        task_id = hashlib.sha256(content.encode("latin-1")).hexdigest()
        was_here = self.cache.finished(task_id) is not None
        try:
            task = await self._fetched(task_id, request)
        except BackendError as exc:
            return _error("backend", exc.status or 500, exc.headers)
        except ShortPieceError:
            return _error("dfdaemon", 500)
        if corrupting and self.cache.corrupt(task, corrupting.amount):
            fire()
        headers = {**task.headers, _TASK_ID: task_id, "X-Dragonfly-Server-Ip": "127.0.0.1"}
        if was_here:
            headers["X-Dragonfly-Task-Download-Finished"] = "true"
        data, span = task.path.read_bytes()[: task.size], request.range
        if span is None:
            return Answer(200, headers, data)
        first, last = span[0], min(span[1], len(data) - 1)
        if first > last:
            return _error("dfdaemon", 500)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return Answer(206, headers, data[first : last + 1])

    async def _fetched(self, task_id: str, request: Request) -> CachedTask:
        headers = origin_request_headers(request.headers)
        async with self.cache.lock(task_id):
            task = await self.cache.begin(task_id, request.target, headers)
            async for _ in self.cache.missing_pieces(task, request.target, headers):
                pass
            return task


def _error(kind: str, status: int, headers: dict[str, str] | None = None) -> Answer:
    """dfdaemon's own answer: no body, whatever the origin said."""
    kept = {name: value for name, value in (headers or {}).items() if name not in ("content-length", "connection")}
    return Answer(status, {**kept, _ERROR_TYPE: kind})


def _refusal(fault: Fault) -> Answer | None:
    """The faults that need no task."""
    if fault.kind.startswith("error-"):
        return _error(fault.kind.removeprefix("error-"), fault.amount)
    if fault.kind == "status-429":
        return _error("proxy", 429, {"Retry-After": str(fault.amount % 2)})
    return None


def _wrong(answer: Answer, fault: Fault) -> Answer | None:
    """The answer with a fault that only a peer can have; None where this answer can't have it."""
    if answer.status >= 300:
        return None
    if fault.kind == "other-task":
        other = hashlib.sha256(f"{answer.headers[_TASK_ID]}{fault.amount}".encode()).hexdigest()
        return replace(answer, headers={**answer.headers, _TASK_ID: other})
    if fault.kind == "range-as-200" and answer.status == 206:
        return replace(answer, status=200)  # older dfdaemons do so
    if fault.kind == "forged-checksum" and answer.body:
        forged = with_flipped_bit(answer, fault.amount)
        crc = base64.b64encode(zlib.crc32(forged.body).to_bytes(4, "big")).decode()
        md5 = hashlib.md5(forged.body).digest()
        told = {
            "x-amz-checksum-crc32": crc,
            "x-amz-checksum-type": "FULL_OBJECT",
            "ETag": f'"{md5.hex()}"',
            "Content-MD5": base64.b64encode(md5).decode(),
        }
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in {n.lower() for n in told}}
        return replace(forged, headers={**kept, **told})
    return None
