"""A gate before a real server: a transparent TCP pass-through that counts requests, holds answers and cuts them.

Signatures cover the Host header, so a client that signs for the gate's address is verified by the server behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

_CHUNK = 1 << 16


@dataclass
class Rule:
    """What to do with answers to GET requests whose head contains `match`, once `after` bytes of one went through.

    A hold waits until `release`; a cut closes the connection, `times` times.
    """

    match: str
    after: int
    cut: bool
    times: int = 1
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    def is_for(self, head: str) -> bool:
        """Whether it is the GET in question: the question for a checksum (HEAD) goes by before it."""
        return head.startswith("GET ") and self.match in head

    def release(self) -> None:
        self._released.set()

    async def wait(self) -> None:
        await self._released.wait()


AnyGate = TypeVar("AnyGate", bound="Gate")


class Gate:
    """`async with Gate(port) as gate`: listens on `gate.port`; `gate.heads` are the request heads that it saw."""

    def __init__(self, upstream_port: int, host: str = "127.0.0.1") -> None:
        self._upstream = upstream_port
        self._host = host
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._rules: list[Rule] = []
        self.heads: list[str] = []
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://{self._host}:{self.port}"

    async def __aenter__(self: AnyGate) -> AnyGate:  # noqa: PYI019 — Python 3.10 has no Self
        await self.revive()
        return self

    async def revive(self) -> None:
        """Listens again, at the same port, where `die` made an end of it; without effect on a gate that is alive."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, self._host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.die()

    async def die(self) -> None:
        """Closes every connection and refuses new ones: a store that went away."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        # A connection that was accepted just now has a task that has not begun: let it, so that it can end.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self) -> None:
        """Forgets all rules, letting go what they hold, and what it saw."""
        for rule in self._rules:
            rule.release()
        self._rules.clear()
        self.heads.clear()

    def hold(self, match: str, after: int = 0) -> Rule:
        return self._rule(Rule(match, after, cut=False))

    def cut(self, match: str, after: int = 0, times: int = 1) -> Rule:
        return self._rule(Rule(match, after, cut=True, times=times))

    def _rule(self, rule: Rule) -> Rule:
        self._rules.append(rule)
        return rule

    def requests(self, match: str) -> list[str]:
        """The heads of the GET requests that contain `match`."""
        return [head for head in self.heads if head.startswith("GET ") and match in head]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # The gate closes by cancelling; asyncio would log a cancelled handler as an error.
        with suppress(asyncio.CancelledError):
            try:
                await self._pass(reader, writer)
            finally:
                writer.close()
                await _closed(writer)

    def refusal(self, head: str) -> bytes:
        """The answer to give instead of the server's, after which the connection ends; b"" to pass the request on."""
        return b""

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self._rules, self.heads, self.refusal)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            return  # the server behind the gate is gone: the client sees its connection closed
        requests = asyncio.create_task(connection.pass_requests(reader, up_writer, writer))
        answers = asyncio.create_task(connection.pass_answers(up_reader, writer))
        try:
            await asyncio.wait({requests, answers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Before anything that is awaited: the gate may close, and cancel, in the middle of this.
            up_writer.close()
            for half in (requests, answers):
                half.cancel()
            await asyncio.gather(requests, answers, return_exceptions=True)
            await _closed(up_writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        await writer.wait_closed()


class _Connection:
    """One client's connection; its answers are matched to its last request (HTTP/1.1 without pipelining)."""

    def __init__(self, rules: list[Rule], heads: list[str], refusal: Callable[[str], bytes]) -> None:
        self._rules = rules
        self._heads = heads
        self._refusal = refusal
        self._head = ""
        self._answered = 0

    async def pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(_CHUNK):
            head, end, _ = data.partition(b"\r\n\r\n")
            if end and head.split(b" ", 1)[0] in (b"GET", b"HEAD", b"PUT", b"POST", b"DELETE"):
                self._head, self._answered = head.decode("latin-1"), 0
                self._heads.append(self._head)
                if refusal := self._refusal(self._head):
                    back.write(refusal)
                    await back.drain()
                    return
            writer.write(data)
            await writer.drain()

    async def pass_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            self._answered += len(data)
            for rule in [rule for rule in self._rules if rule.is_for(self._head) and self._answered > rule.after]:
                rule.reached.set()
                if not rule.cut:
                    await rule.wait()
                elif rule.times > 0:
                    rule.times -= 1
                    return
            writer.write(data)
            await writer.drain()
