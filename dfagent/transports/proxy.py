"""`proxy`: an absolute-form GET through dfdaemon's HTTP proxy; no CONNECT, no CA, dfdaemon does the TLS."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from dfagent.checksums import hasher
from dfagent.errors import DfagentError, Overloaded, PeerUnavailable, Truncated
from dfagent.tasks import finished_in_thread
from dfagent.transports.answers import (
    Progress,
    StartAgain,
    check_head,
    check_range,
    check_whole,
    of_a_task,
    range_header,
)
from dfagent.transports.blocks import from_blocks, journal_algorithm
from dfagent.transports.http import HttpClient, error_of, save_body
from dfagent.transports.options import RequestOptions, Timeouts
from dfagent.transports.partial import BLOCK_SIZE, PartialFile, Writer, opened
from dfagent.transports.peer_headers import ERROR_TYPE, FINISHED, check_peer, is_legacy, peer_error, request_headers
from dfagent.types import Checksum, Fetched, FetchRequest, SignedUrl, Source, Traffic


class _AbsoluteFormRequest(aiohttp.ClientRequest):
    """Sends https URLs to the proxy as plain absolute-form GETs, where aiohttp would open a CONNECT tunnel.

    The bytes stay unencrypted only on the way to this node's own peer, which fetches them from the origin by TLS.
    """

    def is_ssl(self) -> bool:
        return False


class ProxyTransport:
    """Streams an object through the node's peer into a file of our own.

    dfdaemon's proxy tells only whether this node had the whole task already (`local`); everything else is `unknown`.
    `legacy` says whether the peer is the Go daemon of Dragonfly 2.0 and 2.1; None finds out by its answers. That one
    tells nothing. `block_size`, in bytes, is what a lost connection costs.
    """

    name = "proxy"

    def __init__(
        self,
        proxy: str,
        options: RequestOptions,
        timeouts: Timeouts,
        *,
        legacy: bool | None = None,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        self._proxy = proxy
        self._options = options
        self._http = HttpClient(timeouts, "the Dragonfly proxy", request_class=_AbsoluteFormRequest)
        self._finds_out = legacy is None
        self._legacy = legacy
        self._block_size = block_size

    async def aclose(self) -> None:
        await self._http.aclose()

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        started = time.monotonic()
        signed = await request.sign()
        signed_at = time.monotonic()
        path = written_as = None
        if folder is None:
            came = await self._warm(request, signed)
        else:
            partial = PartialFile(folder, request.task.id, request.entry.size, self.name, block_size=self._block_size)
            async with opened(partial):
                came = await self._fill(partial, request, signed)
                written_as = await finished_in_thread(partial.identity)
            path = partial.path
        return Fetched(
            path=path,
            transport=self.name,
            # What an earlier run brought may have come from anywhere.
            source=Source.LOCAL if came.local and came.size == request.entry.size else Source.UNKNOWN,
            traffic=Traffic(local_peer=came.size) if came.local else Traffic(),
            sign_seconds=signed_at - started,
            fetch_seconds=time.monotonic() - signed_at,
            computed=came.computed,
            written_as=written_as,
        )

    async def _warm(self, request: FetchRequest, signed: SignedUrl) -> _Came:
        async with self._answer(request, signed, 0) as response:
            with of_a_task():
                check_whole(request, response)
                await _discard_body(response, request)
            return _Came(request.entry.size, _is_local(response))

    async def _fill(self, partial: PartialFile, request: FetchRequest, signed: SignedUrl) -> _Came:
        """Brings everything from the first gap on in one answer: a peer streams, parallel ranges hurry nobody."""
        expected = await request.expected()
        progress = Progress(request.on_progress)
        gaps = partial.missing()
        offset = gaps[0][0] if gaps else partial.size
        await finished_in_thread(partial.forget, offset, partial.size - offset)
        progress.add(offset)
        came = _Came(0)
        if offset < partial.size or not partial.size:
            try:
                came = await self._bring(partial, request, signed, offset, expected, progress)
            except StartAgain:
                progress.start_over()
                await finished_in_thread(partial.start_over)
                came = await self._bring(partial, request, signed, 0, expected, progress)
        if came.computed is None and (expected is None or from_blocks(expected)):
            came = replace(came, computed=await finished_in_thread(partial.checksum))
        return came

    async def _bring(
        self,
        partial: PartialFile,
        request: FetchRequest,
        signed: SignedUrl,
        offset: int,
        expected: Checksum | None,
        progress: Progress,
    ) -> _Came:
        async with self._answer(request, signed, offset) as response:
            # Older dfdaemons say 200 to a range, and only Content-Range tells that it is one.
            ranged = bool(offset) and (response.status == 206 or "Content-Range" in response.headers)
            if ranged:
                check_range(request, response, offset, partial.size - offset)
            with of_a_task():
                if ranged:
                    check_head(request, response, partial.size - offset)
                else:
                    check_whole(request, response)
            if not ranged and offset:
                progress.start_over()
                await finished_in_thread(partial.start_over)
                offset = 0
            whole = offset == 0 and expected is not None and not from_blocks(expected)
            beside = hasher(expected.algorithm, expected.part_size) if whole and expected else None
            await finished_in_thread(partial.begin, journal_algorithm(expected))
            writer = Writer(partial, offset, partial.size - offset, beside)
            with of_a_task():
                await save_body(response, writer, progress.add, request.label)
            return _Came(partial.size - offset, _is_local(response), beside.checksum() if beside else None)

    @asynccontextmanager
    async def _answer(
        self, request: FetchRequest, signed: SignedUrl, offset: int
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The bytes from `offset` on as the peer gives them; all of them where it is a legacy one."""
        for _ in range(2):
            headers = request_headers(self._options, request, signed, legacy=self._legacy)
            legacy = bool(self._legacy)
            if offset and not legacy:
                headers.update(range_header(offset, request.entry.size - offset))
                # A range makes dfdaemon call the whole task finished, to us and to other peers: let it become true.
                headers.setdefault("X-Dragonfly-Prefetch", "true")
            async with self._http.get(request.label, signed.url, headers, proxy=self._proxy) as response:
                answered_by = is_legacy(response.headers)
                if self._finds_out and answered_by is not None:
                    self._legacy = answered_by
                    if answered_by is not legacy:
                        # It was asked in the other one's words, so its task is not by the object's version: ask anew.
                        continue
                if response.status == 416 and offset:
                    raise StartAgain
                if response.status not in (200, 206):
                    raise await self._error(request, response, legacy)
                check_peer(request, response.headers, legacy=legacy)
                yield response
                return
        raise PeerUnavailable(
            f"{request.label}: now a legacy daemon answers at the proxy's address, now dfdaemon",
            hint="is there a load balancer? `proxy` must be this node's own peer",
        )

    async def _error(self, request: FetchRequest, response: aiohttp.ClientResponse, legacy: bool) -> DfagentError:
        """The origin's error by its own meaning; the proxy's and the daemon's own as the peer's."""
        if response.status == 429 and response.headers.get(ERROR_TYPE) != "backend":
            return Overloaded(f"{request.label}: the Dragonfly proxy sheds load", hint="lower `concurrency`")
        own = peer_error(request, response.status, response.headers, legacy=legacy)
        return own or await error_of(request.label, response)


@dataclass(frozen=True, slots=True)
class _Came:
    """What the last answer brought: bytes, whether this node's peer had the whole task, a checksum beside the CRCs."""

    size: int
    local: bool = False
    computed: Checksum | None = None


def _is_local(response: aiohttp.ClientResponse) -> bool:
    return response.headers.get(FINISHED, "").lower() == "true"


async def _discard_body(response: aiohttp.ClientResponse, request: FetchRequest) -> None:
    """Reads the body to its end, because dfdaemon stops fetching for a client that went away."""
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        request.on_progress(len(chunk))
    if size != request.entry.size:
        raise Truncated(f"{request.label}: the answer ended after {size} of {request.entry.size} bytes")
