"""The Triton client against servers that no healthy Triton can be made to be."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from dfagent.errors import ConfigError, LoadRejected, LoadTimeout, TritonError, TritonUnavailable
from dfagent.triton.client import TritonClient

Entry: Any = pb.RepositoryIndexResponse.ModelIndex


class Answers(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Triton's gRPC service with the answers that a test gives it; a load is always taken."""

    def __init__(self, *index: Any, ready: bool = True, complaint: str = "") -> None:
        self.index = list(index)
        self.ready = ready
        self.complaint = complaint

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Takes every load."""
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Takes every order to unload, or complains."""
        if self.complaint:
            await context.abort(grpc.StatusCode.INTERNAL, self.complaint)
        return pb.RepositoryModelUnloadResponse()

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Gives the index, or complains."""
        if self.complaint:
            await context.abort(grpc.StatusCode.INTERNAL, self.complaint)
        return pb.RepositoryIndexResponse(models=self.index)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Says whether the model is ready."""
        return pb.ModelReadyResponse(ready=self.ready)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Answers], Any]]:
    """Starts a server with the given answers and gives a client of it."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(answers: Answers) -> TritonClient:
            server = grpc.aio.server()
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(answers, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop, None)
            client = TritonClient(f"127.0.0.1:{port}", call_timeout=5, load_timeout=1)
            stack.push_async_callback(client.aclose)
            return client

        yield start


@pytest.fixture
async def silent_address() -> AsyncIterator[str]:
    """A port that takes connections and never says a word."""
    release = asyncio.Event()

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    release.set()
    server.close()
    await server.wait_closed()


async def test_should_not_take_the_word_of_a_load_that_left_the_model_unavailable(serve: Callable[..., Any]) -> None:
    """The index has the last word, and its reason is what is reported."""
    client = await serve(Answers(Entry(name="m", version="1", state="UNAVAILABLE", reason="no such\nlibrary")))
    with pytest.raises(LoadRejected, match=r"version 1: no such$") as caught:
        await client.load("m")
    assert caught.value.reason == "version 1: no such\nlibrary"


async def test_should_not_take_the_word_of_a_load_that_the_index_does_not_know(serve: Callable[..., Any]) -> None:
    """Another model's READY counts for nothing."""
    client = await serve(Answers(Entry(name="m2", version="1", state="READY"), Entry(name="m")))
    with pytest.raises(LoadRejected, match="no version of the model is READY"):
        await client.load("m")


async def test_should_not_call_a_model_loaded_that_is_not_ready(serve: Callable[..., Any]) -> None:
    """READY in the index is not enough: the server has to say that it would answer."""
    client = await serve(Answers(Entry(name="m", version="1", state="READY"), ready=False))
    with pytest.raises(LoadRejected, match="says that it is not ready"):
        await client.load("m")


async def test_should_give_the_serving_versions_in_their_order(serve: Callable[..., Any]) -> None:
    """Versions are numbers, and what failed or went before does not count beside what serves."""
    states = {"10": "READY", "9": "READY", "2": "UNLOADING", "1": "UNAVAILABLE"}
    answers = Answers(*(Entry(name="m", version=v, state=s, reason="old") for v, s in states.items()))
    assert (await (await serve(answers)).load("m")).versions == ("9", "10")


async def test_should_wait_for_a_model_that_is_still_loading_but_not_for_ever(serve: Callable[..., Any]) -> None:
    """A load that came back too early is followed in the index, within the load's own time."""
    answers = Answers(Entry(name="m", version="1", state="LOADING"))
    client = await serve(answers)
    load = asyncio.ensure_future(client.load("m"))
    await asyncio.wait([load], timeout=0.3)
    assert not load.done()
    answers.index = [Entry(name="m", version="1", state="READY")]
    assert (await load).versions == ("1",)
    answers.index = [Entry(name="m", version="1", state="LOADING")]
    with pytest.raises(LoadTimeout, match=r"did not load 'm' within 1 s.*python stub"):
        await client.load("m")


async def test_should_not_call_a_model_unloaded_that_serves_on(serve: Callable[..., Any]) -> None:
    """The index has the last word, within the time of a load; another model's state counts for nothing."""
    answers = Answers(Entry(name="m", version="1", state="READY"), Entry(name="m2", version="1", state="READY"))
    client = await serve(answers)
    for state in ("READY", "UNLOADING"):
        answers.index[0].state = state
        with pytest.raises(LoadTimeout, match=r"did not unload 'm' within 1 s"):
            await client.unload("m")
    answers.index[0].state = "UNAVAILABLE"
    await client.unload("m")


async def test_should_say_which_model_it_may_not_unload(serve: Callable[..., Any]) -> None:
    """With the server's words."""
    with pytest.raises(TritonError, match=r"refused to unload 'm': no such thing$") as caught:
        await (await serve(Answers(complaint="no such thing"))).unload("m")
    assert not isinstance(caught.value, TritonUnavailable)


async def test_should_translate_whatever_a_server_complains_of(serve: Callable[..., Any]) -> None:
    """An error that is none of those we know is still one of ours, with the server's words."""
    client = await serve(Answers(complaint="the index is on fire\nmore"))
    with pytest.raises(TritonError, match=r"the index is on fire$") as caught:
        await client.index()
    assert caught.value.exit_code == 6
    assert not caught.value.retryable


async def test_should_not_wait_longer_than_asked_for_a_server_that_is_silent(silent_address: str) -> None:
    """Each call ends with an error that names the address; nothing of gRPC's gets out."""
    client = TritonClient(silent_address, call_timeout=0.3, load_timeout=0.3)
    for call in (client.check(), client.index(), client.ready("m"), client.unload("m")):
        with pytest.raises(TritonUnavailable, match=f"{silent_address} did not answer within 0.3 s"):
            await call
    with pytest.raises(LoadTimeout):
        await client.load("m")
    await client.aclose()


async def test_should_not_trust_grpc_to_keep_its_own_deadline(
    monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    """A call of the SDK that ignores its deadline is given up as well."""
    from tritonclient.grpc.aio import InferenceServerClient

    async def never(*_args: Any, **_keywords: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(InferenceServerClient, "get_model_repository_index", never)
    client = TritonClient(f"127.0.0.1:{unused_tcp_port}", call_timeout=0.2)
    with pytest.raises(TritonUnavailable, match="did not answer"):
        await asyncio.wait_for(client.index(), 5)
    await client.aclose()


async def test_should_say_that_nothing_listens(unused_tcp_port: int) -> None:
    """With the address, the cause in the system's words, and where Triton's port usually is."""
    client = TritonClient(f"127.0.0.1:{unused_tcp_port}")
    with pytest.raises(TritonUnavailable, match=r"can't be asked: .*[Cc]onnection refused.*8001") as caught:
        await client.check()
    assert caught.value.retryable
    await client.aclose()
    await client.aclose()


async def test_should_not_speak_to_triton_through_a_proxy(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    """http_proxy in the environment is for the store."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_tcp_port}")
    client = await serve(Answers(Entry(name="m", version="1", state="READY")))
    assert (await client.load("m")).versions == ("1",)


@pytest.mark.parametrize("address", ["", "localhost", ":8001", "http://localhost:8001", "localhost:grpc", "a/b:1"])
def test_should_refuse_what_is_no_address(address: str) -> None:
    """Before anything is downloaded, with the form that is expected."""
    with pytest.raises(ConfigError, match="HOST:PORT"):
        TritonClient(address)
