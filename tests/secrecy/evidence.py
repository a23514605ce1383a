"""What a session's dfagent said, wherever it said it, kept in one private folder until the session's end.

registered.jsonl     secrets and signatures that child processes used
said.jsonl           texts of this process: logs, errors, records, captured output, arguments of processes
processes/<n>.*      standard output, standard error and arguments of one child
tmp/                 the children's folder for temporary files
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.secrecy.register import Register

CHILD_VARIABLE = "DFAGENT_TEST_EVIDENCE"
LARGEST_FILE = 4 << 20
# They hold secrets on purpose: what people write (here: tests), what a credential's process answers, and the settings
# of the local object store.
SETTINGS_FILES = ("cloud_credential.json", "dragonfly_config.json", "answer.json", "s3.json")


@dataclass(frozen=True)
class Finding:
    """A secret that was found: where, what, and the words around it."""

    place: str
    what: str
    around: str

    def __str__(self) -> str:
        return f"{self.what} in {self.place}: {self.around}"


@dataclass(frozen=True)
class ProcessPlace:
    """The files of one child process."""

    out: Path
    err: Path
    arguments: Path

    def arguments_of(self, pid: int) -> None:
        """Adds the arguments as the kernel shows them to everybody."""
        with suppress(OSError), self.arguments.open("a") as file:
            file.write(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") + "\n")


class Evidence:
    """One session's evidence; `folder` may be given to write into that of another process."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="dfagent-evidence-"))
        self.register = Register()
        self.findings: list[Finding] = []
        self.test = "outside of tests"
        self.temporary = self.folder / "tmp"
        self._processes = self.folder / "processes"
        self._number = 0
        self._read = 0
        for place in (self.temporary, self._processes):
            place.mkdir(exist_ok=True)
        self._said = (self.folder / "said.jsonl").open("a")
        self._registered = os.open(
            self.folder / "registered.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )

    # What must not be seen

    def secret(self, what: str, value: str) -> None:
        if self.register.secret(what, value):
            self._tell(what, value)

    def signatures(self, values: Iterable[str]) -> None:
        for value in values:
            if self.register.signature(value):
                self._tell("", value)

    def _tell(self, what: str, value: str) -> None:
        # At once and in one write: the process may be killed in the next moment.
        os.write(self._registered, json.dumps({"what": what, "value": value}).encode() + b"\n")

    def _read_registered(self) -> None:
        """What children registered since the last look."""
        with (self.folder / "registered.jsonl").open() as lines:
            lines.seek(self._read)
            for line in lines.readlines():
                if not line.endswith("\n"):
                    break
                self._read += len(line)  # ASCII, as json writes it
                with suppress(ValueError):  # two processes' lines in one, or the end of a killed one's
                    entry = json.loads(line)
                    if entry["what"]:
                        self.register.secret(entry["what"], entry["value"])
                    else:
                        self.register.signature(entry["value"])

    # Where it is looked for

    def said(self, kind: str, text: str) -> None:
        """Keeps a text; `kind` says what it is."""
        if text:
            self._said.write(json.dumps({"place": f"{kind}, {self.test}", "text": text}) + "\n")

    def process(self, arguments: Iterable[str]) -> ProcessPlace:
        """Places for the output of a new process."""
        self._number += 1
        stem = self._processes / f"{os.getpid()}-{self._number}"
        place = ProcessPlace(*(stem.with_suffix(suffix) for suffix in (".out", ".err", ".arguments")))
        place.arguments.write_text("\n".join((self.test, *arguments, "")))
        return place

    def look_at_files(self, folder: Path) -> None:
        """Searches the files below the folder now, because they will not be there at the session's end."""
        self._read_registered()
        for path in sorted(_files(folder)):
            name = path.relative_to(folder)
            place = f"file {name}"
            if path.is_symlink():
                self._look(f"{place}, {self.test}", os.readlink(path))
                continue
            found = list(self.register.find(_content(path)))
            if found and path.name in SETTINGS_FILES:
                found = [] if not path.stat().st_mode & 0o007 else found
                place += ", which everybody may read"
            self.findings += [Finding(f"{place}, {self.test}", hit.what, hit.around) for hit in found]

    def _look(self, place: str, text: str, *, guess: bool = False) -> None:
        self.findings += [Finding(place, hit.what, hit.around) for hit in self.register.find(text, guess=guess)]

    def search(self) -> list[Finding]:
        """Everything that was kept, searched for everything that was registered."""
        self._read_registered()
        self._said.flush()
        with (self.folder / "said.jsonl").open() as lines:
            for line in lines:
                entry = json.loads(line)
                self._look(entry["place"], entry["text"])
        for path in sorted(self._processes.iterdir()):
            test = path.with_suffix(".arguments").read_text().partition("\n")[0]
            self._look(f"{path.suffix[1:]} of a process, {test}", path.read_text(errors="replace"), guess=True)
        self.look_at_files(self.temporary)
        return self.findings

    def close(self) -> None:
        self._said.close()
        os.close(self._registered)
        shutil.rmtree(self.folder, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)
        yield from (Path(parent, name) for name in folders if Path(parent, name).is_symlink())


def _content(path: Path) -> str:
    with suppress(OSError):
        if path.is_file() and path.stat().st_size <= LARGEST_FILE:
            return path.read_text(errors="replace")
    return ""


_evidence: list[Evidence] = []


def the_evidence() -> Evidence:
    """This process's evidence: begun on first use; a child's goes into the folder of the session that started it."""
    if not _evidence:
        begin(Path(folder) if (folder := os.environ.get(CHILD_VARIABLE)) else None)
    return _evidence[-1]


def begin(folder: Path | None = None) -> Evidence:
    _evidence.append(Evidence(folder))
    return _evidence[-1]


def end() -> None:
    """Closes the evidence and removes its folder."""
    if _evidence:
        _evidence.pop().close()
