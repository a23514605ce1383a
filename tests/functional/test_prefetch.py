"""Whole passes over a real S3 server, by the direct transport: what is fetched, published and left alone."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dfagent.agent import PassResult
from dfagent.cli.progress import Silent
from dfagent.errors import Changed, EmptyRepository, InvalidModelConfig, NoSpace, RepositoryError, UnsafePath
from dfagent.local.object_store import S3Server
from dfagent.repository.config_pbtxt import MAX_CONFIG_BYTES, parse_config
from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.dragonfly import DragonflySettings
from dfagent.settings.files import Settings
from dfagent.transports.pressure import Pressure
from dfagent.types import ObjectEntry
from dfagent.wiring import RunOptions, Session, open_session
from tests.servers.gate import Gate
from tests.servers.mounts import tiny_disk

MIB = 1 << 20
AGENT = 'model_repository_agents { agents [ { name: "dragonfly", } ] }'


@dataclass
class Bucket:
    """A bucket behind a gate, a folder to materialise into, and passes between them."""

    server: S3Server
    name: str
    gate: Gate
    target: Path
    select_all: bool = False
    dragonfly: DragonflySettings = field(default_factory=DragonflySettings)

    def put(self, key: str, data: bytes | str) -> None:
        body = data if isinstance(data, bytes) else data.encode()
        self.server.client().put_object(Bucket=self.name, Key=key, Body=body)

    def put_model(self, folder: str, **files: bytes) -> None:
        """A model with the dragonfly agent; `v1__weights` is the key 1/weights."""
        self.put(f"{folder}/config.pbtxt", f'name: "{folder.rpartition("/")[2]}"\nbackend: "python"\n{AGENT}\n')
        for name, data in files.items():
            self.put(f"{folder}/{name.removeprefix('v').replace('__', '/')}", data)

    def url(self, prefix: str) -> str:
        return f"s3://{self.gate.endpoint}/{self.name}/{prefix}"

    async def run(self, *prefixes: str) -> PassResult:
        async with self.session(*prefixes) as session:
            return await session.run()

    @asynccontextmanager
    async def session(self, *prefixes: str) -> AsyncIterator[Session]:
        secret = {"key_id": self.server.access_key, "secret_key": self.server.secret_key, "region": "us-east-1"}
        settings = Settings(self.dragonfly, CloudCredentials.model_validate({"s3": {"": secret}}))
        urls = tuple(self.url(prefix) for prefix in prefixes or ("repo",))
        options = RunOptions(urls, target=self.target, select_all=self.select_all, transport="direct")
        async with open_session(settings, options, Silent()) as session:
            yield session

    def read(self, path: str) -> bytes:
        return (self.target / path).read_bytes()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
async def store(s3_server: S3Server, bucket: str, tmp_path: Path) -> AsyncIterator[Bucket]:
    async with Gate(s3_server.port) as gate:
        yield Bucket(s3_server, bucket, gate, tmp_path / "node" / "models")


async def should_publish_the_models_that_declare_the_agent_and_take_it_out(store: Bucket) -> None:
    store.put_model("repo/net", v1__weights=b"weights", labels=b"cat")
    store.put("repo/plain/config.pbtxt", 'name: "plain"\n')
    result = await store.run()
    assert [(record.model, record.outcome) for record in result.models] == [("net", "published")]
    assert sorted(path.name for path in store.target.iterdir()) == ["net"]
    assert store.read("net/1/weights") == b"weights"
    assert store.read("net/labels") == b"cat"
    config = parse_config(store.read("net/config.pbtxt"), "config.pbtxt")
    assert config.agents == () and config.message.backend == "python"


async def should_say_once_that_a_model_is_left_alone(store: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    """Not at every pass of a service."""
    caplog.set_level(logging.INFO, logger="dfagent")
    store.put_model("repo/net", v1__weights=b"weights")
    store.put("repo/plain/config.pbtxt", 'name: "plain"\n')
    async with store.session() as session:
        for _ in range(2):
            assert not (await session.run()).errors
    assert [record.message for record in caplog.records if "left alone" in record.message] == [
        "plain: its config.pbtxt does not declare the dragonfly agent: left alone"
    ]


async def should_publish_every_model_when_asked_for_all(store: Bucket) -> None:
    store.select_all = True
    store.put("repo/plain/config.pbtxt", 'name: "plain"  # as it is\n')
    store.put("repo/bare/1/model.onnx", "no configuration at all")
    await store.run()
    assert store.read("plain/config.pbtxt") == b'name: "plain"  # as it is\n'
    assert store.read("bare/1/model.onnx") == b"no configuration at all"


async def should_ask_for_nothing_but_the_listing_when_nothing_changed(store: Bucket) -> None:
    store.put_model("repo/net", v1__weights=b"weights")
    store.put("repo/plain/config.pbtxt", 'name: "plain"\n')
    await store.run()
    store.gate.heads.clear()
    result = await store.run()
    assert [record.outcome for record in result.models] == ["unchanged"]
    assert len(store.gate.heads) == 1 and "list-type=2" in store.gate.heads[0]


async def should_list_a_repository_once_and_never_ask_for_one_files_head(store: Bucket) -> None:
    for model in range(5):
        store.put_model(f"repo/net{model}", v1__weights=b"weights", v2__weights=b"other")
    await store.run()
    assert len([head for head in store.gate.heads if "list-type=2" in head]) == 1
    assert not [head for head in store.gate.heads if head.startswith("HEAD ")]
    assert len(store.gate.heads) == 1 + 5 * 3


async def should_see_a_model_that_was_overwritten_under_the_same_key(store: Bucket) -> None:
    store.put_model("repo/net", v1__weights=b"old", v1__labels=b"same")
    await store.run()
    store.put("repo/net/1/weights", b"new")
    store.gate.heads.clear()
    result = await store.run()
    assert [record.outcome for record in result.models] == ["published"]
    assert store.read("net/1/weights") == b"new"
    assert [record.path for record in result.objects] == ["1/weights"]


async def should_never_mix_a_model_that_is_overwritten_during_its_download(store: Bucket) -> None:
    # Five parts, four of them side by side: the fifth is asked for after the change.
    old, new = os.urandom(160 * MIB), os.urandom(160 * MIB)
    store.put_model("repo/net", v1__weights=old)
    hold = store.gate.hold("1/weights", after=MIB)
    running = asyncio.create_task(store.run())
    await asyncio.wait_for(hold.reached.wait(), 30)
    store.put("repo/net/1/weights", new)
    hold.release()
    result = await running
    assert not result.errors
    assert sha256(store.read("net/1/weights")) == sha256(new)


async def should_fetch_only_the_overwritten_model_again(store: Bucket) -> None:
    store.put_model("repo/net", v1__weights=b"old")
    store.put_model("repo/other", v1__weights=b"other")

    class OverwriterOnce(list[str]):
        """Overwrites one model's object when it is first asked for."""

        def append(self, head: str) -> None:
            if head.startswith("GET ") and "net/1/weights" in head and not [old for old in self if "net/1/w" in old]:
                store.put("repo/net/1/weights", b"new")
            super().append(head)

    store.gate.heads = OverwriterOnce()
    result = await store.run()
    assert not result.errors
    assert sorted(record.model for record in result.models) == ["net", "other"]
    assert store.read("net/1/weights") == b"new"
    assert len(store.gate.requests("other/1/weights")) == 1
    assert len(store.gate.requests("list-type=2")) == 2


