"""The S3 store: lists with ListObjectsV2, signs GET URLs with Signature Version 4, asks for checksums with HEAD."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from dfagent.errors import AccessDenied, Changed, ConfigError
from dfagent.settings.credentials import S3Credential
from dfagent.stores.patience import patiently
from dfagent.stores.s3_checksums import Claim, claims, part_size_of
from dfagent.stores.s3_listing import Listing
from dfagent.stores.signing import SIGNING_PARAMS
from dfagent.types import Checksum, ObjectEntry, ObjectRef, RepositoryUrl, SignedUrl

if TYPE_CHECKING:
    from dfagent.stores.s3_client import Connection

DEFAULT_TTL = timedelta(minutes=15)
MAX_TTL = timedelta(days=7)  # Signature Version 4 allows no longer one
_HEADS_AT_ONCE = 16  # as many objects as are in flight by default
_CHECKSUM_HEADERS = {"x-amz-checksum-mode": "ENABLED"}
_Result = TypeVar("_Result")
_Headers = Mapping[str, str]
_log = logging.getLogger(__name__)


class S3Store:
    """One S3 endpoint with one credential, on boto3; fulfils `dfagent.stores.base.Store`.

    The SDK is imported and its client built on first use, in a thread. Without a `credential` the SDK's own chain
    decides. Timeouts are seconds, `ttl` bounds the life of signed URLs. With `checksums` the answers to signed GETs
    carry the store's checksum too: then `x-amz-checksum-mode` is signed, and stands in `SignedUrl.headers`, which
    every request must carry. The method `checksum` needs it not: it asks with a HEAD of its own.
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
        # Of their own, because a silent store must not hold the threads that hash and write files.
        self._heads = ThreadPoolExecutor(_HEADS_AT_ONCE, thread_name_prefix="s3-head")
        self._told_that_head_is_refused = False

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
            listing = Listing(connection.endpoint, url.bucket, url.prefix)
            page = await self._page(connection, url.bucket, url.prefix, MaxKeys=1)
            for entry in listing.entries(page):
                if entry.ref.key == url.prefix:
                    yield entry

    async def sign(self, entry: ObjectEntry) -> SignedUrl:
        """A GET URL for the whole object, signed over the host header only, that does not outlive the credential."""
        connection = await self._connected()
        return await self._in_thread(lambda: self._sign(connection, entry.ref))

    async def checksum(self, entry: ObjectEntry) -> Checksum | None:
        """The cheapest checksum that HEAD tells (x-amz-checksum-…, else an ETag that is an MD5), None without one.

        A checksum of parts costs one more HEAD, which tells the size of the parts. Raises `Changed` for another
        version, `NotFound`, and `StoreUnavailable`. A HEAD that the store refuses tells nothing, and is no error: the
        GET will say what is wrong.
        """
        if not entry.etag:
            return None  # a folder marker of a gateway that has none, which nobody fetches
        connection = await self._connected()
        return await asyncio.get_running_loop().run_in_executor(
            self._heads, self._guarded, lambda: self._checksum(connection, entry)
        )

    async def credential_id(self) -> str:
        """The access key id that the SDK resolved, "" for an anonymous one."""
        connection = await self._connected()
        key_id, _ = await self._in_thread(connection.refreshed)
        return key_id

    async def aclose(self) -> None:
        """Gives the client's connections and the threads back."""
        self._heads.shutdown(wait=False, cancel_futures=True)
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
        return await asyncio.to_thread(self._guarded, work)

    def _guarded(self, work: Callable[[], _Result]) -> _Result:
        from dfagent.stores.s3_errors import translated

        with translated(str(self._url)):
            return work()

    async def _list_below(self, connection: Connection, bucket: str, prefix: str) -> AsyncIterator[ObjectEntry]:
        listing = Listing(connection.endpoint, bucket, prefix)
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

        return await patiently(lambda: self._in_thread(ask))

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

    def _checksum(self, connection: Connection, entry: ObjectEntry) -> Checksum | None:
        headers = self._head(connection, entry)
        if headers is None:
            return None
        part_size: int | None = None
        for claim in claims(headers, entry):
            checksum = claim.at_once(entry.size)
            if checksum is None:
                if part_size is None:
                    part_size = self._part_size(connection, entry, claim)
                checksum = claim.in_parts(entry.size, part_size)
            if checksum:
                return checksum
        return None

    def _part_size(self, connection: Connection, entry: ObjectEntry, claim: Claim) -> int:
        headers = self._head(connection, entry, PartNumber=1)
        return part_size_of(headers, claim.parts) if headers else 0

    def _head(self, connection: Connection, entry: ObjectEntry, **more: Any) -> _Headers | None:
        """The headers of the version that was listed, None where the store takes no HEAD or answers no S3."""
        from botocore.exceptions import ClientError

        from dfagent.stores.s3_errors import readable, translate_head

        ref = entry.ref
        try:
            with readable(str(ref)):
                answer = connection.client.head_object(
                    Bucket=ref.bucket, Key=ref.key, IfMatch=entry.etag, ChecksumMode="ENABLED", **more
                )
        except ClientError as exc:
            error = translate_head(exc, str(ref))
            if error:
                raise error from exc
            self._tell_that_head_is_refused(exc.response["ResponseMetadata"]["HTTPStatusCode"])
            return None
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        if _bare(headers.get("etag", entry.etag)) != _bare(entry.etag):
            raise Changed(f"{ref} was overwritten after the listing", hint="run again")
        return headers

    def _tell_that_head_is_refused(self, status: int) -> None:
        if not self._told_that_head_is_refused:
            self._told_that_head_is_refused = True
            _log.warning("%s: the store answered a HEAD with %d, so checksums may be missing", self._url, status)


def _bare(etag: str) -> str:
    # Gateways differ in how they write one and the same.
    return etag.removeprefix("W/").strip('"')


def _lifetime(ttl: timedelta, credential_ends: datetime | None, now: datetime) -> int:
    seconds = int(ttl.total_seconds())
    if credential_ends is None:
        return seconds
    # Less a second, because the SDK takes the time itself a moment later.
    left = int((credential_ends - now).total_seconds()) - 1
    if left < 1:
        raise AccessDenied("the temporary S3 credential has expired", hint="get a new one, or check its provider")
    return min(seconds, left)
