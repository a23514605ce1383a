"""The S3 store: lists with ListObjectsV2, signs GET URLs with Signature Version 4."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from dfagent.errors import AccessDenied, ConfigError
from dfagent.settings.credentials import S3Credential
from dfagent.stores.s3_listing import Listing
from dfagent.stores.signing import SIGNING_PARAMS
from dfagent.types import Checksum, ObjectEntry, ObjectRef, RepositoryUrl, SignedUrl

if TYPE_CHECKING:
    from dfagent.stores.s3_client import Connection

DEFAULT_TTL = timedelta(minutes=15)
MAX_TTL = timedelta(days=7)  # Signature Version 4 allows no longer one
_CHECKSUM_HEADERS = {"x-amz-checksum-mode": "ENABLED"}
_Result = TypeVar("_Result")


class S3Store:
    """One S3 endpoint with one credential, on boto3; fulfils `dfagent.stores.base.Store`.

    The SDK is imported and its client built on first use, in a thread. Without a `credential` the SDK's own chain
    decides. Timeouts are seconds, `ttl` bounds the life of signed URLs. `checksums` asks the store for its checksum
    of the object: then `x-amz-checksum-mode` is signed, and stands in `SignedUrl.headers`.
    """

    def __init__(
        self,
        url: RepositoryUrl,
        credential: S3Credential | None = None,
        *,
        connect_timeout: float = 10.0,
        read_timeout: float = 60.0,
        ttl: timedelta = DEFAULT_TTL,
        checksums: bool = False,
    ) -> None:
        if not timedelta(seconds=1) <= ttl <= MAX_TTL:
            raise ConfigError(f"a signed URL can't live for {ttl}", hint="choose between a second and seven days")
        self._url = url
        self._credential = credential
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._ttl = ttl
        self._checksums = checksums
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    async def list(self, url: RepositoryUrl) -> AsyncIterator[ObjectEntry]:
        """Every object below `prefix/` in key order, folder markers too, one request a page.

        Where nothing lies below, `prefix` itself may be one object: one more request looks for it.
        """
        connection = await self._connected()
        below = f"{url.prefix}/" if url.prefix else ""
        found = False
        async for entry in self._list_below(connection, url.bucket, below):
            if entry.ref.key != below:  # else the marker of the folder that was asked for, which tells nothing
                found = True
                yield entry
        if url.prefix and not found:
            # The first key that begins with the prefix is the prefix itself, if there is such an object.
            listing = Listing(connection.endpoint, url.bucket)
            page = await self._page(connection, url.bucket, url.prefix, MaxKeys=1)
            for entry in listing.entries(page):
                if entry.ref.key == url.prefix:
                    yield entry

    async def sign(self, entry: ObjectEntry) -> SignedUrl:
        """A GET URL for the whole object, signed over the host header only, that does not outlive the credential."""
        connection = await self._connected()
        return await self._in_thread(lambda: self._sign(connection, entry.ref))

    async def checksum(self, entry: ObjectEntry) -> Checksum | None:
        """Not asked for yet."""
        del entry
        return None

    async def credential_id(self) -> str:
        """The access key id that the SDK resolved, "" for an anonymous one."""
        connection = await self._connected()
        key_id, _ = await self._in_thread(connection.refreshed)
        return key_id

    async def aclose(self) -> None:
        """Gives the client's connections back."""
        if self._connection is not None:
            await asyncio.to_thread(self._connection.client.close)
            self._connection = None

    async def _connected(self) -> Connection:
        async with self._connecting:
            if self._connection is None:
                self._connection = await self._in_thread(self._connect)
            return self._connection

    def _connect(self) -> Connection:
        from dfagent.stores.s3_client import Timeouts, connect

        return connect(self._url, self._credential, Timeouts(self._connect_timeout, self._read_timeout))

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        def guarded() -> _Result:
            from dfagent.stores.s3_errors import translated

            with translated(str(self._url)):
                return work()

        return await asyncio.to_thread(guarded)

    async def _list_below(self, connection: Connection, bucket: str, prefix: str) -> AsyncIterator[ObjectEntry]:
        listing = Listing(connection.endpoint, bucket)
        more: dict[str, Any] | None = {}
        while more is not None:
            page = await self._page(connection, bucket, prefix, **more)
            for entry in listing.entries(page):
                yield entry
            token = listing.next_token(page)
            more = {"ContinuationToken": token} if token else None

    async def _page(self, connection: Connection, bucket: str, prefix: str, **more: Any) -> Mapping[str, Any]:
        def ask() -> Mapping[str, Any]:
            from dfagent.stores.s3_errors import readable

            with readable(str(self._url)):
                return connection.client.list_objects_v2(Bucket=bucket, Prefix=prefix, **more)

        return await self._in_thread(ask)

    def _sign(self, connection: Connection, ref: ObjectRef) -> SignedUrl:
        _, credential_ends = connection.refreshed()
        now = datetime.now(timezone.utc).replace(microsecond=0)
        seconds = _lifetime(self._ttl, credential_ends, now)
        params = {"Bucket": ref.bucket, "Key": ref.key}
        if self._checksums:
            params["ChecksumMode"] = "ENABLED"
        url = connection.client.generate_presigned_url("get_object", Params=params, ExpiresIn=seconds)
        headers = _CHECKSUM_HEADERS if self._checksums else {}
        return SignedUrl(url, now + timedelta(seconds=seconds), SIGNING_PARAMS["s3"], headers)


def _lifetime(ttl: timedelta, credential_ends: datetime | None, now: datetime) -> int:
    seconds = int(ttl.total_seconds())
    if credential_ends is None:
        return seconds
    # Less a second, because the SDK takes the time itself a moment later.
    left = int((credential_ends - now).total_seconds()) - 1
    if left < 1:
        raise AccessDenied("the temporary S3 credential has expired", hint="get a new one, or check its provider")
    return min(seconds, left)
