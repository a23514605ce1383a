"""What dfagent asks of an object store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from dfagent.types import Checksum, ObjectEntry, RepositoryUrl, SignedUrl


class Store(Protocol):
    """One object store with one credential.

    Raises only `StoreError` (and `ConfigError` for credentials that can't work): SDK exceptions end at the adapter.
    """

    def list(self, url: RepositoryUrl) -> AsyncIterator[ObjectEntry]:
        """Every object whose key is `prefix` or lies below `prefix/`, in key order, one request a page.

        Folder markers (empty objects whose key ends in a slash) are objects too: an ensemble's version folder has
        nothing else in it. The marker `prefix/` itself is not below the prefix.
        """
        ...

    async def sign(self, entry: ObjectEntry) -> SignedUrl:
        """A GET URL for the object that does not outlive the credential."""
        ...

    async def checksum(self, entry: ObjectEntry) -> Checksum | None:
        """The store's own checksum of this version of the object, None where it has none that we can compute.

        The cheapest one to compute where there are several, MD5 last. Raises `Changed` for another version.
        """
        ...

    async def aclose(self) -> None:
        """Gives connections back."""
        ...

    async def credential_id(self) -> str:
        """The public part of the credential (an access key id), "" where there is none; never a secret."""
        ...
