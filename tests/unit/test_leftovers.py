"""What killed runs left is kept for a while and in bounds, and goes with the model that it was for."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dfagent.repository.folder import RepositoryFolder
from dfagent.repository.leftovers import KEPT_SECONDS, MOST_PARTIALS
from dfagent.repository.manifest import Manifest, ManifestFile
from dfagent.repository.materialise import Staging

NOW = time.time()
WANTED = Manifest.of("net", [ManifestFile("1/weights", 3, "a" * 64)], [])


@pytest.fixture
def folder(tmp_path: Path) -> RepositoryFolder:
    opened = RepositoryFolder(tmp_path / "models")
    opened.open()
    return opened


def left(folder: RepositoryFolder, name: str, *, age: float, model: str = "net", way: str = "direct") -> list[Path]:
    """A download that ended `age` seconds ago: its bytes, and its journal, which was begun before them."""
    paths = [folder.partials(model) / f"{name}.{way}.{part}" for part in ("partial", "parts")]
    for path, seconds in zip(paths, (age, age + 1), strict=True):
        path.write_text("left")
        os.utime(path, (NOW - seconds, NOW - seconds))
    return paths


def should_keep_what_can_be_resumed_for_a_week(folder: RepositoryFolder) -> None:
    young = left(folder, "young", age=KEPT_SECONDS - 60) + left(folder, "proxy", age=5, way="proxy")
    old = left(folder, "old", age=KEPT_SECONDS + 60, model="unwanted")
    folder.sweep(now=NOW)
    assert all(path.exists() for path in young) and not any(path.exists() for path in old)
    assert not (folder.state / "partials" / "unwanted").exists()


def should_keep_the_journal_of_what_is_kept(folder: RepositoryFolder) -> None:
    """A download is one thing: bytes without their journal would be fetched again, a journal alone is of no use."""
    pair = left(folder, "pair", age=KEPT_SECONDS - 0.5)
    folder.sweep(now=NOW)
    assert all(path.exists() for path in pair)


def should_drop_a_journal_whose_bytes_were_taken_over(folder: RepositoryFolder) -> None:
    """A run was killed between the two: nothing would ever go on with it."""
    data, journal = left(folder, "taken", age=5)
    data.unlink()
    folder.sweep(now=NOW)
    assert not journal.exists()


def should_keep_no_more_than_so_many_the_oldest_go(folder: RepositoryFolder) -> None:
    downloads = {age: left(folder, f"t{age}", age=age, model=f"m{age % 3}") for age in range(MOST_PARTIALS + 5)}
    folder.sweep(now=NOW)
    kept = {age for age, paths in downloads.items() if all(path.exists() for path in paths)}
    gone = {age for age, paths in downloads.items() if not any(path.exists() for path in paths)}
    assert kept == set(range(MOST_PARTIALS)) and gone == set(range(MOST_PARTIALS, MOST_PARTIALS + 5))


def should_touch_nothing_of_a_model_that_is_downloading(folder: RepositoryFolder) -> None:
    in_use = left(folder, "busy", age=2 * KEPT_SECONDS)
    (folder.partials("net") / "x.dfdaemon.partial").touch()
    folder.partials("empty")
    Staging(folder, WANTED).open()
    about_to_be_renamed = folder.temporary()
    about_to_be_renamed.touch()
    folder.sweep(busy={"net", "empty"}, now=NOW + 2 * KEPT_SECONDS)
    assert all(path.exists() for path in (*in_use, about_to_be_renamed))
    assert (folder.partials("net") / "x.dfdaemon.partial").exists() and (folder.state / "partials" / "empty").exists()
    assert folder.staging("net", WANTED.digest).exists()


def should_sweep_at_the_start_of_a_run(folder: RepositoryFolder) -> None:
    old, young = left(folder, "old", age=KEPT_SECONDS + 60), left(folder, "young", age=5)
    folder.close()
    RepositoryFolder(folder.target).open()
    assert all(path.exists() for path in young) and not any(path.exists() for path in old)


def should_drop_staged_files_that_nobody_went_on_with_for_a_week(folder: RepositoryFolder) -> None:
    staging = Staging(folder, WANTED)
    staging.open()
    arrived = folder.partials("net") / "x.direct.partial"
    arrived.write_text("aaa")
    # A file that dfdaemon linked is as old as its cache.
    os.utime(arrived, (0, 0))
    staging.take(WANTED.files[0], arrived)
    folder.sweep(now=time.time() + KEPT_SECONDS - 60)
    assert Staging(folder, WANTED).open() == []
    folder.sweep(now=time.time() + KEPT_SECONDS + 60)
    assert list((folder.state / "staging").iterdir()) == []


def should_end_the_downloads_of_a_model_with_its_publishing(folder: RepositoryFolder) -> None:
    mine, other = left(folder, "x", age=1), left(folder, "x", age=1, model="other")
    Manifest.of("net", [], ["1"])
    staging = Staging(folder, Manifest.of("net", [], ["1"]))
    staging.open()
    staging.finish()
    assert not any(path.exists() for path in mine) and all(path.exists() for path in other)


@pytest.mark.parametrize("kind", ["tmp", "partials", "staging"])
def should_not_stumble_over_what_it_does_not_know(folder: RepositoryFolder, kind: str) -> None:
    strange = folder.state / kind / "net" / "folder" / "deep"
    strange.mkdir(parents=True)
    folder.sweep(now=NOW + 2 * KEPT_SECONDS)
    assert not strange.parent.exists()
