"""Which names a file system holds for one, found out by trying."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dfagent.repository.folding import folding, folding_of

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


class FoldingDisk:
    """Stands in for a file system that folds: what lies in `folder` is found under every name of the same folding.

    Real ones (FAT, NTFS, ext4 with casefold) need a kernel or a mount that tests can't count on.
    """

    def __init__(self, **folds: bool) -> None:
        self._fold = folding(**{"by_case": False, "by_form": False, "by_end": False, **folds})

    def lexists(self, path: Path) -> bool:
        names = {self._fold(file.name) for file in path.parent.iterdir()}
        return self._fold(path.name) in names


@pytest.fixture
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FoldingDisk:
    made = FoldingDisk(**request.param)
    monkeypatch.setattr("os.path.lexists", made.lexists)
    return made


def test_should_see_that_linux_keeps_names_apart(tmp_path: Path) -> None:
    """On the disk of the tests; and nothing is left there."""
    assert folding_of(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("disk", [{"by_case": True}], indirect=True)
def test_should_see_that_case_is_ignored(tmp_path: Path, disk: FoldingDisk) -> None:
    """As on FAT and NTFS."""
    fold = folding_of(tmp_path)
    assert fold is not None and fold("Model.ONNX") == fold("model.onnx") != fold("model.onnx2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("disk", [{"by_form": True}], indirect=True)
def test_should_see_that_normal_forms_are_ignored(tmp_path: Path, disk: FoldingDisk) -> None:
    """As on ZFS with normalization."""
    fold = folding_of(tmp_path)
    assert fold is not None and fold(COMPOSED) == fold(DECOMPOSED)
    assert fold("A") != fold("a")


@pytest.mark.parametrize("disk", [{"by_end": True}], indirect=True)
def test_should_see_that_dots_at_the_end_are_ignored(tmp_path: Path, disk: FoldingDisk) -> None:
    """As on FAT, which drops spaces there too."""
    fold = folding_of(tmp_path)
    assert fold is not None and fold("a.") == fold("a ") == fold("a. .") == fold("a") != fold(".a")


def test_should_take_a_disk_that_refuses_such_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that it can't hold collide with none."""
    real = os.open

    def refuse(path: Path, *rest: int) -> int:
        if not str(path).isascii():
            raise OSError(22, "Invalid argument")
        return real(path, *rest)

    monkeypatch.setattr("os.open", refuse)
    assert folding_of(tmp_path) is None


def test_should_say_where_no_file_can_be_made(tmp_path: Path) -> None:
    """A folder that is not there can't be probed."""
    with pytest.raises(FileNotFoundError):
        folding_of(tmp_path / "absent")


@pytest.mark.parametrize(
    ("one", "other"),
    [("stra\u00dfe", "STRASSE"), ("\u0131", "I"), ("\u017f", "s"), ("\u03c2", "\u03a3"), ("\u212a", "k"),
     ("\u1e9e", "ss"), ("a\u200bb", "ab"), (COMPOSED, DECOMPOSED.upper()), ("\ufb01", "fi")],
)  # fmt: skip
def test_should_fold_case_on_the_safe_side(one: str, other: str) -> None:
    """Whatever one of them holds for the same letter."""
    fold = folding(by_case=True, by_form=False, by_end=False)
    assert fold(one) == fold(other)
