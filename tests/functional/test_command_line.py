"""The program as its users start it: exit codes, one clear sentence, no secret, nothing half visible after a kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dfagent.local.object_store import S3Server
from tests.servers.gate import Gate
from tests.servers.program import Finished, SettingsFiles, python, run, start

MIB = 1 << 20
CONFIG = 'name: "net"\nbackend: "python"\nmodel_repository_agents { agents [ { name: "dragonfly" } ] }\n'


@dataclass
class Program:
    """`dfagent` in a process of its own, with settings files for a bucket behind a gate."""

    server: S3Server
    bucket: str
    gate: Gate
    folder: Path

    @property
    def target(self) -> Path:
        return self.folder / "node" / "models"

    @property
    def url(self) -> str:
        return f"s3://{self.gate.endpoint}/{self.bucket}/repo"

    def put(self, key: str, data: bytes) -> None:
        self.server.client().put_object(Bucket=self.bucket, Key=f"repo/{key}", Body=data)

    def settings(self, secret: str | None = None, **dragonfly: object) -> list[str]:
        credential = {"key_id": self.server.access_key, "secret_key": secret or self.server.secret_key}
        return SettingsFiles(self.folder, dict(credential), dragonfly).options()

    def command(self, name: str) -> list[str]:
        return [name, self.url, f"--to={self.target}", *self.settings()]

    async def prefetch(self, *arguments: str, secret: str | None = None) -> Finished:
        return await run("prefetch", self.url, f"--to={self.target}", *self.settings(secret), *arguments)


@pytest.fixture
async def program(s3_server: S3Server, bucket: str, tmp_path: Path) -> AsyncIterator[Program]:
    async with Gate(s3_server.port) as gate:
        yield Program(s3_server, bucket, gate, tmp_path)


async def should_print_a_table_for_people_and_json_lines_for_programs(program: Program) -> None:
    program.put("net/config.pbtxt", CONFIG.encode())
    program.put("net/1/model.py", b"pass")
    told = await program.prefetch()
    assert told.code == 0 and "published" in told.out and "net" in told.out
    told = await program.prefetch("--json")
    (record,) = [json.loads(line) for line in told.out.splitlines()]
    assert (record["kind"], record["model"], record["outcome"]) == ("model", "net", "unchanged")


async def should_tell_a_wrong_secret_by_the_stores_own_reason(program: Program) -> None:
    program.put("net/config.pbtxt", CONFIG.encode())
    told = await program.prefetch("-v", secret="a-wrong-secret-key-0123456789")
    assert told.code == 3
    assert "SignatureDoesNotMatch" in told.err and "hint:" in told.err
    assert "a-wrong-secret-key" not in told.err + told.out
    assert list(program.target.iterdir()) == []


async def should_tell_that_the_bucket_does_not_exist(program: Program) -> None:
    told = await run(
        "prefetch", f"s3://{program.gate.endpoint}/no-such-bucket/repo", f"--to={program.target}", *program.settings()
    )
    assert told.code == 3 and "no-such-bucket" in told.err and "hint:" in told.err


async def should_tell_that_the_repository_is_empty(program: Program) -> None:
    told = await program.prefetch()
    assert told.code == 5 and "no model" in told.err


async def should_tell_where_a_broken_configuration_is_broken(program: Program) -> None:
    program.put("net/config.pbtxt", b'name: "net"\nbackend: [[\n')
    told = await program.prefetch()
    assert told.code == 5 and "net/config.pbtxt:2" in told.err
    assert list(program.target.iterdir()) == []


@pytest.mark.parametrize("transport", ["proxy", "dfdaemon"])
async def should_tell_that_the_dragonfly_peer_is_not_there(
    program: Program, transport: str, unused_address: tuple[str, int]
) -> None:
    program.put("net/config.pbtxt", CONFIG.encode())
    program.put("net/1/model.py", b"pass")
    host, port = unused_address
    settings = program.settings(proxy=f"http://{host}:{port}", socket=str(program.folder / "no.sock"))
    told = await run("prefetch", program.url, f"--to={program.target}", f"--transport={transport}", *settings)
    assert told.code == 4 and "hint:" in told.err
    assert list(program.target.iterdir()) == []


async def should_tell_that_triton_is_down_before_anything_is_downloaded(
    program: Program, unused_address: tuple[str, int]
) -> None:
    program.put("net/config.pbtxt", CONFIG.encode())
    told = await program.prefetch("--load", f"--triton={unused_address[0]}:{unused_address[1]}")
    assert told.code == 6 and "Triton" in told.err and "hint:" in told.err
    assert list(program.target.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["prefetch", "ftp://bucket/x", "--to=m"], "s3://"),
        (["prefetch", "s3://bucket/x"], "--to"),
        (["prefetch", "s3://bucket/x", "--to=m", "--transport=proxy"], "proxy"),
        (["prefetch", "s3://bucket/x", "--to=m", "--load"], "--triton"),
        (["prefetch", "s3://bucket/x", "--to=m", "--triton=127.0.0.1:8001"], "--load"),
        (["prefetch", "s3://bucket/x", "--to=m", "--config=absent.json"], "absent.json"),
        (["prefetch", "s3://bucket/x", "--to="], "is empty"),
        (["prefetch", "s3://bucket/x", "--to=m", "--stall-timeout=nan"], "--stall-timeout"),
        (["prefetch", "s3://bucket/x", "--to=m", "--connect-timeout=inf"], "--connect-timeout"),
        (["prefetch", "s3://bucket/x", "--state=s"], "--state"),
        (["prefetch"], "URL"),
        (["fetch"], "fetch"),
    ],
)
async def should_end_with_2_for_wrong_settings_and_options(
    program: Program, arguments: list[str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(program.folder)
    told = await run(*arguments)
    assert told.code == 2 and word in told.err
    assert "Traceback" not in told.err


async def should_resume_after_a_kill_and_show_nothing_half_done(program: Program) -> None:
    weights = os.urandom(130 * MIB)
    program.put("net/config.pbtxt", CONFIG.encode())
    program.put("net/1/small.bin", b"small")
    program.put("net/1/weights.bin", weights)
    # The first four parts go side by side; the fifth begins when one of them is whole, and is held then.
    hold = program.gate.hold(f"bytes={128 * MIB}-", after=0)
    process = await start(*program.command("prefetch"))
    await asyncio.wait_for(hold.reached.wait(), 60)
    await process.kill()
    assert list(program.target.iterdir()) == []
    hold.release()
    program.gate.heads.clear()
    told = await program.prefetch()
    assert told.code == 0
    assert (program.target / "net/1/weights.bin").read_bytes() == weights
    asked_again = program.gate.requests("weights.bin")
    assert 1 <= len(asked_again) < 5, "the parts that were whole are not asked for again"
    assert not program.gate.requests("small.bin")


async def should_keep_what_arrived_when_interrupted(program: Program) -> None:
    program.put("net/config.pbtxt", CONFIG.encode())
    program.put("net/1/weights.bin", os.urandom(8 * MIB))
    hold = program.gate.hold("weights.bin", after=MIB)
    process = await start(*program.command("prefetch"))
    await asyncio.wait_for(hold.reached.wait(), 60)
    told = await process.stopped()
    assert told.code == 128 + signal.SIGTERM
    assert "interrupted by SIGTERM" in told.err and "Traceback" not in told.err
    assert list(program.target.iterdir()) == []


async def should_serve_changes_until_sigterm_and_then_end_with_0(program: Program) -> None:
    program.put("net/config.pbtxt", CONFIG.encode())
    program.put("net/1/model.py", b"one")
    process = await start(*program.command("serve"), "--interval=0.1")
    served = program.target / "net/1/model.py"
    await _until(lambda: served.exists() and served.read_bytes() == b"one")
    program.put("net/1/model.py", b"two")
    await _until(lambda: served.read_bytes() == b"two")
    told = await process.stopped()
    assert told.code == 0, told.err


async def should_stop_serving_at_once_in_the_middle_of_a_download(program: Program) -> None:
    program.put("net/config.pbtxt", CONFIG.encode())
    program.put("net/1/weights.bin", os.urandom(8 * MIB))
    hold = program.gate.hold("weights.bin", after=MIB)
    process = await start(*program.command("serve"))
    await asyncio.wait_for(hold.reached.wait(), 60)
    told = await process.stopped()
    assert told.code == 0, told.err
    assert "given up" in told.err


async def should_end_at_once_although_the_store_is_silent(program: Program) -> None:
    """An SDK's thread that waits for an answer can't be cancelled, and must not hold the process."""
    hold = program.gate.hold("list-type=2")
    for command, code in (("prefetch", 128 + signal.SIGTERM), ("serve", 0)):
        process = await start(*program.command(command))
        await asyncio.wait_for(hold.reached.wait(), 60)
        hold.reached.clear()
        assert (await process.stopped(seconds=20)).code == code


@pytest.mark.parametrize("form", [[], ["--json"]])
async def should_not_call_a_reader_that_went_away_a_bug(program: Program, form: list[str]) -> None:
    program.put("net/config.pbtxt", CONFIG.encode())
    reader, writer = os.pipe()
    os.close(reader)
    process = await start(*program.command("prefetch"), *form, stdout=writer)
    os.close(writer)
    told = await process.finished()
    assert told.code == 0, told.err
    assert "Traceback" not in told.err
    assert (program.target / "net/config.pbtxt").exists()


@pytest.mark.parametrize("full", [True, False])
async def should_bring_the_models_though_nobody_hears_of_it(program: Program, full: bool) -> None:
    """Standard error is a full disk, or a pipe that nobody reads."""
    program.put("net/config.pbtxt", CONFIG.encode())
    reader, writer = os.pipe()
    os.close(reader)
    disk = os.open("/dev/full", os.O_WRONLY)
    process = await start(*program.command("prefetch"), stderr=disk if full else writer)
    os.close(writer)
    os.close(disk)
    assert (await process.finished()).code == 0
    assert (program.target / "net/config.pbtxt").exists()


@pytest.mark.parametrize("form", [[], ["--json"]])
async def should_say_that_its_records_have_no_room(program: Program, form: list[str]) -> None:
    program.put("net/config.pbtxt", CONFIG.encode())
    disk = os.open("/dev/full", os.O_WRONLY)
    process = await start(*program.command("prefetch"), *form, stdout=disk)
    os.close(disk)
    told = await process.finished()
    assert told.code == 7 and "can't be written" in told.err and "Traceback" not in told.err
    assert (program.target / "net/config.pbtxt").exists()


def should_not_import_what_a_command_does_not_use() -> None:
    """SDKs cost half a second each: help pays for none, the direct transport only for the store's."""
    script = """
import sys
from dfagent.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = {"boto3", "botocore", "google.cloud.storage", "azure", "grpc", "tritonclient", "aiohttp", "numpy", "rich"}
print("HELP", sorted(heavy & set(sys.modules)))
import dfagent.wiring, dfagent.transports.direct
from dfagent.stores.registry import open_store
print("WIRED", sorted((heavy - {"aiohttp"}) & set(sys.modules)))
"""
    told = python(script)
    assert told.code == 0, told.err
    assert "HELP []" in told.out
    assert "WIRED []" in told.out


async def _until(condition: object, seconds: float = 30) -> None:
    assert callable(condition)
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)
