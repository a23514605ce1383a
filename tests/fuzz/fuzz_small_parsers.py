"""What is read back from our own files and from headers: a sound value, or the error that the reader promises."""

from __future__ import annotations

import re
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

from multidict import CIMultiDict

from dfagent.checksums import ALGORITHMS, hasher
from dfagent.errors import InvalidSha256Sums
from dfagent.repository.manifest import Manifest
from dfagent.repository.sha256sums import parse as parse_sums
from dfagent.transports.partial import PartialFile, _boot_id
from dfagent.transports.told import told_checksum
from dfagent.types import Checksum

_DIGEST = "5f" * 32
SEEDS = [
    b"crc32/8388608:00ff00ff",
    b"sha256:" + _DIGEST.encode(),
    b'{"model": "m", "files": [{"path": "a", "size": 1, "version": "v"}], "folders": ["1"]}',
    f"{_DIGEST}  ./1/model.onnx\n\\{_DIGEST} *a\\nb\n# comment\n".encode(),
    f"{_boot_id()} 40 16 crc32\n0 1\n1 ff\n1 -\n2 0".encode(),
    b"x-amz-checksum-crc32: GtJzWA==\nx-amz-checksum-type: FULL_OBJECT",
    b"x-goog-hash: crc32c=GtJzWA==,md5=y\nx-oss-hash-crc64ecma: 18446744073709551615\ncontent-md5: x",
]
_FOLDER = tempfile.TemporaryDirectory(prefix="dfagent-fuzz-")


def check(data: bytes) -> None:
    """Each of them gets the same bytes: they are too small for a target of their own."""
    _checksum(data.decode("utf-8", "surrogateescape"))
    _manifest(data)
    _sums(data)
    _headers(data)
    _journal(data)


def _checksum(text: str) -> None:
    try:
        checksum = Checksum.parse(text)
    except ValueError:
        return
    assert str(checksum) == text


def _manifest(data: bytes) -> None:
    with suppress(ValueError, KeyError, TypeError):
        Manifest.from_json(data)


def _sums(data: bytes) -> None:
    try:
        sums = parse_sums(data, "m/SHA256SUMS")
    except InvalidSha256Sums as refused:
        assert refused.message.isprintable()
        return
    for path, digest in sums.items():
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
        assert path and not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


def _headers(data: bytes) -> None:
    lines = (line.partition(":") for line in data.decode("latin-1").split("\n"))
    checksum = told_checksum(CIMultiDict((name.strip(), value.strip()) for name, _, value in lines))
    if checksum:
        assert checksum.algorithm in ALGORITHMS and not checksum.part_size
        assert len(hasher(checksum.algorithm).checksum().value) == len(checksum.value)


def _journal(data: bytes) -> None:
    """The file is all zeros: only blocks whose CRC is the one of zeros may count."""
    size, block = 40, 16
    partial = PartialFile(Path(_FOLDER.name), "task", size, "direct", block_size=block)
    partial.path.write_bytes(bytes(size))
    partial._journal_path.write_bytes(data)
    partial.open()
    try:
        while partial.check():
            pass
        for number, crc in partial._done.items():
            _, length = partial.place(number)
            zeros = hasher(partial.algorithm)
            zeros.update(bytes(length))
            assert crc == int.from_bytes(zeros.checksum().value, "big")
        assert partial.bytes_done + sum(length for _, length in partial.missing()) == size
    finally:
        partial.close()
