"""The content of a fault-injecting S3 server: versions of objects, with whatever checksum a store may keep of them."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import quote
from xml.sax.saxutils import escape

from awscrt import checksums

CHECKSUMS = ("crc32", "crc32c", "crc64nvme", "sha256", "crc32-composite", "md5", "md5-composite", "none")
"""What a store may know of an object: a header, a header over parts, only an ETag that is an MD5, or nothing."""
PART = 64 << 10

_DIGESTS: dict[str, Callable[[bytes], bytes]] = {
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "crc32c": lambda data: checksums.crc32c(data).to_bytes(4, "big"),
    "crc64nvme": lambda data: checksums.crc64nvme(data).to_bytes(8, "big"),
    "sha256": lambda data: hashlib.sha256(data).digest(),
    "md5": lambda data: hashlib.md5(data).digest(),
}


@dataclass(frozen=True)
class Version:
    """One version of an object. `headers` are those that tell its checksum."""

    data: bytes
    etag: str
    headers: dict[str, str]
    parts: int = 0

    @classmethod
    def of(cls, data: bytes, checksum: str, number: int) -> Version:
        """`number` makes the ETag of a rewritten object another one even where the bytes are the same."""
        algorithm, _, composite = checksum.partition("-")
        parts = -(-len(data) // PART) if composite else 0
        if composite and not parts:
            return cls.of(data, algorithm, number)
        if algorithm == "md5":
            value = _over_parts(data, "md5") if parts else _DIGESTS["md5"](data)
            return cls(data, f'"{value.hex()}{f"-{parts}" if parts else ""}"', {}, parts)
        etag = f'"v{number}.{hashlib.sha1(data).hexdigest()[:20]}"'
        if algorithm == "none":
            return cls(data, etag, {})
        value = _over_parts(data, algorithm) if parts else _DIGESTS[algorithm](data)
        text = base64.b64encode(value).decode() + (f"-{parts}" if parts else "")
        kind = "COMPOSITE" if parts else "FULL_OBJECT"
        return cls(data, etag, {f"x-amz-checksum-{algorithm}": text, "x-amz-checksum-type": kind}, parts)


def _over_parts(data: bytes, algorithm: str) -> bytes:
    digest = _DIGESTS[algorithm]
    return digest(b"".join(digest(data[start : start + PART]) for start in range(0, len(data), PART)))


def error_xml(code: str, message: str) -> bytes:
    """An S3 error, with the signature in it that real stores quote."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
        "<SignatureProvided>5ignature</SignatureProvided></Error>"
    ).encode()


def listing_xml(bucket: str, prefix: str, page: Iterable[tuple[str, Version]], token: str) -> bytes:
    """One page of ListObjectsV2 as boto3 asks for it (keys percent-encoded); `token` is "" on the last one."""
    contents = "".join(
        f"<Contents><Key>{quote(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>{escape(version.etag)}</ETag><Size>{len(version.data)}</Size></Contents>"
        for key, version in page
    )
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{quote(prefix)}</Prefix><EncodingType>url</EncodingType>"
        f"<KeyCount>{contents.count('<Contents>')}</KeyCount><IsTruncated>{'true' if token else 'false'}</IsTruncated>"
        f"{more}{contents}</ListBucketResult>"
    ).encode()
