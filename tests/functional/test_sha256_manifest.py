"""SHA256SUMS, demanded: nothing that it does not vouch for is published, and what it vouched for costs one look."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dfagent.errors import DigestMismatch, InvalidSha256Sums
from dfagent.local.object_store import S3Server
from dfagent.repository import sha256sums
from dfagent.repository.folder import RepositoryFolder
from dfagent.repository.manifest import ManifestFile
from dfagent.repository.materialise import Staging
from dfagent.repository.sha256sums import MAX_SUMS_BYTES, Demand, Sha256Check
from dfagent.settings.dragonfly import DragonflySettings
from tests.servers import program
from tests.servers.gate import Gate
from tests.servers.passes import Place, config_of, sums_of
from tests.servers.program import SettingsFiles

MIB = 1 << 20
Files = dict[str, bytes]


@pytest.fixture
async def place(s3_server: S3Server, bucket: str, tmp_path: Path) -> AsyncIterator[Place]:
    async with Gate(s3_server.port) as gate:
        yield Place(s3_server, bucket, gate, tmp_path / "node" / "models", options={"require_sha256": True})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were hashed, a name for each slice."""
    read: list[str] = []
    real = sha256sums._hash_slice

    def noted(path: Path, *rest: object) -> object:
        read.append(path.name)
        return real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sha256sums, "_hash_slice", noted)
    return read


def files_of(weights: bytes = b"weights") -> Files:
    return {"config.pbtxt": config_of("net"), "1/weights": weights, "1/labels": b"cat"}


def put_vouched(place: Place, files: Files) -> None:
    place.put_files("repo/net", {**files, "SHA256SUMS": sums_of(files)})


async def should_publish_what_its_list_vouches_for(place: Place, reads: list[str]) -> None:
    put_vouched(place, files_of())
    result = await place.run()
    assert not result.errors and place.outcomes(result) == {"net": "published"}
    assert (place.target / "net/1/weights").read_bytes() == b"weights"
    assert (place.target / "net/SHA256SUMS").read_bytes() == sums_of(files_of())
    assert sorted(reads) == ["SHA256SUMS", "labels", "weights"]
    assert len(place.gate.requests("SHA256SUMS")) == 1, "it is read once, and straight from the store"
    assert b"dragonfly" not in (place.target / "net/config.pbtxt").read_bytes(), "checked as the store has it"


async def should_cost_nothing_where_nothing_changed(place: Place, reads: list[str]) -> None:
    put_vouched(place, files_of())
    await place.run()
    reads.clear()
    place.gate.heads.clear()
    assert place.outcomes(await place.run()) == {"net": "unchanged"}
    assert reads == [] and len(place.gate.heads) == 1 and "list-type=2" in place.gate.heads[0]


async def should_read_only_the_files_that_changed(place: Place, reads: list[str]) -> None:
    put_vouched(place, files_of())
    await place.run()
    reads.clear()
    put_vouched(place, files_of(b"newer weights"))
    assert place.outcomes(await place.run()) == {"net": "published"}
    assert sorted(reads) == ["SHA256SUMS", "weights"]
    assert (place.target / "net/1/weights").read_bytes() == b"newer weights"


def _no_list(files: Files) -> None:
    del files["SHA256SUMS"]


def _html(files: Files) -> None:
    files["SHA256SUMS"] = b"<html>403</html>"


def _too_large(files: Files) -> None:
    files["SHA256SUMS"] = b"#" * (MAX_SUMS_BYTES + 1)


def _unlisted(files: Files) -> None:
    files["1/planted.py"] = b"import os"


def _absent(files: Files) -> None:
    del files["1/labels"]


def _wrong(files: Files) -> None:
    files["1/weights"] = b"WEIGHTS"


