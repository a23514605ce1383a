"""`dfagent verify` on real files and a real S3 server: what is found, what a repair brings, what it leaves alone."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from dfagent.cli.progress import Silent
from dfagent.errors import RepositoryError
from dfagent.local.object_store import S3Server
from dfagent.repository.folder import RepositoryFolder
from dfagent.repository.ledger import FILES
from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.dragonfly import DragonflySettings
from dfagent.settings.files import Settings
from dfagent.transports.options import Timeouts
from dfagent.verification import ModelCheck
from dfagent.wiring import RunOptions, open_session, open_verification
from tests.servers.gate import Gate
from tests.servers.mounts import read_only
from tests.servers.program import SettingsFiles, start

AGENT = 'name: "net"\nbackend: "python"\nmodel_repository_agents { agents [ { name: "dragonfly" } ] }\n'
WEIGHTS = bytes(range(256)) * 64


@dataclass
class Node:
    """A bucket behind a gate, with two models, and the folder that they were brought into."""

    server: S3Server
    bucket: str
    gate: Gate
    target: Path

    def put(self, key: str, data: bytes) -> None:
        self.server.client().put_object(Bucket=self.bucket, Key=f"repo/{key}", Body=data)

    @property
    def settings(self) -> Settings:
        secret = {"key_id": self.server.access_key, "secret_key": self.server.secret_key, "region": "us-east-1"}
        return Settings(DragonflySettings(), CloudCredentials.model_validate({"s3": {"": secret}}))

    @property
    def options(self) -> RunOptions:
        url = f"s3://{self.gate.endpoint}/{self.bucket}/repo"
        return RunOptions((url,), target=self.target, timeouts=Timeouts(connect=5, stall=5))

    async def prefetch(self) -> list[str]:
        async with open_session(self.settings, self.options, Silent()) as session:
            result = await session.run()
        assert not result.errors
        return [record.outcome for record in result.models]

    async def verify(self, *, repair: bool = False, offline: bool = False) -> tuple[dict[str, ModelCheck], int]:
        """What was found, by model, and the exit code."""
        async with open_verification(
            self.settings, self.options, Silent(), repair=repair, offline=offline
        ) as verification:
            checks, errors = await verification.run(repair=repair)
        return {check.model: check for check in checks}, errors[0].exit_code if errors else 0

    def file(self, path: str = "net/1/weights") -> Path:
        return self.target / path

    @property
    def state(self) -> Path:
        return self.target.parent / ".dfagent-models"

    def inodes(self, model: str) -> dict[str, tuple[int, int]]:
        files = [path for path in self.file(model).resolve().rglob("*") if path.is_file()]
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


@pytest.fixture
async def node(s3_server: S3Server, bucket: str, tmp_path: Path) -> AsyncIterator[Node]:
    async with Gate(s3_server.port) as gate:
        brought = Node(s3_server, bucket, gate, tmp_path / "models")
        for model in ("net", "other"):
            brought.put(f"{model}/config.pbtxt", AGENT.replace("net", model).encode())
            brought.put(f"{model}/1/weights", WEIGHTS)
            brought.put(f"{model}/labels", b"cat")
        await brought.prefetch()
        yield brought


async def should_find_everything_whole_and_write_nothing(node: Node) -> None:
    node.gate.heads.clear()
    with read_only(node.target.parent):
        checks, code = await node.verify()
    assert code == 0
    for check in checks.values():
        assert (check.outcome, check.store, check.files, check.verified, check.unverified) == ("whole", "same", 3, 3, 0)
        assert check.bytes == sum(path.stat().st_size for path in node.file(check.model).rglob("*") if path.is_file())
    assert not [head for head in node.gate.heads if "weights" in head], "the ledger knows what the store said"


async def should_look_while_another_dfagent_works_on_the_folder(node: Node) -> None:
    async with open_session(node.settings, node.options, Silent()) as session:
        checks, code = await node.verify()
        assert code == 0 and checks["net"].verified == 3
        assert not (await session.run()).errors
        with pytest.raises(Exception, match="another dfagent"):
            await node.verify(repair=True)


def flip(path: Path) -> None:
    """As a failing disk does: neither the size nor the time tells."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def link(path: Path) -> None:
    other = path.with_name("elsewhere")
    path.rename(other)
    path.symlink_to(other)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped byte": (flip, "wrong bytes"),
    "truncated": (cut, "instead of"),
    "deleted": (Path.unlink, "is missing"),
    "a link": (link, "is a link instead of a file"),
    "a folder": (folder, "is a folder instead of a file"),
}


