"""A changed file is noticed, in a generation and in staging; what was verified is not read again."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from dfagent.checksums import checksum_of_file
from dfagent.errors import DigestMismatch, UnsafePath
from dfagent.repository import trust as trust_module
from dfagent.repository.folder import RepositoryFolder
from dfagent.repository.ledger import FILES
from dfagent.repository.manifest import Manifest, ManifestFile
from dfagent.repository.materialise import Staging
from dfagent.types import Checksum, file_identity

RIGHT, WRONG = b"right bytes", b"wrong bytes"
CRC = Checksum("crc32", zlib.crc32(RIGHT).to_bytes(4, "big"))
STORED = ManifestFile("1/weights", len(RIGHT), hashlib.sha256(b"task").hexdigest())
OWN = ManifestFile("config.pbtxt", len(RIGHT), hashlib.sha256(RIGHT).hexdigest())
WANTED = Manifest.of("net", [STORED, OWN], [])


@pytest.fixture
def folder(tmp_path: Path) -> RepositoryFolder:
    opened = RepositoryFolder(tmp_path / "models")
    opened.open()
    return opened


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose bytes were looked at."""
    read: list[Path] = []

    def counted(path: Path, like: Checksum) -> Checksum:
        read.append(path)
        return checksum_of_file(path, like)

    monkeypatch.setattr(trust_module, "checksum_of_file", counted)
    return read


def assemble(folder: RepositoryFolder, checksum: Checksum | None = CRC, link: Path | None = None) -> list[str]:
    """Fetches what is missing, publishes it, and returns what was missing; `link` is where a cache has the bytes."""
    staging = Staging(folder, WANTED)
    missing = staging.open()
    for file in missing:
        if file == OWN:
            staging.write(file, RIGHT)
            continue
        arrived = folder.partials("net") / "x.partial"
        if link:
            link.unlink(missing_ok=True)
            link.write_bytes(RIGHT)
            os.link(link, arrived)
        else:
            arrived.write_bytes(RIGHT)
        staging.take(file, arrived, checksum)
    staging.finish()
    folder.publish("net", WANTED.digest)
    return [file.path for file in missing]


def whole(folder: RepositoryFolder) -> bool:
    return folder.manifest("net", WANTED.digest) is not None


def published(folder: RepositoryFolder, file: ManifestFile) -> Path:
    return folder.generation("net", WANTED.digest) / file.path


