"""What direct and proxy share: one aiohttp session, its timeouts, and its exceptions as ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from dfagent._compat import timeout
from dfagent.errors import ConnectFailed, DfagentError, Stalled, StoreUnavailable, Truncated
from dfagent.redact import redact
from dfagent.tasks import finished_in_thread
from dfagent.transports.options import Timeouts
from dfagent.transports.origin import origin_error, seconds_to_wait

if TYPE_CHECKING:
    import aiohttp

    from dfagent.transports.partial import Writer

# One read hands over as much as arrived while the last one was written: large enough to make few thread hops,
# small enough that 16 objects in flight stay below 100 MB.
READ_BUFFER = 1 << 20
# Each may hold twice that in memory; more than this many make nothing faster.
CONNECTIONS = 32
_ERROR_BODY_LIMIT = 4096
# Its status is worth more than its text: nobody waits long for that.
_ERROR_BODY_SECONDS = 5.0


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
                # A store's cookies are nothing that we would have to bring back.
                cookie_jar=aiohttp.DummyCookieJar(),
                response_class=_with_head_within(self._timeouts.stall),
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

        if isinstance(exc, aiohttp.ServerTimeoutError | asyncio.TimeoutError):
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


def _with_head_within(seconds: float) -> type[aiohttp.ClientResponse]:
    """Answers whose head has to come in this time: a server that says "100 Continue" for ever is never silent."""
    import aiohttp

    class Response(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            async with timeout(seconds):
                return await super().start(connection)

    return Response


def _without_query(exc: Exception) -> Exception:
    """The cause, unless its own text quotes a signed URL: a traceback would print it."""
    return exc if redact(str(exc)) == str(exc) else Exception(redact(f"{type(exc).__name__}: {exc}"))


async def error_of(label: str, response: aiohttp.ClientResponse) -> DfagentError:
    """The typed error for an answer that is not the object; reads a bounded part of its body for the reason."""
    return origin_error(label, response.status, await error_body(response), _retry_after(response))


async def error_body(response: aiohttp.ClientResponse) -> str:
    """The beginning of an answer that is not the object; what came of it, if it breaks off or takes too long."""
    import aiohttp

    body = bytearray()

    async def read() -> None:
        while len(body) < _ERROR_BODY_LIMIT and (chunk := await response.content.read(_ERROR_BODY_LIMIT - len(body))):
            body.extend(chunk)

    with suppress(aiohttp.ClientError, asyncio.TimeoutError):
        await asyncio.wait_for(read(), _ERROR_BODY_SECONDS)
    return body.decode(errors="replace")


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    return seconds_to_wait(response.headers.get("Retry-After", ""))


async def save_body(
    response: aiohttp.ClientResponse, writer: Writer, on_progress: Callable[[int], None], label: str
) -> None:
    """Writes a body of exactly the writer's length, off the event loop; anything else is `Truncated`.

    A connection that breaks keeps the blocks that came. A body that ends by itself too early or too late was not the
    object, whatever it began with: its blocks are taken back.
    """
    async for chunk in response.content.iter_any():
        if len(chunk) > writer.left:
            await finished_in_thread(writer.take_back)
            raise Truncated(f"{label}: the answer is longer than the bytes asked for")
        await finished_in_thread(writer.write, chunk)
        on_progress(len(chunk))
    if left := writer.left:
        await finished_in_thread(writer.take_back)
        raise Truncated(f"{label}: the answer ended {left} bytes too early")
