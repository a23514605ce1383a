"""Checksums against published check values ("123456789") and against each other."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

import pytest

from dfagent.checksums import ALGORITHMS, checksum_of_file, hasher
from dfagent.types import Checksum

CHECK = b"123456789"
PUBLISHED = {
    "crc32": "cbf43926",
    "crc32c": "e3069283",
    "crc64nvme": "ae8b14860a799888",
    "crc64xz": "995dc9bbdf1939fa",
    "md5": "25f9e794323b453885f5181f1b624d0b",
    "sha1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
    "sha256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def should_give_the_published_check_value_however_the_bytes_are_cut(algorithm: str) -> None:
    computed = hasher(algorithm)
    for piece in (CHECK[:1], b"", memoryview(CHECK)[1:7], CHECK[7:]):
        computed.update(piece)
    assert computed.checksum().value.hex() == PUBLISHED[algorithm]


def should_know_a_published_value_for_every_algorithm() -> None:
    assert set(PUBLISHED) == set(ALGORITHMS)


@pytest.mark.parametrize("step", [1, 7, 64, 100, 1000])
def should_compute_the_checksum_of_parts_as_s3_does(step: int) -> None:
    data = os.urandom(300)
    md5, crc = hasher("md5", 64), hasher("crc32", 64)
    for at in range(0, len(data), step):
        md5.update(data[at : at + step])
        crc.update(data[at : at + step])
    parts = [data[at : at + 64] for at in range(0, 300, 64)]
    assert md5.checksum().value == hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).digest()
    expected = zlib.crc32(b"".join(zlib.crc32(part).to_bytes(4, "big") for part in parts))
    assert crc.checksum() == Checksum("crc32", expected.to_bytes(4, "big"), 64)


def should_read_a_file_once_by_the_algorithm_that_is_asked_for(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "f").write_bytes(data)
    wanted = Checksum("sha256", hashlib.sha256(data).digest())
    assert checksum_of_file(tmp_path / "f", wanted) == wanted


def should_refuse_an_algorithm_that_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="crc7"):
        hasher("crc7")


@pytest.mark.parametrize("checksum", [Checksum("crc32", b"\x00\x01\x02\x03"), Checksum("md5", b"x" * 16, 8 << 20)])
def should_write_a_checksum_as_text_that_can_be_read_again(checksum: Checksum) -> None:
    assert Checksum.parse(str(checksum)) == checksum


@pytest.mark.parametrize(
    "text",
    ["", "crc32", ":", ":00", "crc32:", "crc32/:00", "crc32/0:00", "crc32/ 5:00", "crc32/1_0:00", "crc32/-5:00",
     "crc32:0 0", "crc32:AB", "crc32/x:00", "crc32:x"],
)  # fmt: skip
def test_should_read_back_only_what_was_written(text: str) -> None:
    """A damaged note must not pass for a checksum."""
    with pytest.raises(ValueError, match=r"."):
        Checksum.parse(text)
