"""Which way an object takes, when it goes on by the next one, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfagent.errors import (
    AccessDenied,
    Changed,
    ConnectFailed,
    DfagentError,
    DigestMismatch,
    NoHardLink,
    NoSpace,
    NotFound,
    OriginStatus,
    Overloaded,
    PeerUnavailable,
    Stalled,
    StoreBusy,
    StoreUnavailable,
    Truncated,
)
from dfagent.transports.fallback import NEVER_SHARED, REST, REST_WITHOUT_LINKS, Explaining, Fallback
from dfagent.types import Detour, Fetched, FetchRequest, Source, Traffic
from tests.servers.requests import request_for

LARGE = request_for(NEVER_SHARED + 1)
SMALL = request_for(NEVER_SHARED)


class Named:
    """A transport of that name that raises what it is given, one error an attempt, then succeeds."""

    def __init__(self, name: str, *errors: DfagentError) -> None:
        self.name = name
        self._errors = list(errors)
        self.asked = 0
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        self.asked += 1
        if self._errors:
            if folder:
                (folder / f"{request.task.id[:32]}.{self.name}.partial").write_bytes(b"half")
            raise self._errors.pop(0)
        return Fetched(None, self.name, Source.UNKNOWN, Traffic(), 0.0, 0.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def _here(_task: str) -> bool:
    return True


async def _not_here(_task: str) -> bool:
    return False


async def should_take_the_first_way_that_works(tmp_path: Path) -> None:
    link, proxy, direct = Named("dfdaemon"), Named("proxy"), Named("direct")
    fetched = await Fallback([link, proxy], direct, _not_here).fetch(LARGE, tmp_path)
    assert (fetched.transport, fetched.detours) == ("dfdaemon", ())
    assert (proxy.asked, direct.asked) == (0, 0)


@pytest.mark.parametrize(
    "error",
    [
        PeerUnavailable("the peer died"),
        NoHardLink("another mount"),
        ConnectFailed("nobody there"),
        Stalled("no byte"),
        Truncated("too short"),
        Overloaded("busy"),
        OriginStatus("500", status=500),
        StoreUnavailable("the peer can't reach it"),
        DigestMismatch("other bytes"),
        AccessDenied("403"),
        NotFound("404"),
    ],
    ids=lambda error: type(error).__name__,
)
async def should_go_on_by_the_next_way_with_a_fresh_file_and_say_so(tmp_path: Path, error: DfagentError) -> None:
    fetched = await Fallback([Named("dfdaemon", error), Named("proxy")], Named("direct")).fetch(LARGE, tmp_path)
    assert fetched.transport == "proxy"
    assert fetched.detours == (Detour("dfdaemon", "proxy", error.message),)
    assert not list(tmp_path.iterdir())


async def should_reach_the_store_itself_when_every_peer_fails(tmp_path: Path) -> None:
    peers = [Named("dfdaemon", ConnectFailed("no socket")), Named("proxy", Stalled("no byte"))]
    fetched = await Fallback(peers, Named("direct")).fetch(LARGE, tmp_path)
    assert fetched.transport == "direct"
    assert [(detour.tried, detour.then) for detour in fetched.detours] == [("dfdaemon", "proxy"), ("proxy", "direct")]


@pytest.mark.parametrize("error", [Changed("412"), NoSpace("full")], ids=["Changed", "NoSpace"])
async def should_not_hide_what_no_other_way_can_help(tmp_path: Path, error: DfagentError) -> None:
    proxy, direct = Named("proxy", error), Named("direct")
    with pytest.raises(type(error)):
        await Fallback([proxy], direct).fetch(LARGE, tmp_path)
    assert direct.asked == 0


async def should_give_the_stores_own_error_and_what_failed_before(tmp_path: Path) -> None:
    peers = [Named("proxy", PeerUnavailable("dfdaemon error at http://store/x?X-Amz-Signature=abc"))]
    direct = Named("direct", AccessDenied("403 SignatureDoesNotMatch", hint="check the secret"))
    with pytest.raises(AccessDenied) as denied:
        await Fallback(peers, direct).fetch(LARGE, tmp_path)
    assert denied.value.hint.startswith("check the secret; proxy failed before: dfdaemon error")
    assert "abc" not in denied.value.hint


@pytest.mark.parametrize(
    ("is_here", "transport"), [(_here, "dfdaemon"), (_not_here, "direct"), (None, "direct")], ids=["here", "not", "?"]
)
async def should_send_what_is_never_shared_direct_unless_the_node_has_it(
    tmp_path: Path, is_here: object, transport: str
) -> None:
    ways = Fallback([Named("dfdaemon")], Named("direct"), is_here)  # type: ignore[arg-type]
    fetched = await ways.fetch(SMALL, tmp_path)
    assert (fetched.transport, fetched.detours) == (transport, ())


async def should_warm_by_the_peers_only_whatever_the_size() -> None:
    peer, direct = Named("dfdaemon", PeerUnavailable("dead")), Named("direct")
    ways = Fallback([peer, Named("proxy")], direct, _not_here)
    assert (await ways.fetch(SMALL, None)).transport == "proxy"
    assert direct.asked == 0


async def should_not_ask_a_silent_peer_about_each_of_many_small_objects(tmp_path: Path) -> None:
    asked: list[str] = []

    async def silent(task: str) -> bool | None:
        asked.append(task)
        return None

    clock = Clock()
    ways = Fallback([Named("dfdaemon")], Named("direct"), silent, clock=clock)
    for _ in range(5):
        assert (await ways.fetch(SMALL, tmp_path)).transport == "direct"
    assert len(asked) == 1
    clock.now += REST
    await ways.fetch(SMALL, tmp_path)
    assert len(asked) == 2, "it may be back"


async def should_let_a_way_rest_that_no_object_can_take(tmp_path: Path) -> None:
    """Every object would wait for the same refused connection."""
    clock, peer = Clock(), Named("dfdaemon", ConnectFailed("no socket"))
    ways = Fallback([peer], Named("direct"), clock=clock)
    await ways.fetch(LARGE, tmp_path)
    fetched = await ways.fetch(LARGE, tmp_path)
    assert (peer.asked, fetched.transport) == (1, "direct")
    assert fetched.detours == (Detour("dfdaemon", "direct", "no socket"),)
    clock.now += REST
    assert (await ways.fetch(LARGE, tmp_path)).transport == "dfdaemon"


async def should_not_try_links_again_soon_where_the_mounts_do_not_allow_them(tmp_path: Path) -> None:
    clock, link = Clock(), Named("dfdaemon", NoHardLink("another mount"))
    ways = Fallback([link, Named("proxy")], Named("direct"), clock=clock)
    await ways.fetch(LARGE, tmp_path)
    clock.now += REST_WITHOUT_LINKS - 1
    assert (await ways.fetch(LARGE, tmp_path)).transport == "proxy"
    assert link.asked == 1


async def should_not_let_one_objects_trouble_cost_the_others_the_peer(tmp_path: Path) -> None:
    trouble = [PeerUnavailable("it failed"), PeerUnavailable("it failed"), DigestMismatch("other bytes")]
    peer = Named("dfdaemon", *trouble)
    ways = Fallback([peer], Named("direct"), clock=Clock())
    for _ in trouble:
        assert (await ways.fetch(LARGE, tmp_path)).transport == "direct"
    assert (await ways.fetch(LARGE, tmp_path)).transport == "dfdaemon"


async def should_not_blame_the_peer_for_a_busy_store(tmp_path: Path) -> None:
    peer = Named("dfdaemon", *(StoreBusy("SlowDown") for _ in range(5)))
    ways = Fallback([peer], Named("direct"), clock=Clock())
    for _ in range(6):
        fetched = await ways.fetch(LARGE, tmp_path)
    assert peer.asked == 6 and fetched.transport == "dfdaemon"


async def should_let_a_peer_rest_that_fails_every_object(tmp_path: Path) -> None:
    peer = Named("dfdaemon", *(PeerUnavailable("it failed") for _ in range(5)))
    ways = Fallback([peer], Named("direct"), clock=Clock())
    for _ in range(5):
        await ways.fetch(LARGE, tmp_path)
    assert peer.asked == 3


async def should_try_a_resting_way_where_it_is_the_last_one() -> None:
    peer = Named("proxy", ConnectFailed("nobody there"))
    ways = Fallback([peer], Named("direct"), clock=Clock())
    with pytest.raises(ConnectFailed):
        await ways.fetch(LARGE, None)
    assert (await ways.fetch(LARGE, None)).transport == "proxy"


async def should_close_every_way() -> None:
    named = [Named("dfdaemon"), Named("direct")]
    await Fallback(named[:1], named[1]).aclose()
    assert all(transport.closed for transport in named)


@pytest.mark.parametrize(("reason", "told"), [("NoSuchKey: gone", True), ("", False)])
async def should_add_the_reason_that_a_peer_leaves_out(tmp_path: Path, reason: str, told: bool) -> None:
    async def ask(_request: FetchRequest) -> str:
        return reason

    with pytest.raises(NotFound) as missing:
        await Explaining(Named("proxy", NotFound("404")), ask).fetch(LARGE, tmp_path)
    assert ("the store says NoSuchKey: gone" in missing.value.message) is told
