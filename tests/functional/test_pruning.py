"""`--prune`: what a complete listing no longer holds goes, and nothing goes on the word of any other listing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfagent import pruning
from dfagent.agent import PassResult
from dfagent.cli.progress import Silent
from dfagent.errors import EmptyRepository, StoreError, TritonError, TritonUnavailable
from dfagent.local.object_store import S3Server
from dfagent.repository import folder as folder_module
from dfagent.repository.disk import remove
from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.dragonfly import DragonflySettings
from dfagent.settings.files import Settings
from dfagent.transports.options import Timeouts
from dfagent.wiring import RunOptions, Session, open_session
from tests.servers import program
from tests.servers.canned import http_answer
from tests.servers.gate import Gate
from tests.servers.passes import Place, config_of
from tests.servers.program import SettingsFiles
from tests.servers.scripted_s3 import ScriptedS3

PLAIN = b'backend: "python"\n'


@pytest.fixture
async def place(s3_server: S3Server, bucket: str, tmp_path: Path) -> AsyncIterator[Place]:
    """Passes over a real S3 server."""
    async with Gate(s3_server.port) as gate:
        yield Place(s3_server, bucket, gate, tmp_path / "node" / "models", options={"prune": True})


class Node:
    """Passes over a server whose listings are scripted; the pause before a second look only runs `meanwhile`."""

    def __init__(self, store: ScriptedS3, target: Path) -> None:
        self.store = store
        self.target = target
        self.triton: Any = None
        self.meanwhile: list[Callable[[], None]] = []
        self.pauses: list[int] = []

    async def run(self, *prefixes: str, prune: bool = True, **options: Any) -> PassResult:
        async with self.session(*prefixes, prune=prune, **options) as session:
            return await session.run()

    @asynccontextmanager
    async def session(self, *prefixes: str, prune: bool = True, **options: Any) -> AsyncIterator[Session]:
        credential = {"key_id": "K", "secret_key": "S", "region": "us-east-1"}
        settings = Settings(DragonflySettings(), CloudCredentials.model_validate({"s3": {"": credential}}))
        urls = tuple(self.store.repository(prefix) for prefix in prefixes or ("repo",))
        timeouts = Timeouts(connect=5, stall=5)
        run = RunOptions(urls, self.target, transport="direct", timeouts=timeouts, prune=prune, **options)
        async with open_session(settings, run, Silent()) as session:
            if session.pruner:
                session.pruner._pause = self._pause
                session.pruner._triton = self.triton
            yield session

    async def _pause(self) -> None:
        self.pauses.append(self.store.listings)
        for change in self.meanwhile:
            change()

    def names(self) -> list[str]:
        return sorted(path.name for path in self.target.iterdir())

    def remove(self, folder: str) -> None:
        self.store.objects = {key: data for key, data in self.store.objects.items() if not key.startswith(f"{folder}/")}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """Two models of `repo` are published; there are more in the store by then, for `page_size` 4 on two pages."""
    async with ScriptedS3(page_size=4) as store:
        for model in ("net", "gone", "other"):
            store.put_model(f"repo/{model}", config_of(model))
        node = Node(store, tmp_path / "node" / "models")
        assert not (await node.run(prune=False)).errors
        assert node.names() == ["gone", "net", "other"]
        yield node


class FakeTriton:
    """Notes what it is asked to unload, and what lies in the folder then."""

    def __init__(self, target: Path, error: TritonError | None = None) -> None:
        self.target = target
        self.error = error
        self.unloaded: list[str] = []
        self.links: list[bool] = []

    async def unload(self, model: str) -> None:
        self.unloaded.append(model)
        self.links.append((self.target / model / "1/weights").exists())
        if self.error:
            raise self.error


def outcomes(result: PassResult) -> dict[str, str]:
    return {record.model: record.outcome for record in result.models}


def state_of(target: Path, model: str) -> list[Path]:
    """Whatever the state folder has of the model."""
    return [path for path in (target.parent / ".dfagent-models").glob("*/*") if path.name == model]


async def should_remove_what_the_store_no_longer_holds(place: Place) -> None:
    place.put_model("repo/net")
    place.put_model("repo/gone")
    await place.run()
    place.delete("repo/gone/")
    assert place.outcomes(await place.run(prune=False)) == {"net": "unchanged"}
    assert place.names() == ["gone", "net"], "not without being asked to"
    assert state_of(place.target, "gone")
    result = await place.run()
    assert not result.errors and place.outcomes(result) == {"net": "unchanged", "gone": "removed"}
    record = next(record for record in result.models if record.model == "gone")
    assert record.repository == place.url() and record.objects == 2 and record.generation and not record.loaded
    assert place.names() == ["net"] and (place.target / "net/1/weights").read_bytes() == b"weights"
    assert state_of(place.target, "gone") == []
    assert place.outcomes(await place.run()) == {"net": "unchanged"}


async def should_end_with_0_and_say_what_was_removed(place: Place, tmp_path: Path) -> None:
    place.put_model("repo/net")
    place.put_model("repo/gone")
    await place.run()
    place.delete("repo/gone/")
    files = SettingsFiles(tmp_path, {"key_id": place.server.access_key, "secret_key": place.server.secret_key})
    told = await program.run("prefetch", place.url(), f"--to={place.target}", "--prune", *files.options())
    assert told.code == 0 and "removed" in told.out and place.names() == ["net"]
    place.delete("repo/")
    arguments = [place.url(), f"--to={place.target}", "--prune", *files.options()]
    assert (await program.run("prefetch", *arguments)).code == 5 and place.names() == ["net"]
    assert (await program.run("prefetch", *arguments, "--allow-empty")).code == 0 and place.names() == []


@pytest.mark.parametrize(
    ("arguments", "word"), [(["--to=m", "--allow-empty"], "--prune"), (["--prune"], "--to"), (["--allow-empty"], "--")]
)
async def should_end_with_2_for_options_that_do_not_go_together(
    tmp_path: Path, arguments: list[str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = SettingsFiles(tmp_path, dragonfly={"proxy": "http://127.0.0.1:1"})
    told = await program.run("prefetch", "s3://bucket/repo", *arguments, *files.options())
    assert told.code == 2 and word in told.err and "Traceback" not in told.err


async def should_leave_alone_what_came_from_elsewhere(place: Place) -> None:
    place.put_model("one/net")
    place.put_model("one/gone")
    place.put_model("two/theirs")
    (place.target / "handmade/1").mkdir(parents=True)
    await place.run(place.url("one"), place.url("two"))
    place.delete("one/gone/")
    place.delete("two/")
    assert place.outcomes(await place.run(place.url("one"))) == {"net": "unchanged", "gone": "removed"}
    assert place.names() == ["handmade", "net", "theirs"]


async def should_not_touch_what_took_the_place_of_a_model(node: Node) -> None:
    node.triton = FakeTriton(node.target)
    node.remove("repo/gone")
    (node.target / "gone").unlink()
    (node.target / "gone").mkdir()
    result = await node.run()
    assert not result.errors and set(outcomes(result).values()) == {"unchanged"}
    assert node.names() == ["gone", "net", "other"] and node.triton.unloaded == []


async def should_remove_a_model_that_no_longer_declares_the_agent_unless_all_are_wanted(node: Node) -> None:
    node.store.objects["repo/gone/config.pbtxt"] = PLAIN
    assert not (await node.run(select_all=True)).errors
    assert node.names() == ["gone", "net", "other"]
    assert outcomes(await node.run()) == {"net": "unchanged", "other": "unchanged", "gone": "removed"}
    assert node.names() == ["net", "other"]


@pytest.mark.parametrize("problem", ["configuration", "name"])
async def should_keep_a_model_that_is_broken_in_the_store(node: Node, problem: str) -> None:
    if problem == "configuration":
        node.store.objects["repo/gone/config.pbtxt"] = b"name: {{"
    else:
        node.store.objects["repo/gone/../x"] = b"x"
    result = await node.run()
    assert outcomes(result)["gone"] == "failed" and len(result.errors) == 1
    assert node.names() == ["gone", "net", "other"]


def empty_page(inner: bytes) -> bytes:
    return http_answer(200, b"<ListBucketResult>" + inner + b"</ListBucketResult>")


CUT = http_answer(200, b"<ListBucketResult><Name>b</Name><KeyCount>2</KeyCount><IsTruncated>false</IsTr")
SILENT_END = http_answer(200, b"<ListBucketResult><Name>b</Name><KeyCount>9").replace(b"Content-Length: ", b"X: ")
BROKEN = {
    "500": http_answer(500, b"<Error><Code>InternalError</Code></Error>"),
    "503": http_answer(503),
    "403": http_answer(403, b"<Error><Code>AccessDenied</Code></Error>"),
    "404": http_answer(404, b"<Error><Code>NoSuchBucket</Code></Error>"),
    "cut XML": CUT,
    "cut body without a length": SILENT_END,
    "HTML": http_answer(200, b"<html><body>maintenance</body></html>"),
    "nothing": http_answer(200),
    "more, but complete": empty_page(b"<Name>b</Name><NextContinuationToken>9</NextContinuationToken>"),
    "fewer than counted": empty_page(b"<Name>b</Name><KeyCount>3</KeyCount>"),
    "folders": empty_page(b"<Name>b</Name><Delimiter>/</Delimiter>"),
    "a later start": empty_page(b"<Name>b</Name><StartAfter>repo/z</StartAfter>"),
    "other keys": empty_page(b"<Name>b</Name><Contents><Key>repoX/a</Key><Size>0</Size><ETag>e</ETag></Contents>"),
    "another prefix": empty_page(b"<Name>b</Name><Prefix>x/</Prefix>"),
    "another bucket": empty_page(b"<Name>c</Name>"),
    "closed connection": b"",
}


@pytest.fixture
def impatient_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the SDK's pauses between its attempts."""
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))


