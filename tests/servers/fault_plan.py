"""What a fault-injecting server is to do wrong, when, and what it really did."""

from __future__ import annotations

from dataclasses import dataclass, field

FOREVER = 1 << 30


@dataclass
class Fault:
    """One misbehaviour: of the `nth` request (from 1) that is an `op` for `key` ("" is any), and the `times` after it.

    `op` is the server's word for a kind of request ("list", "head", "get", "proxy", "download", …). `amount` is what
    the kind makes of it: a byte's place, a status, milliseconds, bytes to send before the end. `target` and `payload`
    are of "overwrite": the key that gets new bytes. `fired` counts how often it really happened.
    """

    kind: str
    op: str
    key: str = ""
    nth: int = 1
    times: int = 1
    amount: int = 0
    target: str = ""
    payload: bytes = b""
    seen: int = 0
    fired: int = 0

    def matches(self, op: str, key: str) -> bool:
        return self.op == op and self.key in ("", key)

    @property
    def is_due(self) -> bool:
        return self.seen >= self.nth and self.fired < self.times


@dataclass
class FaultPlan:
    """The faults of one server. `log` has one (kind, op, key) for each time that one fired."""

    faults: list[Fault] = field(default_factory=list)
    log: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, *faults: Fault) -> None:
        self.faults.extend(faults)

    def take(self, op: str, key: str) -> Fault | None:
        """The fault for this request, None where it is to be answered well. Call it once for each request."""
        due = None
        for fault in self.faults:
            if fault.matches(op, key):
                fault.seen += 1
                if due is None and fault.is_due:
                    due = fault
        return due

    def fire(self, fault: Fault, op: str, key: str) -> None:
        """Notes that the fault happened; the server calls it when it did, not when it was going to."""
        fault.fired += 1
        self.log.append((fault.kind, op, key))

    def clear(self) -> None:
        """Ends all faults and forgets what happened."""
        self.faults.clear()
        self.log.clear()