@pytest.mark.parametrize(
    ("damage", "path"),
    [*((damage, "1/weights") for damage in DAMAGES), ("flipped byte", "config.pbtxt"), ("a link", "config.pbtxt")],
)
async def should_find_and_mend_a_damaged_file_and_nothing_else(node: Node, damage: str, path: str) -> None:
    spoil, says = DAMAGES[damage]
    right, good = node.file(f"net/{path}").read_bytes(), node.inodes("other")
    spoil(node.file(f"net/{path}").resolve() if damage != "a link" else node.file("net").resolve() / path)
    checks, code = await node.verify()
    assert code == 5
    assert checks["other"].outcome == "whole" and checks["net"].outcome == "damaged"
    assert [found.path for found in checks["net"].damage if says in found.problem] == [path]
    node.gate.heads.clear()
    checks, code = await node.verify(repair=True)
    assert code == 0
    assert (checks["net"].outcome, checks["net"].damage, checks["other"].outcome) == ("mended", [], "whole")
    assert node.file(f"net/{path}").read_bytes() == right and not node.file(f"net/{path}").is_symlink()
    assert node.inodes("other") == good, "what was good is not touched"
    fetched = [head for head in node.gate.heads if head.startswith("GET ") and "list-type" not in head]
    assert len(fetched) == (path == "1/weights") and not node.gate.requests("other/1/weights")
    assert (await node.verify())[1] == 0 and await node.prefetch() == ["unchanged", "unchanged"]


async def should_heal_a_damaged_hard_link_without_writing_into_the_cache(node: Node) -> None:
    published, cached = node.file().resolve(), node.target.parent / "cached"
    os.link(published, cached)
    flip(cached)
    wrong = cached.read_bytes()
    assert (await node.verify(repair=True))[1] == 0
    assert node.file().read_bytes() == WEIGHTS and cached.read_bytes() == wrong


async def should_report_what_does_not_belong_to_a_model_and_take_it_out(node: Node) -> None:
    generation = node.file("net").resolve()
    (generation / "1" / "__pycache__").mkdir()
    (generation / "1" / "__pycache__" / "model.pyc").touch()
    assert (await node.verify())[1] == 0
    (generation / "2" / "deep").mkdir(parents=True)
    (generation / "2" / "deep" / "planted").touch()
    (generation / "1" / "extra").symlink_to("/etc/passwd")
    checks, code = await node.verify()
    assert code == 5
    assert [(found.path, found.problem) for found in checks["net"].damage] == [
        ("1/extra", "does not belong to the model"),
        ("2", "does not belong to the model"),
    ]
    note = RepositoryFolder(node.target)
    note.note_loaded("net", b"note")
    checks, code = await node.verify(repair=True)
    assert code == 0 and checks["net"].outcome == "mended"
    assert note.loaded("net") is None, "Triton may have loaded version 2"
    assert not (generation / "2").exists() and (generation / "1" / "__pycache__" / "model.pyc").exists()
    assert Path("/etc/passwd").exists()


async def should_ask_the_store_where_the_ledger_was_lost(node: Node) -> None:
    for name in FILES:
        (node.state / name).unlink(missing_ok=True)
    flip(node.file("other/1/weights").resolve())
    checks, code = await node.verify(offline=True)
    assert code == 0 and (checks["other"].verified, checks["other"].unverified) == (1, 2), "our own file proves itself"
    checks, code = await node.verify()
    assert code == 5 and (checks["net"].outcome, checks["net"].verified) == ("whole", 3)
    assert [found.path for found in checks["other"].damage] == ["1/weights"]
    checks, code = await node.verify(repair=True)
    assert code == 0 and node.file("other/1/weights").read_bytes() == WEIGHTS


async def should_notice_in_the_next_pass_what_changed_while_the_ledger_was_lost(node: Node) -> None:
    for name in FILES:
        (node.state / name).unlink(missing_ok=True)
    flip(node.file("other/1/weights").resolve())
    node.gate.heads.clear()
    assert sorted(await node.prefetch()) == ["published", "unchanged"]
    assert node.file("other/1/weights").read_bytes() == WEIGHTS
    assert not [head for head in node.gate.requests("net/") if head.startswith("GET ")], "the good one is only read"
    node.gate.heads.clear()
    assert await node.prefetch() == ["unchanged", "unchanged"] and len(node.gate.heads) == 1


