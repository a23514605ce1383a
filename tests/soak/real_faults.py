"""What is done to the real parts in the middle of a run: each kind says whether its fault really struck."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from tests.servers.gate import Gate, Rule
from tests.soak.real_world import FAR, HERE, MIB, PARENT, SMALL, World, answering

if TYPE_CHECKING:
    from tests.soak.real_run import Run

LARGEST_WAIT = 30.0
GRACE = 2.0


@dataclass
class Strike:
    """One schedule's fault, as its kind sees it: the run, the world, and the schedule's own luck."""

    world: World
    run: Run
    random: Random

    @property
    def gate(self) -> Gate:
        return self.world.far_gate if self.run.peer.name == FAR else self.world.gate

    def hold(self) -> Rule:
        """A hold in the middle of the first object's bytes, as the store's answer passes."""
        first = self.run.largest
        # dfdaemon asks for the pieces one by one, so an answer may hold no more than one of them.
        return self.gate.hold(f"/{self.run.prefix}/net/{first}", after=self.random.randrange(1, 3 * MIB))

    async def middle(self, rule: Rule) -> bool:
        """Starts the run; whether it came to the hold and is still going on."""
        running = self.run.start()
        reached = asyncio.ensure_future(rule.reached.wait())
        try:
            await asyncio.wait({running, reached}, timeout=LARGEST_WAIT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reached.cancel()
        return not running.done() and rule.reached.is_set()


async def peer_killed(strike: Strike) -> bool:
    """The node's dfdaemon dies by SIGKILL in the middle."""
    hold = strike.hold()
    struck = await strike.middle(hold)
    strike.run.peer.kill()
    hold.release()
    return struck


async def peer_terminated(strike: Strike) -> bool:
    """It is asked to end (SIGTERM) in the middle."""
    hold = strike.hold()
    struck = await strike.middle(hold)
    strike.run.peer.process.terminate()
    hold.release()
    # It says goodbye first; whoever does not finish that in time is killed, as by a container's grace period.
    await asyncio.to_thread(strike.run.peer.process.stop, seconds=GRACE)
    return struck


async def peer_restarted(strike: Strike) -> bool:
    """It dies in the middle and comes back while the run goes on."""
    hold = strike.hold()
    struck = await strike.middle(hold)
    strike.run.peer.kill()
    strike.run.peer.start()
    hold.release()
    await answering(strike.run.peer)
    return struck


async def peer_frozen(strike: Strike) -> bool:
    """It stops (SIGSTOP) in the middle and goes on when the run has ended."""
    hold = strike.hold()
    struck = await strike.middle(hold)
    strike.run.peer.process.pause()
    hold.release()
    try:
        await strike.run.ended()
    finally:
        strike.run.peer.process.resume()
    return struck


async def parent_killed(strike: Strike) -> bool:
    """The peer that gives us the bytes dies while it gives them."""
    parent = strike.world.peer(PARENT)
    await strike.run.warm(parent)
    running = strike.run.start()
    begun = await strike.run.until_cached(strike.run.peer, share=strike.random.uniform(0.0, 0.6))
    struck = begun and not running.done()
    parent.kill()
    return struck


async def parent_corrupt(strike: Strike) -> bool:
    """The other peer's cached task is damaged; dfdaemon's own checksums of pieces should keep it there."""
    await strike.run.warm(strike.world.peer(PARENT))
    struck = strike.run.damage(strike.world.peer(PARENT), strike.random)
    strike.run.start()
    await strike.run.ended()
    return struck


async def cache_corrupt(strike: Strike) -> bool:
    """This node's cached task is damaged: its size is right, its bytes are not."""
    await strike.run.warm(strike.run.peer)
    struck = strike.run.damage(strike.run.peer, strike.random)
    strike.run.start()
    await strike.run.ended()
    return struck


async def peer_disk_full(strike: Strike) -> bool:
    """The disk of the node's dfdaemon is full, from the start or in the middle."""
    if strike.random.random() < 0.5:
        struck = True
        strike.world.fill_small_disk(strike.random.randrange(0, 2 * MIB))
        strike.run.start()
    else:
        hold = strike.hold()
        struck = await strike.middle(hold)
        strike.world.fill_small_disk(0)
        hold.release()
    await strike.run.ended()
    # Once its database met a full disk, dfdaemon takes no new task until it is started again.
    strike.run.peer.kill()
    return struck


async def link_down(strike: Strike) -> bool:
    """The node's only link is down from the middle to the end of the run."""
    if strike.random.random() < 0.5:
        await strike.run.warm(strike.world.peer(PARENT))
        strike.run.start()
        await strike.run.until_cached(strike.run.peer, share=strike.random.uniform(0.0, 0.5))
        struck = not strike.run.done
        strike.world.link.down()
    else:
        hold = strike.hold()
        struck = await strike.middle(hold)
        strike.world.link.down()
        hold.release()
    await strike.run.ended()
    return struck


async def origin_dead(strike: Strike) -> bool:
    """The store goes away in the middle and stays away until the run has ended."""
    hold = strike.hold()
    struck = await strike.middle(hold)
    await strike.gate.die()
    hold.release()
    await strike.run.ended()
    return struck


async def scheduler_dead(strike: Strike) -> bool:
    """The scheduler dies before or in the middle of the run."""
    if strike.random.random() < 0.5:
        strike.world.cluster.scheduler.kill()
        strike.run.start()
        await strike.run.ended()
        return True
    hold = strike.hold()
    struck = await strike.middle(hold)
    strike.world.cluster.scheduler.kill()
    hold.release()
    return struck


async def overwritten(strike: Strike) -> bool:
    """Every object is overwritten in the middle."""
    hold = strike.hold()
    struck = await strike.middle(hold)
    await asyncio.to_thread(strike.run.overwrite, strike.random)
    hold.release()
    return struck


async def agent_killed(strike: Strike) -> bool:
    """The agent itself dies by SIGKILL in the middle."""
    hold = strike.hold()
    struck = await strike.middle(hold)
    strike.run.kill(signal.SIGKILL)
    hold.release()
    return struck


@dataclass(frozen=True)
class Kind:
    """A fault, where it strikes, and what must come of it.

    `as_process`: the agent is a process of its own. `helps_itself`: the store can be reached all the time, so `auto`
    has to succeed.
    """

    strike: Callable[[Strike], Awaitable[bool]]
    peer: str = HERE
    as_process: bool = False
    helps_itself: bool = True


KINDS: dict[str, Kind] = {
    "peer killed": Kind(peer_killed),
    "peer terminated": Kind(peer_terminated),
    "peer restarted": Kind(peer_restarted),
    "peer frozen": Kind(peer_frozen),
    "peer's disk full": Kind(peer_disk_full, peer=SMALL),
    "parent killed": Kind(parent_killed),
    "parent corrupt": Kind(parent_corrupt),
    "cached task corrupt": Kind(cache_corrupt),
    "link down": Kind(link_down, peer=FAR, as_process=True, helps_itself=False),
    "origin dead": Kind(origin_dead, helps_itself=False),
    "scheduler dead": Kind(scheduler_dead),
    "overwritten": Kind(overwritten),
    "agent killed": Kind(agent_killed, as_process=True, helps_itself=False),
}
