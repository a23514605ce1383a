"""Cold, remote, local, joined, unknown: each is what Dragonfly said."""

from __future__ import annotations

import pytest

from dfagent.transports.traffic import Known, PieceCount, TaskState, source_of
from dfagent.types import Source, Traffic

HERE = TaskState(here=True, elsewhere=Known.NOT_TOLD)


def elsewhere(known: Known) -> TaskState:
    return TaskState(here=False, elsewhere=known)


def pieces(origin: int = 0, remote: int = 0, local: int = 0) -> PieceCount:
    count = PieceCount()
    for number, traffic in enumerate([Traffic(origin=origin), Traffic(remote_peer=remote), Traffic(local_peer=local)]):
        count.add(number, traffic)
    return count


@pytest.mark.parametrize(
    ("before", "moved", "expected"),
    [
        (HERE, pieces(local=8), Source.LOCAL),
        (HERE, pieces(), Source.LOCAL),  # an empty object has no pieces
        (elsewhere(Known.NOBODY), pieces(origin=8), Source.COLD),
        (elsewhere(Known.NOBODY), pieces(remote=8), Source.COLD),  # the seed fetched it for us
        (elsewhere(Known.PEERS), pieces(remote=8), Source.REMOTE),
        (elsewhere(Known.PEERS), pieces(origin=8), Source.COLD),  # the scheduler's word was stale
        (elsewhere(Known.PEERS), pieces(origin=1, remote=7), Source.COLD),
        (elsewhere(Known.FETCHING), pieces(remote=8), Source.JOINED),
        (elsewhere(Known.FETCHING), pieces(local=8), Source.JOINED),  # another download on this node finished it
        (elsewhere(Known.FETCHING), pieces(origin=8), Source.COLD),
        (elsewhere(Known.NOT_TOLD), pieces(remote=8), Source.UNKNOWN),
        (elsewhere(Known.NOT_TOLD), pieces(local=8), Source.LOCAL),
        (elsewhere(Known.NOBODY), pieces(), Source.UNKNOWN),
    ],
)
def should_name_the_source(before: TaskState, moved: PieceCount, expected: Source) -> None:
    assert source_of(before, moved) is expected


def should_count_a_piece_that_is_told_twice_once() -> None:
    count = PieceCount()
    assert count.add(0, Traffic(origin=5))
    assert not count.add(0, Traffic(remote_peer=5))
    assert count.total == 5
    assert count.traffic == Traffic(remote_peer=5)