async def should_fetch_objects_of_all_models_side_by_side(store: Bucket) -> None:
    for model in ("one", "two"):
        store.put_model(f"repo/{model}", v1__a=b"a", v1__b=b"b", v1__c=b"c")
    hold = store.gate.hold("/1/")
    running = asyncio.create_task(store.run())
    await until(lambda: len(store.gate.requests("/1/")) == 6)
    hold.release()
    assert not (await running).errors


async def should_fetch_a_large_object_by_parallel_ranges(store: Bucket) -> None:
    store.put_model("repo/net", v1__weights=bytes(130 * MIB))
    hold = store.gate.hold("1/weights")
    running = asyncio.create_task(store.run())
    await until(lambda: len(store.gate.requests("1/weights")) == 4)
    hold.release()
    assert not (await running).errors
    ranges = [line for head in store.gate.requests("1/weights") for line in head.splitlines() if "Range:" in line]
    assert len(ranges) == len(set(ranges)) == 5


async def should_share_one_limit_of_requests_in_flight_between_all_repositories(store: Bucket) -> None:
    store.dragonfly = DragonflySettings(concurrency=3)
    async with store.session("one", "two") as session:
        fetchers = [
            fetcher for agent in session.agents for fetcher in (agent._tools.fetcher, agent._tools.config_fetcher)
        ]
    assert len({id(fetcher.limit) for fetcher in fetchers}) == 1
    limit = fetchers[0].limit
    assert isinstance(limit, Pressure)
    assert limit.places == 3


