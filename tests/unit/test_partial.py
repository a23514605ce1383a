"""A download's file and its journal: what is resumed and what is not."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from dfagent.checksums import checksum_of_file, hasher
from dfagent.errors import Changed, DfagentError, NoSpace, RepositoryError, Stalled, UnsafePath
from dfagent.transports.blocks import JOURNAL_ALGORITHMS, combined, from_blocks, journal_algorithm
from dfagent.transports.partial import PartialFile, Writer, opened
from dfagent.types import Checksum, file_identity

BLOCK = 1000
SIZE = 3 * BLOCK + 1
DATA = os.urandom(SIZE)
TASK = "t" * 64


def started(
    folder: Path, size: int = SIZE, algorithm: str = "crc32c", kind: str = "direct", block_size: int = BLOCK
) -> PartialFile:
    partial = PartialFile(folder, TASK, size, kind, block_size=block_size)
    partial.open()
    while partial.check():
        pass
    partial.begin(algorithm)
    return partial


def write(partial: PartialFile, offset: int, length: int, chunk: int = 333) -> None:
    writer = Writer(partial, offset, length)
    for at in range(offset, offset + length, chunk):
        writer.write(DATA[at : min(at + chunk, offset + length)])
    assert writer.left == 0


def left_by_a_killed_run(folder: Path, *blocks: int, algorithm: str = "crc32c") -> PartialFile:
    partial = started(folder, algorithm=algorithm)
    for number in blocks:
        write(partial, *partial.place(number))
    partial.close()
    return partial


def journal_of(folder: Path) -> Path:
    (journal,) = folder.glob("*.parts")
    return journal


def should_not_be_written_by_two_programs_at_once(tmp_path: Path) -> None:
    """Each would compute the right checksum of what it wrote itself."""
    first = started(tmp_path)
    write(first, 0, BLOCK)
    with pytest.raises(RepositoryError, match="another program is writing"):
        started(tmp_path)
    first.close()
    assert started(tmp_path).bytes_done == BLOCK


@pytest.mark.parametrize("name", ["partial", "parts"])
def should_not_write_into_a_file_that_is_linked_in_its_place(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    os.link(precious, tmp_path / f"{TASK[:32]}.direct.{name}")
    with pytest.raises(UnsafePath, match="hard link"):
        started(tmp_path)
    assert precious.read_text() == "precious"


def should_know_the_file_that_it_wrote_whatever_stands_there_by_now(tmp_path: Path) -> None:
    partial = started(tmp_path)
    before = partial.identity()
    partial.path.rename(tmp_path / "elsewhere")
    partial.path.write_bytes(DATA)
    assert partial.identity() == before == file_identity((tmp_path / "elsewhere").stat())


def should_cover_the_object_without_a_gap_in_stretches_of_whole_blocks(tmp_path: Path) -> None:
    partial = started(tmp_path)
    assert partial.missing() == [(0, SIZE)]
    assert partial.missing(2 * BLOCK + 500) == [(0, 2 * BLOCK), (2 * BLOCK, BLOCK + 1)]
    assert partial.missing(1) == [(0, BLOCK), (BLOCK, BLOCK), (2 * BLOCK, BLOCK), (3 * BLOCK, 1)]
    write(partial, BLOCK, BLOCK)
    assert partial.missing(10 * BLOCK) == [(0, BLOCK), (2 * BLOCK, BLOCK + 1)]
    assert started(tmp_path, size=0, kind="proxy").missing() == []


def should_resume_the_blocks_that_a_killed_run_finished(tmp_path: Path) -> None:
    partial = started(tmp_path)
    write(partial, BLOCK, BLOCK)
    unfinished = Writer(partial, 2 * BLOCK, BLOCK)
    unfinished.write(DATA[2 * BLOCK : 3 * BLOCK - 1])
    partial.close()
    again = started(tmp_path)
    assert again.missing() == [(0, BLOCK), (2 * BLOCK, BLOCK + 1)]
    assert again.bytes_done == BLOCK


@pytest.mark.parametrize("algorithm", JOURNAL_ALGORITHMS)
def should_put_the_checksum_of_the_file_together_from_its_blocks(tmp_path: Path, algorithm: str) -> None:
    """Written in any order, by two runs."""
    left_by_a_killed_run(tmp_path, 2, 0, algorithm=algorithm)
    partial = started(tmp_path, algorithm=algorithm)
    for stretch in reversed(partial.missing()):
        write(partial, *stretch)
    assert partial.path.read_bytes() == DATA
    assert partial.checksum() == checksum_of_file(partial.path, partial.checksum())
    assert partial.checksum().algorithm == algorithm


@pytest.mark.parametrize("algorithm", JOURNAL_ALGORITHMS)
def should_know_the_checksum_of_nothing(algorithm: str) -> None:
    assert combined(algorithm, []) == hasher(algorithm).checksum()


def should_choose_the_blocks_checksum_by_the_one_to_compare_with() -> None:
    for checksum, chosen in (
        (None, "crc32c"),
        (Checksum("crc32", b"1234"), "crc32"),
        (Checksum("crc64nvme", b"12345678"), "crc64nvme"),
        (Checksum("crc64xz", b"12345678"), "crc32c"),
        (Checksum("crc32", b"1234", part_size=5), "crc32c"),
        (Checksum("sha256", bytes(32)), "crc32c"),
    ):
        assert journal_algorithm(checksum) == chosen
        assert checksum is None or from_blocks(checksum) == (checksum.algorithm == chosen and not checksum.part_size)


def should_go_on_with_the_checksum_that_the_journal_was_begun_with(tmp_path: Path) -> None:
    left_by_a_killed_run(tmp_path, 0, algorithm="crc32")
    again = started(tmp_path, algorithm="crc64nvme")
    assert again.bytes_done == BLOCK
    write(again, BLOCK, SIZE - BLOCK)
    assert again.checksum() == Checksum("crc32", zlib.crc32(DATA).to_bytes(4, "big"))


def should_not_trust_a_block_that_is_not_what_the_journal_says(tmp_path: Path) -> None:
    partial = left_by_a_killed_run(tmp_path, 0, 1, 3)
    with partial.path.open("r+b") as file:
        file.seek(BLOCK + 7)
        file.write(bytes([DATA[BLOCK + 7] ^ 1]))
    assert started(tmp_path).missing() == [(BLOCK, 2 * BLOCK)]


@pytest.mark.parametrize(
    "damage", ["other boot", "other size", "other blocks", "other algorithm", "garbage", "empty", "no journal"]
)
def should_start_again_where_the_journal_can_not_be_trusted(tmp_path: Path, damage: str) -> None:
    left_by_a_killed_run(tmp_path, 1)
    journal = journal_of(tmp_path)
    boot, size, block, rest = journal.read_text().split(" ", 3)
    wrong = {
        "other boot": f"another-boot {size} {block} {rest}",
        "other size": f"{boot} {SIZE + 1} {block} {rest}",
        "other blocks": f"{boot} {size} {BLOCK // 2} {rest}",
        "other algorithm": f"{boot} {size} {block} md5\n1 0\n",
        "garbage": "\xff\x00nonsense",
        "empty": "",
    }
    if damage == "no journal":
        journal.unlink()
    else:
        journal.write_text(wrong[damage])
    again = started(tmp_path)
    assert again.bytes_done == 0
    write(again, 0, SIZE)
    again.close()
    assert started(tmp_path).bytes_done == SIZE


@pytest.mark.parametrize("damage", ["shorter", "gone"])
def should_start_again_where_the_journal_has_lost_its_file(tmp_path: Path, damage: str) -> None:
    """A block of zeros would else be found in every new file, right or wrong."""
    partial = PartialFile(tmp_path, TASK, SIZE, "direct", block_size=BLOCK)
    partial.open()
    partial.begin("crc32c")
    Writer(partial, 0, BLOCK).write(bytes(BLOCK))
    partial.close()
    if damage == "gone":
        partial.path.unlink()
    else:
        os.truncate(partial.path, SIZE - 1)
    assert started(tmp_path).bytes_done == 0


def should_not_lose_the_journal_by_a_torn_line(tmp_path: Path) -> None:
    left_by_a_killed_run(tmp_path, 0, 1)
    journal = journal_of(tmp_path)
    journal.write_bytes(journal.read_bytes()[:-3])
    again = started(tmp_path)
    assert again.missing() == [(BLOCK, SIZE - BLOCK)]
    write(again, 2 * BLOCK, BLOCK)
    again.close()
    assert started(tmp_path).missing() == [(BLOCK, BLOCK), (3 * BLOCK, 1)]


def should_take_no_block_for_finished_that_the_object_does_not_have(tmp_path: Path) -> None:
    left_by_a_killed_run(tmp_path, 0)
    with journal_of(tmp_path).open("a") as journal:
        journal.write("4 0\n99999 0\n")
    assert started(tmp_path).bytes_done == BLOCK


def should_forget_what_an_answer_brought_that_was_not_the_object(tmp_path: Path) -> None:
    """Also in the journal, so that no later run trusts it."""
    partial = started(tmp_path)
    write(partial, 0, BLOCK)
    writer = Writer(partial, BLOCK, 2 * BLOCK + 1)
    writer.write(DATA[BLOCK : 2 * BLOCK + 10])
    assert partial.bytes_done == 2 * BLOCK
    writer.take_back()
    assert partial.bytes_done == BLOCK
    partial.close()
    assert started(tmp_path).bytes_done == BLOCK


def should_forget_no_block_that_lies_before_the_end(tmp_path: Path) -> None:
    partial = started(tmp_path)
    write(partial, 0, SIZE)
    partial.forget(SIZE, 0)
    assert partial.bytes_done == SIZE


def should_hash_beside_the_blocks_what_they_can_not_give(tmp_path: Path) -> None:
    partial = started(tmp_path)
    beside = hasher("sha256")
    writer = Writer(partial, 0, SIZE, beside)
    writer.write(DATA[:1500])
    writer.write(DATA[1500:])
    assert beside.checksum() == checksum_of_file(partial.path, beside.checksum())
    assert partial.bytes_done == SIZE


def should_not_follow_a_planted_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    for suffix in ("partial", "parts"):
        planted = tmp_path / f"{TASK[:32]}.direct.{suffix}"
        planted.symlink_to(victim)
        with pytest.raises(UnsafePath):
            started(tmp_path)
        planted.unlink()
    assert victim.read_text() == "keep me"


def should_say_at_once_that_the_object_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(NoSpace):
        started(tmp_path, size=1 << 50, block_size=1 << 30)


async def ended_by(error: DfagentError, folder: Path, brought: int) -> None:
    partial = PartialFile(folder, TASK, SIZE, "proxy", block_size=BLOCK)
    async with opened(partial):
        partial.begin("crc32")
        Writer(partial, 0, SIZE).write(DATA[:brought])
        raise error


async def should_keep_after_an_error_what_can_be_gone_on_with_and_nothing_else(tmp_path: Path) -> None:
    for brought, error, kept in (
        (0, Stalled, False),
        (BLOCK - 1, Stalled, False),
        (BLOCK, Stalled, True),
        (BLOCK, Changed, False),  # that version will never come again
    ):
        with pytest.raises(error):
            await ended_by(error("ended"), tmp_path, brought)
        assert bool(list(tmp_path.iterdir())) == kept


def should_keep_what_it_had_no_time_to_check(tmp_path: Path) -> None:
    left_by_a_killed_run(tmp_path, 0)
    partial = PartialFile(tmp_path, TASK, SIZE, "direct", block_size=BLOCK)
    partial.open()
    assert partial.worth_keeping and partial.bytes_done == 0
