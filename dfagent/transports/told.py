"""The checksum that a store's answer tells in its own headers, where the answer is the whole object."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Protocol

from dfagent.checksums import ALGORITHMS
from dfagent.types import Checksum

_LENGTHS = {"crc64nvme": 8, "crc32c": 4, "crc64xz": 8, "crc32": 4, "sha256": 32, "sha1": 20, "md5": 16}


class Headers(Protocol):
    """Headers that ignore the case of their names, such as aiohttp's."""

    def getall(self, key: str, default: list[str], /) -> list[str]: ...


def told_checksum(headers: Headers) -> Checksum | None:
    """The cheapest one to compute of those that cover all bytes at once; None where there is none, or none is sound."""
    told = {checksum.algorithm: checksum for checksum in _all(headers)}
    return next((told[algorithm] for algorithm in ALGORITHMS if algorithm in told), None)


def _all(headers: Headers) -> Iterator[Checksum]:
    yield from _amz(headers)
    for value in _values(headers, "x-goog-hash"):
        for part in value.split(","):
            name, _, text = part.strip().partition("=")
            if name in ("crc32c", "md5"):
                yield from _from_base64(name, text)
    for value in _values(headers, "x-oss-hash-crc64ecma"):
        if value.isdecimal() and value.isascii() and len(value) <= 20 and int(value) < 1 << 64:
            yield Checksum("crc64xz", int(value).to_bytes(8, "big"))
    for value in _values(headers, "content-md5"):
        yield from _from_base64("md5", value)


def _amz(headers: Headers) -> Iterator[Checksum]:
    kinds = _values(headers, "x-amz-checksum-type")
    # Over the checksums of parts whose sizes the answer doesn't tell; "-N" says so where the type is missing.
    if any(kind.upper() != "FULL_OBJECT" for kind in kinds):
        return
    for algorithm in ("crc64nvme", "crc32c", "crc32", "sha256", "sha1"):
        for value in _values(headers, f"x-amz-checksum-{algorithm}"):
            yield from _from_base64(algorithm, value)


def _values(headers: Headers, name: str) -> list[str]:
    return [value.strip() for value in headers.getall(name, [])]


def _from_base64(algorithm: str, text: str) -> Iterator[Checksum]:
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return
    if len(value) == _LENGTHS[algorithm]:
        yield Checksum(algorithm, value)
