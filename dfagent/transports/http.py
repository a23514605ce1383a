"""What direct and proxy share: one aiohttp session, its timeouts, and its exceptions as ours."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from dfagent.errors import ConnectFailed, DfagentError, NoSpace, Stalled, StoreUnavailable, Truncated
from dfagent.redact import redact
from dfagent.tasks import finished_in_thread
from dfagent.transports.options import Timeouts
from dfagent.transports.origin import origin_error

if TYPE_CHECKING:
    import aiohttp

# One read hands over as much as arrived while the last one was written: large enough to make few thread hops,
# small enough that 16 objects in flight stay below 100 MB.
READ_BUFFER = 1 << 20
# Each may hold twice that in memory; more than this many make nothing faster.
CONNECTIONS = 32
_ERROR_BODY_LIMIT = 4096


class HttpClient:
    """An aiohttp session that is made on first use, in the loop that uses it."""

    def __init__(self, timeouts: Timeouts, peer: str, **session_options: Any) -> None:
        self._timeouts = timeouts
        self._peer = peer
        self._session_options = session_options
        self._session: aiohttp.ClientSession | None = None

    def session(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self._timeouts.connect, sock_read=self._timeouts.stall
                ),
                auto_decompress=False,
                headers={"Accept-Encoding": "identity", "User-Agent": "dfagent"},
                **self._session_options,
            )
        return self._session

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def get(
        self, label: str, url: str, headers: dict[str, str], **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A streaming GET; aiohttp's exceptions, also those of reading the body, come out as ours."""
        import yarl

        target = yarl.URL(url, encoded=True)  # quoting a signed URL again would break its signature
        try:
            async with self.session().get(
                target, headers=headers, allow_redirects=False, read_bufsize=READ_BUFFER, **options
            ) as response:
                yield response
        except Exception as exc:
            translated = self._translate(label, exc)
            if translated is None:
                raise
            raise translated from _without_query(exc)

    def _translate(self, label: str, exc: Exception) -> DfagentError | None:
        import aiohttp

        if isinstance(exc, aiohttp.ServerTimeoutError):
            if isinstance(exc, aiohttp.ConnectionTimeoutError):
                return ConnectFailed(
                    f"{label}: {self._peer} did not accept a connection within {self._timeouts.connect:g} s",
                    hint="is it running, and is the address right?",
                )
            return Stalled(
                f"{label}: no byte from {self._peer} for {self._timeouts.stall:g} s",
                hint="the network or the origin is stuck; --stall-timeout sets how long to wait",
            )
        if isinstance(exc, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
            return StoreUnavailable(
                f"{label}: {self._peer}: TLS failed: {type(exc).__name__}",
                hint="is the store's CA known to this machine (SSL_CERT_FILE)?",
                retryable=False,
            )
        if isinstance(exc, aiohttp.ClientConnectorError):
            return ConnectFailed(
                f"{label}: {self._peer} refused the connection: {exc.os_error.strerror or exc.os_error}",
                hint="is it running, and is the address right?",
            )
        if isinstance(exc, aiohttp.ClientError):
            reason = redact(str(exc)) or type(exc).__name__
            return Truncated(f"{label}: the connection to {self._peer} was lost: {reason}")
        return None


def _without_query(exc: Exception) -> Exception:
    """The cause, unless its own text quotes a signed URL: a traceback would print it."""
    return exc if redact(str(exc)) == str(exc) else Exception(redact(f"{type(exc).__name__}: {exc}"))


async def error_of(label: str, response: aiohttp.ClientResponse) -> DfagentError:
    """The typed error for an answer that is not the object; reads a bounded part of its body for the reason."""
    return origin_error(label, response.status, await error_body(response), _retry_after(response))


async def error_body(response: aiohttp.ClientResponse) -> str:
    """The beginning of an answer that is not the object."""
    return (await response.content.read(_ERROR_BODY_LIMIT)).decode(errors="replace")


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    try:
        return float(value) if value.isdecimal() else max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


async def save_body(
    response: aiohttp.ClientResponse, fd: int, offset: int, size: int, on_progress: Callable[[int], None], label: str
) -> None:
    """Writes the body of exactly `size` bytes at `offset`, off the event loop; anything else is `Truncated`."""
    written = 0
    async for chunk in response.content.iter_any():
        if written + len(chunk) > size:
            raise Truncated(f"{label}: the answer is longer than the {size} bytes of the object")
        try:
            await finished_in_thread(_write_at, fd, chunk, offset + written)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoSpace(f"{label}: the disk is full", hint="make room, then run again") from exc
        written += len(chunk)
        on_progress(len(chunk))
    if written != size:
        raise Truncated(f"{label}: the answer ended after {written} of {size} bytes")


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
