"""What can be wrong with an HTTP answer: in its bytes (`CHANGES`), or in the way that it is written (`WRITERS`)."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from tests.servers.fault_plan import Fault
from tests.servers.fault_wire import Answer, Listener, reset, wait_until_given_up

ENDLESS = 32 << 20
"""Bytes after which an "endless" body ends after all; a client that took them all has no limit."""


def with_flipped_bit(answer: Answer, amount: int) -> Answer:
    data = bytearray(answer.body)
    data[amount // 8 % len(data)] ^= 1 << amount % 8
    return replace(answer, body=bytes(data))


def html_page(size: int = 0) -> Answer:
    """The page that a captive portal or a login server answers everything with, filled up to `size` bytes."""
    page = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n"
    body = (page * (size // len(page) + 1))[:size] if size else page
    return Answer(200, {"Content-Type": "text/html"}, body)


def _length_changed(by: int) -> Callable[[Answer, Fault], Answer | None]:
    def change(answer: Answer, fault: Fault) -> Answer | None:
        if not answer.body or not answer.has_body:
            return None
        told = len(answer.body) + by * (1 + fault.amount % len(answer.body))
        return replace(answer, headers={**answer.headers, "Content-Length": str(told), "Connection": "close"})

    return change


def _range_changed(by_offset: int, by_total: int) -> Callable[[Answer, Fault], Answer | None]:
    def change(answer: Answer, fault: Fault) -> Answer | None:
        said = answer.headers.get("Content-Range", "")
        if not said:
            return None
        span, _, total = said.removeprefix("bytes ").partition("/")
        first, _, last = span.partition("-")
        step = 1 + fault.amount % 64
        told = f"bytes {int(first) + by_offset * step}-{int(last) + by_offset * step}/{int(total) + by_total * step}"
        return replace(answer, headers={**answer.headers, "Content-Range": told})

    return change


def _flipped(answer: Answer, fault: Fault) -> Answer | None:
    return with_flipped_bit(answer, fault.amount) if answer.body and answer.has_body and answer.status < 300 else None


def _zipped(answer: Answer, _fault: Fault) -> Answer | None:
    if not answer.has_body or answer.status >= 300:
        return None
    return replace(answer, headers={**answer.headers, "Content-Encoding": "gzip"}, body=gzip.compress(answer.body, 1))


def _html(answer: Answer, _fault: Fault) -> Answer | None:
    return replace(html_page(), has_body=answer.has_body)


def _html_of_same_size(answer: Answer, _fault: Fault) -> Answer | None:
    return html_page(len(answer.body)) if answer.body and answer.has_body else None


def _whole_as_part(answer: Answer, _fault: Fault) -> Answer | None:
    if answer.status != 200 or not answer.body:
        return None
    told = f"bytes 0-{len(answer.body) - 1}/{len(answer.body)}"
    return replace(answer, status=206, headers={**answer.headers, "Content-Range": told})


CHANGES: dict[str, Callable[[Answer, Fault], Answer | None]] = {
    "flipped-bit": _flipped,
    "length-too-small": _length_changed(-1),
    "length-too-big": _length_changed(+1),
    "range-offset": _range_changed(1, 0),
    "range-total": _range_changed(0, 1),
    "whole-as-part": _whole_as_part,
    "html-page": _html,
    "html-page-of-same-size": _html_of_same_size,
    "gzip-unasked": _zipped,
}
"""Kind → the answer with the fault in it, None where this answer can't have it."""


# In the way an answer is written


