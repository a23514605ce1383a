"""The ledger: it trusts exactly what was verified, forgets in doubt, and never stands in the way."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from dfagent.repository import ledger as ledger_module
from dfagent.repository.ledger import FILES, KEPT_DAYS, NAME, Ledger
from dfagent.types import Checksum

CRC = Checksum("crc32", b"\x01\x02\x03\x04")


def a_file(folder: Path, text: str = "bytes", name: str = "file") -> os.stat_result:
    (folder / name).write_text(text)
    return (folder / name).stat()


def should_trust_only_what_was_verified(tmp_path: Path) -> None:
    ledger, file = Ledger(tmp_path), a_file(tmp_path)
    assert not ledger.verified("task", file) and not ledger.knows("task")
    ledger.remember("task", file, CRC)
    assert ledger.verified("task", file) and ledger.knows("task")
    assert not ledger.verified("another task", file)
    assert ledger.checksum("task") == CRC and ledger.checksum("another task") is None


@pytest.mark.parametrize("field", ["st_dev", "st_ino", "st_size", "st_mtime_ns"])
def should_not_trust_a_file_that_differs_in_anything(tmp_path: Path, field: str) -> None:
    names = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
    ledger, file = Ledger(tmp_path), a_file(tmp_path)
    ledger.remember("task", file, CRC, synced=True)
    values = {name: getattr(file, name) for name in names}
    other = cast("os.stat_result", SimpleNamespace(**{**values, field: values[field] + 1}))
    assert not ledger.verified("task", other)
    assert ledger.checksum("task") == CRC, "the store's word is of the version, not of one file"


def should_keep_what_it_knows_over_a_restart(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    first = Ledger(tmp_path)
    first.remember("task", file, Checksum("md5", bytes(16), 8 << 20), synced=True)
    first.close()
    again = Ledger(tmp_path)
    assert again.verified("task", file)
    assert again.checksum("task") == Checksum("md5", bytes(16), 8 << 20)


def should_trust_what_was_not_synced_only_until_the_next_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut the entry may be on disk and the bytes may not."""
    ledger = Ledger(tmp_path)
    loose, synced = a_file(tmp_path, name="loose"), a_file(tmp_path, name="synced")
    ledger.remember("loose", loose, CRC)
    ledger.remember("synced", synced, CRC, synced=True)
    ledger.remember("synced", synced, CRC)
    assert ledger.verified("loose", loose)
    monkeypatch.setattr(ledger_module, "_boot_id", lambda: "the next boot")
    assert not ledger.verified("loose", loose)
    assert ledger.verified("synced", synced)
    changed = a_file(tmp_path, "other bytes", name="synced")
    ledger.remember("synced", changed, CRC)
    monkeypatch.setattr(ledger_module, "_boot_id", lambda: "one more boot")
    assert not ledger.verified("synced", changed), "these bytes were never synced"


def should_keep_the_stores_word_when_a_later_answer_has_none(tmp_path: Path) -> None:
    ledger, file = Ledger(tmp_path), a_file(tmp_path)
    ledger.learn("task", CRC)
    assert ledger.checksum("task") == CRC and ledger.knows("task") and not ledger.verified("task", file)
    ledger.remember("task", file, None)
    assert ledger.checksum("task") == CRC
    ledger.learn("without", None)
    assert ledger.knows("without") and ledger.checksum("without") is None


def should_forget_files_and_not_what_the_store_said(tmp_path: Path) -> None:
    ledger, file = Ledger(tmp_path), a_file(tmp_path)
    for task in ("task", "other"):
        ledger.remember(task, file, CRC)
    ledger.forget("task")
    assert not ledger.verified("task", file) and ledger.checksum("task") == CRC
    assert ledger.verified("other", file)


def should_drop_what_nobody_used_for_half_a_year(tmp_path: Path) -> None:
    day = 1000
    file = a_file(tmp_path)

    def open_ledger() -> Ledger:
        return Ledger(tmp_path, today=lambda: day)

    ledger = open_ledger()
    ledger.remember("used", file, CRC, synced=True)
    ledger.remember("unused", file, CRC, synced=True)
    day += KEPT_DAYS
    assert ledger.verified("used", file)
    ledger.close()
    day += 1
    ledger = open_ledger()
    assert ledger.verified("used", file) and ledger.checksum("used") == CRC
    assert not ledger.knows("unused") and not ledger.verified("unused", file)


@pytest.mark.parametrize("damage", ["text", "cut", "pages", "newer format", "empty"])
def should_begin_anew_after_damage_with_one_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = a_file(tmp_path)
    ledger = Ledger(tmp_path)
    for number in range(500):
        ledger.remember(f"task {number}", file, CRC, synced=True)
    ledger.close()
    path = tmp_path / NAME
    whole = path.read_bytes()
    if damage == "newer format":
        with sqlite3.connect(path) as newer:
            newer.execute("PRAGMA user_version = 99")
        newer.close()
    else:
        spoiled = {
            "text": b"not a database" * 999,
            "cut": whole[:5000],
            "pages": whole[:100] + bytes(9999),
            "empty": b"",
        }
        path.write_bytes(spoiled[damage])
    again = Ledger(tmp_path)
    known = [again.verified(f"task {number}", file) for number in range(500)]
    assert not all(known)
    again.remember("new", file, CRC)
    assert again.verified("new", file) and again.checksum("new") == CRC
    assert len(caplog.records) == (0 if damage == "empty" else 1)
    assert all(record.levelno == logging.WARNING and NAME in record.message for record in caplog.records)


