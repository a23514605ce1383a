"""What the load's own figures rest on: a gate that throttles, and one that counts gRPC calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from dragonfly_api import dfdaemon_pb2

from dfagent.transports.dfdaemon_client import DfdaemonClient
from dfagent.transports.options import Timeouts
from tests.servers.canned import CannedDfdaemon, CannedHttp, http_answer, serving
from tests.servers.streams import CallCounter
from tests.servers.throttle import ThrottlingGate


async def _no_download(_request: Any, _context: Any) -> AsyncIterator[dfdaemon_pb2.DownloadTaskResponse]:
    return
    yield


async def should_count_each_call_once_whether_calls_share_a_connection_or_not(tmp_path: Path) -> None:
    here = "1" * 64
    async with (
        serving(CannedDfdaemon(_no_download, here=[here]), tmp_path / "real"),
        CallCounter(tmp_path / "real", tmp_path / "counted") as counter,
    ):
        for _ in range(2):
            client = DfdaemonClient(str(tmp_path / "counted"), Timeouts())
            assert all(await asyncio.gather(*(client.is_here(here) for _ in range(20))))
            await client.aclose()
        assert counter.calls == 40


async def _status(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /key HTTP/1.1\r\nHost: store\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer


async def should_refuse_what_comes_faster_than_the_rate_and_say_when_to_come_again() -> None:
    now = 0.0
    async with CannedHttp(http_answer(200, b"bytes")) as store:
        gate = ThrottlingGate(int(store.url.rpartition(":")[2]), rate=2.0, burst=2.0, clock=lambda: now)
        async with gate:
            answers = [await _status(gate.port) for _ in range(3)]
            now = 0.5
            answers += [await _status(gate.port) for _ in range(2)]
    assert [answer.split(b" ")[1] for answer in answers] == [b"200", b"200", b"503", b"200", b"503"]
    assert b"Retry-After: 1" in answers[2]
    assert (gate.passed, gate.refused) == (3, 2)
