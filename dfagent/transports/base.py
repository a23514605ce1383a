"""What dfagent asks of a way to bring bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dfagent.types import Fetched, FetchRequest


class Transport(Protocol):
    """One way from a signed URL to a file.

    Raises `TransportError`, or `Changed` / `NotFound` / `AccessDenied` where the origin said so.
    """

    @property
    def name(self) -> str:
        """The transport's name in options and records."""
        ...

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        """Brings the object, complete and of the listed size, into a partial of its own in `folder`.

        With no `folder` it only warms the peer's cache. After an error no file is left that could be taken for a
        whole object; what can be resumed is found again by the next call with the same task and folder.
        """
        ...

    async def aclose(self) -> None:
        """Gives connections back."""
        ...