def spoil(path: Path, content: bytes = WRONG) -> None:
    """Other bytes of the same size, in place, as a bug or a person would write them."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def lose_ledger(folder: RepositoryFolder) -> RepositoryFolder:
    folder.close()
    for name in FILES:
        (folder.state / name).unlink(missing_ok=True)
    again = RepositoryFolder(folder.target)
    again.open()
    return again


def should_read_nothing_of_what_was_verified(folder: RepositoryFolder, reads: list[Path]) -> None:
    assemble(folder)
    assert whole(folder) and assemble(folder) == []
    assert not reads


@pytest.mark.parametrize("file", [STORED, OWN], ids=["the store's", "our own"])
@pytest.mark.parametrize("checksum", [CRC, None], ids=["crc32", "no checksum"])
@pytest.mark.parametrize("linked", [True, False])
def should_notice_a_changed_file_and_heal_it(
    folder: RepositoryFolder, file: ManifestFile, checksum: Checksum | None, linked: bool, tmp_path: Path
) -> None:
    assemble(folder, checksum, tmp_path / "cached" if linked else None)
    spoil(published(folder, file))
    assert not whole(folder)
    assert assemble(folder, checksum, tmp_path / "fetched again" if linked else None) == [file.path]
    assert whole(folder)
    assert [published(folder, each).read_bytes() for each in (STORED, OWN)] == [RIGHT, RIGHT]
    if linked and file == STORED:
        assert (tmp_path / "cached").read_bytes() == WRONG, "the cache's file is replaced by name, never written"


def should_read_a_touched_file_once_and_go_on_trusting_it(folder: RepositoryFolder, reads: list[Path]) -> None:
    """A restored backup has other inodes and times, and right bytes."""
    assemble(folder)
    for file in (STORED, OWN):
        copy = folder.temporary()
        copy.write_bytes(RIGHT)
        os.replace(copy, published(folder, file))
    assert whole(folder) and len(reads) == 2
    assert whole(folder) and assemble(folder) == [] and len(reads) == 2


def should_fetch_a_touched_file_again_when_nothing_can_tell_that_it_is_right(folder: RepositoryFolder) -> None:
    assemble(folder, checksum=None)
    spoil(published(folder, STORED), RIGHT)
    assert not whole(folder)
    assert assemble(folder, checksum=None) == [STORED.path]


@pytest.mark.parametrize("checksum", [CRC, None], ids=["crc32", "no checksum"])
def should_fetch_nothing_again_where_there_was_no_ledger(folder: RepositoryFolder, checksum: Checksum | None) -> None:
    """The state folder of the dfagent before."""
    assemble(folder)
    again = lose_ledger(folder)
    examined = again.examine("net", WANTED.digest)
    assert examined.whole and examined.unproven == (STORED,), "our own file proves itself"
    again.settle(WANTED, STORED, checksum)
    examined = again.examine("net", WANTED.digest)
    assert examined.whole and examined.unproven == ()
    assert assemble(again) == []
    spoil(published(again, STORED))
    assert not whole(again), "from now on a change is noticed"


def should_notice_after_a_lost_ledger_what_the_store_says_is_wrong(folder: RepositoryFolder) -> None:
    assemble(folder)
    spoil(published(folder, STORED))
    again = lose_ledger(folder)
    assert again.examine("net", WANTED.digest).unproven == (STORED,)
    again.settle(WANTED, STORED, CRC)
    assert not again.examine("net", WANTED.digest).whole
    assert assemble(again) == [STORED.path]
    assert published(again, STORED).read_bytes() == RIGHT


def staged(folder: RepositoryFolder) -> Path:
    """A killed run had both files in staging."""
    staging = Staging(folder, WANTED)
    staging.open()
    arrived = folder.partials("net") / "x.partial"
    arrived.write_bytes(RIGHT)
    staging.take(STORED, arrived, CRC)
    staging.write(OWN, RIGHT)
    return folder.staging("net", WANTED.digest)


def should_go_on_with_staged_files_that_are_still_as_they_were(folder: RepositoryFolder, reads: list[Path]) -> None:
    staged(folder)
    assert Staging(folder, WANTED).open() == [] and not reads


@pytest.mark.parametrize("file", [STORED, OWN], ids=["the store's", "our own"])
def should_fetch_a_changed_staged_file_again(folder: RepositoryFolder, file: ManifestFile) -> None:
    place = staged(folder)
    spoil(place / file.path)
    assert Staging(folder, WANTED).open() == [file]


def should_not_take_staged_files_that_nothing_is_known_of(folder: RepositoryFolder) -> None:
    staged(folder)
    assert Staging(lose_ledger(folder), WANTED).open() == [STORED]


def should_not_pass_a_damaged_file_on_to_the_next_generation(folder: RepositoryFolder) -> None:
    assemble(folder)
    spoil(published(folder, STORED))
    more = Manifest.of("net", [STORED, OWN, ManifestFile("2/weights", 3, "ff")], [])
    assert [file.path for file in Staging(folder, more).open()] == ["1/weights", "2/weights"]


def should_not_pass_a_file_on_that_nothing_is_known_of(folder: RepositoryFolder) -> None:
    """`unproven` names it: who asks the store about it before saves fetching it again."""
    assemble(folder)
    again = lose_ledger(folder)
    more = Staging(again, Manifest.of("net", [STORED, OWN, ManifestFile("2/weights", 3, "ff")], []))
    assert more.unproven() == [STORED]
    assert [file.path for file in more.open()] == ["1/weights", "2/weights"]
    again.ledger.learn(STORED.version, CRC)
    assert [file.path for file in more.open()] == ["2/weights"]


def a_link(path: Path, elsewhere: Path) -> None:
    path.unlink()
    path.symlink_to(elsewhere / "weights")


def a_folder_that_is_a_link(path: Path, elsewhere: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    path.parent.symlink_to(elsewhere)


def a_folder(path: Path, elsewhere: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


def a_file_for_a_folder(path: Path, elsewhere: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file")


@pytest.mark.parametrize("plant", [a_link, a_folder_that_is_a_link, a_folder, a_file_for_a_folder])
@pytest.mark.parametrize("where", ["generation", "staging"])
def should_heal_what_is_no_file_without_following_a_link(
    folder: RepositoryFolder, plant: Callable[[Path, Path], None], where: str, tmp_path: Path
) -> None:
    """Even when the bytes that a link leads to are the right ones."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").write_bytes(RIGHT)
    if where == "generation":
        assemble(folder)
        place = published(folder, STORED)
    else:
        place = staged(folder) / STORED.path
    plant(place, elsewhere)
    assert not whole(folder)
    assert STORED.path in assemble(folder)
    assert whole(folder) and not published(folder, STORED).is_symlink()
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == {"weights": RIGHT}


def should_publish_nothing_that_was_put_into_staging(folder: RepositoryFolder) -> None:
    (staged(folder) / "1" / "planted").write_text("by somebody")
    assemble(folder)
    assert not (folder.target / "net/1/planted").exists()


def should_remember_a_file_only_when_its_bytes_are_on_the_disk(
    folder: RepositoryFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its name in staging may say that it is whole."""
    order: list[str] = []

    def noting(what: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            order.append(what)
            return real(*arguments, **options)

        return call

    staging = Staging(folder, WANTED)
    staging.open()
    arrived = folder.partials("net") / "x.partial"
    arrived.write_bytes(RIGHT)
    monkeypatch.setattr(os, "fsync", noting("sync", os.fsync))
    monkeypatch.setattr(os, "replace", noting("name", os.replace))
    monkeypatch.setattr(folder.ledger, "remember", noting("ledger", folder.ledger.remember))
    staging.take(STORED, arrived, CRC)
    assert order == ["sync", "ledger", "name"]
    order.clear()
    monkeypatch.setattr(folder, "write_manifest", noting("manifest", folder.write_manifest))
    staging.write(OWN, RIGHT)
    order.clear()
    staging.finish()
    folder.publish("net", WANTED.digest)
    # Two folders of the staging; the manifest's bytes, name and folder; the generation; the link.
    assert order == ["sync", "sync", "manifest", "sync", "name", "sync", "name", "sync", "name", "sync"]


def should_say_where_a_generation_is_a_link(folder: RepositoryFolder, tmp_path: Path) -> None:
    assemble(folder)
    generation = folder.generation("net", WANTED.digest)
    generation.rename(tmp_path / "moved")
    generation.symlink_to(tmp_path / "moved")
    assert not whole(folder)
    with pytest.raises(UnsafePath, match=WANTED.digest):
        Staging(folder, WANTED).open()


def should_take_no_file_that_was_changed_after_it_had_been_verified(folder: RepositoryFolder, tmp_path: Path) -> None:
    """Whoever writes to the cache's inode in between: its link would be published, and vouched for by the ledger."""
    staging = Staging(folder, WANTED)
    staging.open()
    cached, arrived = tmp_path / "cached", folder.partials("net") / "x.dfdaemon.partial"
    cached.write_bytes(RIGHT)
    os.link(cached, arrived)
    verified_as = file_identity(arrived.lstat())
    cached.write_bytes(WRONG)
    with pytest.raises(DigestMismatch):
        staging.take(STORED, arrived, CRC, verified_as)
    assert not arrived.exists() and cached.read_bytes() == WRONG
    assert STORED in Staging(folder, WANTED).open()
    assert not folder.ledger.knows(STORED.version)
