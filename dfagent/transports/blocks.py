"""The CRCs of a download's blocks, and how they become the whole object's."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

from dfagent.types import Checksum

JOURNAL_ALGORITHMS = ("crc64nvme", "crc32c", "crc32")
"""Those whose values over neighbouring blocks can be put together; each costs a fraction of writing the block."""

_BYTES = {"crc32": 4, "crc32c": 4, "crc64nvme": 8}


def journal_algorithm(expected: Checksum | None) -> str:
    """The algorithm for a download's blocks: that of the checksum to compare with, if blocks can give it."""
    return expected.algorithm if expected is not None and from_blocks(expected) else "crc32c"


def from_blocks(checksum: Checksum) -> bool:
    """Whether the blocks' CRCs can give such a checksum."""
    return checksum.algorithm in JOURNAL_ALGORITHMS and checksum.part_size == 0


def crc_function(algorithm: str) -> Callable[[bytes | memoryview, int], int]:
    """`crc(data, previous)`."""
    step: Callable[[bytes | memoryview, int], int]
    if algorithm == "crc32":
        step = zlib.crc32  # twice as fast as awscrt's
    else:
        from awscrt import checksums

        step = {"crc32c": checksums.crc32c, "crc64nvme": checksums.crc64nvme}[algorithm]
    return step


def combined(algorithm: str, blocks: Iterable[tuple[int, int]]) -> Checksum:
    """The checksum of all blocks, each given by its CRC and its length in bytes, one after the other."""
    from awscrt import checksums

    combine = {
        "crc32": checksums.combine_crc32,
        "crc32c": checksums.combine_crc32c,
        "crc64nvme": checksums.combine_crc64nvme,
    }[algorithm]
    value = 0
    for crc, length in blocks:
        value = combine(value, crc, length)
    return Checksum(algorithm, value.to_bytes(_BYTES[algorithm], "big"))
