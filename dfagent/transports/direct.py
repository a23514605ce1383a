"""`direct`: the signed URL straight from the store, large objects in parallel ranges, resumed part by part."""

from __future__ import annotations

import re
import time
from pathlib import Path

import aiohttp

from dfagent.errors import ConfigError, DfagentError, Truncated
from dfagent.tasks import finished_in_thread, owned_tasks
from dfagent.transports.http import HttpClient, error_body, error_of, save_body
from dfagent.transports.options import RequestOptions, Timeouts
from dfagent.transports.origin import store_reason
from dfagent.transports.partial import BLOCK_SIZE, RANGE_SIZE, PartialFile
from dfagent.types import Fetched, FetchRequest, SignedUrl, Source, Traffic

STREAMS = 4
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class DirectTransport:
    """Asks the origin itself; its bytes count as `origin` traffic."""

    name = "direct"

    def __init__(
        self,
        options: RequestOptions,
        timeouts: Timeouts,
        *,
        block_size: int = BLOCK_SIZE,
        range_size: int = RANGE_SIZE,
    ) -> None:
        self._options = options
        self._http = HttpClient(timeouts, "the store")
        self._block_size, self._range_size = block_size, range_size

    async def aclose(self) -> None:
        await self._http.aclose()

    async def reason(self, request: FetchRequest) -> str:
        """Why the store itself refuses the object, in its own words; "" where it doesn't, or says nothing."""
        try:
            signed = await request.sign()
            headers = {**self._options.origin_headers(request, signed), "Range": "bytes=0-0"}
            async with self._http.get(request.label, signed.url, headers) as response:
                return "" if response.status < 300 else store_reason(await error_body(response))
        except DfagentError:
            return ""

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        if folder is None:
            raise ConfigError(
                "direct downloads have no cache that could be warmed",
                hint="give --to DIR, or a Dragonfly peer by `proxy` or `socket` in dragonfly_config.json",
            )
        started = time.monotonic()
        signed = await request.sign()
        signed_at = time.monotonic()
        partial = PartialFile(folder, request.task.id, request.entry.size)
        try:
            await finished_in_thread(partial.open)
            new_bytes = partial.size - partial.bytes_done
            await self._fill(partial, request, signed)
        finally:
            partial.close()
        return Fetched(
            path=partial.finish(),
            transport=self.name,
            source=Source.DIRECT,
            traffic=Traffic(origin=new_bytes),
            sign_seconds=signed_at - started,
            fetch_seconds=time.monotonic() - signed_at,
        )

    async def _fill(self, partial: PartialFile, request: FetchRequest, signed: SignedUrl) -> None:
        """Brings the missing parts, a few at a time; the first error ends the others."""
        request.on_progress(partial.bytes_done)
        parts = iter(partial.missing())

        async def stream() -> None:
            for number, offset, length in parts:
                await self._part(partial, request, signed, offset, length)
                partial.mark(number)

        async with owned_tasks() as group:
            for _ in range(min(STREAMS, partial.part_count)):
                group.create_task(stream())

    async def _part(
        self, partial: PartialFile, request: FetchRequest, signed: SignedUrl, offset: int, length: int
    ) -> None:
        headers = self._options.origin_headers(request, signed)
        ranged = partial.part_count > 1
        if ranged:
            headers["Range"] = f"bytes={offset}-{offset + length - 1}"
        async with self._http.get(request.label, signed.url, headers) as response:
            if response.status != (206 if ranged else 200):
                if response.status in (200, 206):
                    raise _wrong_range(request, f"answered {response.status}")
                raise await error_of(request.label, response)
            if ranged:
                _check_range(request, response, offset, length)
            await save_body(response, partial.fd, offset, length, request.on_progress, request.label)


def _check_range(request: FetchRequest, response: aiohttp.ClientResponse, offset: int, length: int) -> None:
    said = response.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(said)
    expected = (offset, offset + length - 1, request.entry.size)
    if not found or tuple(int(number) for number in found.groups()) != expected:
        raise _wrong_range(request, f"answered with Content-Range {said[:60]!r}")


def _wrong_range(request: FetchRequest, said: str) -> DfagentError:
    return Truncated(f"{request.label}: the origin {said} to a range request", hint="does the store support ranges?")
