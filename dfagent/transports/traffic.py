"""Cold, remote, local or joined: told from what Dragonfly said, never from how long it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from dfagent.types import Source, Traffic


class Known(Enum):
    """What the scheduler knew of a task before we asked for it."""

    NOBODY = "no peer has it"
    FETCHING = "a peer is fetching it now"
    PEERS = "peers have it"
    NOT_TOLD = "the scheduler could not be asked"


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task before the download: whole on this node (`here`), and what the scheduler knew of it."""

    here: bool
    elsewhere: Known


@dataclass(slots=True)
class PieceCount:
    """The traffic of every finished piece, by its number: a piece that is told twice counts once."""

    _pieces: dict[int, Traffic] = field(default_factory=dict)

    def add(self, number: int, traffic: Traffic) -> bool:
        """Counts the piece; False if it was counted before."""
        new = number not in self._pieces
        self._pieces[number] = traffic
        return new

    @property
    def traffic(self) -> Traffic:
        return sum(self._pieces.values(), Traffic())

    @property
    def total(self) -> int:
        traffic = self.traffic
        return traffic.origin + traffic.remote_peer + traffic.local_peer


def source_of(before: TaskState, pieces: PieceCount) -> Source:
    """Where a finished download came from.

    A cold download through a seed peer shows REMOTE_PEER pieces too, because the seed fetched them from the origin for
    us: only what the scheduler knew before tells it from a remote hit. Pieces from the source are cold, whatever the
    scheduler believed.
    """
    traffic = pieces.traffic
    if traffic.origin:
        return Source.COLD
    if before.here:
        return Source.LOCAL
    if before.elsewhere is Known.FETCHING:
        return Source.JOINED
    if traffic.remote_peer == 0:
        return Source.LOCAL if traffic.local_peer else Source.UNKNOWN
    return {Known.PEERS: Source.REMOTE, Known.NOBODY: Source.COLD}.get(before.elsewhere, Source.UNKNOWN)
