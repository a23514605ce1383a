"""What a store answers to the listing and to HEAD, through the SDK's own parsers: entries and checksums, or an error.

Nothing is sent: the SDK's hook before sending gives the fuzzer's answer.
"""

from __future__ import annotations

import re
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import atheris
import botocore.endpoint
from botocore.awsrequest import AWSResponse, HeadersDict

from dfagent.checksums import ALGORITHMS, hasher
from dfagent.errors import EmptyRepository, StoreError
from dfagent.repository.scan import scan
from dfagent.settings.credentials import S3Credential
from dfagent.stores.s3 import S3Store
from dfagent.stores.s3_errors import readable, translated
from dfagent.stores.s3_listing import Listing
from dfagent.stores.url import parse_repository_url
from dfagent.types import ObjectEntry, ObjectRef

_OBJECT = b"<Contents><Key>m/a/1</Key><Size>1</Size><ETag>&quot;e&quot;</ETag></Contents>"
_MORE = b"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
_URL_ENCODED = b"<EncodingType>url</EncodingType><Delimiter>%2F</Delimiter>" + _OBJECT.replace(b"m/a", b"%00")
_ENTITIES = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'


def _page(inner: bytes) -> bytes:
    return b"<ListBucketResult><Name>b</Name>" + inner + b"</ListBucketResult>"


SEEDS = [
    b"\x00\x00" + _page(_OBJECT),
    b"\x00\x00" + _page(_OBJECT.replace(b"<Size>1<", b"<Size>-1<")),
    b"\x00\x00" + _page(_OBJECT.replace(b"<Size>1<", b"<Size>99999999999999999999<")),
    b"\x00\x00" + _page(_OBJECT.replace(b"&quot;e", b"&#10;e")),
    b"\x00\x00" + _page(_MORE + _OBJECT),
    b"\x00\x00" + _page(_URL_ENCODED),
    b"\x00\x00" + _ENTITIES + _page(b"<Contents><Key>&b;&b;</Key></Contents>"),
    b"\x00\x05<Error><Code>SlowDown</Code><Message>m</Message><Region>r</Region></Error>",
    b'\x01\x00x-amz-checksum-crc32: GtJzWA==-2\netag: "e"\nx-amz-mp-parts-count: 2\ncontent-length: 4',
    b'\x01\x00etag: "e"\nx-amz-checksum-sha256: GtJzWA==\nx-amz-checksum-crc32c: AAAAAAAAAAA=',
    b'\x01\x00etag: "e"\nx-amz-checksum-sha256: x\nx-amz-server-side-encryption: aws:kms\nlast-modified: x',
    b"\x01\x03x-amz-bucket-region: eu-west-1\nlocation: http://evil/",
]
_STATUSES = (200, 206, 204, 301, 307, 400, 403, 404, 405, 412, 429, 500, 501, 503)
_URL = parse_repository_url("s3://http://127.0.0.1:9/bkt/m")
_ENTRY = ObjectEntry(ObjectRef("s3", "127.0.0.1:9", "bkt", "m/a"), 7, '"e"')
_answer: list[Any] = []


def _send(request: Any, **_: Any) -> Any:
    status, headers, body = _answer[0]
    named: Any = HeadersDict(headers)
    return AWSResponse(request.url, status, named, SimpleNamespace(stream=lambda: iter([body])))


_store = S3Store(_URL, S3Credential.model_validate({"key_id": "K", "secret_key": "S"}))
_connection = _store._connect()
_connection.client.meta.events.register("before-send.s3", _send)
botocore.endpoint.time = SimpleNamespace(sleep=lambda _seconds: None)  # type: ignore[attr-defined]


def check(data: bytes) -> None:
    """The first byte chooses listing or HEAD, the second one the status."""
    given = atheris.FuzzedDataProvider(data[2:])
    status = _STATUSES[data[1] % len(_STATUSES)] if len(data) > 1 else 200
    if not data or data[0] % 2 == 0:
        _answer[:] = [(status, {}, data[2:])]
        _check_listing()
        return
    lines = (line.partition(":") for line in given.ConsumeUnicodeNoSurrogates(len(data)).split("\n"))
    headers = {name.strip(): value.strip() for name, _, value in lines if name.strip()}
    _answer[:] = [(status, headers, b"")]
    try:
        checksum = _store._guarded(lambda: _store._checksum(_connection, _ENTRY))
    except StoreError as refused:
        assert str(refused).isprintable()
        return
    if checksum:
        assert checksum.algorithm in ALGORITHMS and checksum.part_size >= 0
        assert len(hasher(checksum.algorithm, checksum.part_size).checksum().value) == len(checksum.value)


def _check_listing() -> None:
    listing = Listing("127.0.0.1:9", "bkt")
    try:
        with translated("place"), readable("place"):
            page = _connection.client.list_objects_v2(Bucket="bkt", Prefix="m/")
        entries = listing.entries(page)
        token = listing.next_token(page)
    except StoreError as refused:
        assert str(refused).isprintable()
        return
    assert isinstance(token, str)
    for entry in entries:
        assert entry.ref.key and 0 <= entry.size < 2**63
        assert re.fullmatch(r"[\x21-\x7e]*", entry.etag)
    with suppress(EmptyRepository):
        scan(_URL, entries)
