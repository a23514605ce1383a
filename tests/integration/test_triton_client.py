"""The Triton client against a real Triton."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from dfagent.errors import LoadRejected, LoadTimeout, TritonUnavailable, WrongControlMode
from dfagent.local.triton import TritonServer
from dfagent.repository.config_pbtxt import without_dragonfly
from dfagent.triton.client import TritonClient

pytestmark = pytest.mark.triton

CONFIG = """backend: "python"
max_batch_size: 0
input [ { name: "NUMBER" data_type: TYPE_INT64 dims: [ 1 ] } ]
output [ { name: "RESULT" data_type: TYPE_INT64 dims: [ 1 ] } ]
"""
TIMES = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        numbers = [pb_utils.get_input_tensor_by_name(request, "NUMBER").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("RESULT", number * FACTOR)]) for number in numbers]
"""
BROKEN = "import no_such_library\n"


def write_model(repository: Path, name: str, code: str, *, version: int = 1, config: str = CONFIG) -> None:
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(code)
    (repository / name / "config.pbtxt").write_text(config)


def times(factor: int) -> str:
    return TIMES.replace("FACTOR", str(factor))


def waits_for(flag: Path) -> str:
    return f"""
import os, time
class TritonPythonModel:
    def initialize(self, args):
        while not os.path.exists({str(flag)!r}):
            time.sleep(0.05)
    def execute(self, requests):
        return []
"""


async def infer(address: str, model: str, number: int) -> int:
    client = InferenceServerClient(address)
    tensor = InferInput("NUMBER", [1], "INT64")
    tensor.set_data_from_numpy(np.array([number], dtype=np.int64))
    try:
        result = await client.infer(model, [tensor], client_timeout=20)
        return int(result.as_numpy("RESULT")[0])
    finally:
        await client.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("repository")
    with TritonServer(repository, tmp_path_factory.mktemp("triton")) as triton:
        yield triton


@pytest.fixture
async def client(server: TritonServer) -> AsyncIterator[TritonClient]:
    client = TritonClient(server.grpc, call_timeout=20, load_timeout=60)
    yield client
    await client.aclose()


async def index(client: TritonClient, model: str) -> dict[str, tuple[str, str]]:
    return {entry.version: (entry.state, entry.reason) for entry in await client.index() if entry.name == model}


async def test_should_load_a_model_that_answers_and_unload_it_again(server: TritonServer, client: TritonClient) -> None:
    """Loaded means that it serves, unloaded that it does not any more."""
    write_model(server.repository, "simple", times(2))
    await client.check()
    assert await index(client, "simple") == {"": ("", "")}
    assert not await client.ready("simple")
    result = await client.load("simple")
    assert result.versions == ("1",)
    assert result.seconds > 0
    assert await client.ready("simple")
    assert await client.ready("simple", "1")
    assert not await client.ready("simple", "2")
    assert await infer(server.grpc, "simple", 21) == 42
    await client.unload("simple")
    assert await index(client, "simple") == {"1": ("UNAVAILABLE", "unloaded")}
    assert not await client.ready("simple")
    await client.unload("never-heard-of")


async def test_should_take_new_files_at_the_next_load(server: TritonServer, client: TritonClient) -> None:
    """Also a new version, and all of them where the configuration wants all."""
    write_model(server.repository, "renewed", times(2))
    await client.load("renewed")
    write_model(server.repository, "renewed", times(3))
    assert (await client.load("renewed")).versions == ("1",)
    assert await infer(server.grpc, "renewed", 10) == 30
    write_model(server.repository, "renewed", times(5), version=10)
    assert (await client.load("renewed")).versions == ("10",)
    everything = f"{CONFIG} version_policy {{ all {{}} }}"
    write_model(server.repository, "renewed", times(7), version=9, config=everything)
    assert (await client.load("renewed")).versions == ("1", "9", "10")


async def test_should_report_the_reason_of_a_model_that_does_not_start(
    server: TritonServer, client: TritonClient
) -> None:
    """The first line names the python error, the whole text the line of model.py; a second load says it again."""
    write_model(server.repository, "broken", BROKEN)
    for _ in range(2):
        with pytest.raises(LoadRejected, match=r"refused 'broken': .*No module named 'no_such_library'$") as caught:
            await client.load("broken")
        assert "broken/1/model.py(1)" in caught.value.reason
        assert "\n" not in str(caught.value)
    assert not await client.ready("broken")