async def should_report_a_model_that_changes_faster_than_it_can_be_fetched(store: Bucket) -> None:
    store.put_model("repo/net", v1__weights=b"0")
    store.put_model("repo/calm", v1__weights=b"calm")
    real_requests = store.gate.requests

    class Overwriter(list[str]):
        """Overwrites the object each time somebody lists."""

        def append(self, head: str) -> None:
            super().append(head)
            if head.startswith("GET ") and "net/1/weights" in head:
                store.put("repo/net/1/weights", str(len(self)))

    store.gate.heads = Overwriter()
    result = await store.run()
    assert isinstance(result.errors[0], Changed)
    assert {record.model: record.outcome for record in result.models} == {"calm": "published", "net": "failed"}
    assert [path.name for path in store.target.iterdir()] == ["calm"]
    assert len(real_requests("net/1/weights")) == 5


async def should_not_take_a_neighbour_with_a_longer_name_along(store: Bucket) -> None:
    store.put_model("repo/foo", v1__weights=b"foo")
    store.put_model("repo/foo-hf", v1__weights=b"foo-hf")
    await store.run("repo/foo")
    assert [path.name for path in store.target.iterdir()] == ["foo"]


async def should_publish_the_healthy_models_beside_a_broken_one(store: Bucket) -> None:
    store.put_model("repo/good", v1__weights=b"good")
    store.put("repo/broken/config.pbtxt", "name: { this is no model configuration")
    store.put_model("repo/.hidden", v1__weights=b"x")
    result = await store.run()
    assert {type(error) for error in result.errors} == {InvalidModelConfig, UnsafePath}
    assert [path.name for path in store.target.iterdir()] == ["good"]


async def should_not_fetch_a_configuration_that_is_too_large_to_be_one(store: Bucket) -> None:
    store.put("repo/net/config.pbtxt", b"#" * (MAX_CONFIG_BYTES + 1))
    (error,) = (await store.run()).errors
    assert isinstance(error, InvalidModelConfig) and str(MAX_CONFIG_BYTES + 1) in error.message
    assert not store.gate.requests("config.pbtxt")


@pytest.mark.parametrize("content", ["nothing", "loose files", "no agent"])
async def should_say_why_there_is_nothing_to_publish(store: Bucket, content: str) -> None:
    if content == "loose files":
        store.put("repo/README.md", "hello")
    if content == "no agent":
        store.put("repo/plain/config.pbtxt", 'name: "plain"\n')
    result = await store.run()
    (error,) = result.errors
    assert isinstance(error, EmptyRepository)
    assert ("--all" in error.hint) == (content == "no agent")


