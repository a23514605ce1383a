"""A direct download's file and the journal of its finished parts, so that a killed run goes on where it was."""

from __future__ import annotations

import errno
import os
from functools import cache
from pathlib import Path

from dfagent.errors import NoSpace

# A part is what a lost connection costs at most; large enough that the round trip for each is small.
PART_SIZE = 32 << 20
BLOCK_SIZE = 4 << 20
RANGE_SIZE = 32 << 20


class PartialFile:
    """`<task>.direct.partial` beside `<task>.direct.parts`: one line a finished part, under the boot's id.

    The journal is trusted only within one boot: after a power cut a line may be on disk before its bytes are, and
    syncing each part would cost more than the rare fresh start.
    """

    def __init__(self, folder: Path, task_id: str, size: int) -> None:
        self.path = folder / f"{task_id[:32]}.direct.partial"
        self._journal_path = folder / f"{task_id[:32]}.direct.parts"
        self.size = size
        self.fd = -1
        self._journal_fd = -1
        self.done: set[int] = set()

    def open(self) -> None:
        """Opens both files and reads which parts are already there."""
        self.done = self._finished_parts()
        fresh = 0 if self.done else os.O_TRUNC
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | fresh, 0o640)
        self._journal_fd = os.open(
            self._journal_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | fresh, 0o640
        )
        if fresh:
            os.write(self._journal_fd, f"{_boot_id()} {self.size} {PART_SIZE}\n".encode())
        self._allocate()

    def _allocate(self) -> None:
        """Takes the whole space now, so that a full disk is told before the download instead of at its end."""
        if self.size == 0:
            return
        try:
            os.posix_fallocate(self.fd, 0, self.size)
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise NoSpace(
                    f"{self.size} bytes do not fit on the disk of {self.path.parent}", hint="make room, then run again"
                ) from exc
            if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise

    def _finished_parts(self) -> set[int]:
        try:
            header, *lines = self._journal_path.read_text().splitlines()
            if header != f"{_boot_id()} {self.size} {PART_SIZE}" or self.path.stat().st_size != self.size:
                return set()
            return {int(line) for line in lines} & set(range(self.part_count))
        except (OSError, ValueError):
            return set()

    @property
    def part_count(self) -> int:
        return max(1, -(-self.size // PART_SIZE))

    def missing(self) -> list[tuple[int, int, int]]:
        """(number, offset, length) of every part that is not there yet."""
        return [
            (number, number * PART_SIZE, min(PART_SIZE, self.size - number * PART_SIZE))
            for number in range(self.part_count)
            if number not in self.done
        ]

    @property
    def bytes_done(self) -> int:
        return self.size - sum(length for _, _, length in self.missing())

    def mark(self, number: int) -> None:
        """Notes a part as finished; call it only after its last byte was written."""
        self.done.add(number)
        os.write(self._journal_fd, f"{number}\n".encode())

    def close(self) -> None:
        for fd in (self.fd, self._journal_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._journal_fd = -1

    def finish(self) -> Path:
        """The whole file; its journal goes, so that nobody resumes into it."""
        self._journal_path.unlink(missing_ok=True)
        return self.path


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
