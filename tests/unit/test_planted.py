"""What somebody planted where dfagent has its folders and files: nothing is written or removed through it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from dfagent.errors import ConfigError, NoSpace, RepositoryError, UnsafePath
from dfagent.repository.folder import RepositoryFolder
from dfagent.repository.manifest import Manifest, ManifestFile
from dfagent.repository.materialise import Staging
from tests.servers.mounts import read_only, tiny_disk

KINDS = ("generations", "manifests", "staging", "partials", "loaded", "configs", "tmp")
VERSIONS = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def folder(tmp_path: Path) -> RepositoryFolder:
    opened = RepositoryFolder(tmp_path / "models")
    opened.open()
    return opened


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of somebody else's that looks like one of ours from the inside."""
    folder = tmp_path / "precious"
    for name in ("net/old/1", "net/t.dfdaemon.partial", "net/t.direct.partial", "left"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    return folder


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def bring(folder: RepositoryFolder, version: str = VERSIONS[0]) -> None:
    """Everything that a pass does to the disk for one model."""
    wanted = Manifest.of("net", [ManifestFile("1/weights", 3, version)], [])
    folder.stored_config("net", "v")
    folder.store_config("net", "v", b"config")
    if folder.manifest("net", wanted.digest) is None:
        folder.remove_unfinished("net")
        staging = Staging(folder, wanted)
        for file in staging.open():
            arrived = folder.partials("net") / "x.direct.partial"
            arrived.write_text(version[:3])
            staging.take(file, arrived)
        staging.finish()
    folder.publish("net", wanted.digest)
    folder.note_loaded("net", b"note")
    assert folder.loaded("net") == b"note"
    folder.remove_generations("net", {wanted.digest})


def again(folder: RepositoryFolder) -> RepositoryFolder:
    """The same folder in the next run."""
    folder.close()
    opened = RepositoryFolder(folder.target)
    opened.open()
    return opened


def bring_again(folder: RepositoryFolder, when: str) -> None:
    bring(folder if when == "under way" else again(folder), VERSIONS[1])


def fill(disk: Path) -> Path:
    """Takes all room that there is."""
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    return disk / "filler"


def replaced(path: Path, plant: Callable[[Path], object]) -> None:
    if path.is_dir():
        path.rename(path.with_name("moved away"))
    else:
        path.unlink(missing_ok=True)
    plant(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("planted", ["link", "file"])
@pytest.mark.parametrize("when", ["before the start", "under way"])
def should_refuse_what_stands_in_for_a_folder_of_ours(
    folder: RepositoryFolder, precious: Path, kind: str, planted: str, when: str
) -> None:
    bring(folder)
    before = content(precious)
    place = folder.state / kind
    replaced(place, lambda path: path.symlink_to(precious) if planted == "link" else path.write_text("a file"))
    with pytest.raises(UnsafePath, match=f"{place} is a {planted}"):
        bring_again(folder, when)
    assert content(precious) == before


@pytest.mark.parametrize("kind", ["generations", "manifests", "staging", "partials"])
@pytest.mark.parametrize("planted", ["link", "file"])
@pytest.mark.parametrize("when", ["before the start", "under way"])
def should_refuse_what_stands_in_for_a_models_folder(
    folder: RepositoryFolder, precious: Path, kind: str, planted: str, when: str
) -> None:
    bring(folder)
    before = content(precious)
    place = folder.state / kind / "net"
    replaced(place, lambda path: path.symlink_to(precious / "net") if planted == "link" else path.write_text("a file"))
    with pytest.raises(UnsafePath, match=f"{place} is a {planted}"):
        bring_again(folder, when)
    assert content(precious) == before
    assert (folder.target / "net").is_symlink()


@pytest.mark.parametrize("name", ["target", "lock", "configs/net"])
def should_not_read_or_write_a_file_of_ours_through_a_link(folder: RepositoryFolder, tmp_path: Path, name: str) -> None:
    bring(folder)
    secret = tmp_path / "secret"
    secret.write_text((folder.state / name).read_text())
    replaced(folder.state / name, lambda path: path.symlink_to(secret))
    before = secret.read_text()
    with pytest.raises(UnsafePath, match=f"{folder.state / name} is a link"):
        bring_again(folder, "next run")
    assert secret.read_text() == before


def should_replace_a_link_where_a_note_is_written(folder: RepositoryFolder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    bring(folder)
    replaced(folder.state / "loaded" / "net", lambda path: path.symlink_to(tmp_path / "secret"))
    with pytest.raises(UnsafePath, match="is a link"):
        folder.loaded("net")
    bring(folder)
    assert (tmp_path / "secret").read_text() == "secret" and folder.loaded("net") == b"note"


@pytest.mark.parametrize("name", ["target", "lock", "configs/net", "loaded/net"])
def should_refuse_a_folder_where_a_file_of_ours_must_be(folder: RepositoryFolder, name: str) -> None:
    bring(folder)
    replaced(folder.state / name, lambda path: path.mkdir())
    with pytest.raises(UnsafePath, match=f"{folder.state / name} is a folder"):
        bring_again(folder, "next run")


def should_not_wait_for_a_pipe_that_stands_in_for_a_file(folder: RepositoryFolder) -> None:
    bring(folder)
    replaced(folder.state / "configs" / "net", lambda path: os.mkfifo(path))
    with pytest.raises(UnsafePath, match="neither file nor folder"):
        bring(folder)


def should_write_the_ledger_through_no_link(folder: RepositoryFolder, tmp_path: Path) -> None:
    """It may be lost, so this one is no reason to stop."""
    folder.close()
    (tmp_path / "database of somebody").touch()
    replaced(folder.state / "ledger.sqlite", lambda path: path.symlink_to(tmp_path / "database of somebody"))
    bring(again(folder))
    assert (tmp_path / "database of somebody").read_bytes() == b""


def should_refuse_a_state_folder_that_is_a_link_unless_it_was_named(folder: RepositoryFolder, precious: Path) -> None:
    folder.close()
    moved = folder.state.with_name("moved")
    folder.state.rename(moved)
    folder.state.symlink_to(moved)
    with pytest.raises(UnsafePath, match=f"{folder.state} is a link"):
        RepositoryFolder(folder.target).open()
    named = RepositoryFolder(folder.target, folder.state)
    named.open()
    assert named.state == moved


@pytest.mark.parametrize("planted", ["link", "file"])
def should_not_publish_into_what_took_the_place_of_the_model_repository(
    folder: RepositoryFolder, precious: Path, planted: str
) -> None:
    before = content(precious)
    replaced(folder.target, lambda path: path.symlink_to(precious) if planted == "link" else path.write_text("x"))
    with pytest.raises(UnsafePath, match=f"{folder.target} is a {planted}"):
        bring(folder)
    assert content(precious) == before and not (precious / "net").is_symlink()


def should_replace_no_folder_that_appears_where_a_model_is_published(folder: RepositoryFolder) -> None:
    bring(folder)
    replaced(folder.target / "net", lambda path: path.mkdir())
    wanted = next((folder.state / "generations" / "net").iterdir()).name
    with pytest.raises(UnsafePath, match="not put there by dfagent"):
        folder.publish("net", wanted)


def should_remove_only_the_link_where_one_lies_among_leftovers(folder: RepositoryFolder, precious: Path) -> None:
    bring(folder)
    before = content(precious)
    for kind, name in (
        ("tmp", "left"),
        ("partials/net", "x.dfdaemon.partial"),
        ("partials/net", "y.direct.partial"),
        ("staging/net", "d" * 64),
        ("generations/net", "e" * 64),
    ):
        (folder.state / kind).mkdir(exist_ok=True)
        (folder.state / kind / name).symlink_to(precious)
    bring(folder, VERSIONS[1])
    folder.sweep()
    assert content(precious) == before
    assert not [path for path in folder.state.rglob("*") if path.is_symlink()]


def should_say_that_the_file_system_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with read_only(tmp_path / "disk"), pytest.raises(RepositoryError, match="read-only") as refused:
        RepositoryFolder(tmp_path / "disk" / "models").open()
    assert refused.value.exit_code == 5 and "mount it writable" in refused.value.hint


def should_say_that_the_file_system_became_read_only(tmp_path: Path) -> None:
    """A disk with errors does."""
    (tmp_path / "disk").mkdir()
    folder = RepositoryFolder(tmp_path / "disk" / "models")
    folder.open()
    bring(folder)
    with read_only(tmp_path / "disk"), pytest.raises(RepositoryError, match="read-only"):
        bring(RepositoryFolder(folder.target), VERSIONS[1])
    assert (folder.target / "net/1/weights").read_text() == "aaa"


@pytest.mark.parametrize("what", ["target", "state"])
def should_say_that_a_folder_is_in_a_place_that_is_a_file(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").touch()
    places = {"target": tmp_path / "models", "state": tmp_path / "state", what: tmp_path / "file" / "below"}
    with pytest.raises((RepositoryError, ConfigError), match=str(tmp_path)):
        RepositoryFolder(**places).open()


def should_fail_on_a_full_disk_and_leave_what_is_published(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", 1 << 20) as disk:
        folder = RepositoryFolder(disk / "models")
        folder.open()
        bring(folder)
        filler = fill(disk)
        with pytest.raises(NoSpace, match=str(disk)):
            bring(folder, VERSIONS[1])
        assert (folder.target / "net/1/weights").read_text() == "aaa"
        filler.unlink()
        bring(folder, VERSIONS[1])
        assert (folder.target / "net/1/weights").read_text() == "bbb"
        folder.close()


def should_start_on_a_full_disk_or_say_so(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", 1 << 20) as disk:
        fill(disk)
        with pytest.raises(NoSpace, match="models"):
            RepositoryFolder(disk / "models").open()
