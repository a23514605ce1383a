"""Reads the checksums that the answer to an S3 HEAD carries; whatever is not one is passed over, never an error."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dfagent.checksums import ALGORITHMS
from dfagent.types import Checksum, ObjectEntry

_BYTES = {"crc64nvme": 8, "crc32c": 4, "crc32": 4, "sha256": 32, "sha1": 20, "md5": 16}
_MOST_PARTS = 10_000  # S3 takes no more
_VALUE = re.compile(r"(?P<value>[A-Za-z0-9+/]+={0,2})(?:-(?P<parts>[1-9][0-9]{0,4}))?")
_MD5_ETAG = re.compile(r'"?(?P<value>[0-9a-fA-F]{32})(?:-(?P<parts>[1-9][0-9]{0,4}))?"?')
_DIRECTORY_BUCKET = "--x-s3"


@dataclass(frozen=True, slots=True)
class Claim:
    """What the store says of an object's bytes: `parts` is 0 where `value` covers all of them at once.

    Else it covers the checksums of that many parts, whose size only another HEAD tells.
    """

    algorithm: str
    value: bytes
    parts: int = 0

    def at_once(self, size: int) -> Checksum | None:
        """The checksum of an object of `size` bytes, None where the size of its parts has to be asked for."""
        if self.parts == 1 and size:
            return Checksum(self.algorithm, self.value, size)
        return None if self.parts else Checksum(self.algorithm, self.value)

    def in_parts(self, size: int, part_size: int) -> Checksum | None:
        """The checksum over parts of `part_size` bytes, None where the object can't be made of `parts` such ones."""
        if part_size < 1 or -(-size // part_size) != self.parts:
            return None
        return Checksum(self.algorithm, self.value, part_size)


def claims(headers: Mapping[str, str], entry: ObjectEntry) -> Iterator[Claim]:
    """Every checksum of the object that we can compute, cheapest first; header names are in small letters."""
    of_etag = _of_etag(headers, entry)
    for algorithm in ALGORITHMS:
        claim = _of_header(headers, algorithm, of_etag)
        if claim:
            yield claim
    if of_etag and not _is_encrypted(headers) and not entry.ref.bucket.endswith(_DIRECTORY_BUCKET):
        yield of_etag


def part_size_of(headers: Mapping[str, str], parts: int) -> int:
    """The size of the part that a HEAD with a part number was answered for, 0 where the answer is of another kind."""
    told = headers.get("x-amz-mp-parts-count", str(parts))
    length = headers.get("content-length", "")
    return int(length) if told == str(parts) and re.fullmatch(r"[0-9]{1,19}", length) else 0


def _of_header(headers: Mapping[str, str], algorithm: str, of_etag: Claim | None) -> Claim | None:
    match = _VALUE.fullmatch(headers.get(f"x-amz-checksum-{algorithm}", ""))
    if match is None or algorithm not in _BYTES:
        return None
    try:
        value = base64.b64decode(match["value"], validate=True)
    except ValueError:
        return None
    parts = int(match["parts"] or 0)
    if not parts and headers.get("x-amz-checksum-type", "").upper() == "COMPOSITE":
        if not of_etag or not of_etag.parts:
            return None
        parts = of_etag.parts
    return _claim(algorithm, value, parts)


def _of_etag(headers: Mapping[str, str], entry: ObjectEntry) -> Claim | None:
    match = _MD5_ETAG.fullmatch(headers.get("etag", entry.etag))
    return _claim("md5", bytes.fromhex(match["value"]), int(match["parts"] or 0)) if match else None


def _claim(algorithm: str, value: bytes, parts: int) -> Claim | None:
    return Claim(algorithm, value, parts) if len(value) == _BYTES[algorithm] and parts <= _MOST_PARTS else None


def _is_encrypted(headers: Mapping[str, str]) -> bool:
    """Whether the ETag is of what lies encrypted in the store (with its own key, AES256, it is still the MD5)."""
    with_kms = headers.get("x-amz-server-side-encryption", "").lower().startswith("aws:")
    return with_kms or "x-amz-server-side-encryption-customer-algorithm" in headers
