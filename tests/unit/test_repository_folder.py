"""Publishing by generations: links that never dangle, nothing half visible, nothing of others touched."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest

from dfagent.errors import ConfigError, FolderInUse, NoSpace, RepositoryError, Truncated, UnsafePath
from dfagent.repository.folder import RepositoryFolder, disk_errors
from dfagent.repository.manifest import Manifest, ManifestFile
from dfagent.repository.materialise import Staging


@pytest.fixture
def folder(tmp_path: Path) -> RepositoryFolder:
    opened = RepositoryFolder(tmp_path / "models")
    opened.open()
    return opened


def manifest(**files: str) -> Manifest:
    """A model of files (a__b means a/b) whose content is also their version; the store has no checksum of them."""
    entries = [ManifestFile(name.replace("__", "/"), len(text), text) for name, text in files.items()]
    return Manifest.of("net", entries, [])


def assemble(folder: RepositoryFolder, wanted: Manifest) -> list[str]:
    """Fetches what is missing from nowhere, makes it a generation, publishes it; returns what was missing."""
    staging = Staging(folder, wanted)
    missing = staging.open()
    for file in missing:
        arrived = folder.partials("net") / f"{file.path.replace('/', '-')}.partial"
        arrived.write_text(file.version)
        staging.take(file, arrived)
    staging.finish()
    folder.publish("net", wanted.digest)
    return [file.path for file in missing]


def should_show_triton_nothing_but_whole_models(folder: RepositoryFolder) -> None:
    staging = Staging(folder, manifest(**{"1__weights": "w1"}))
    staging.open()
    assert list(folder.target.iterdir()) == []
    assemble(folder, manifest(**{"1__weights": "w1"}))
    assert [path.name for path in folder.target.iterdir()] == ["net"]
    assert (folder.target / "net/1/weights").read_text() == "w1"
    assert not os.readlink(folder.target / "net").startswith("/")


def should_fetch_only_what_changed(folder: RepositoryFolder) -> None:
    assert assemble(folder, manifest(**{"1__a": "a1", "1__b": "b1"})) == ["1/a", "1/b"]
    old = (folder.target / "net/1/a").stat().st_ino
    assert assemble(folder, manifest(**{"1__a": "a1", "1__b": "b2"})) == ["1/b"]
    assert (folder.target / "net/1/a").stat().st_ino == old
    assert (folder.target / "net/1/b").read_text() == "b2"


def should_go_on_with_the_files_that_a_killed_run_had_whole(folder: RepositoryFolder) -> None:
    wanted = manifest(**{"1__a": "a1", "1__b": "b1"})
    staging = Staging(folder, wanted)
    arrived = folder.partials("net") / "a.partial"
    arrived.write_text("a1")
    staging.take(next(file for file in staging.open() if file.path == "1/a"), arrived)
    folder.close()
    again = RepositoryFolder(folder.target)
    again.open()
    assert [file.path for file in Staging(again, wanted).open()] == ["1/b"]


@pytest.mark.parametrize("damage", ["missing", "cut short", "too long"])
def should_mend_a_damaged_generation_without_a_moment_of_nothing(folder: RepositoryFolder, damage: str) -> None:
    wanted = manifest(**{"1__a": "a1", "1__b": "b1"})
    assemble(folder, wanted)
    if damage == "missing":
        (folder.target / "net/1/a").unlink()
    else:
        (folder.target / "net/1/a").write_text("a" if damage == "cut short" else "a12")
    assert folder.manifest("net", wanted.digest) is None
    assemble(folder, wanted)
    assert (folder.target / "net/1/a").read_text() == "a1"
    assert folder.manifest("net", wanted.digest) == wanted


@pytest.mark.parametrize("content", ["another generation's", "half of it", "nothing"])
def should_take_no_generation_whose_manifest_is_not_its_own(folder: RepositoryFolder, content: str) -> None:
    one, two = manifest(**{"1__a": "one"}), manifest(**{"1__a": "two"})
    assemble(folder, one)
    assert folder.manifest("net", one.digest) == one
    text = {"another generation's": two.to_json(), "half of it": one.to_json()[:20], "nothing": b""}[content]
    folder.manifest_path("net", one.digest).write_bytes(text)
    assert folder.manifest("net", one.digest) is None


def should_remove_what_a_killed_run_left_but_what_can_be_resumed(folder: RepositoryFolder) -> None:
    partials = folder.partials("net")
    left = [partials / name for name in ("t-1.partial", "t-2.dfdaemon.partial")]
    left.append(folder.temporary())
    resumable = [partials / f"t.{way}" for way in ("direct.partial", "direct.parts", "proxy.partial", "proxy.parts")]
    for path in (*left, *resumable):
        path.write_text("left")
    folder.close()
    again = RepositoryFolder(folder.target)
    again.open()
    assert not [path for path in left if path.exists()]
    assert all(path.exists() for path in resumable)


def should_leave_nothing_beside_a_finished_generation(folder: RepositoryFolder) -> None:
    """Neither downloads that nobody goes on with, nor what was assembled of a version that came in between."""
    superseded = Staging(folder, manifest(**{"1__a": "old"}))
    superseded.open()
    (folder.partials("net") / "old.direct.partial").write_text("part")
    wanted = manifest(**{"1__a": "new"})
    assemble(folder, wanted)
    assert not (folder.state / "partials" / "net").exists()
    assert list((folder.state / "staging" / "net").iterdir()) == []


def should_fetch_a_staged_file_of_another_size_again(folder: RepositoryFolder) -> None:
    wanted = manifest(**{"1__a": "right"})
    Staging(folder, wanted).open()
    (folder.staging("net", wanted.digest) / "1" / "a").write_text("half")
    assert [file.path for file in Staging(folder, wanted).open()] == ["1/a"]


def should_name_a_generation_by_its_files_their_versions_and_its_folders() -> None:
    one, two = ManifestFile("1/a", 3, "one"), ManifestFile("1/b", 3, "two")
    same = Manifest.of("net", [one, two], ["2", "1"])
    assert Manifest.of("net", [two, one], ["1", "2"]).digest == same.digest
    others = [
        Manifest.of("net", [one], ["1", "2"]),
        Manifest.of("net", [one, two], ["1"]),
        Manifest.of("net", [one, ManifestFile("1/b", 3, "new")], ["1", "2"]),
        Manifest.of("net", [one, ManifestFile("1/c", 3, "two")], ["1", "2"]),
    ]
    assert same.digest not in {other.digest for other in others}
    assert Manifest.from_json(same.to_json()) == same


def should_not_name_a_generation_by_the_url_that_it_came_from() -> None:
    one = ManifestFile("1/a", 3, "one")
    noted = Manifest.of("net", [one], ["1"], "s3://bucket/models")
    assert noted.digest == Manifest.of("net", [one], ["1"], "s3://bucket/models/net").digest
    assert Manifest.from_json(noted.to_json()).repository == "s3://bucket/models"


def should_still_know_the_generations_that_were_published_before_the_url_was_noted() -> None:
    text = b'{"files":[{"path":"1/a","size":3,"version":"one"}],"folders":["1"],"model":"net"}'
    old = Manifest.from_json(text)
    assert old.repository == "" and old.digest == hashlib.sha256(text).hexdigest()
    assert old.digest == Manifest.of("net", [ManifestFile("1/a", 3, "one")], ["1"], "s3://bucket").digest


def should_publish_the_empty_folders_of_a_model(folder: RepositoryFolder) -> None:
    wanted = Manifest.of("net", [ManifestFile("labels", 2, "l1")], ["1", "2/deep"])
    assemble(folder, wanted)
    assert (folder.target / "net/1").is_dir() and (folder.target / "net/2/deep").is_dir()
    (folder.target / "net/2/deep").rmdir()
    assert folder.manifest("net", wanted.digest) is None
    assemble(folder, wanted)
    assert (folder.target / "net/2/deep").is_dir()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def should_say_that_the_disk_is_full(tmp_path: Path, code: int) -> None:
    with pytest.raises(NoSpace, match=str(tmp_path)) as full, disk_errors(tmp_path):
        raise OSError(code, os.strerror(code))
    assert full.value.exit_code == 7
    with pytest.raises(RepositoryError, match="read-only") as other, disk_errors(tmp_path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    assert not isinstance(other.value, NoSpace)


def should_tolerate_what_triton_writes_beside_a_model(folder: RepositoryFolder) -> None:
    wanted = manifest(**{"1__model.py": "code"})
    assemble(folder, wanted)
    (folder.target / "net/1/__pycache__").mkdir()
    assert folder.manifest("net", wanted.digest) == wanted


def should_never_leave_a_dangling_link_while_versions_are_swapped(folder: RepositoryFolder) -> None:
    versions = [manifest(**{"1__a": text}) for text in ("one", "two", "six")]
    assemble(folder, versions[0])
    broken: list[str] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            if not (folder.target / "net").exists():
                broken.append("dangling")

    watcher = threading.Thread(target=look)
    watcher.start()
    for turn in range(60):
        assemble(folder, versions[turn % 3])
        folder.remove_generations("net", keep=set())
    done.set()
    watcher.join()
    assert not broken


def should_keep_the_published_generation_whatever_is_to_go(folder: RepositoryFolder) -> None:
    first, second = manifest(**{"1__a": "one"}), manifest(**{"1__a": "two"})
    assemble(folder, first)
    assemble(folder, second)
    folder.remove_generations("net", keep={first.digest})
    assert folder.manifest("net", first.digest) and folder.manifest("net", second.digest)
    folder.remove_generations("net", keep=set())
    assert folder.manifest("net", first.digest) is None
    assert not folder.generation("net", first.digest).exists()
    assert not folder.manifest_path("net", first.digest).exists()
    assert (folder.target / "net/1/a").read_text() == "two"


def should_refuse_a_file_of_another_size(folder: RepositoryFolder) -> None:
    staging = Staging(folder, manifest(**{"1__a": "right"}))
    (file,) = staging.open()
    arrived = folder.partials("net") / "a.partial"
    arrived.write_text("wrong size")
    with pytest.raises(Truncated):
        staging.take(file, arrived)
    assert not arrived.exists()


@pytest.mark.parametrize("kind", ["folder", "file", "foreign link"])
def should_not_touch_what_others_put_into_the_model_repository(folder: RepositoryFolder, kind: str) -> None:
    place = folder.target / "net"
    if kind == "folder":
        place.mkdir()
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to("/etc")
    with pytest.raises(UnsafePath, match="not put there by dfagent"):
        folder.current("net")


def should_let_only_one_agent_work_on_a_folder(folder: RepositoryFolder) -> None:
    with pytest.raises(FolderInUse, match=str(os.getpid())):
        RepositoryFolder(folder.target).open()
    folder.close()
    second = RepositoryFolder(folder.target)
    second.open()
    second.close()


def should_refuse_a_state_folder_inside_the_model_repository(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lies inside"):
        RepositoryFolder(tmp_path / "models", tmp_path / "models" / "state").open()


def should_refuse_a_state_folder_on_another_mount(tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"dfagent-test-{os.getpid()}"
    with pytest.raises(RepositoryError, match="different mounts") as refused:
        RepositoryFolder(tmp_path / "models", other).open()
    assert not other.exists(), "what was made in the wrong place is taken away again"
    assert "--state" in refused.value.hint
    assert list((tmp_path / "models").iterdir()) == []


def should_find_its_links_through_a_folder_that_is_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "models").symlink_to("disk", target_is_directory=True)
    folder = RepositoryFolder(tmp_path / "models")
    folder.open()
    wanted = manifest(**{"1__a": "one"})
    assemble(folder, wanted)
    assert (tmp_path / "models/net/1/a").read_text() == "one"
    assert folder.current("net") == wanted.digest


def should_say_which_folder_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ConfigError, match="models is no folder"):
        RepositoryFolder(tmp_path / "models").open()
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def should_leave_a_state_folder_alone_that_holds_files_of_others(tmp_path: Path) -> None:
    """`--state app` must not cost anybody the files of an application."""
    state = tmp_path / "app"
    state.mkdir()
    (state / "config-prod.json").write_text("precious")
    with pytest.raises(ConfigError, match="not dfagent's"):
        RepositoryFolder(tmp_path / "models", state).open()
    assert [path.name for path in state.iterdir()] == ["config-prod.json"]


def should_refuse_one_state_folder_for_two_model_repositories(tmp_path: Path) -> None:
    """One would remove the generations that the other's links lead to."""
    RepositoryFolder(tmp_path / "a", tmp_path / "state").open()
    with pytest.raises(ConfigError, match="of another model repository"):
        RepositoryFolder(tmp_path / "b", tmp_path / "state").open()