@pytest.mark.usefixtures("impatient_sdk")
@pytest.mark.parametrize("page", [0, 1])
async def should_remove_nothing_by_a_listing_that_failed(node: Node, page: int) -> None:
    node.triton = FakeTriton(node.target)
    node.remove("repo/gone")
    node.remove("repo/net")
    for model in ("new1", "new2"):
        node.store.put_model(f"repo/{model}", config_of(model))
    async with node.session(allow_empty=True) as session:
        for name, broken in BROKEN.items():
            node.store.instead = {page: broken}
            result = await session.run()
            (error,) = result.errors
            assert isinstance(error, StoreError) and error.exit_code == 3, name
            assert node.names() == ["gone", "net", "other"] and node.triton.unloaded == [] == result.models, name
    node.store.instead = {}
    assert not (await node.run()).errors
    assert node.names() == ["new1", "new2", "other"] and sorted(node.triton.unloaded) == ["gone", "net"]


async def should_remove_nothing_while_another_repository_can_not_be_listed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model may have moved there, and what an earlier pass saw there counts no longer."""
    node.store.put_model("two/theirs", config_of("theirs"))
    async with node.session("repo", "two") as session:
        assert not (await session.run()).errors
        node.store.put_model("two/gone", config_of("gone"))
        node.remove("repo/gone")
        node.store.objects["two/gone/1/weights"] = b"moved"
        real = session.agents[1]._tools.fetcher.store.list

        async def fails(*arguments: Any) -> AsyncIterator[Any]:
            async for entry in real(*arguments):
                yield entry
                raise StoreError("the listing broke in the middle")

        with monkeypatch.context() as patch:
            patch.setattr(session.agents[1]._tools.fetcher.store, "list", fails)
            result = await session.run()
        assert len(result.errors) == 1 and "gone" not in outcomes(result)
        assert node.names() == ["gone", "net", "other", "theirs"]
        result = await session.run()
    assert not result.errors and outcomes(result)["gone"] == "published"
    assert (node.target / "gone/1/weights").read_bytes() == b"moved"


async def should_remove_nothing_by_an_empty_listing(node: Node) -> None:
    node.triton = FakeTriton(node.target)
    node.store.objects = {"repo/README.md": b"loose"}
    (error,) = (await node.run()).errors
    assert isinstance(error, EmptyRepository) and error.exit_code == 5 and "no model lies below" in error.message
    assert node.names() == ["gone", "net", "other"] and node.triton.unloaded == []


async def should_remove_everything_by_two_empty_listings_where_that_is_allowed(node: Node) -> None:
    node.triton = FakeTriton(node.target)
    node.store.objects = {"repo/README.md": b"loose"}
    node.store.listings = 0
    result = await node.run(allow_empty=True)
    assert not result.errors and set(outcomes(result).values()) == {"removed"}
    assert node.names() == [] and sorted(node.triton.unloaded) == ["gone", "net", "other"]
    assert node.store.listings == 2 and node.pauses == [1], "a moment lies between them"
    result = await node.run(allow_empty=True)
    assert not result.errors and not result.models and node.store.listings == 3, "with nothing to remove one is enough"


async def should_wait_a_moment_before_it_looks_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(pruning, "asyncio", SimpleNamespace(sleep=sleep))
    await pruning.Pruner(folder_module.RepositoryFolder(tmp_path / "m"), None, lambda _: None)._pause()
    assert waited == [1.0]


@pytest.mark.usefixtures("impatient_sdk")
@pytest.mark.parametrize("second", ["a model", "another object", "another version", "an error", "cut XML"])
async def should_remove_nothing_when_the_second_look_is_another_one(node: Node, second: str) -> None:
    node.triton = FakeTriton(node.target)
    changes: dict[str, Callable[[], object]] = {
        "a model": lambda: node.store.put_model("repo/net", config_of("net")),
        "another object": lambda: node.store.objects.update({"repo/more": b""}),
        "another version": lambda: node.store.objects.update({"repo/README.md": b"LOOSE"}),
        "an error": lambda: node.store.instead.update({0: BROKEN["500"]}),
        "cut XML": lambda: node.store.instead.update({0: CUT}),
    }
    node.store.objects = {"repo/README.md": b"loose"}
    node.meanwhile = [lambda: (changes[second](), None)[1]]
    (error,) = (await node.run(allow_empty=True)).errors
    assert isinstance(error, StoreError if second in ("an error", "cut XML") else EmptyRepository)
    assert node.names() == ["gone", "net", "other"] and node.triton.unloaded == []


async def should_record_what_went_of_one_repository_when_the_second_look_at_another_fails(node: Node) -> None:
    node.store.put_model("two/theirs", config_of("theirs"))
    assert not (await node.run("two", prune=False)).errors
    node.remove("repo/gone")
    node.remove("two")
    node.meanwhile = [lambda: node.store.instead.update({0: BROKEN["403"]})]
    result = await node.run("repo", "two", allow_empty=True)
    assert isinstance(result.errors[0], StoreError) and len(result.errors) == 1
    assert outcomes(result)["gone"] == "removed" and node.names() == ["net", "other", "theirs"]


async def should_take_a_repository_where_no_model_declares_the_agent_for_an_empty_one(node: Node) -> None:
    for model in ("gone", "net", "other"):
        node.store.objects[f"repo/{model}/config.pbtxt"] = PLAIN
    (error,) = (await node.run()).errors
    assert isinstance(error, EmptyRepository) and node.names() == ["gone", "net", "other"]
    node.meanwhile = [lambda: node.store.put_model("repo/net", config_of("net"))]
    (error,) = (await node.run(allow_empty=True)).errors
    assert isinstance(error, EmptyRepository) and node.names() == ["gone", "net", "other"]
    node.store.objects["repo/net/config.pbtxt"] = PLAIN
    node.meanwhile = []
    assert not (await node.run(allow_empty=True)).errors and node.names() == []


@pytest.mark.parametrize(("unsafe", "outcome"), [(False, "published"), (True, "failed")])
async def should_keep_the_models_of_a_folder_that_reads_as_one_model_now(
    node: Node, unsafe: bool, outcome: str
) -> None:
    """One config.pbtxt in the wrong place must not unload a whole repository."""
    node.triton = FakeTriton(node.target)
    node.store.objects["repo/config.pbtxt"] = config_of("repo")
    if unsafe:
        node.store.objects["repo/x/../y"] = b""
    assert outcomes(await node.run()) == {"repo": outcome}
    assert {"gone", "net", "other"} <= set(node.names()) and node.triton.unloaded == []


async def should_remove_the_one_model_that_a_url_names(node: Node) -> None:
    await node.run("repo/net", prune=False)
    node.remove("repo/net")
    (error,) = (await node.run("repo/net")).errors
    assert isinstance(error, EmptyRepository) and "net" in node.names()
    assert outcomes(await node.run("repo/net", allow_empty=True)) == {"net": "removed"}


async def should_keep_a_model_that_moved_to_another_of_the_repositories(node: Node) -> None:
    node.triton = FakeTriton(node.target)
    node.store.put_model("two/gone", b"name: {{")
    node.remove("repo/gone")
    for _ in range(2):
        result = await node.run("repo", "two")
        assert outcomes(result)["gone"] == "failed"
        assert "gone" in node.names() and node.triton.unloaded == []


async def should_take_the_link_away_only_after_triton_let_go(node: Node) -> None:
    node.remove("repo/gone")
    node.triton = FakeTriton(node.target, TritonUnavailable("Triton is down"))
    result = await node.run()
    (error,) = result.errors
    assert isinstance(error, TritonUnavailable) and "gone" in error.message and error.exit_code == 6
    record = next(record for record in result.models if record.model == "gone")
    assert (record.outcome, record.error["type"]) == ("failed", "TritonUnavailable")
    assert (node.target / "gone/1/weights").read_bytes() == b"repo/gone"
    node.triton = FakeTriton(node.target)
    assert outcomes(await node.run())["gone"] == "removed"
    assert node.triton.links == [True] and node.names() == ["net", "other"]


async def should_remove_the_others_where_one_is_not_let_go(node: Node) -> None:
    node.remove("repo/gone")
    node.remove("repo/net")

    class Picky(FakeTriton):
        async def unload(self, model: str) -> None:
            self.error = TritonError("no") if model == "net" else None
            await super().unload(model)

    node.triton = Picky(node.target)
    assert outcomes(await node.run()) == {"other": "unchanged", "gone": "removed", "net": "failed"}
    assert node.names() == ["net", "other"]


@pytest.mark.parametrize("last", ["link", "loaded", "staging", "generations"])
async def should_finish_a_removal_that_was_killed(node: Node, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever moment: what names the model's origin goes last. Nobody is asked to unload what is gone."""
    node.remove("repo/gone")

    class Killed(BaseException):
        pass

    def killed(path: Path) -> None:
        if last == "link" or last in path.parts:
            raise Killed
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "remove", killed)
        with pytest.raises(Killed):
            await node.run()
    assert node.names() == ["net", "other"]
    node.triton = FakeTriton(node.target)
    assert outcomes(await node.run())["gone"] == "removed"
    assert state_of(node.target, "gone") == [] and node.triton.unloaded == []
    assert outcomes(await node.run()) == {"net": "unchanged", "other": "unchanged"}


async def should_bring_a_removed_model_back(node: Node) -> None:
    node.remove("repo/gone")
    await node.run()
    node.store.put_model("repo/gone", config_of("gone"))
    assert outcomes(await node.run())["gone"] == "published"
    assert (node.target / "gone/1/weights").read_bytes() == b"repo/gone"