async def should_refuse_one_model_name_from_two_repositories(store: Bucket) -> None:
    store.put_model("one/net", v1__weights=b"one")
    store.put_model("two/net", v1__weights=b"two")
    result = await store.run("one", "two")
    (error,) = result.errors
    assert isinstance(error, RepositoryError) and "also in" in error.message
    assert store.read("net/1/weights") == b"one"


async def should_give_the_tasks_of_different_credentials_different_identities(store: Bucket) -> None:
    store.put_model("repo/net", v1__weights=b"weights")
    shared = (await store.run()).objects
    store.target = store.target.parent / "isolated"
    store.dragonfly = DragonflySettings(isolation="per-credential")
    isolated = (await store.run()).objects
    assert {record.task_id for record in shared}.isdisjoint(record.task_id for record in isolated)
    async with store.session() as session:
        isolation = (await session.agents[0]._isolated()).fetcher.isolation
    assert isolation and store.server.access_key not in isolation, "peers and their logs see it"


async def should_record_every_object_and_every_model(store: Bucket) -> None:
    store.put_model("repo/net", v1__weights=b"x" * 1000)
    result = await store.run()
    (model,) = result.models
    weights = next(record for record in result.objects if record.path == "1/weights")
    assert (weights.bytes, weights.transport, weights.source.value, weights.attempts) == (1000, "direct", "direct", 1)
    assert weights.traffic.origin == 1000
    assert weights.object == f"s3://127.0.0.1:{store.gate.port}/{store.name}/repo/net/1/weights"
    assert model.source is not None and model.source.value == "direct"
    assert model.fetched_bytes == sum(record.bytes for record in result.objects) == model.bytes
    assert model.seconds.list > 0 and model.seconds.fetch > 0 and model.seconds.publish > 0


async def should_not_ask_for_ever_for_a_version_that_is_listed_and_not_served(
    store: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway with a stale listing: the same etag again, and 412 again."""
    store.put_model("repo/net", v1__weights=b"weights")
    pin = ObjectEntry.pin_headers
    monkeypatch.setattr(
        ObjectEntry,
        "pin_headers",
        property(lambda entry: {"If-Match": '"another"'} if "weights" in entry.ref.key else pin.__get__(entry)),
    )
    (error,) = (await store.run()).errors
    assert isinstance(error, Changed)
    assert len(store.gate.requests("list-type=2")) == 2


async def should_say_how_much_room_is_needed_before_anything_is_fetched(store: Bucket, tmp_path: Path) -> None:
    store.put_model("repo/net", v1__first=bytes(5 * MIB), v1__second=bytes(5 * MIB))
    with tiny_disk(tmp_path / "disk", 8 * MIB) as disk:
        store.target = disk / "models"
        (error,) = (await store.run()).errors
    assert isinstance(error, NoSpace) and f"{10 * MIB} bytes are needed" in error.message
    assert not store.gate.requests("/1/"), "each of them alone would have fitted"


async def should_keep_names_apart_as_the_disk_does(store: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file system of this machine folds names, so the probe's answer stands in for one."""
    store.put_model("repo/net", v1__Weights=b"one", v1__weights=b"two")
    assert not (await store.run()).errors
    assert (store.read("net/1/Weights"), store.read("net/1/weights")) == (b"one", b"two")
    monkeypatch.setattr("dfagent.repository.folder.folding_of", lambda _folder: str.casefold)
    (error,) = (await store.run()).errors
    assert isinstance(error, UnsafePath) and "Weights" in error.message


async def should_clear_away_after_each_pass_what_nobody_goes_on_with(store: Bucket) -> None:
    store.put_model("repo/net", v1__weights=b"weights")
    async with store.session() as session:
        assert session.folder
        stray = session.folder.partials("other") / "t-1.dfdaemon.partial"
        stray.write_bytes(b"dfdaemon wrote it after we had given it up")
        await session.run()
    assert not stray.exists()


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)
