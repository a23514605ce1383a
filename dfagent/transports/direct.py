"""`direct`: the signed URL straight from the store, large objects in parallel ranges, resumed block by block."""

from __future__ import annotations

import time
from pathlib import Path

from dfagent.checksums import hasher
from dfagent.errors import ConfigError, DfagentError
from dfagent.tasks import finished_in_thread, owned_tasks
from dfagent.transports.answers import Progress, StartAgain, check_part, check_whole, range_header
from dfagent.transports.blocks import from_blocks, journal_algorithm
from dfagent.transports.http import HttpClient, error_body, error_of, save_body
from dfagent.transports.options import RequestOptions, Timeouts
from dfagent.transports.origin import store_reason
from dfagent.transports.partial import BLOCK_SIZE, RANGE_SIZE, PartialFile, Writer, opened
from dfagent.transports.told import told_checksum
from dfagent.types import Checksum, Fetched, FetchRequest, SignedUrl, Source, Traffic

STREAMS = 4


class DirectTransport:
    """Asks the origin itself; its bytes count as `origin` traffic.

    `range_size` is what one request asks for, `block_size` what a lost connection costs; both in bytes.
    """

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
        """Why the store itself refuses the object: the status and its own words; "" where it doesn't refuse."""
        try:
            signed = await request.sign()
            headers = {**self._options.origin_headers(request, signed), "Range": "bytes=0-0"}
            async with self._http.get(request.label, signed.url, headers) as response:
                # An empty object has no first byte: 416 is no refusal.
                if response.status < 300 or response.status == 416:
                    return ""
                return f"{response.status} {store_reason(await error_body(response))}".strip()
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
        partial = PartialFile(folder, request.task.id, request.entry.size, self.name, block_size=self._block_size)
        async with opened(partial):
            download = _Download(self._http, self._options, request, signed, partial)
            await download.run(self._range_size)
            written_as = await finished_in_thread(partial.identity)
        return Fetched(
            path=partial.path,
            transport=self.name,
            source=Source.DIRECT,
            traffic=Traffic(origin=download.new_bytes),
            sign_seconds=signed_at - started,
            fetch_seconds=time.monotonic() - signed_at,
            computed=download.computed,
            told=download.told,
            written_as=written_as,
        )


class _Download:
    """One attempt to make a partial whole."""

    def __init__(
        self, http: HttpClient, options: RequestOptions, request: FetchRequest, signed: SignedUrl, partial: PartialFile
    ) -> None:
        self._http, self._request, self._signed, self._partial = http, request, signed, partial
        self._headers = options.origin_headers(request, signed)
        self._progress = Progress(request.on_progress)
        self.new_bytes = partial.size - partial.bytes_done
        self.computed: Checksum | None = None
        self.told: Checksum | None = None

    async def run(self, range_size: int) -> None:
        partial = self._partial
        self._progress.add(partial.bytes_done)
        if partial.size <= range_size and not partial.bytes_done:
            await self._whole()
            return
        expected = await self._request.expected()
        try:
            await self._ranges(range_size, expected)
        except StartAgain:
            self._progress.start_over()
            await finished_in_thread(partial.start_over)
            self.new_bytes = partial.size
            await self._whole(expected)

    async def _ranges(self, range_size: int, expected: Checksum | None) -> None:
        """Brings what is missing, a few ranges at a time; the first error ends the others."""
        partial = self._partial
        await finished_in_thread(partial.begin, journal_algorithm(expected))
        missing = partial.missing(range_size)
        ranges = iter(missing)

        async def stream() -> None:
            for offset, length in ranges:
                await self._range(offset, length)

        async with owned_tasks() as group:
            for _ in range(min(STREAMS, len(missing))):
                group.create_task(stream())
        # Another checksum than the blocks' needs the file to be read anyway.
        if expected is None or from_blocks(expected):
            self.computed = await finished_in_thread(partial.checksum)

    async def _range(self, offset: int, length: int) -> None:
        request = self._request
        headers = {**self._headers, **range_header(offset, length)}
        async with self._http.get(request.label, self._signed.url, headers) as response:
            if response.status in (200, 416):
                raise StartAgain
            if response.status != 206:
                raise await error_of(request.label, response)
            check_part(request, response, offset, length)
            await save_body(response, Writer(self._partial, offset, length), self._progress.add, request.label)

    async def _whole(self, expected: Checksum | None = None) -> None:
        """One plain GET; its answer may tell the store's checksum, which saves asking for it."""
        request, partial = self._request, self._partial
        async with self._http.get(request.label, self._signed.url, self._headers) as response:
            if response.status not in (200, 206):
                raise await error_of(request.label, response)
            check_whole(request, response)
            self.told = told_checksum(response.headers)
            wanted = self.told or expected
            beside = hasher(wanted.algorithm, wanted.part_size) if wanted and not from_blocks(wanted) else None
            await finished_in_thread(partial.begin, journal_algorithm(wanted))
            writer = Writer(partial, 0, partial.size, beside)
            await save_body(response, writer, self._progress.add, request.label)
        self.computed = beside.checksum() if beside else await finished_in_thread(partial.checksum)