@dataclass
class Exchange:
    """One request's connection; `listener` is the one that it came by."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    listener: Listener

    async def send(self, answer: Answer) -> bool:
        """Writes a whole answer; False where the connection must end after it."""
        await self.write(answer.encode())
        told = answer.headers.get("Content-Length", str(len(answer.body)))
        return told == str(len(answer.body)) and answer.headers.get("Connection") != "close"

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


async def _reset(exchange: Exchange, answer: Answer, fault: Fault) -> None:
    wire = answer.encode()
    await exchange.write(wire[: fault.amount % len(wire)])
    reset(exchange.writer)


async def _refuse(exchange: Exchange, _answer: Answer, fault: Fault) -> None:
    exchange.listener.die(fault.amount / 1000)


async def _slow_start(exchange: Exchange, answer: Answer, fault: Fault) -> None:
    await asyncio.sleep(fault.amount / 1000)
    await exchange.send(answer)


async def _silence(exchange: Exchange, _answer: Answer, _fault: Fault) -> None:
    await wait_until_given_up(exchange.reader)


async def _stall(exchange: Exchange, answer: Answer, fault: Fault) -> None:
    await exchange.write(answer.encode_head() + _beginning(answer, fault))
    await wait_until_given_up(exchange.reader)


async def _trickle(exchange: Exchange, answer: Answer, fault: Fault) -> None:
    await exchange.write(answer.encode_head())
    step = max(1, len(answer.body) // (2 + fault.amount % 12))
    for start in range(0, len(answer.body), step):
        await exchange.write(answer.body[start : start + step])
        await asyncio.sleep(0.005)


async def _early_close(exchange: Exchange, answer: Answer, fault: Fault) -> None:
    await exchange.write(answer.encode_head() + _beginning(answer, fault))


async def _broken_off(exchange: Exchange, answer: Answer, fault: Fault) -> None:
    await exchange.write(answer.encode_head() + _beginning(answer, fault))
    await asyncio.sleep(0.03)  # so that the client has read what came, and can go on from there


async def _early_close_without_length(exchange: Exchange, answer: Answer, fault: Fault) -> None:
    await exchange.write(_until_close(answer).encode_head() + _beginning(answer, fault))


async def _endless(exchange: Exchange, answer: Answer, _fault: Fault) -> None:
    block, sent = bytes(1 << 16), 0
    with suppress(OSError):
        await exchange.write(_until_close(answer).encode())
        while sent < ENDLESS:
            await exchange.write(block)
            sent += len(block)
        exchange.listener.swallowed += 1


async def _garbage(exchange: Exchange, _answer: Answer, _fault: Fault) -> None:
    await exchange.write(b"this is not HTTP\r\n\r\n")


def _until_close(answer: Answer) -> Answer:
    return replace(answer, headers={**answer.headers, "Content-Length": "", "Connection": "close"})


def _beginning(answer: Answer, fault: Fault) -> bytes:
    return answer.body[: fault.amount % len(answer.body)]


WRITERS: dict[str, Callable[[Exchange, Answer, Fault], Awaitable[None]]] = {
    "reset": _reset,
    "refused": _refuse,
    "slow-start": _slow_start,
    "silence": _silence,
    "stall": _stall,
    "trickle": _trickle,
    "early-close": _early_close,
    "broken-off": _broken_off,
    "early-close-without-length": _early_close_without_length,
    "endless": _endless,
    "garbage": _garbage,
}
"""Kind → what writes the answer wrongly; the connection ends after it."""

_NEEDS_A_BODY = {"stall", "trickle", "early-close", "broken-off", "early-close-without-length", "endless"}


async def send_with_fault(exchange: Exchange, answer: Answer, fault: Fault, fire: Callable[[], None]) -> bool:
    """Sends the answer with the fault; calls `fire` as it happens, never where this answer can't have the fault.

    False where the connection must end.
    """
    if fault.kind in WRITERS:
        if fault.kind in _NEEDS_A_BODY and not (answer.body and answer.has_body):
            return await exchange.send(answer)
        fire()
        await WRITERS[fault.kind](exchange, answer, fault)
        return False
    changed = CHANGES[fault.kind](answer, fault)
    if changed is None:
        return await exchange.send(answer)
    fire()
    return await exchange.send(changed)
