"""Finds out which names are one and the same to a file system: by case, by unicode normal form, by their ends."""

from __future__ import annotations

import os
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Folding = Callable[[str], str]
"""Maps one component of a path to what the file system may know it by; different results are different names."""

_COMPOSED, _DECOMPOSED = "\u00e9", "e\u0301"


def folding_of(folder: Path) -> Folding | None:
    """How the file system of `folder` folds names, None where it keeps all of them apart, as Linux's own do.

    Makes two files there for a moment and looks for them under other names, so it is work for a thread. Where it
    folds, the answer is on the safe side: file systems differ in which letters they hold for one, and some names that
    this one keeps apart are folded too. Raises OSError where no file can be made.
    """
    name = f".dfagent-probe-{uuid.uuid4().hex}"
    with _file(folder / f"{name}-aA"):
        by_case = os.path.lexists(folder / f"{name}-Aa")
        by_end = os.path.lexists(folder / f"{name}-aA.")
    by_form = False
    with suppress(OSError), _file(folder / f"{name}-{_COMPOSED}"):  # a disk may take no such name at all
        by_form = os.path.lexists(folder / f"{name}-{_DECOMPOSED}")
    return folding(by_case=by_case, by_form=by_form, by_end=by_end) if by_case or by_form or by_end else None


@contextmanager
def _file(path: Path) -> Iterator[None]:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def folding(*, by_case: bool, by_form: bool, by_end: bool) -> Folding:
    """The folding of a file system that ignores case, normal forms, dots and spaces at a name's end, or several."""

    def fold(name: str) -> str:
        if by_end:
            name = name.rstrip(". ")
        if by_case:
            # Those that fold by unicode's rules also leave out what is invisible; upper() first, because tables that
            # compare capitals hold more letters for one than casefold() does.
            visible = "".join(character for character in name if unicodedata.category(character) != "Cf")
            name = visible.upper().casefold()
        # What folds case by unicode's rules compares normal forms, and casefold() leaves its results in none.
        return unicodedata.normalize("NFC", name) if by_form or by_case else name

    return fold
