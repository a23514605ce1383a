"""What became of a load: figures for people and for machines, and the bounds that they have to keep."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.load.plan import Load

MOST_CALLS = 10.0
"""gRPC calls to dfdaemon an object: about three for a large one and one for a small one, and as many again for each
time that it is told to come later."""
MOST_REQUESTS = 6.0
"""Requests to the store an object: one for a small one; a question and dfdaemon's own requests for a large one."""
MOST_REFUSED = 6.0
"""Requests an object that the store refused. dfdaemon asks again by itself, about three times for each time that it is
asked; agents that kept all their objects knocking had nine."""
MOST_SPREAD = 3.0
"""The last model's time over the median's: above it, one starved."""


@dataclass
class Report:
    """Figures of one load; seconds from the common start, by agent."""

    load: Load
    seconds: dict[int, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    transports: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    detours: Counter[str] = field(default_factory=Counter)
    objects: int = 0
    passed: int = 0
    refused: int = 0
    askers: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    alive: int = 0
    memory_mib: float = 0.0

    def broken(self) -> list[str]:
        """The bounds that did not hold."""
        done = sorted(self.seconds.values())
        held = {
            f"agents failed: {list(self.failed.items())[:3]}": not self.failed,
            f"wrong files: {self.wrong[:5]}": not self.wrong,
            f"{self.objects} objects recorded of {self.load.total}": self.objects == self.load.total,
            f"{self._each(self.calls):.2f} calls to dfdaemon an object": self._each(self.calls) <= MOST_CALLS,
            f"{self._each(self.passed):.2f} requests an object": self._each(self.passed) <= MOST_REQUESTS,
            f"{self._each(self.refused):.2f} refused requests an object": self._each(self.refused) <= MOST_REFUSED,
            "a model starved": not done or done[-1] <= MOST_SPREAD * statistics.median(done),
        }
        return [what for what, holds in held.items() if not holds]

    def _each(self, count: int) -> float:
        return count / max(1, self.load.total)

    def text(self) -> str:
        done = sorted(self.seconds.values())
        spread = f"{done[0]:.1f} / {statistics.median(done):.1f} / {done[-1]:.1f} s" if done else "none finished"
        rows = {
            "agents (alive at once)": f"{self.load.agents} ({self.alive})",
            "finished, failed, wrong": f"{len(self.seconds)}, {len(self.failed)}, {len(self.wrong)}",
            "first / median / last": spread,
            "objects": f"{self.objects}: {dict(self.transports.most_common())}",
            "attempts an object": f"{self._each(self.attempts):.2f}",
            "detours": dict(self.detours.most_common(8)),
            "calls to dfdaemon": f"{self.calls} ({self._each(self.calls):.2f} an object)",
            "requests to the store": f"{self.passed} ({self._each(self.passed):.2f} an object)",
            "  with the refused ones by": dict(self.askers.most_common()),
            "refused by the store": f"{self.refused} ({self._each(self.refused):.2f} an object)",
            "agents' memory, all": f"{self.memory_mib:.0f} MiB",
        }
        return "\n".join(f"{name:26} {value}" for name, value in rows.items())

    def document(self) -> dict[str, Any]:
        counted = {"transports": dict(self.transports), "askers": dict(self.askers), "detours": dict(self.detours)}
        figures = {name: value for name, value in vars(self).items() if name not in counted}
        return {**figures, **counted, "load": asdict(self.load), "total": self.load.total, "broken": self.broken()}