def should_let_both_folders_be_moved_together(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    folder = RepositoryFolder(tmp_path / "old" / "models")
    folder.open()
    wanted = manifest(**{"1__a": "one"})
    assemble(folder, wanted)
    folder.close()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = RepositoryFolder(tmp_path / "new" / "models")
    moved.open()
    assert moved.manifest("net", wanted.digest) == wanted and moved.current("net") == wanted.digest


def should_refuse_a_model_repository_inside_its_state_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lies inside the state folder"):
        RepositoryFolder(tmp_path / "state" / "models", tmp_path / "state").open()


def should_remove_the_probe_that_a_killed_run_left_where_triton_looks(folder: RepositoryFolder) -> None:
    folder.close()
    (folder.target / f".dfagent-probe-{'0' * 32}").touch()
    of_somebody = folder.target / f".dfagent-probe-{'1' * 32}"
    of_somebody.mkdir()
    (of_somebody / "precious").touch()
    folder.open()
    assert list(folder.target.iterdir()) == [of_somebody] and (of_somebody / "precious").exists()


def should_not_write_into_a_file_that_is_linked_in_the_place_of_the_lock(folder: RepositoryFolder) -> None:
    folder.close()
    precious = folder.target.parent / "precious"
    precious.write_text("precious")
    precious.chmod(0o600)
    (folder.state / "lock").unlink()
    os.link(precious, folder.state / "lock")
    with pytest.raises(UnsafePath, match="hard link"):
        folder.open()
    assert precious.read_text() == "precious" and stat.S_IMODE(precious.stat().st_mode) == 0o600


def should_publish_nothing_without_its_lock(folder: RepositoryFolder) -> None:
    """Another one may be at work there by now."""
    wanted = manifest(**{"1__a": "one"})
    assemble(folder, wanted)
    newer = manifest(**{"1__a": "two"})
    (folder.state / "lock").unlink()
    with pytest.raises(FolderInUse, match="removed or replaced"):
        assemble(folder, newer)
    with pytest.raises(FolderInUse):
        folder.publish("net", newer.digest)
    assert (folder.target / "net/1/a").read_text() == "one"
    folder.hold()
    assemble(folder, newer)
    assert (folder.target / "net/1/a").read_text() == "two"


def should_not_go_on_through_a_link_in_the_place_of_its_state_folder(folder: RepositoryFolder) -> None:
    moved = folder.target.parent / "moved"
    folder.state.rename(moved)
    folder.state.symlink_to(moved)
    with pytest.raises(UnsafePath, match="a link"):
        folder.hold()
    with pytest.raises(UnsafePath, match="a link"):
        folder.partials("net")
