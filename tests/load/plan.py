"""How much load, and which bytes."""

from __future__ import annotations

from dataclasses import dataclass

LARGE = (4 << 20) + (1 << 10)
"""Just above what Dragonfly never shares."""
SMALL = 16 << 10


@dataclass(frozen=True)
class Load:
    """Agents with models of their own: each object is one agent's, as on a node that serves many different models.

    `rate`: requests a second that the store takes, `burst` at once after a quiet time; above it, it answers 503.
    `longest`: seconds for an agent.
    """

    agents: int = 64
    objects: int = 5000
    rate: float = 100.0
    burst: float = 50.0
    longest: float = 1800.0
    transport: str = "auto"

    def of_agent(self, agent: int) -> int:
        """Objects of its model, its configuration aside; every other one is large."""
        return self.objects // self.agents + (agent < self.objects % self.agents)

    @property
    def total(self) -> int:
        """With the configurations."""
        return self.objects + self.agents


def data_of(agent: int, number: int) -> bytes:
    """An object's bytes: cheap to make, and no two objects alike."""
    size = LARGE if number % 2 else SMALL
    line = f"agent {agent} object {number} ".encode()
    return (line * (size // len(line) + 1))[:size]