def _wrong_config(files: Files) -> None:
    files["config.pbtxt"] += b"# edited\n"


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (_no_list, InvalidSha256Sums, "net/SHA256SUMS is demanded"),
        (_html, InvalidSha256Sums, "net/SHA256SUMS:1: expected"),
        (_too_large, InvalidSha256Sums, "net/SHA256SUMS has "),
        (_unlisted, InvalidSha256Sums, "does not list '1/planted.py'"),
        (_absent, InvalidSha256Sums, "lists '1/labels', which"),
        (_wrong, DigestMismatch, "net/1/weights: its sha256 is "),
        (_wrong_config, DigestMismatch, "net/config.pbtxt: its sha256 is "),
    ],
)
async def should_publish_nothing_that_its_list_does_not_vouch_for(
    place: Place, spoil: Callable[[Files], None], error: type[Exception], says: str
) -> None:
    good = files_of()
    files = {**good, "SHA256SUMS": sums_of(good)}
    spoil(files)
    async with place.session() as session:
        put_vouched(place, files_of(b"before"))
        await session.run()
        before = place.published("net")
        place.delete("repo/")
        place.put_files("repo/net", files)
        place.put_files("repo/new", files)
        place.put_files("repo/other", {**good, "SHA256SUMS": sums_of(good)})
        place.gate.heads.clear()
        for _ in range(2):
            result = await session.run()
            found = next(one for one in result.errors if one.message.startswith("net/"))
            assert isinstance(found, error) and says in found.message and found.hint and found.exit_code == 5
            assert place.outcomes(result)["net"] == place.outcomes(result)["new"] == "failed"
            assert place.names() == ["net", "other"] and place.published("net") == before
            assert (place.target / "net/1/weights").read_bytes() == b"before"
    if error is InvalidSha256Sums:
        assert not place.gate.requests("net/1/"), "nothing is downloaded in vain"
    if spoil is _too_large:
        assert not place.gate.requests("net/SHA256SUMS"), "nor read into memory"


async def should_name_the_file_and_both_digests(place: Place) -> None:
    files = files_of()
    sums = sums_of(files)
    files |= {"1/weights": b"WEIGHTS", "1/labels": b"CAT"}
    place.put_files("repo/net", {**files, "SHA256SUMS": sums})
    (error,) = (await place.run()).errors
    right, wrong = hashlib.sha256(b"cat").hexdigest(), hashlib.sha256(b"CAT").hexdigest()
    assert f"net/1/labels: its sha256 is {wrong[:12]}…, SHA256SUMS says {right[:12]}…" in str(error)
    assert "(and 1 more)" in str(error)


async def should_fetch_a_wrong_file_again_but_not_for_ever(place: Place, reads: list[str]) -> None:
    files = files_of()
    place.put_files("repo/net", {**files, "1/weights": b"WEIGHTS", "SHA256SUMS": sums_of(files)})
    for fetched in (1, 1, 0, 0):
        place.gate.heads.clear()
        reads.clear()
        (error,) = (await place.run()).errors
        assert isinstance(error, DigestMismatch)
        assert len(place.gate.requests("1/weights")) == fetched
        assert len(reads) <= 3 * fetched, "nor is it read again"
    put_vouched(place, {**files, "1/weights": b"WEIGHTS"})
    assert place.outcomes(await place.run()) == {"net": "published"}


async def should_heal_by_fetching_a_file_again_whose_bytes_were_spoilt_on_the_way(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Staging.take

    def spoilt(self: Staging, file: ManifestFile, partial: Path, *_verified: object) -> None:
        if file.path == "1/weights":
            partial.write_bytes(b"WEIGHTS")
        take(self, file, partial, None)  # as from a store that has no checksum, else nothing spoilt comes this far

    put_vouched(place, files_of())
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "take", spoilt)
        assert isinstance((await place.run()).errors[0], DigestMismatch)
    assert place.outcomes(await place.run()) == {"net": "published"}
    assert (place.target / "net/1/weights").read_bytes() == b"weights"


async def should_check_what_is_already_published_when_the_demand_comes_later(place: Place, reads: list[str]) -> None:
    files = files_of()
    place.put_files("repo/net", {**files, "1/labels": b"CAT", "SHA256SUMS": sums_of(files)})
    assert not (await place.run(require_sha256=False)).errors
    assert reads == []
    before = place.published("net")
    (error,) = (await place.run()).errors
    assert isinstance(error, DigestMismatch) and "1/labels" in error.message
    assert place.published("net") == before and (place.target / "net/1/labels").read_bytes() == b"CAT"
    put_vouched(place, {**files, "1/labels": b"CAT"})
    assert not (await place.run()).errors


