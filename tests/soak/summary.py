"""What all schedules together showed, as a table for people and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.soak.kinds import KINDS, PAIRS, TRANSPORTS
from tests.soak.run import Outcome
from tests.soak.worker import Done

_WORST = ("corrupt", "stale", "bug", "leaked", "secret", "cache", "outside", "requests", "store", "recovery", "soak")


@dataclass
class Summary:
    """Counts. A schedule counts only where its main fault fired; every fault that fired is counted."""

    run: int = 0
    counted: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    fired: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    most_requests: int = 0
    busy_seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    seconds: float = 0.0

    def add(self, done: Done) -> None:
        self.problems += done.problems
        for outcome in done.outcomes:
            self.run += 1
            self.counted += outcome.counts
            if outcome.counts:
                self.ended[f"{outcome.transport} {outcome.ended}"] += 1
            for label, times in outcome.fired.items():
                self.fired[label, outcome.transport] += times
            self.violations.update({violation.kind for violation in outcome.violations})
            if outcome.violations:
                self.failures.append(outcome)
            self.most_requests = max(self.most_requests, outcome.most_requests)
            self.busy_seconds += outcome.seconds
            self.slowest = max(self.slowest, (outcome.seconds, outcome.seed))

    @property
    def is_clean(self) -> bool:
        return not self.failures and not self.problems

    def count(self, pair: tuple[str, str]) -> int:
        """How often the pair's fault fired with its transport."""
        return self.fired[pair]

    def short(self, least: int) -> list[int]:
        """The numbers of the pairs that fired fewer times than `least`."""
        return [number for number, pair in enumerate(PAIRS) if self.count(pair) < least]

    def to_json(self) -> dict[str, Any]:
        return {
            "schedules": self.counted,
            "run": self.run,
            "seconds": round(self.seconds, 1),
            "faults": sum(self.fired.values()),
            "fewest_of_a_kind": min((self.count(pair) for pair in PAIRS), default=0),
            "ended": self._ended(),
            "violations": {kind: self.violations[kind] for kind in _WORST},
            "problems": self.problems,
            "most_requests_of_an_object": self.most_requests,
            "failing_seeds": sorted(outcome.seed for outcome in self.failures),
            "fired": {label: {way: self.fired[label, way] for way in TRANSPORTS} for label in KINDS},
        }

    def _ended(self) -> dict[str, dict[str, int]]:
        ended: dict[str, dict[str, int]] = {transport: {} for transport in TRANSPORTS}
        for name, count in sorted(self.ended.items()):
            transport, how = name.split(" ")
            ended[transport][how] = count
        return ended

    def __str__(self) -> str:
        lines = [f"{'fault':<40}" + "".join(f"{transport:>10}" for transport in TRANSPORTS)]
        for label, kind in KINDS.items():
            applies = [way in kind.transports for way in TRANSPORTS]
            counts = [self.fired[label, way] if met else "-" for way, met in zip(TRANSPORTS, applies, strict=True)]
            lines.append(f"{label:<40}" + "".join(f"{count:>10}" for count in counts))
        lines.append("")
        for transport, ended in self._ended().items():
            well = ended.pop("well", 0)
            lines.append(f"{transport}: {well} ended well, {sum(ended.values())} with an error ({_listed(ended)})")
        told = ", ".join(f"{self.violations[kind]} {kind}" for kind in _WORST)
        fewest = min((self.count(pair) for pair in PAIRS), default=0)
        pace = f"{self.seconds:.0f} s, {1000 * self.seconds / max(1, self.run):.0f} ms a schedule"
        kinds = f"every kind at least {fewest} times with every transport"
        slowest = f"the slowest was seed {self.slowest[1]} with {self.slowest[0]:.1f} s"
        lines += [
            "",
            f"{self.run} schedules run, {self.counted} count; {sum(self.fired.values())} faults fired, {kinds}",
            f"violations: {told}",
            f"at most {self.most_requests} requests for one object in a pass; {pace}; {slowest}",
        ]
        return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
