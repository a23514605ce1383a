"""A download's file and the journal of its finished blocks, so that a killed or cut-off run goes on where it was."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path

from dfagent.checksums import Hasher
from dfagent.errors import Changed, DamagedTask, NoSpace, NotFound, RepositoryError, UnsafePath
from dfagent.tasks import finished_in_thread
from dfagent.transports.blocks import JOURNAL_ALGORITHMS, combined, crc_function
from dfagent.types import Checksum, FileIdentity, file_identity

# What a lost connection or a kill costs at most, for each stream.
BLOCK_SIZE = 4 << 20
# What one request asks for; large enough that the round trip for each is small.
RANGE_SIZE = 32 << 20
# Claimed blocks are read again in steps of this size, so that a cancellation needn't wait for all of them.
_CHECK_STEP = 32 << 20
_LINE = re.compile(r"(\d{1,9}) ([0-9a-f]{1,16}|-)")


class PartialFile:
    """`<task>.<kind>.partial` beside `<task>.<kind>.parts`: one line a finished block, its number and its CRC.

    The journal's first line names the boot, because after a power cut a line may be on disk before its bytes are, and
    syncing each block would cost more than the rare fresh start. What an earlier run or attempt claims is read again
    and compared with its CRC before it counts. All methods block on the disk; one of them runs at a time, but writers
    of different blocks may write at once.
    """

    def __init__(self, folder: Path, task_id: str, size: int, kind: str, *, block_size: int = BLOCK_SIZE) -> None:
        self.path, self._journal_path = _places(folder, task_id, kind)
        self.size = size
        self.algorithm = ""
        self.block_size = block_size
        self._fd = self._journal_fd = -1
        self._done: dict[int, int] = {}
        self._claimed: deque[tuple[int, int]] = deque()

    def open(self) -> None:
        """Opens both files, takes the disk space and reads what the journal claims; `check` makes it count."""
        with self._disk_errors():
            self._fd = _open(self.path, 0)
            self._claim()
            self._journal_fd = _open(self._journal_path, os.O_APPEND)
            if self._read_journal():
                self._allocate()
            else:
                self.start_over()

    def _claim(self) -> None:
        """Two programs that write one file would each compute right checksums of what they wrote."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise RepositoryError(
                f"another program is writing {self.path}", hint="does another dfagent work in this state folder?"
            ) from exc

    def check(self) -> bool:
        """Reads a few claimed blocks again; False once there are none left to check."""
        for _ in range(max(1, _CHECK_STEP // self.block_size)):
            if not self._claimed:
                return False
            number, crc = self._claimed.popleft()
            offset, length = self.place(number)
            with self._disk_errors():
                data = os.pread(self._fd, length, offset)
            if len(data) == length and crc_function(self.algorithm)(data, 0) == crc:
                self._done[number] = crc
        return True

    def begin(self, algorithm: str) -> None:
        """Says which of `JOURNAL_ALGORITHMS` new blocks get; an earlier run's choice stays."""
        if not self.algorithm:
            self.algorithm = algorithm
            self._note(f"{_boot_id()} {self.size} {self.block_size} {algorithm}\n")

    def start_over(self) -> None:
        """Forgets everything; what was written is gone."""
        self.algorithm = ""
        self._done.clear()
        self._claimed.clear()
        with self._disk_errors():
            os.ftruncate(self._journal_fd, 0)
            os.ftruncate(self._fd, 0)
            self._allocate()

    def close(self) -> None:
        for fd in (self._fd, self._journal_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._journal_fd = -1

    def remove(self) -> None:
        """Removes both files, if they could be opened at all."""
        if self._journal_fd >= 0:
            self.path.unlink(missing_ok=True)
            self._journal_path.unlink(missing_ok=True)

    def identity(self) -> FileIdentity:
        """Of the file that was written, whatever stands under its name by now."""
        return file_identity(os.fstat(self._fd))

    @property
    def worth_keeping(self) -> bool:
        """Whether a later run could go on with something."""
        return bool(self._done or self._claimed)

    @property
    def bytes_done(self) -> int:
        return sum(self.place(number)[1] for number in self._done)

    def missing(self, most: int | None = None) -> list[tuple[int, int]]:
        """(offset, length) of every gap, cut at block borders into stretches of `most` bytes or a block at least."""
        blocks_at_most = max(1, most // self.block_size) if most else self._block_count
        stretches: list[tuple[int, int]] = []
        number = 0
        while number < self._block_count:
            first = number
            while number < min(first + blocks_at_most, self._block_count) and number not in self._done:
                number += 1
            if number > first:
                start = first * self.block_size
                stretches.append((start, min(number * self.block_size, self.size) - start))
            else:
                number += 1
        return stretches

    def forget(self, offset: int, length: int) -> None:
        """Makes these blocks missing again; `offset` and the end are block borders."""
        for number in self._numbers(offset, length):
            if self._done.pop(number, None) is not None:
                self._note(f"{number} -\n")

    def checksum(self) -> Checksum:
        """The whole file's, out of the blocks': call it when none is missing."""
        crcs = [(self._done[number], self.place(number)[1]) for number in range(self._block_count)]
        return combined(self.algorithm, crcs)

    def write(self, data: bytes, offset: int) -> None:
        """For `Writer`: bytes to their place."""
        with self._disk_errors():
            view = memoryview(data)
            while view:
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count

    def mark(self, number: int, crc: int) -> None:
        """For `Writer`: notes a block as finished; its last byte has been written."""
        self._done[number] = crc
        self._note(f"{number} {crc:x}\n")

    def place(self, number: int) -> tuple[int, int]:
        """A block's offset and length."""
        offset = number * self.block_size
        return offset, min(self.block_size, self.size - offset)

    def _note(self, line: str) -> None:
        with self._disk_errors():
            os.write(self._journal_fd, line.encode())

    def _read_journal(self) -> bool:
        """Takes over what the journal claims; False where it is not of this boot, this object and this file."""
        if os.fstat(self._fd).st_size != self.size or self.size == 0:
            return False
        text = os.pread(self._journal_fd, os.fstat(self._journal_fd).st_size, 0)
        header, *lines = text.decode("ascii", "replace").split("\n")
        fields = header.split(" ")
        if fields[:3] != [_boot_id(), str(self.size), str(self.block_size)] or fields[3:] not in _HEADER_ENDS:
            return False
        if lines and lines[-1]:
            self._note("\n")  # a torn last line must not spoil the next one
        last_words = {int(found[1]): found[2] for line in lines if (found := _LINE.fullmatch(line))}
        self._claimed.extend(
            (number, int(crc, 16)) for number, crc in sorted(last_words.items()) if crc != "-" and self._has(number)
        )
        self.algorithm = fields[3]
        return True

    def _allocate(self) -> None:
        """Takes the whole space now, so that a full disk is told before the download instead of at its end."""
        if self.size == 0:
            return
        try:
            os.posix_fallocate(self._fd, 0, self.size)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        where = self.path.parent
        try:
            yield
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise NoSpace(
                    f"{self.size} bytes do not fit on the disk of {where}", hint="make room, then run again"
                ) from exc
            if exc.errno == errno.ELOOP:
                raise UnsafePath(
                    f"a link stands in {where} in the place of a download", hint="remove it; who put it there?"
                ) from exc
            raise RepositoryError(
                f"can't write to {where}: {exc.strerror or exc}", hint="is the disk whole, and ours to write to?"
            ) from exc

    @property
    def _block_count(self) -> int:
        return -(-self.size // self.block_size)

    def _has(self, number: int) -> bool:
        return number < self._block_count

    def _numbers(self, offset: int, length: int) -> range:
        return range(-(-offset // self.block_size), -(-(offset + length) // self.block_size))


class Writer:
    """Writes one answer's body in its order, from the block border `offset` on, and hashes it on the way.

    `hasher`, where given, takes every byte too: for checksums that can't be put together from blocks.
    """

    def __init__(self, partial: PartialFile, offset: int, length: int, hasher: Hasher | None = None) -> None:
        self._partial = partial
        self._offset, self._length = offset, length
        self._at = offset
        self._crc = 0
        self._step = crc_function(partial.algorithm)
        self._hasher = hasher

    @property
    def left(self) -> int:
        return self._offset + self._length - self._at

    def write(self, data: bytes) -> None:
        """Writes at most `left` bytes; blocks on the disk."""
        self._partial.write(data, self._at)
        if self._hasher:
            self._hasher.update(data)
        view = memoryview(data)
        while view:
            number = self._at // self._partial.block_size
            start, length = self._partial.place(number)
            piece = view[: start + length - self._at]
            self._crc = self._step(piece, self._crc)
            self._at += len(piece)
            view = view[len(piece) :]
            if self._at == start + length:
                self._partial.mark(number, self._crc)
                self._crc = 0

    def take_back(self) -> None:
        """Makes every block of this answer missing again, because the answer proved not to be the object."""
        self._partial.forget(self._offset, self._at - self._offset)


_HEADER_ENDS = [[algorithm] for algorithm in JOURNAL_ALGORITHMS]


@asynccontextmanager
async def opened(partial: PartialFile) -> AsyncIterator[None]:
    """The partial open and its earlier blocks checked.

    After an error it stays if something of it can be gone on with; not if the version that it is of is no more.
    """
    try:
        await finished_in_thread(partial.open)
        while await finished_in_thread(partial.check):
            pass
        yield
    except (Changed, DamagedTask, NotFound):
        await finished_in_thread(partial.remove)
        raise
    except BaseException:
        if not partial.worth_keeping:
            await finished_in_thread(partial.remove)
        raise
    finally:
        partial.close()


def _places(folder: Path, task_id: str, kind: str) -> tuple[Path, Path]:
    stem = f"{task_id[:32]}.{kind}"
    return folder / f"{stem}.partial", folder / f"{stem}.parts"


def _open(path: Path, flags: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o640)
    if os.fstat(fd).st_nlink > 1:
        os.close(fd)
        raise UnsafePath(
            f"{path} is another file's hard link, where a download goes", hint="remove it; who put it there?"
        )
    return fd


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
