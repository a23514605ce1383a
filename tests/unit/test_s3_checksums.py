"""What the headers of an S3 HEAD say of an object's bytes; headers that say nothing sensible say nothing."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest

from dfagent.stores.s3_checksums import Claim, claims, part_size_of
from dfagent.types import Checksum, ObjectEntry, ObjectRef

BODY = b"weights"
CRC32 = zlib.crc32(BODY).to_bytes(4, "big")
SHA256 = hashlib.sha256(BODY).digest()
MD5 = hashlib.md5(BODY, usedforsecurity=False).digest()


def base64_of(value: bytes) -> str:
    return base64.b64encode(value).decode()


def read(etag: str = '"not-an-md5"', bucket: str = "bucket", **headers: str) -> list[Claim]:
    """The claims of a HEAD; `crc32="…"` is x-amz-checksum-crc32, `sse` and `ssec` the headers of encryption."""
    names = {
        "sse": "x-amz-server-side-encryption",
        "ssec": "x-amz-server-side-encryption-customer-algorithm",
        "etag": "etag",
    }
    named = {names.get(name, f"x-amz-checksum-{name}"): value for name, value in headers.items()}
    entry = ObjectEntry(ObjectRef("s3", "store:1", bucket, "key"), len(BODY), etag)
    return list(claims({"etag": etag, **named}, entry))


def test_should_put_the_cheapest_first_and_md5_last() -> None:
    """A store that tells several is asked for as little work as possible."""
    found = read(f'"{MD5.hex()}"', sha256=base64_of(SHA256), crc32=base64_of(CRC32))
    assert found == [Claim("crc32", CRC32), Claim("sha256", SHA256), Claim("md5", MD5)]


def test_should_take_the_parts_from_the_value() -> None:
    """The suffix is the number of parts, as in the ETag of a multipart upload."""
    found = read(f'"{MD5.hex()}-3"', crc32=base64_of(CRC32) + "-3", type="COMPOSITE")
    assert found == [Claim("crc32", CRC32, 3), Claim("md5", MD5, 3)]


def test_should_take_the_parts_of_a_composite_without_a_suffix_from_the_etag() -> None:
    """Else a checksum of checksums would be compared with one of all bytes."""
    assert read(f'"{MD5.hex()}-3"', crc32=base64_of(CRC32), type="COMPOSITE")[0] == Claim("crc32", CRC32, 3)
    assert read(crc32=base64_of(CRC32), type="COMPOSITE") == []
    assert read(f'"{MD5.hex()}-3"', crc32=base64_of(CRC32), type="FULL_OBJECT")[0] == Claim("crc32", CRC32)


@pytest.mark.parametrize(
    "value",
    ["", "!!!!", "AAA", "GtJzW", "AAAAAAAAAAA=", "GtJzWA==-0", "GtJzWA==-x", "GtJzWA==-10001", "GtJzWA==-99999999999",
     "GtJzWA==, GtJzWA==", "GtJzWA==\n", "GtJz WA==", "\u0661\u0662\u0663\u0664", "-3", "GtJzWA==-3-3"],
)  # fmt: skip
def test_should_pass_over_a_header_that_is_no_checksum(value: str) -> None:
    """Neither an error nor something to compare with; what else is told still counts."""
    assert read(crc32=value) == []
    assert read(crc32=value, sha256=base64_of(SHA256)) == [Claim("sha256", SHA256)]


@pytest.mark.parametrize("name", ["xxhash3", "sha512", "crc64xz", "mode", "CRC32"])
def test_should_pass_over_algorithms_that_are_not_s3_s_or_not_ours(name: str) -> None:
    """OSS's CRC-64 is no algorithm of S3's, whatever a header says."""
    assert read(**{name: base64_of(bytes(8))}) == []


@pytest.mark.parametrize(
    "etag", ['"abc"', '"0x8D1"', f'"{"g" * 32}"', f'"{"a" * 33}"', f'W/"{"a" * 32}"', f'"{"a" * 32}-0"', '"-3"']
)
def test_should_take_no_other_etag_for_an_md5(etag: str) -> None:
    """Only 32 hexadecimal digits are one, with the number of parts or without."""
    assert read(etag) == []


@pytest.mark.parametrize("headers", [{"sse": "aws:kms"}, {"sse": "aws:kms:dsse"}, {"ssec": "AES256"}])
def test_should_not_trust_the_etag_of_an_object_that_lies_encrypted(headers: dict[str, str]) -> None:
    """It is no MD5 of the bytes that a GET brings; other checksums are of these bytes."""
    assert read(f'"{MD5.hex()}"', **headers) == []
    assert read(f'"{MD5.hex()}"', **headers, crc32=base64_of(CRC32)) == [Claim("crc32", CRC32)]
    assert read(f'"{MD5.hex()}"', sse="AES256") == [Claim("md5", MD5)]


def test_should_not_trust_the_etag_of_a_directory_bucket() -> None:
    """There it is random, even where it looks like an MD5."""
    assert read(f'"{MD5.hex()}"', bucket="models--use1-az4--x-s3") == []


def test_should_need_the_size_of_parts_only_for_several() -> None:
    """One part is the whole object; an empty object has no part to compute of."""
    assert Claim("md5", MD5).at_once(7) == Checksum("md5", MD5)
    assert Claim("md5", MD5, 1).at_once(7) == Checksum("md5", MD5, 7)
    assert Claim("md5", MD5, 2).at_once(7) is None
    assert Claim("md5", MD5, 1).at_once(0) is None


@pytest.mark.parametrize(("size", "part_size", "fits"), [(10, 5, True), (9, 5, True), (11, 5, False), (5, 5, False),
                                                         (10, 10, False), (10, 0, False), (0, 5, False)])  # fmt: skip
def test_should_not_compute_over_parts_that_can_not_be_the_object_s(size: int, part_size: int, fits: bool) -> None:
    """Parts of different sizes, or a store that answers for the whole object, would look like corruption."""
    assert Claim("md5", MD5, 2).in_parts(size, part_size) == (Checksum("md5", MD5, part_size) if fits else None)


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        ({"content-length": "5", "x-amz-mp-parts-count": "3"}, 5),
        ({"content-length": "5"}, 5),
        ({"content-length": "5", "x-amz-mp-parts-count": "4"}, 0),
        ({"content-length": "5", "x-amz-mp-parts-count": "three"}, 0),
        ({"x-amz-mp-parts-count": "3"}, 0),
        ({"content-length": "-5"}, 0),
        ({"content-length": "\u0665"}, 0),
        ({"content-length": "9" * 5000}, 0),
    ],
)
def test_should_read_the_size_of_a_part(headers: dict[str, str], size: int) -> None:
    """Only from an answer that agrees about their number."""
    assert part_size_of(headers, 3) == size
