"""Which checksum an answer's headers tell: the cheapest one that covers all bytes at once."""

from __future__ import annotations

import base64

import pytest
from multidict import CIMultiDict

from dfagent.checksums import hasher
from dfagent.transports.told import told_checksum
from dfagent.types import Checksum

DATA = b"weights"


def computed(algorithm: str) -> Checksum:
    known = hasher(algorithm)
    known.update(DATA)
    return known.checksum()


def text(algorithm: str) -> str:
    return base64.b64encode(computed(algorithm).value).decode()


CRC64 = str(int.from_bytes(computed("crc64xz").value, "big"))


@pytest.mark.parametrize(
    ("headers", "algorithm"),
    [
        ({}, None),
        ({"x-amz-checksum-crc64nvme": text("crc64nvme"), "x-amz-checksum-type": "FULL_OBJECT"}, "crc64nvme"),
        ({"X-Amz-Checksum-CRC32": text("crc32")}, "crc32"),
        ({"x-amz-checksum-crc32c": text("crc32c"), "x-amz-checksum-sha256": text("sha256")}, "crc32c"),
        ({"x-amz-checksum-sha1": text("sha1"), "Content-MD5": text("md5")}, "sha1"),
        ({"x-amz-checksum-sha256": text("sha256"), "x-amz-checksum-sha1": text("sha1")}, "sha256"),
        ({"x-goog-hash": f"crc32c={text('crc32c')}"}, "crc32c"),
        ({"x-goog-hash": f"md5={text('md5')}, crc32c={text('crc32c')}"}, "crc32c"),
        ({"x-goog-hash": f"md5={text('md5')}"}, "md5"),
        ({"x-oss-hash-crc64ecma": CRC64, "Content-MD5": text("md5")}, "crc64xz"),
        ({"Content-MD5": f" {text('md5')} "}, "md5"),
    ],
)
def should_take_the_cheapest_that_is_told(headers: dict[str, str], algorithm: str | None) -> None:
    assert told_checksum(CIMultiDict(headers)) == (computed(algorithm) if algorithm else None)


def should_read_a_header_that_comes_twice() -> None:
    headers = CIMultiDict([("x-goog-hash", f"md5={text('md5')}"), ("x-goog-hash", f"crc32c={text('crc32c')}")])
    assert told_checksum(headers) == computed("crc32c")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-amz-checksum-crc32": text("crc32"), "x-amz-checksum-type": "COMPOSITE"},
        {"x-amz-checksum-crc32": text("crc32"), "x-amz-checksum-type": "composite"},
        {"x-amz-checksum-crc32": text("crc32"), "x-amz-checksum-type": "something new"},
        {"x-amz-checksum-sha256": f"{text('sha256')}-3"},
        {"x-amz-checksum-crc32": text("md5")},
        {"x-amz-checksum-crc32": "not base64!"},
        {"x-amz-checksum-crc32": ""},
        {"x-amz-checksum-crc32": "é"},
        {"x-amz-checksum-md4": text("md5")},
        {"x-goog-hash": "crc32c"},
        {"x-goog-hash": f"sha9={text('md5')}"},
        {"x-oss-hash-crc64ecma": str(1 << 64)},
        {"x-oss-hash-crc64ecma": "-1"},
        {"x-oss-hash-crc64ecma": "9" * 5000},
        {"x-oss-hash-crc64ecma": "²"},
        {"Content-MD5": text("crc32")},
        {"x-ms-version": "2020"},
    ],
)
def should_believe_no_checksum_that_is_of_parts_or_unsound(headers: dict[str, str]) -> None:
    assert told_checksum(CIMultiDict(headers)) is None
