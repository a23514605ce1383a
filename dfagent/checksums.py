"""The checksums that object stores give, computed while bytes stream, over parts, or over a file."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from dfagent.types import Checksum

ALGORITHMS = ("crc64nvme", "crc32c", "crc64xz", "crc32", "sha256", "sha1", "md5")
"""Cheapest to compute first; MD5 is only for where a store has nothing else. `crc64xz` is Alibaba OSS's CRC-64."""

_CRC_BYTES = {"crc32": 4, "crc32c": 4, "crc64nvme": 8, "crc64xz": 8}
_READ = 1 << 20


class Hasher(Protocol):
    """Takes an object's bytes in order, in pieces of any size."""

    def update(self, data: bytes | memoryview) -> None: ...

    def checksum(self) -> Checksum: ...


def hasher(algorithm: str, part_size: int = 0) -> Hasher:
    """A new hasher; raises ValueError for an algorithm that is not in `ALGORITHMS`."""
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown checksum {algorithm!r}")
    if part_size:
        return _Composite(algorithm, part_size)
    return _Crc(algorithm) if algorithm in _CRC_BYTES else _Digest(algorithm)


def checksum_of_file(path: Path, like: Checksum) -> Checksum:
    """The file's checksum by the algorithm and part size of `like`; reads it once, so call it off the event loop."""
    computed = hasher(like.algorithm, like.part_size)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_READ):
            computed.update(chunk)
    return computed.checksum()


class _Digest:
    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._state = hashlib.new(algorithm, usedforsecurity=False)

    def update(self, data: bytes | memoryview) -> None:
        self._state.update(data)

    def checksum(self) -> Checksum:
        return Checksum(self._algorithm, self._state.digest())


class _Crc:
    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._step = _crc_function(algorithm)
        self._value = 0

    def update(self, data: bytes | memoryview) -> None:
        self._value = self._step(data, self._value)

    def checksum(self) -> Checksum:
        return Checksum(self._algorithm, self._value.to_bytes(_CRC_BYTES[self._algorithm], "big"))


class _Composite:
    """A checksum over the checksums of parts, all of one size but the last one."""

    def __init__(self, algorithm: str, part_size: int) -> None:
        self._algorithm, self._part_size = algorithm, part_size
        self._parts = hasher(algorithm)
        self._part = hasher(algorithm)
        self._filled = 0

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            if self._filled == self._part_size:
                self._end_part()
            piece = view[: self._part_size - self._filled]
            self._part.update(piece)
            self._filled += len(piece)
            view = view[len(piece) :]

    def checksum(self) -> Checksum:
        if self._filled:
            self._end_part()
        return Checksum(self._algorithm, self._parts.checksum().value, self._part_size)

    def _end_part(self) -> None:
        self._parts.update(self._part.checksum().value)
        self._part, self._filled = hasher(self._algorithm), 0


def _crc_function(algorithm: str) -> Callable[[bytes | memoryview, int], int]:
    """`crc(data, previous)`; the libraries are imported when one of their algorithms is asked for."""
    step: Callable[[bytes | memoryview, int], int]
    if algorithm == "crc32":
        step = zlib.crc32
    elif algorithm == "crc64xz":
        import fastcrc

        step = fastcrc.crc64.xz
    else:
        from awscrt import checksums

        step = checksums.crc32c if algorithm == "crc32c" else checksums.crc64nvme
    return step
