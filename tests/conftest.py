"""The real servers that tests run against, and an environment that nothing of the developer's machine leaks into."""

from __future__ import annotations

import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dfagent.errors import PartError
from dfagent.local.dragonfly import DragonflyCluster
from dfagent.local.legacy import LegacyPeer
from dfagent.local.object_store import S3Server
from dfagent.local.triton import TritonServer
from tests.servers.program import NEUTRAL, leaks_in

pytest_plugins = ("tests.secrecy.plugin",)

# Whoever asks for one of these fixtures needs the part, so nobody has to remember the mark.
MARKS = {
    "dragonfly": "dragonfly",
    "seeded_dragonfly": "dragonfly",
    "start_dragonfly": "dragonfly",
    "legacy_peer": "dragonfly",
    "start_legacy_peer": "dragonfly",
    "start_triton": "triton",
}

Part = TypeVar("Part")
StartDragonfly = Callable[..., DragonflyCluster]
StartLegacyPeer = Callable[[], LegacyPeer]
StartTriton = Callable[..., TritonServer]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in getattr(item, "fixturenames", ()):
            if name in MARKS:
                item.add_marker(MARKS[name])


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in leaks_in(os.environ):
            patch.delenv(name)
        for name, value in NEUTRAL.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    """A folder for servers that serve many tests; unlike pytest's own it is gone afterwards, gigabytes and all."""
    with tempfile.TemporaryDirectory(prefix="dfagent-tests-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def s3_server(session_folder: Path) -> Iterator[S3Server]:
    """A real S3 server that checks signatures."""
    with _part(lambda: S3Server(session_folder / "s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """A new, empty bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def dragonfly(session_folder: Path) -> Iterator[DragonflyCluster]:
    """Two real peers and their scheduler, without a seed. A test that stops one starts it again."""
    with _part(lambda: DragonflyCluster(session_folder / "dragonfly")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def seeded_dragonfly(session_folder: Path) -> Iterator[DragonflyCluster]:
    """A real seed peer, two peers and their scheduler; a cluster with a seed takes half a minute to start."""
    with _part(lambda: DragonflyCluster(session_folder / "seeded", seed=True)) as cluster:
        yield cluster


@pytest.fixture
def start_dragonfly(session_folder: Path) -> Iterator[StartDragonfly]:
    """`start_dragonfly(peers=…, seed=…, configs=…)`: a healthy cluster of the test's own."""
    with ExitStack() as stack:

        def start(**options: Any) -> DragonflyCluster:
            folder = session_folder / f"dragonfly-{uuid.uuid4().hex[:8]}"
            return stack.enter_context(_part(lambda: DragonflyCluster(folder, **options)))

        yield start


@pytest.fixture(scope="session")
def legacy_peer(session_folder: Path, dragonfly: DragonflyCluster) -> Iterator[LegacyPeer]:
    """A real Go daemon of Dragonfly 2.0, which knows the scheduler of `dragonfly`."""
    with _part(lambda: LegacyPeer(session_folder / "legacy", scheduler=dragonfly.scheduler_port)) as peer:
        yield peer


@pytest.fixture
def start_legacy_peer(session_folder: Path, dragonfly: DragonflyCluster) -> Iterator[StartLegacyPeer]:
    """`start_legacy_peer()`: a Go daemon of the test's own, which knows the same scheduler as `legacy_peer`."""
    with ExitStack() as stack:

        def start() -> LegacyPeer:
            folder = session_folder / f"legacy-{uuid.uuid4().hex[:8]}"
            return stack.enter_context(_part(lambda: LegacyPeer(folder, scheduler=dragonfly.scheduler_port)))

        yield start


@pytest.fixture
def start_triton(tmp_path: Path) -> Iterator[StartTriton]:
    """`start_triton(repository, mode=…)`: a live Triton that serves the folder."""
    with ExitStack() as stack:

        def start(repository: Path, **options: Any) -> TritonServer:
            folder = tmp_path / f"triton-{uuid.uuid4().hex[:8]}"
            return stack.enter_context(_part(lambda: TritonServer(repository, folder, **options)))

        yield start


def _part(make: Callable[[], Part]) -> Part:
    try:
        return make()
    except PartError as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture
def unused_address() -> Iterator[tuple[str, int]]:
    """An address where nobody listens, and nobody can while the test runs: the port is bound, but not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()