async def should_read_a_file_again_that_was_changed_on_the_disk(tmp_path: Path, reads: list[str]) -> None:
    folder = RepositoryFolder(tmp_path / "models")
    folder.open()
    generation = folder.generation("net", "0")
    generation.mkdir(parents=True)
    for name in ("a", "b"):
        (generation / name).write_bytes(name.encode())
    check = Sha256Check(folder)
    demand = Demand("net", {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b")}, "source")
    for _ in range(2):
        await check.check(demand, generation, staged=False)
    assert sorted(reads) == ["a", "b"], "once each"
    (generation / "a").write_bytes(b"A")
    os.utime(generation / "a", ns=(1, 1))
    for _ in range(2):
        with pytest.raises(DigestMismatch, match="net/a"):
            await check.check(demand, generation, staged=False)
    assert reads.count("a") == 2 and reads.count("b") == 1
    assert (generation / "a").read_bytes() == b"A", "what is published is not ours to take away"
    note = folder.state / "sha256sums/net"
    assert stat.S_IMODE(note.stat().st_mode) == 0o640
    folder.close()


async def should_check_a_configuration_that_changed_only_in_what_dfagent_takes_out(place: Place) -> None:
    put_vouched(place, files_of())
    await place.run()
    before = place.published("net")
    place.put("repo/net/config.pbtxt", config_of("net").replace(b", }", b" }"))
    (error,) = (await place.run()).errors
    assert isinstance(error, DigestMismatch) and "net/config.pbtxt" in error.message
    assert place.published("net") == before


async def should_survive_half_a_note(place: Place, reads: list[str]) -> None:
    put_vouched(place, files_of())
    await place.run()
    reads.clear()
    (place.state / "sha256sums/net").write_bytes(b'{"source": "')
    assert place.outcomes(await place.run()) == {"net": "unchanged"}
    assert sorted(reads) == ["SHA256SUMS", "labels", "weights"], "then everything is read again"


async def should_obey_the_settings_file_too(place: Place) -> None:
    place.options = {}
    place.dragonfly = DragonflySettings(sha256_manifest=True)
    place.put_files("repo/net", files_of())
    assert isinstance((await place.run()).errors[0], InvalidSha256Sums)
    place.dragonfly = DragonflySettings()
    assert not (await place.run()).errors


async def should_accept_a_list_that_the_real_tool_made(place: Place, tmp_path: Path) -> None:
    model = tmp_path / "net"
    for path, data in {**files_of(), "1/a name": b"1", "1/*b": b"2"}.items():
        (model / path).parent.mkdir(parents=True, exist_ok=True)
        (model / path).write_bytes(data)
    # The careless form: the list lists itself, with the digest of what it was then.
    command = "find . -type f -exec sha256sum {} + > SHA256SUMS"
    tool = await asyncio.create_subprocess_shell(command, cwd=model)
    assert await tool.wait() == 0 and b"SHA256SUMS" in (model / "SHA256SUMS").read_bytes()
    for file in model.rglob("*"):
        if file.is_file():
            place.put(f"repo/net/{file.relative_to(model)}", file.read_bytes())
    result = await place.run()
    assert not result.errors and place.outcomes(result) == {"net": "published"}


async def should_read_a_file_of_several_slices(place: Place, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sha256sums, "_SLICE", MIB)
    put_vouched(place, files_of(os.urandom(2 * MIB + 1)))
    assert not (await place.run()).errors
    assert reads.count("weights") == 3


async def should_end_with_5_and_say_how_to_make_a_list(place: Place, tmp_path: Path) -> None:
    place.put_files("repo/net", files_of())
    files = SettingsFiles(tmp_path, {"key_id": place.server.access_key, "secret_key": place.server.secret_key})
    for arguments, code, says in (([f"--to={place.target}"], 5, "sha256sum"), ([], 2, "--to")):
        told = await program.run("prefetch", place.url(), "--require-sha256", *files.options(), *arguments)
        assert told.code == code and says in told.err and "Traceback" not in told.err