async def test_should_leave_the_old_model_serving_when_the_new_one_is_refused(
    server: TritonServer, client: TritonClient
) -> None:
    """A refusal costs nobody an answer, and what is mended loads again, whatever the index remembers."""
    write_model(server.repository, "careful", times(2))
    await client.load("careful")
    write_model(server.repository, "careful", BROKEN, version=2)
    with pytest.raises(LoadRejected, match="no_such_library"):
        await client.load("careful")
    assert await infer(server.grpc, "careful", 4) == 8
    (server.repository / "careful" / "2" / "model.py").unlink()
    (server.repository / "careful" / "2").rename(server.repository / "careful" / "not-a-version")
    assert (await client.load("careful")).versions == ("1",)
    assert (await index(client, "careful"))["2"][0] == "UNAVAILABLE"


async def test_should_say_what_to_look_at_when_triton_does_not_find_the_model(client: TritonClient) -> None:
    """Triton's own words are the same for a missing folder and a configuration it can't read."""
    with pytest.raises(LoadRejected, match=r"'missing', failed to poll.*does it run on this folder"):
        await client.load("missing")


async def test_should_load_what_is_left_of_a_configuration_without_the_agent(
    server: TritonServer, client: TritonClient
) -> None:
    """Triton refuses the model as it lies in the store; without the agent, with its comments, it takes it."""
    declared = f'# first\n{CONFIG}model_repository_agents\n{{\n  agents [ {{ name: "dragonfly", }} ]\n}}\n# last'
    write_model(server.repository, "declares", times(2), config=declared)
    with pytest.raises(LoadRejected, match="failed to poll"):
        await client.load("declares")
    write_model(server.repository, "declares", times(2), config=without_dragonfly(declared.encode()).decode())
    assert (await client.load("declares")).versions == ("1",)


async def test_should_give_a_load_up_and_find_the_server_well(server: TritonServer, tmp_path: Path) -> None:
    """A load that takes too long ends here, not in Triton: the next one finds it done."""
    write_model(server.repository, "slow", waits_for(tmp_path / "flag"))
    hurried = TritonClient(server.grpc, load_timeout=1)
    with pytest.raises(LoadTimeout, match=r"did not load 'slow' within 1 s.*python stub"):
        await hurried.load("slow")
    await hurried.check()
    await hurried.aclose()
    (tmp_path / "flag").touch()
    patient = TritonClient(server.grpc, load_timeout=60)
    assert (await patient.load("slow")).versions == ("1",)
    await patient.aclose()


@pytest.mark.parametrize(("mode", "options"), [("none", []), ("poll", ["--repository-poll-secs=1"])])
async def test_should_tell_the_wrong_control_mode_before_a_load_and_at_one(
    mode: str, options: list[str], tmp_path: Path, start_triton: Callable[..., TritonServer]
) -> None:
    """With the option to set."""
    repository = tmp_path / "repository"
    write_model(repository, "simple", times(2))
    client = TritonClient(start_triton(repository, mode=mode, extra_args=options).grpc)
    for call in (client.check(), client.load("simple"), client.unload("simple")):
        with pytest.raises(WrongControlMode, match="--model-control-mode=explicit"):
            await call
    assert await client.ready("simple")
    await client.aclose()


async def test_should_survive_a_server_that_hangs_dies_and_comes_back(
    tmp_path: Path, start_triton: Callable[..., TritonServer]
) -> None:
    """Each state is told apart, and the same client goes on with the restarted server."""
    repository = tmp_path / "repository"
    write_model(repository, "waits", waits_for(tmp_path / "flag"))
    server = start_triton(repository)
    client = TritonClient(server.grpc, call_timeout=2, load_timeout=60)
    load: asyncio.Task[Any] = asyncio.create_task(client.load("waits"))
    await eventually_loading(client, "waits")
    server.process.pause()
    with pytest.raises(TritonUnavailable, match="did not answer within 2 s"):
        await client.check()
    server.process.kill()
    with pytest.raises(TritonUnavailable, match="can't be asked"):
        await load
    with pytest.raises(TritonUnavailable, match="can't be asked"):
        await client.check()
    server.start()
    await eventually_well(client)
    await client.aclose()


async def eventually_well(client: TritonClient) -> None:
    # Longer than we let gRPC wait before it connects again, much shorter than it would wait by itself.
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(TritonUnavailable):
            return await client.check()
        await asyncio.sleep(0.1)
    pytest.fail("the client does not find the restarted server")


async def eventually_loading(client: TritonClient, model: str) -> None:
    for _ in range(200):
        if ("LOADING", "") in (await index(client, model)).values():
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"{model} does not begin to load")
