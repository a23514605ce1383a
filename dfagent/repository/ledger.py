"""What was verified before: one small database in the state folder, so that a hit costs a stat and no reading.

It holds two things. Of a task (an immutable version of an object): the checksum that the store gave, if it gave one. Of
a file on this node: that its bytes were found to be those of a task, while it had this device, inode, size and mtime.

A ledger that is lost or damaged costs reading again and nothing else, so no method raises: what can't be read was never
verified, what can't be written is verified again next time. For the same reason commits are not synced. What must not
happen is that an entry outlives the bytes it vouches for, see `Ledger.remember`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

from dfagent.types import Checksum

NAME = "ledger.sqlite"
FILES = (NAME, f"{NAME}-wal", f"{NAME}-shm", f"{NAME}-journal")
"""Every name that the database has files under."""
KEPT_DAYS = 180

_FORMAT = 1
_MODE = 0o640
_SECONDS_A_DAY = 86_400
_LONGEST_WAIT_SECONDS = 0.5
_LONGEST_CLOSE_SECONDS = 5.0
_TABLES = f"""
    CREATE TABLE IF NOT EXISTS tasks (task TEXT PRIMARY KEY, checksum TEXT, day INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS files (
        task TEXT, file TEXT, state TEXT NOT NULL, boot TEXT NOT NULL, day INTEGER NOT NULL, PRIMARY KEY (task, file)
    ) WITHOUT ROWID;
    PRAGMA user_version = {_FORMAT};
"""

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Ledger:
    """The database in the folder `state`; any thread may call any method, also after `close`. It never raises.

    It is opened when it is first asked. `read_only` makes and changes nothing: for a look at a folder that another
    dfagent works on.
    """

    def __init__(self, state: Path, *, read_only: bool = False, today: Callable[[], int] | None = None) -> None:
        self._path = state / NAME
        self._read_only = read_only
        self._today = today or (lambda: int(time.time()) // _SECONDS_A_DAY)
        self._mutex = threading.Lock()
        self._complained = False
        self._tried = False
        self._database: sqlite3.Connection | None = None

    def verified(self, task_id: str, file: os.stat_result) -> bool:
        """Whether this very file, unchanged since, was found to hold the bytes of the task."""

        def look(database: sqlite3.Connection) -> bool:
            query = "SELECT state, boot, day FROM files WHERE task = ? AND file = ?"
            row = database.execute(query, (task_id, _file(file))).fetchone()
            if row is None or row[0] != _state(file) or row[1] not in ("", _boot_id()):
                return False
            if row[2] < self._today() and not self._read_only:
                database.execute("UPDATE files SET day = ? WHERE task = ?", (self._today(), task_id))
                database.execute("UPDATE tasks SET day = ? WHERE task = ?", (self._today(), task_id))
            return True

        return self._ask(look, otherwise=False)

    def remember(self, task_id: str, file: os.stat_result, checksum: Checksum | None, *, synced: bool = False) -> None:
        """Notes that the file holds the task's bytes; `checksum` is the store's own of them, None where it has none.

        `synced` says that the file's bytes were synced to the disk before. Else the entry counts only until the machine
        is booted again: after a power cut it may be there while the bytes are not, with size and mtime as they were.
        """

        def note(database: sqlite3.Connection) -> None:
            boot = "" if synced else _boot_id()
            row = (task_id, _file(file), _state(file), boot, self._today())
            # An entry that was synced stays so when the same file is verified once more.
            database.execute(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?) ON CONFLICT (task, file) DO UPDATE SET day = excluded.day,"
                " boot = iif(state = excluded.state AND boot = '', '', excluded.boot), state = excluded.state",
                row,
            )
            self._learn(database, task_id, checksum)

        self._ask(note, otherwise=None)

    def learn(self, task_id: str, checksum: Checksum | None) -> None:
        """Notes what the store says of the task's bytes, and by that alone that the task is known here."""
        self._ask(lambda database: self._learn(database, task_id, checksum), otherwise=None)

    def checksum(self, task_id: str) -> Checksum | None:
        """What the store said of this immutable version, whichever file held it."""

        def look(database: sqlite3.Connection) -> Checksum | None:
            row = database.execute("SELECT checksum FROM tasks WHERE task = ?", (task_id,)).fetchone()
            return Checksum.parse(row[0]) if row and row[0] else None

        return self._ask(look, otherwise=None)

    def knows(self, task_id: str) -> bool:
        """Whether anything was ever noted of the task."""
        query = "SELECT 1 FROM tasks WHERE task = ?"
        return self._ask(lambda database: database.execute(query, (task_id,)).fetchone() is not None, otherwise=False)

    def forget(self, task_id: str) -> None:
        """No file is taken for the task's bytes any more without being read; what the store said of them stays."""
        self._ask(lambda database: database.execute("DELETE FROM files WHERE task = ?", (task_id,)), otherwise=None)

    def close(self) -> None:
        # Called in the event loop: a thread that is stuck in a dying disk must not hold the program's end up.
        if self._mutex.acquire(timeout=_LONGEST_CLOSE_SECONDS):
            try:
                self._tried = True
                self._shut()
            finally:
                self._mutex.release()

    def reopen(self) -> None:
        """Begins with what lies on the disk now, also after `close`."""
        self.close()
        with self._mutex:
            self._tried = self._complained = False

    def _learn(self, database: sqlite3.Connection, task_id: str, checksum: Checksum | None) -> None:
        database.execute(
            "INSERT INTO tasks VALUES (?, ?, ?) ON CONFLICT (task) DO UPDATE SET"
            " checksum = coalesce(excluded.checksum, checksum), day = excluded.day",
            (task_id, str(checksum) if checksum else None, self._today()),
        )

    def _ask(self, work: Callable[[sqlite3.Connection], _Result], otherwise: _Result) -> _Result:
        """The work's answer, in a transaction of its own; `otherwise` where the database can't give one."""
        with self._mutex:
            if not self._tried:
                self._tried = True
                self._open()
            if self._database is None:
                return otherwise
            try:
                with self._database:
                    return work(self._database)
            except OverflowError as exc:
                self._complain(f"can't hold this: {exc}")
            except sqlite3.OperationalError as exc:
                # Locked or full: each further call would wait for the same. A reader's own can still be read.
                if self._read_only:
                    self._complain(f"can't be used: {exc}")
                else:
                    self._go_on_in_memory(f"can't be used: {exc}")
            except (sqlite3.Error, ValueError) as exc:
                self._replace(exc)
            return otherwise

    def _open(self) -> None:
        try:
            self._database = self._connect()
            self._prepare(self._database)
        except (sqlite3.OperationalError, OSError) as exc:
            if isinstance(exc, FileNotFoundError) and self._read_only:
                self._shut()
            else:
                self._go_on_in_memory(f"can't be opened: {exc}")
        except sqlite3.Error as exc:
            self._replace(exc)

    def _go_on_in_memory(self, problem: str) -> None:
        """Until the program ends: without any ledger a damaged file could not be told from a right one."""
        self._complain(problem)
        self._shut()
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.executescript(_TABLES)

    def _connect(self) -> sqlite3.Connection:
        for name in FILES:
            # A pipe would be opened for ever.
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(self._path.with_name(name).lstat().st_mode):
                    raise sqlite3.OperationalError(f"{name} is no regular file")
        # The database follows links; a planted one must not make us write elsewhere. Its other files take its mode.
        access = os.O_RDONLY if self._read_only else os.O_RDWR | os.O_CREAT
        fd = os.open(self._path, access | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, _MODE)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise sqlite3.OperationalError("it is no regular file of its own")
            if not self._read_only:
                os.fchmod(fd, _MODE)
        finally:
            os.close(fd)
        return sqlite3.connect(
            f"{self._path.absolute().as_uri()}?{self._how()}",
            uri=True,
            check_same_thread=False,
            timeout=_LONGEST_WAIT_SECONDS,
        )

    def _how(self) -> str:
        if not self._read_only:
            return "mode=rw"
        # Even a reader would make the files that coordinate readers and writers; without them nobody writes.
        nobody_writes = not self._path.with_name(f"{NAME}-wal").exists() or not os.access(self._path.parent, os.W_OK)
        return "mode=ro&immutable=1" if nobody_writes else "mode=ro"

    def _prepare(self, database: sqlite3.Connection) -> None:
        made_by = database.execute("PRAGMA user_version").fetchone()[0]
        if made_by not in (0, _FORMAT):
            raise sqlite3.DatabaseError(f"it has format {made_by}, not {_FORMAT}")
        if self._read_only:
            return
        # Readers don't wait for the writer, and a commit needs no sync. Where a file system can't do it, sqlite goes
        # on with its journal.
        database.execute("PRAGMA journal_mode = WAL").fetchone()
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(_TABLES)
        with database:
            for table in ("files", "tasks"):
                database.execute(f"DELETE FROM {table} WHERE day < ?", (self._today() - KEPT_DAYS,))  # noqa: S608

    def _replace(self, damage: Exception) -> None:
        """Begins anew: what a damaged database says is worth nothing."""
        self._shut()
        self._complain(f"is damaged and begins anew, files are verified again: {damage}")
        if self._read_only:
            return
        try:
            for name in FILES:
                self._path.with_name(name).unlink(missing_ok=True)
            self._database = self._connect()
            self._prepare(self._database)
        except (sqlite3.Error, OSError) as exc:
            self._go_on_in_memory(f"can't begin anew: {exc}")

    def _shut(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _complain(self, problem: str) -> None:
        if not self._complained:
            self._complained = True
            _log.warning("%s %s", self._path, problem)


def _file(file: os.stat_result) -> str:
    # As text: an inode's number may be larger than sqlite's integers.
    return f"{file.st_dev}:{file.st_ino}"


def _state(file: os.stat_result) -> str:
    return f"{file.st_size}:{file.st_mtime_ns}"


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
