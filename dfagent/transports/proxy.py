"""`proxy`: an absolute-form GET through dfdaemon's HTTP proxy; no CONNECT, no CA, dfdaemon does the TLS."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import aiohttp

from dfagent.errors import DfagentError, Overloaded, PeerUnavailable, Truncated
from dfagent.transports.http import HttpClient, error_of, save_body
from dfagent.transports.options import RequestOptions, Timeouts, check_task_id
from dfagent.transports.partial import BLOCK_SIZE
from dfagent.types import Fetched, FetchRequest, SignedUrl, Source, Traffic

_TASK_ID = "X-Dragonfly-Task-Id"
_FINISHED = "X-Dragonfly-Task-Download-Finished"
_ERROR_TYPE = "X-Dragonfly-Error-Type"


class _AbsoluteFormRequest(aiohttp.ClientRequest):
    """Sends https URLs to the proxy as plain absolute-form GETs, where aiohttp would open a CONNECT tunnel.

    The bytes stay unencrypted only on the way to this node's own peer, which fetches them from the origin by TLS.
    """

    def is_ssl(self) -> bool:
        return False


class ProxyTransport:
    """Streams an object through the node's peer into a file of our own.

    The proxy tells only whether this node had the whole task already (`local`); everything else is `unknown`.
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
        self._legacy, self._block_size = legacy, block_size
        self._proxy = proxy
        self._options = options
        self._http = HttpClient(timeouts, "the Dragonfly proxy", request_class=_AbsoluteFormRequest)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        started = time.monotonic()
        signed = await request.sign()
        signed_at = time.monotonic()
        headers = self._headers(request, signed)
        path = folder / f"{request.task.id[:32]}-{uuid.uuid4().hex[:8]}.proxy.partial" if folder else None
        fd = -1
        try:
            if path:
                fd = _create(path)
            async with self._http.get(request.label, signed.url, headers, proxy=self._proxy) as response:
                if response.status != 200:
                    raise await self._error(request, response)
                check_task_id(request, response.headers.get(_TASK_ID, ""))
                if path:
                    await save_body(response, fd, 0, request.entry.size, request.on_progress, request.label)
                else:
                    await _discard_body(response, request)
                local = response.headers.get(_FINISHED, "").lower() == "true"
        except BaseException:
            if path:
                path.unlink(missing_ok=True)
            raise
        finally:
            if fd >= 0:
                os.close(fd)
        return Fetched(
            path=path,
            transport=self.name,
            source=Source.LOCAL if local else Source.UNKNOWN,
            traffic=Traffic(local_peer=request.entry.size) if local else Traffic(),
            sign_seconds=signed_at - started,
            fetch_seconds=time.monotonic() - signed_at,
        )

    def _headers(self, request: FetchRequest, signed: SignedUrl) -> dict[str, str]:
        options = self._options
        headers = {
            "X-Dragonfly-Use-P2P": "true",
            "X-Dragonfly-Filtered-Query-Params": ",".join(options.filters_for(signed)),
            "X-Dragonfly-Content-For-Calculating-Task-ID": request.task.content,
        }
        if options.tag:
            headers["X-Dragonfly-Tag"] = options.tag
        if options.application:
            headers["X-Dragonfly-Application"] = options.application
        if options.priority is not None:
            headers["X-Dragonfly-Priority"] = str(options.priority)
        if options.piece_length is not None:
            headers["X-Dragonfly-Piece-Length"] = f"{options.piece_length}b"
        return {**headers, **options.dragonfly_headers(), **options.origin_headers(request, signed)}

    async def _error(self, request: FetchRequest, response: aiohttp.ClientResponse) -> DfagentError:
        """The origin's error by its own meaning; the proxy's and the daemon's own as the peer's."""
        kind = response.headers.get(_ERROR_TYPE, "")
        if not kind and _TASK_ID not in response.headers and response.status != 429:
            return PeerUnavailable(
                f"{request.label}: what answers at the proxy's address is not dfdaemon: {response.status}",
                hint="is `proxy` in dragonfly_config.json the address of dfdaemon's proxy (often port 4001)?",
            )
        if response.status == 429:
            return Overloaded(f"{request.label}: the Dragonfly proxy sheds load", hint="lower `concurrency`")
        if kind in ("proxy", "dfdaemon"):
            return PeerUnavailable(
                f"{request.label}: the Dragonfly peer failed with {response.status} ({kind} error)",
                hint="dfdaemon's log on this node has the reason",
            )
        return await error_of(request.label, response)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)


async def _discard_body(response: aiohttp.ClientResponse, request: FetchRequest) -> None:
    """Reads the body to its end, because dfdaemon stops fetching for a client that went away."""
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        request.on_progress(len(chunk))
    if size != request.entry.size:
        raise Truncated(f"{request.label}: the answer ended after {size} of {request.entry.size} bytes")
