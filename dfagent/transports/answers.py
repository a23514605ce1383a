"""Whether an answer is what was asked for: checked by its head, before a byte of its body is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dfagent.errors import Changed, DamagedTask, Truncated
from dfagent.types import FetchRequest

if TYPE_CHECKING:
    import aiohttp

_OVERWRITTEN = "it was overwritten after the listing; run again"
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


class StartAgain(Exception):
    """The store can't go on in the middle of the object (200 or 416 to a range): all of it has to be asked for."""


class Progress:
    """Counts what one attempt reported, so that it can be taken back when it starts again from zero."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._counted = 0

    def add(self, count: int) -> None:
        self._counted += count
        self._report(count)

    def start_over(self) -> None:
        self._report(-self._counted)
        self._counted = 0


def range_header(offset: int, length: int) -> dict[str, str]:
    """Asks for that many bytes from `offset` on."""
    return {"Range": f"bytes={offset}-{offset + length - 1}"}


def check_part(request: FetchRequest, response: aiohttp.ClientResponse, offset: int, length: int) -> None:
    """Refuses a part of the object that is not exactly the one asked for, or of another version."""
    check_range(request, response, offset, length)
    check_head(request, response, length)


def check_range(request: FetchRequest, response: aiohttp.ClientResponse, offset: int, length: int) -> None:
    """Refuses another part than the one asked for."""
    said = response.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(said)
    expected = (offset, offset + length - 1, request.entry.size)
    if not found or tuple(int(number) for number in found.groups()) != expected:
        raise Truncated(
            f"{request.label}: asked for bytes {offset}-{offset + length - 1} of {request.entry.size}, "
            f"the answer has Content-Range {said[:60]!r}",
            hint="does the store support ranges?",
        )


def check_whole(request: FetchRequest, response: aiohttp.ClientResponse) -> None:
    """Refuses an answer that can't be the whole object, or is of another version."""
    if response.status != 200 or "Content-Range" in response.headers:
        raise Truncated(f"{request.label}: asked for all, the answer is a part of a range ({response.status})")
    check_head(request, response, request.entry.size)


def check_head(request: FetchRequest, response: aiohttp.ClientResponse, length: int) -> None:
    """Refuses another version, and a body that will not have that length."""
    said = response.headers.get("ETag", "")
    pinned = request.entry.pin_headers.get("If-Match", "")
    if said and pinned and _opaque(said) != _opaque(pinned):
        # Whoever answered doesn't know If-Match.
        raise Changed(f"{request.label}: the answer is another version of the object", hint=_OVERWRITTEN)
    if response.content_length is not None and response.content_length != length:
        than = "longer" if response.content_length > length else "shorter"
        raise Truncated(
            f"{request.label}: the answer is {than} than the {length} bytes asked for: {response.content_length}"
        )


@contextmanager
def of_a_task() -> Iterator[None]:
    """What a peer answers of another version or size is what it has in its cache: that won't change by itself."""
    try:
        yield
    except (Changed, Truncated) as exc:
        raise DamagedTask(f"{exc.message}; the peer's cached task is damaged", hint=exc.hint) from exc


def _opaque(etag: str) -> str:
    return etag.strip().removeprefix("W/").strip('"')
