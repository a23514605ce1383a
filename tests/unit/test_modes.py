"""Folders have mode 0750 and our files 0640, whatever the umask; what dfdaemon linked keeps its own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfagent.repository.folder import RepositoryFolder
from dfagent.repository.manifest import Manifest, ManifestFile
from dfagent.repository.materialise import Staging

CONFIG = ManifestFile("config.pbtxt", 6, "0" * 64)
FETCHED = ManifestFile("1/deep/fetched", 3, "a" * 64)
LINKED = ManifestFile("1/linked", 3, "b" * 64)


@pytest.fixture(params=[0o000, 0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in paths}


def should_set_the_modes_of_all_that_it_makes(tmp_path: Path, umask: int) -> None:
    cached = tmp_path / "cached"
    cached.write_text("bbb")
    cached.chmod(0o604)
    folder = RepositoryFolder(tmp_path / "new" / "node" / "models")
    folder.open()
    wanted = Manifest.of("net", [CONFIG, FETCHED, LINKED], ["2"])
    staging = Staging(folder, wanted)
    staging.open()
    partials = folder.partials("net")
    (partials / "x.direct.partial").write_text("aaa")
    (partials / "y.direct.partial").touch(0o600)
    os.link(cached, partials / "z.dfdaemon.partial")
    staging.take(FETCHED, partials / "x.direct.partial")
    staging.take(LINKED, partials / "z.dfdaemon.partial")
    staging.write(CONFIG, b"config")
    staging.finish()
    folder.publish("net", wanted.digest)
    folder.store_config("net", "v", b"config")
    folder.note_loaded("net", b"note")
    folder.partials("other")
    found = modes(tmp_path / "new")
    assert {"node/models", "node/.dfagent-models/ledger.sqlite", "node/.dfagent-models/lock"} <= set(found)
    linked = {name: found.pop(name) for name in list(found) if name.endswith("1/linked")}
    assert list(linked.values()) == [0o604]
    wrong = {
        name: oct(mode)
        for name, mode in found.items()
        if mode != (0o750 if (tmp_path / "new" / name).is_dir() else 0o640)
    }
    assert not wrong
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o750


def should_leave_the_modes_of_folders_that_were_there(tmp_path: Path, umask: int) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models").chmod(0o2775)
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o2770)
    folder = RepositoryFolder(tmp_path / "models", tmp_path / "state")
    folder.open()
    assert stat.S_IMODE((tmp_path / "models").stat().st_mode) == 0o2775
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o2770