@pytest.mark.parametrize("gone", ["generation", "manifest", "both"])
async def should_report_a_link_that_dangles_and_bring_the_model_again(node: Node, gone: str) -> None:
    if gone != "manifest":
        shutil.rmtree(node.file("net").resolve())
    if gone != "generation":
        shutil.rmtree(node.state / "manifests" / "net")
    checks, code = await node.verify()
    assert code == 5 and checks["net"].damage and checks["other"].outcome == "whole"
    checks, code = await node.verify(repair=True)
    if gone == "generation":
        assert code == 0 and checks["net"].outcome == "mended" and node.file().read_bytes() == WEIGHTS
    else:
        assert code == 5, "nobody noted where it came from"
        assert "published" in await node.prefetch()
        assert (await node.verify())[1] == 0


async def should_leave_alone_what_others_put_into_the_model_repository(node: Node) -> None:
    node.file("theirs").mkdir()
    node.file("dangling").symlink_to("nowhere")
    node.file("link").symlink_to("/etc")
    checks, code = await node.verify(repair=True)
    assert code == 0
    assert {check.outcome for check in checks.values()} == {"whole", "foreign"}
    assert "leads nowhere" in checks["dangling"].note and "a link" in checks["link"].note
    assert "a folder" in checks["theirs"].note
    assert node.file("dangling").is_symlink() and node.file("link").is_symlink()


async def should_tell_how_the_stores_version_differs(node: Node) -> None:
    node.put("net/labels", b"dog")
    node.server.client().delete_object(Bucket=node.bucket, Key="repo/other/config.pbtxt")
    checks, code = await node.verify()
    assert code == 0, "the files are still what was published"
    assert (checks["net"].store, checks["other"].store) == ("newer", "newer")
    for key in ("1/weights", "labels"):
        node.server.client().delete_object(Bucket=node.bucket, Key=f"repo/other/{key}")
    checks, code = await node.verify()
    assert code == 0 and checks["other"].store == "gone"
    checks, code = await node.verify(offline=True)
    assert code == 0 and {check.store for check in checks.values()} == {"unknown"}


async def should_see_that_only_the_configuration_is_newer(node: Node) -> None:
    node.put("net/config.pbtxt", AGENT.encode() + b"# a comment\n")
    assert (await node.verify())[0]["net"].store == "newer"


async def should_bring_the_newer_version_of_a_damaged_model_and_say_so(node: Node) -> None:
    flip(node.file().resolve())
    new = WEIGHTS[::-1]
    for model in ("net", "other"):
        node.put(f"{model}/1/weights", new)
    checks, code = await node.verify(repair=True)
    assert code == 0 and checks["net"].outcome == "mended" and "newer version" in checks["net"].note
    assert node.file().read_bytes() == new
    assert node.file("other/1/weights").read_bytes() == WEIGHTS, "a good model is not touched"


async def should_say_that_a_model_can_not_be_mended_when_the_store_no_longer_has_it(node: Node) -> None:
    flip(node.file().resolve())
    for key in ("1/weights", "labels", "config.pbtxt"):
        node.server.client().delete_object(Bucket=node.bucket, Key=f"repo/net/{key}")
    checks, code = await node.verify(repair=True)
    assert code == 5 and checks["net"].outcome == "damaged" and node.file().exists()


async def should_need_the_store_only_for_a_repair(node: Node) -> None:
    await node.gate.die()
    checks, code = await node.verify()
    assert code == 0 and checks["net"].verified == 3 and "can't be asked" in checks["net"].note
    assert (await node.verify(repair=True))[1] == 0
    cut(node.file().resolve())
    assert (await node.verify())[1] == 5
    checks, code = await node.verify(repair=True)
    assert code == 3 and checks["net"].outcome == "damaged"


async def should_make_triton_load_again_what_was_mended(node: Node) -> None:
    opened = RepositoryFolder(node.target)
    opened.open()
    for model in ("net", "other"):
        opened.note_loaded(model, b"note")
    opened.close()
    flip(node.file().resolve())
    await node.verify(repair=True)
    assert opened.loaded("net") is None and opened.loaded("other") == b"note"


