"""Bucket → agent → Triton, on a real S3 server and a real Triton: what serves after each pass, whatever Triton says."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import pytest
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from dfagent.agent import PassResult
from dfagent.cli.progress import Silent
from dfagent.errors import LoadRejected, TritonError, TritonUnavailable
from dfagent.local.object_store import S3Server
from dfagent.local.triton import TritonServer
from dfagent.records import ModelRecord
from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.dragonfly import DragonflySettings
from dfagent.settings.files import Settings
from dfagent.triton.client import TritonClient
from dfagent.wiring import RunOptions, open_session
from tests.servers.gate import Gate
from tests.servers.program import Running, SettingsFiles, start

StartTriton = Callable[..., TritonServer]

CONFIG = """backend: "python"
max_batch_size: 0
input [ { name: "NUMBER" data_type: TYPE_INT64 dims: [ 1 ] } ]
output [ { name: "RESULT" data_type: TYPE_INT64 dims: [ 1 ] } ]
"""
AGENT = 'model_repository_agents { agents [ { name: "dragonfly" } ] }\n'
TIMES = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def initialize(self, args):
        with open("DIARY", "a") as diary:
            diary.write("FACTOR\\n")
    def execute(self, requests):
        numbers = [pb_utils.get_input_tensor_by_name(request, "NUMBER").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("RESULT", number * FACTOR)]) for number in numbers]
"""
BROKEN = "import no_such_library\n"


@dataclass
class Node:
    """A bucket behind a gate, a folder that a Triton serves, and passes between them."""

    server: S3Server
    bucket: str
    gate: Gate
    folder: Path
    programs: list[Running] = field(default_factory=list)

    @property
    def target(self) -> Path:
        return self.folder / "node" / "models"

    @property
    def url(self) -> str:
        return f"s3://{self.gate.endpoint}/{self.bucket}/repo"

    def put(self, key: str, text: str) -> None:
        self.server.client().put_object(Bucket=self.bucket, Key=f"repo/{key}", Body=text.encode())

    def put_code(self, model: str, code: str, *, config: str = CONFIG + AGENT) -> None:
        self.put(f"{model}/config.pbtxt", config)
        self.put(f"{model}/1/model.py", code)

    def put_factor(self, model: str, factor: int, *, config: str = CONFIG + AGENT) -> None:
        """A model that multiplies by `factor`, and notes in a diary each time that Triton starts it."""
        code = TIMES.replace("DIARY", str(self.diary(model))).replace("FACTOR", str(factor))
        self.put_code(model, code, config=config)

    def diary(self, model: str) -> Path:
        return self.folder / f"{model}.diary"

    def starts(self, model: str) -> list[str]:
        """The factors of the versions that Triton started, in the order of their starts."""
        return self.diary(model).read_text().split()

    async def load(self, address: str) -> PassResult:
        secret = {"key_id": self.server.access_key, "secret_key": self.server.secret_key, "region": "us-east-1"}
        settings = Settings(DragonflySettings(), CloudCredentials.model_validate({"s3": {"": secret}}))
        options = RunOptions((self.url,), target=self.target, transport="direct", triton=address, load_timeout=60)
        async with open_session(settings, options, Silent()) as session:
            return await session.run()

    async def start_program(self, command: str, *arguments: str) -> Running:
        """`dfagent` as its users start it."""
        credential: dict[str, object] = {"key_id": self.server.access_key, "secret_key": self.server.secret_key}
        settings = SettingsFiles(self.folder, credential).options()
        program = await start(command, self.url, f"--to={self.target}", *settings, *arguments)
        self.programs.append(program)
        return program

    def published(self, model: str) -> str:
        """The name of the generation that DIR/<model> leads to."""
        assert (self.target / model).exists(), "a link that leads nowhere breaks Triton's whole index"
        return Path(os.readlink(self.target / model)).name

    def generations(self, model: str) -> set[str]:
        return {path.name for path in (self.target.parent / ".dfagent-models/generations" / model).iterdir()}


@pytest.fixture
async def node(s3_server: S3Server, bucket: str, tmp_path: Path) -> AsyncIterator[Node]:
    async with Gate(s3_server.port) as gate:
        node = Node(s3_server, bucket, gate, tmp_path)
        node.target.mkdir(parents=True)
        yield node
    for program in node.programs:
        await program.kill()


def the_model(result: PassResult) -> ModelRecord:
    (record,) = result.models
    return record


def the_error(result: PassResult) -> TritonError:
    (error,) = result.errors
    assert isinstance(error, TritonError)
    return error


async def infer(address: str, model: str, number: int) -> int:
    client = InferenceServerClient(address)
    tensor = InferInput("NUMBER", [1], "INT64")
    tensor.set_data_from_numpy(np.array([number], dtype=np.int64))
    try:
        result = await client.infer(model, [tensor], client_timeout=20)
        return int(result.as_numpy("RESULT")[0])
    finally:
        await client.close()


