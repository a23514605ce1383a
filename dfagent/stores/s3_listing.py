"""Reads the pages of an S3 listing; whatever no S3 server would answer is a `StoreError`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

from dfagent.errors import StoreError
from dfagent.types import ObjectEntry, ObjectRef

NOT_S3_HINT = "check that an S3 server listens at the URL's host and port"
MAX_OBJECTS = 1_000_000
"""A longer listing is refused: no model repository has so many objects, and each takes memory until it is planned."""

_LARGEST = 2**63 - 1  # bytes; the largest size that file systems and Dragonfly's protocol can name
_ETAG = re.compile(r"[\x21-\x7e]+")  # it travels in an If-Match header


class Listing:
    """The pages of one listing, in their order; `endpoint` and `bucket` are those of the objects' names.

    A page that contradicts itself, or is not of the bucket and `prefix` that were asked for, is refused: whoever takes
    it for the whole listing removes what is still there.
    """

    def __init__(self, endpoint: str, bucket: str, prefix: str | None = None) -> None:
        self._endpoint = endpoint
        self._bucket = bucket
        self._prefix = prefix
        self._tokens: set[str] = set()
        self._keys: set[str] = set()

    def entries(self, page: Mapping[str, Any]) -> list[ObjectEntry]:
        """The page's objects, folder markers too."""
        # The SDK reads any XML, and an empty body, as a page without objects.
        if "Name" not in page and "KeyCount" not in page:
            raise StoreError(f"{self._bucket}: the answer is not S3's: it is no listing", hint=NOT_S3_HINT)
        items = page.get("Contents", ())
        self._check_page(page, len(items))
        if len(self._keys) + len(items) > MAX_OBJECTS:
            raise StoreError(
                f"{self._bucket}: the listing holds more than {MAX_OBJECTS:,} objects",
                hint="is the prefix right? a model repository, or one model, lies below it and nothing else",
            )
        return [self._entry(item) for item in items]

    def next_token(self, page: Mapping[str, Any]) -> str:
        """The continuation token of the page that follows, "" after the last one."""
        token = self._said(page, "NextContinuationToken")
        if not page.get("IsTruncated"):
            if token:
                raise self._refused("has a continuation token, but says that it is complete")
            return ""
        if not token or token in self._tokens:
            raise self._refused(
                "repeats a continuation token" if token else "has more pages, but no continuation token"
            )
        self._tokens.add(token)
        return token

    def _check_page(self, page: Mapping[str, Any], items: int) -> None:
        count = page.get("KeyCount")
        if isinstance(count, int) and count > items:
            raise self._refused(f"counts {count} keys and holds {items}")
        prefix, name = self._said(page, "Prefix"), self._said(page, "Name")
        # Some servers encode the keys and not the prefix; the SDK decodes both.
        if self._prefix is not None and prefix not in ("", self._prefix, unquote_plus(self._prefix)):
            raise self._refused(f"is of the prefix {prefix[:80]!r}, which was not asked for")
        # An alias of an access point may be answered with the bucket's own name.
        if name not in ("", self._bucket) and not self._bucket.endswith("-s3alias"):
            raise self._refused(f"is of the bucket {name[:80]!r}, which was not asked for")
        for asked_for_none in ("Delimiter", "StartAfter"):
            if page.get(asked_for_none):
                raise self._refused(f"obeys a {asked_for_none}, which was not asked for")
        if page.get("CommonPrefixes"):
            raise self._refused("has folders in the place of objects")

    def _check_key(self, key: str) -> None:
        if self._prefix is not None and not key.startswith(self._prefix):
            raise self._refused(f"has {key[:80]!r}, which is not below the prefix that was asked for")
        if key in self._keys:
            raise self._refused(f"has {key[:80]!r} twice")
        self._keys.add(key)

    def _said(self, page: Mapping[str, Any], name: str) -> str:
        value = page.get(name, "")
        if not isinstance(value, str):
            raise self._refused(f"says {name} more than once")
        return value

    def _refused(self, problem: str) -> StoreError:
        return StoreError(f"{self._bucket}: the listing {problem}", hint="the store's listing is broken")

    def _entry(self, item: Mapping[str, Any]) -> ObjectEntry:
        key, size, etag = item.get("Key", ""), item.get("Size"), item.get("ETag", "")
        if not key:
            raise self._broken("an object", "no key")
        self._check_key(key)
        if not isinstance(size, int) or not 0 <= size <= _LARGEST:
            raise self._broken(repr(key), "no size" if size is None else "a size that no object can have")
        # Some gateways give their folder markers no ETag, and nobody fetches a marker.
        is_marker = size == 0 and key.endswith("/")
        if not _ETAG.fullmatch(etag) and not (is_marker and not etag):
            problem = "an ETag that no HTTP header can carry" if etag else "no ETag"
            raise self._broken(repr(key), problem, hint="dfagent needs one to pin an object's version")
        return ObjectEntry(ObjectRef("s3", self._endpoint, self._bucket, key), size, etag)

    def _broken(self, what: str, problem: str, hint: str = "the store's listing is broken") -> StoreError:
        return StoreError(f"{self._bucket}: the store lists {what} with {problem}", hint=hint)
