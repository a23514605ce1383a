"""Builds the transports of a run: what verifies, tries again and falls back around those that move bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dfagent.settings.dragonfly import DragonflySettings
from dfagent.transports.base import Transport
from dfagent.transports.fallback import NEVER_SHARED, Explaining, Fallback
from dfagent.transports.options import RequestOptions, Timeouts
from dfagent.transports.pressure import Pressure
from dfagent.transports.retrying import Retrying, RetryPolicy
from dfagent.transports.verifying import Trust, Verifying

if TYPE_CHECKING:
    from dfagent.transports.dfdaemon import DfdaemonTransport
    from dfagent.transports.direct import DirectTransport
    from dfagent.transports.proxy import ProxyTransport

BLOCK_SIZE = 4 << 20
RANGE_SIZE = 32 << 20


@dataclass(frozen=True, slots=True)
class Tuning:
    """How often and in which portions: bytes, and the retries of the last way and of those that another can follow."""

    block_size: int = BLOCK_SIZE
    range_size: int = RANGE_SIZE
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    peer_retries: RetryPolicy = field(
        default_factory=lambda: RetryPolicy(attempts=2, overloaded_attempts=10, after_stall=False)
    )


@dataclass(slots=True)
class Ways:
    """Makes a run's transports, and gives all of them back; `ledger` is None where no folder is written into."""

    dragonfly: DragonflySettings
    timeouts: Timeouts
    ledger: Trust | None
    tuning: Tuning = field(default_factory=Tuning)
    pressure: Pressure | None = None
    _opened: list[Transport] = field(default_factory=list)

    async def aclose(self) -> None:
        for transport in self._opened:
            await transport.aclose()

    def direct(self) -> Transport:
        """The store itself, verified and tried again; for model configurations, too."""
        return Retrying(Verifying(self._direct(), self.ledger), self.tuning.retries, self.pressure)

    def chosen(self, name: str) -> Transport:
        """The transport of that name (`auto`, `direct`, `proxy`, `dfdaemon`), whose address is set."""
        if name == "direct":
            return self.direct()
        if name == "auto":
            return self._auto()
        peer = self._proxy(self.tuning.retries) if name == "proxy" else self._dfdaemon(self.tuning.retries)
        return Explaining(peer, self._direct().reason)

    def copies(self, name: str, size: int) -> bool:
        """Whether an object of that size will surely be a file of our own: not where dfdaemon may link it."""
        may_link = name == "dfdaemon" or (name == "auto" and bool(self.dragonfly.socket) and size > NEVER_SHARED)
        return not may_link

    def _auto(self) -> Transport:
        """Hard link, else proxy streaming, else a copy that dfdaemon makes, at last the store itself."""
        retries, peers = self.tuning.peer_retries, list[Transport]()
        if self.dragonfly.socket:
            peers.append(self._dfdaemon(retries, only_links=bool(self.dragonfly.proxy)))
        if self.dragonfly.proxy:
            peers.append(self._proxy(retries))
        is_here = self._daemon().knows if self.dragonfly.socket else None
        return Fallback(peers, self.direct(), is_here)

    def _proxy(self, retries: RetryPolicy) -> Transport:
        discard = self._daemon().discard if self.dragonfly.socket else _nothing_to_ask
        return Retrying(Verifying(self._streaming(), self.ledger, discard), retries, self.pressure)

    def _dfdaemon(self, retries: RetryPolicy, *, only_links: bool = False) -> Transport:
        daemon = self._daemon(only_links=only_links)
        return Retrying(Verifying(daemon, self.ledger, daemon.discard), retries, self.pressure)

    def _daemon(self, *, only_links: bool = False) -> DfdaemonTransport:
        from dfagent.transports.dfdaemon import DfdaemonTransport

        daemon = DfdaemonTransport(
            str(self.dragonfly.socket),
            self._options(),
            self.timeouts,
            self.dragonfly.map_path,
            force_hard_link=only_links,
        )
        self._opened.append(daemon)
        return daemon

    def _streaming(self) -> ProxyTransport:
        from dfagent.transports.proxy import ProxyTransport

        proxy = ProxyTransport(
            str(self.dragonfly.proxy),
            self._options(),
            self.timeouts,
            legacy=self.dragonfly.legacy,
            block_size=self.tuning.block_size,
        )
        self._opened.append(proxy)
        return proxy

    def _direct(self) -> DirectTransport:
        from dfagent.transports.direct import DirectTransport

        direct = DirectTransport(
            self._options(), self.timeouts, block_size=self.tuning.block_size, range_size=self.tuning.range_size
        )
        self._opened.append(direct)
        return direct

    def _options(self) -> RequestOptions:
        dragonfly = self.dragonfly
        return RequestOptions(
            headers=dragonfly.header,
            filtered_params=dragonfly.filter,
            tag=dragonfly.tag or "",
            application=dragonfly.application or "",
            priority=dragonfly.priority or None,
            piece_length=dragonfly.piece_length,
        )


async def _nothing_to_ask(_task_id: str) -> bool:
    """Without its socket a peer can't be told to delete a task."""
    return False