async def until_it_answers(address: str) -> None:
    """A process that was just refused a connection backs off from the address for a moment, whichever client asks."""
    client = TritonClient(address)
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        try:
            await client.check()
            break
        except TritonUnavailable:
            assert asyncio.get_running_loop().time() < deadline, "the client does not find the restarted server"
            await asyncio.sleep(0.05)
    await client.aclose()


async def served_names(address: str) -> set[str]:
    client = TritonClient(address)
    try:
        return {entry.name for entry in await client.index()}
    finally:
        await client.aclose()


async def should_load_what_it_published_and_only_once(node: Node, start_triton: StartTriton) -> None:
    triton = start_triton(node.target)
    node.put_factor("net", 2)
    first = the_model(await node.load(triton.grpc))
    assert (first.outcome, first.loaded) == ("published", True) and first.seconds.load > 0
    assert await infer(triton.grpc, "net", 21) == 42
    second = the_model(await node.load(triton.grpc))
    assert (second.outcome, second.loaded) == ("unchanged", True)
    # A load of files that are as they were may cost Triton nothing, so its starts alone don't show who asked for one.
    assert second.seconds.load == 0.0 and node.starts("net") == ["2"], "what Triton serves is not loaded again"
    (node.target.parent / ".dfagent-models/loaded/net").write_bytes(b'{"tri')
    third = the_model(await node.load(triton.grpc))
    assert third.loaded and third.seconds.load > 0.0, "half a note says nothing"


async def should_load_an_overwritten_model_on_the_next_pass(node: Node, start_triton: StartTriton) -> None:
    triton = start_triton(node.target)
    node.put_factor("net", 2)
    await node.load(triton.grpc)
    node.put_factor("net", 3)
    record = the_model(await node.load(triton.grpc))
    assert (record.outcome, record.loaded) == ("published", True)
    assert await infer(triton.grpc, "net", 21) == 63
    assert node.generations("net") == {node.published("net")}, "nobody needs the old generation any more"


async def should_load_into_a_restarted_triton_without_fetching_again(node: Node, start_triton: StartTriton) -> None:
    triton = start_triton(node.target)
    node.put_factor("net", 2)
    node.put_factor("other", 5)
    await node.load(triton.grpc)
    triton.stop()
    triton.start()
    node.gate.heads.clear()
    result = await node.load(triton.grpc)
    assert {(record.outcome, record.loaded) for record in result.models} == {("unchanged", True)}
    assert await infer(triton.grpc, "net", 10) == 20
    assert await infer(triton.grpc, "other", 10) == 50
    (listing,) = node.gate.heads
    assert "list-type=2" in listing


async def should_go_back_to_the_old_version_when_triton_refuses_the_new_one(
    node: Node, start_triton: StartTriton
) -> None:
    triton = start_triton(node.target)
    node.put_factor("net", 2)
    await node.load(triton.grpc)
    old = node.published("net")
    node.put_code("net", BROKEN)
    result = await node.load(triton.grpc)
    error, record = the_error(result), the_model(result)
    assert isinstance(error, LoadRejected) and "No module named 'no_such_library'" in error.message
    assert error.exit_code == 6
    assert (record.outcome, record.loaded, record.error["type"]) == ("failed", False, "LoadRejected")
    assert node.published("net") == old
    assert await infer(triton.grpc, "net", 21) == 42, "the old model goes on answering"
    triton.stop()
    triton.start()
    client = TritonClient(triton.grpc, load_timeout=60)
    await client.load("net")
    await client.aclose()
    assert await infer(triton.grpc, "net", 21) == 42, "a restarted Triton finds the old version"
    node.put_factor("net", 3)
    assert not (await node.load(triton.grpc)).errors
    assert await infer(triton.grpc, "net", 21) == 63


async def should_serve_the_old_version_from_a_restarted_triton_while_the_store_has_a_refused_one(
    node: Node, start_triton: StartTriton
) -> None:
    triton = start_triton(node.target)
    node.put_factor("net", 2)
    await node.load(triton.grpc)
    node.put_code("net", BROKEN)
    await node.load(triton.grpc)
    triton.stop()
    triton.start()
    assert "no_such_library" in the_error(await node.load(triton.grpc)).message
    assert await infer(triton.grpc, "net", 21) == 42, "what served before the restart serves after it"