async def should_look_again_at_a_model_that_was_published_anew_meanwhile(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the lock its old generation may be removed while it is read."""
    real = RepositoryFolder.read_manifest
    turns: list[str] = []

    def slow(self: RepositoryFolder, model: str, digest: str) -> Any:
        manifest = real(self, model, digest)
        if model == "net" and not turns:
            turns.append(model)
            node.put("net/1/weights", WEIGHTS[::-1])
            asyncio.run(node.prefetch())
            shutil.rmtree(self.generation(model, digest))
        return manifest

    monkeypatch.setattr(RepositoryFolder, "read_manifest", slow)
    checks, code = await node.verify(offline=True)
    assert turns and code == 0 and checks["net"].outcome == "whole"
    assert checks["net"].generation == node.file("net").resolve().name


async def should_not_call_damaged_what_was_pruned_meanwhile(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RepositoryFolder.read_manifest

    def slow(self: RepositoryFolder, model: str, digest: str) -> Any:
        manifest = real(self, model, digest)
        if model == "net" and node.file("net").is_symlink():
            node.file("net").unlink()
            shutil.rmtree(self.generation(model, digest))
        return manifest

    monkeypatch.setattr(RepositoryFolder, "read_manifest", slow)
    checks, code = await node.verify(offline=True)
    assert code == 0
    assert (checks["net"].outcome, checks["other"].outcome) == ("gone", "whole")


async def should_go_on_where_a_name_of_somebody_elses_is_gone_meanwhile(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RepositoryFolder.published
    monkeypatch.setattr(RepositoryFolder, "published", lambda self: {"ghost": None, **real(self)})
    checks, code = await node.verify()
    assert code == 0 and checks["ghost"].note == "is gone meanwhile" and checks["net"].outcome == "whole"


@pytest.mark.parametrize("method", ["published", "look"])
async def should_say_in_one_sentence_that_the_disk_does_not_answer(
    node: Node, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RepositoryFolder, method, Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(RepositoryError, match="Permission denied"):
        await node.verify()


async def should_say_that_a_folder_is_not_dfagents(node: Node, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    node.target = tmp_path / "empty"
    with pytest.raises(Exception, match="no model repository of dfagent's"):
        await node.verify()
    assert list(tmp_path.glob(".dfagent-empty")) == []


async def should_read_manifests_from_before_the_url_was_noted(node: Node) -> None:
    for path in (node.state / "manifests").rglob("*.json"):
        raw = json.loads(path.read_bytes())
        del raw["repository"]
        path.write_text(json.dumps(raw))
    checks, code = await node.verify()
    assert code == 0 and checks["net"].store == "unknown" and "not noted" in checks["net"].note
    assert await node.prefetch() == ["unchanged", "unchanged"]
    assert (await node.verify())[0]["net"].store == "same"


async def run_program(node: Node, *arguments: str, umask: int = 0o022) -> tuple[int, str, str]:
    key: dict[str, object] = {"key_id": node.server.access_key, "secret_key": node.server.secret_key}
    program = await start(*arguments, *SettingsFiles(node.target.parent, key).options()[1:], umask=umask)
    told = await program.finished()
    return told.code, told.out, told.err


async def should_be_told_on_the_command_line(node: Node) -> None:
    code, out, _ = await run_program(node, "verify", str(node.target))
    assert code == 0
    assert out.splitlines() == [
        "net: whole, 3 files, 16.4 kB; the store has this version",
        "other: whole, 3 files, 16.4 kB; the store has this version",
    ]
    cut(node.file().resolve())
    code, out, err = await run_program(node, "verify", str(node.target), "--json")
    net, other = map(json.loads, out.splitlines())
    assert (code, other["outcome"], net["outcome"], net["kind"]) == (5, "whole", "damaged", "verification")
    assert net["damage"] == [{"path": "1/weights", "problem": "has 16383 bytes instead of 16384"}]
    assert "error: damaged: net" in err and "--repair" in err
    code, out, err = await run_program(node, "verify", str(node.target), "--repair")
    assert code == 0 and out.startswith("net: mended, ")
    code, out, err = await run_program(node, "verify", str(node.target), "--repair", "--offline")
    assert code == 2 and "--repair needs the store" in err


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
async def should_have_the_same_modes_whatever_the_umask(node: Node, umask: int) -> None:
    url = node.options.urls[0]
    new = node.target.parent / "new"
    code, _, err = await run_program(node, "prefetch", url, f"--to={new / 'models'}", umask=umask)
    assert code == 0, err
    wrong = [
        (path, oct(path.stat().st_mode))
        for path in (new, *new.rglob("*"))
        if stat.S_IMODE(path.lstat().st_mode) != (0o777 if path.is_symlink() else 0o750 if path.is_dir() else 0o640)
    ]
    assert not wrong and (new / "models/net/1/weights").exists()