def should_begin_anew_when_a_page_is_found_damaged_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = a_file(tmp_path)
    ledger = Ledger(tmp_path)
    for number in range(2000):
        ledger.remember(f"task {number}", file, CRC, synced=True)
    ledger.close()
    path = tmp_path / NAME
    whole = bytearray(path.read_bytes())
    whole[3 * 4096 :] = os.urandom(len(whole) - 3 * 4096)
    path.write_bytes(bytes(whole))
    again = Ledger(tmp_path)
    for number in range(2000):
        again.verified(f"task {number}", file)
        again.checksum(f"task {number}")
    again.remember("new", file, CRC)
    assert again.verified("new", file)
    assert len(caplog.records) == 1


def obstruct(state: Path, obstacle: str) -> None:
    if obstacle == "no folder":
        return
    state.mkdir()
    if obstacle == "a folder":
        (state / NAME).mkdir()
    if obstacle == "a pipe":
        os.mkfifo(state / NAME)
    if obstacle == "a pipe for its journal":
        os.mkfifo(state / f"{NAME}-wal")
    if obstacle == "a link":
        (state.parent / "of somebody").touch()
        (state / NAME).symlink_to(state.parent / "of somebody")
    if obstacle == "damage that stays":
        (state / NAME).write_bytes(b"not a database" * 999)
        (state / f"{NAME}-shm").mkdir()


@pytest.mark.parametrize(
    "obstacle", ["a folder", "a link", "a pipe", "a pipe for its journal", "damage that stays", "no folder"]
)
def should_go_on_in_memory_where_it_can_not_be(tmp_path: Path, obstacle: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without any ledger a damaged file could not be told from a right one."""
    file = a_file(tmp_path)
    state = tmp_path / "state"
    obstruct(state, obstacle)
    ledger = Ledger(state)
    ledger.remember("task", file, CRC)
    assert ledger.verified("task", file) and ledger.checksum("task") == CRC and ledger.knows("task")
    ledger.forget("task")
    assert not ledger.verified("task", file) and ledger.checksum("task") == CRC
    ledger.close()
    assert not ledger.knows("task")
    assert len(caplog.records) == 1 and NAME in caplog.records[0].message
    if obstacle == "a link":
        assert (tmp_path / "of somebody").read_bytes() == b""


def should_go_on_in_memory_when_somebody_holds_its_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, ledger = a_file(tmp_path), Ledger(tmp_path)
    ledger.remember("before", file, CRC, synced=True)
    with sqlite3.connect(tmp_path / NAME) as other:
        other.execute("BEGIN IMMEDIATE")
        ledger.remember("lost", file, CRC)
        ledger.remember("task", file, CRC)
        assert ledger.verified("task", file) and len(caplog.records) == 1
    other.close()
    ledger.close()
    again = Ledger(tmp_path)
    assert again.verified("before", file) and not again.knows("task")


def should_not_hold_up_the_end_when_the_disk_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_LONGEST_CLOSE_SECONDS", 0.01)
    ledger, stuck, go = Ledger(tmp_path), threading.Event(), threading.Event()

    def state(file: os.stat_result) -> str:
        stuck.set()
        go.wait()
        return "1:1"

    monkeypatch.setattr(ledger_module, "_state", state)
    thread = threading.Thread(target=ledger.remember, args=("task", a_file(tmp_path), CRC))
    thread.start()
    stuck.wait()
    ledger.close()  # without a limit the test would hang here
    assert thread.is_alive()
    go.set()
    thread.join()


def should_answer_nothing_once_it_is_closed(tmp_path: Path) -> None:
    """A thread that nobody waits for may come back late."""
    ledger, file = Ledger(tmp_path), a_file(tmp_path)
    ledger.remember("task", file, CRC)
    ledger.close()
    assert not ledger.verified("task", file)
    ledger.remember("late", file, CRC)
    ledger.close()


def should_only_look_when_it_was_opened_to_look(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    missing = Ledger(tmp_path, read_only=True)
    assert not missing.verified("task", file) and not (tmp_path / NAME).exists()
    writer = Ledger(tmp_path)
    writer.remember("task", file, CRC)
    looker = Ledger(tmp_path, read_only=True)
    assert looker.verified("task", file) and looker.checksum("task") == CRC
    looker.remember("more", file, CRC)
    writer.remember("later", file, CRC)
    assert looker.verified("later", file) and not writer.knows("more")
    for opened in (looker, writer):
        opened.close()
    before = sorted(path.name for path in tmp_path.iterdir())
    alone = Ledger(tmp_path, read_only=True)
    assert alone.verified("later", file)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def should_serve_many_threads_at_once(tmp_path: Path) -> None:
    ledger, file = Ledger(tmp_path), a_file(tmp_path)
    wrong: list[str] = []

    def work(worker: int) -> None:
        for number in range(50):
            task = f"{worker}/{number}"
            ledger.remember(task, file, CRC)
            if not ledger.verified(task, file) or ledger.checksum(task) != CRC:
                wrong.append(task)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def should_have_files_that_only_the_group_may_read(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        ledger = Ledger(tmp_path)
        ledger.remember("task", tmp_path.stat(), CRC)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert set(modes) <= set(FILES) and set(modes.values()) == {0o640}