async def should_go_back_to_what_triton_last_served_although_others_were_published_since(
    node: Node, start_triton: StartTriton
) -> None:
    triton = start_triton(node.target)
    node.put_factor("net", 2)
    await node.load(triton.grpc)
    served = node.published("net")
    triton.stop()
    for attempt in range(4):
        node.put_code("net", f"{BROKEN}# {attempt}\n")
        assert isinstance(the_error(await node.load(triton.grpc)), TritonUnavailable)
    assert served in node.generations("net") and len(node.generations("net")) <= 3, "nor does the disk fill up"
    triton.start()
    await until_it_answers(triton.grpc)
    assert isinstance(the_error(await node.load(triton.grpc)), LoadRejected)
    assert node.published("net") == served
    assert await infer(triton.grpc, "net", 21) == 42


async def should_say_why_when_triton_refuses_the_very_first_version(node: Node, start_triton: StartTriton) -> None:
    triton = start_triton(node.target)
    node.put_code("net", BROKEN)
    result = await node.load(triton.grpc)
    assert isinstance(the_error(result), LoadRejected) and "no_such_library" in the_error(result).message
    assert (the_model(result).outcome, the_model(result).loaded) == ("failed", False)
    assert all(path.exists() for path in node.target.iterdir()), "nothing dangles"
    node.put_factor("net", 2)
    assert the_model(await node.load(triton.grpc)).loaded
    assert await infer(triton.grpc, "net", 21) == 42


async def should_load_the_healthy_models_beside_a_refused_one(node: Node, start_triton: StartTriton) -> None:
    triton = start_triton(node.target)
    node.put_factor("good", 2)
    node.put_code("bad", BROKEN)
    result = await node.load(triton.grpc)
    assert {record.model: record.outcome for record in result.models} == {"good": "published", "bad": "failed"}
    assert await infer(triton.grpc, "good", 21) == 42


@pytest.mark.parametrize(("mode", "options"), [("none", []), ("poll", ["--repository-poll-secs=1"])])
async def should_refuse_a_wrong_control_mode_before_anything_is_downloaded(
    node: Node, start_triton: StartTriton, mode: str, options: list[str]
) -> None:
    triton = start_triton(node.target, mode=mode, extra_args=options)
    node.put_factor("net", 2)
    program = await node.start_program("prefetch", "--load", f"--triton={triton.grpc}")
    told = await program.finished()
    assert told.code == 6
    assert "explicit mode" in told.err and "--model-control-mode=explicit" in told.err and "Traceback" not in told.err
    assert node.gate.heads == [] and list(node.target.iterdir()) == []


async def should_end_with_tritons_exit_code_and_reason_when_it_refuses(node: Node, start_triton: StartTriton) -> None:
    triton = start_triton(node.target)
    node.put_code("net", BROKEN)
    program = await node.start_program("prefetch", "--load", f"--triton={triton.grpc}", "--json")
    told = await program.finished()
    assert told.code == 6
    assert "No module named 'no_such_library'" in told.err and "Traceback" not in told.err
    record = next(line for line in map(orjson.loads, told.out.splitlines()) if line["kind"] == "model")
    assert (record["outcome"], record["error"]["type"]) == ("failed", "LoadRejected")


async def should_serve_on_while_triton_is_down_and_load_when_it_comes(node: Node, start_triton: StartTriton) -> None:
    triton = start_triton(node.target)
    triton.stop()
    node.put_factor("net", 2)
    program = await node.start_program("serve", f"--triton={triton.grpc}", "--interval=0.2")
    # More than one pass fails, so a failed one is followed by another.
    await program.says("can't be asked", times=2)
    triton.start()
    await program.says(" loaded")
    assert await infer(triton.grpc, "net", 21) == 42
    assert (await program.stopped()).code == 0


async def should_show_triton_nothing_but_models_however_often_they_are_swapped(
    node: Node, start_triton: StartTriton
) -> None:
    triton = start_triton(node.target)
    node.put_factor("other", 7)
    node.put_factor("left_alone", 1, config=CONFIG)
    with watched(node.target) as dangling:
        for factor in range(2, 6):
            node.put_factor("net", factor)
            assert not (await node.load(triton.grpc)).errors
            assert await served_names(triton.grpc) == {"net", "other"}
            assert await infer(triton.grpc, "net", 10) == 10 * factor
            node.put_code("net", f"{BROKEN}# {factor}\n")
            assert isinstance(the_error(await node.load(triton.grpc)), LoadRejected)
            assert await served_names(triton.grpc) == {"net", "other"}
    assert not dangling
    assert sorted(path.name for path in node.target.iterdir()) == ["net", "other"]
    assert node.starts("other") == ["7"], "a neighbour's swap is nobody's reload"


@contextmanager
def watched(folder: Path) -> Iterator[set[str]]:
    """The names of the links in the folder that led nowhere at any moment."""
    dangling: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            dangling.update(path.name for path in folder.iterdir() if path.is_symlink() and not path.exists())
            done.wait(0.001)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield dangling
    finally:
        done.set()
        watcher.join()
