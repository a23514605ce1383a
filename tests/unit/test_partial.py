"""A direct download's file: what is resumed and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfagent.errors import NoSpace
from dfagent.transports.partial import PART_SIZE, PartialFile

SIZE = 2 * PART_SIZE + 1


def opened(folder: Path, size: int = SIZE) -> PartialFile:
    partial = PartialFile(folder, "t" * 64, size)
    partial.open()
    return partial


def should_cover_the_object_with_parts_without_a_gap(tmp_path: Path) -> None:
    partial = opened(tmp_path)
    assert partial.missing() == [(0, 0, PART_SIZE), (1, PART_SIZE, PART_SIZE), (2, 2 * PART_SIZE, 1)]
    partial.close()
    assert opened(tmp_path, size=0).missing() == [(0, 0, 0)]


def should_resume_the_parts_that_a_killed_run_finished(tmp_path: Path) -> None:
    partial = opened(tmp_path)
    partial.mark(1)
    partial.close()
    again = opened(tmp_path)
    assert [number for number, _, _ in again.missing()] == [0, 2]
    assert again.bytes_done == PART_SIZE


@pytest.mark.parametrize("damage", ["other boot", "garbage", "shorter file", "no journal"])
def should_start_again_where_the_journal_can_not_be_trusted(tmp_path: Path, damage: str) -> None:
    partial = opened(tmp_path)
    partial.mark(1)
    partial.close()
    journal = next(tmp_path.glob("*.parts"))
    if damage == "other boot":
        journal.write_text(journal.read_text().replace(journal.read_text().split()[0], "another-boot", 1))
    elif damage == "garbage":
        journal.write_bytes(b"\xff\x00nonsense")
    elif damage == "shorter file":
        with partial.path.open("r+b") as file:
            file.truncate(PART_SIZE)
    else:
        journal.unlink()
    assert opened(tmp_path).bytes_done == 0


def should_not_follow_a_planted_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    partial = PartialFile(tmp_path, "t" * 64, SIZE)
    partial.path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        partial.open()
    assert victim.read_text() == "keep me"


def should_say_at_once_that_the_object_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(NoSpace):
        opened(tmp_path, size=1 << 50)
