"""A server on loopback for the time of an `async with`."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TypeVar

AnyListening = TypeVar("AnyListening", bound="Listening")


class Listening:
    """Listens at `url`; every connection is `_serve`d by whoever derives from it."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self.url = ""

    async def __aenter__(self: AnyListening) -> AnyListening:  # noqa: PYI019 — Python 3.10 has no Self
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError
