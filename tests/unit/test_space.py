"""Room is compared before a download, on a real small disk, over all models that download side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfagent.errors import NoSpace
from dfagent.repository.folder import RepositoryFolder
from dfagent.repository.manifest import Manifest, ManifestFile
from dfagent.repository.materialise import Staging
from tests.servers.mounts import tiny_disk

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RepositoryFolder]:
    """On a disk with almost 4 MiB free."""
    with tiny_disk(tmp_path / "disk", 4 * MIB) as disk:
        opened = RepositoryFolder(disk / "models")
        opened.open()
        yield opened
        opened.close()


def weights(size: int, version: str = "a") -> list[ManifestFile]:
    return [ManifestFile(f"1/{version}", size, version * 64)]


def free(folder: RepositoryFolder) -> int:
    disk = os.statvfs(folder.state)
    return disk.f_bavail * disk.f_frsize


def download(folder: RepositoryFolder, model: str, file: ManifestFile) -> Path:
    partial = folder.partials(model) / f"{file.version[:32]}.direct.partial"
    with partial.open("wb") as bytes_:
        os.posix_fallocate(bytes_.fileno(), 0, file.size)
    return partial


def should_refuse_what_does_not_fit(folder: RepositoryFolder) -> None:
    room = free(folder)
    with folder.space.reserving("net", weights(room)):
        pass
    with pytest.raises(NoSpace) as refused, folder.space.reserving("net", weights(room + 1)):
        pytest.fail("nothing may be downloaded")
    assert refused.value.exit_code == 7
    assert str(refused.value).startswith(f"net: {room + 1} bytes are needed, {room} are free on the disk of ")


def should_add_up_what_models_want_side_by_side(folder: RepositoryFolder) -> None:
    with folder.space.reserving("one", weights(2 * MIB)):
        with pytest.raises(NoSpace, match=f"two: .* {2 * MIB} of them for other models"):
            folder.space.reserve("two", weights(2 * MIB))
        folder.space.reserve("three", weights(1 * MIB))
        folder.space.release("three")
    folder.space.reserve("two", weights(2 * MIB))


def should_not_count_twice_what_a_model_has_already_written(folder: RepositoryFolder) -> None:
    """Its bytes are no longer free, so they are no longer promised either."""
    (file,) = weights(2 * MIB)
    with folder.space.reserving("one", [file]):
        download(folder, "one", file)
        folder.space.reserve("two", weights(MIB))
        with pytest.raises(NoSpace):
            folder.space.reserve("three", weights(MIB))


def should_not_ask_for_room_that_the_partials_already_have(folder: RepositoryFolder) -> None:
    (file,) = weights(3 * MIB)
    download(folder, "net", file)
    with pytest.raises(NoSpace):
        folder.space.reserve("net", weights(3 * MIB, version="b"))
    folder.space.reserve("net", [file])
    folder.space.reserve("other", weights(512 * KIB))


def should_promise_nothing_to_a_model_that_was_refused(folder: RepositoryFolder) -> None:
    with pytest.raises(NoSpace):
        folder.space.reserve("one", weights(8 * MIB))
    folder.space.reserve("two", weights(3 * MIB))


def should_promise_a_model_once_when_it_asks_again(folder: RepositoryFolder) -> None:
    """It is listed again when its objects changed."""
    folder.space.reserve("net", weights(3 * MIB))
    folder.space.reserve("net", weights(3 * MIB, version="b"))


def should_take_the_room_of_a_linked_file_for_nobodys(folder: RepositoryFolder, tmp_path: Path) -> None:
    (file,) = weights(2 * MIB)
    cached = folder.state.parent / "cached"
    cached.touch()
    folder.space.reserve("one", weights(MIB, version="b"))
    with cached.open("wb") as bytes_:
        os.posix_fallocate(bytes_.fileno(), 0, file.size)
    os.link(cached, folder.partials("one") / "x.dfdaemon.partial")
    with pytest.raises(NoSpace):
        folder.space.reserve("two", weights(MIB, version="c"))


def should_end_the_promise_with_the_download(folder: RepositoryFolder) -> None:
    (file,) = weights(2 * MIB)
    with folder.space.reserving("one", [file]):
        staging = Staging(folder, Manifest.of("one", [file], []))
        staging.open()
        staging.take(file, download(folder, "one", file))
        folder.space.reserve("two", weights(1536 * KIB))
        folder.space.release("two")
    staging.finish()
    folder.space.reserve("two", weights(1536 * KIB))
