"""One seed, one schedule: which model, which transport, what is there before, what goes wrong, and when."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.servers.fault_objects import CHECKSUMS
from tests.servers.fault_plan import FOREVER, Fault
from tests.soak.kinds import KINDS, PAIRS, Kind

RANGE = 32 << 10
"""Bytes of a range of direct downloads, and of a peer's piece."""
BLOCK = 8 << 10
SMALL = 1 << 10
"""Objects up to here never go through a peer in `auto`, as those of 4 MiB in real life."""
_SIZES = (0, 1, 100, SMALL, SMALL + 1, 5000, RANGE, RANGE + 1, 3 * RANGE - 1, 100_000)
_LARGE = (300_000, 1 << 20)
PREFIX = "repo"
CONFIG = b'name: "net"\nbackend: "python"\nmodel_repository_agents { agents [ { name: "dragonfly" } ] }\n'


@dataclass(frozen=True)
class Schedule:
    """What a seed means.

    `first` is the content that was published before (empty: nothing was), `content` what the store has when the pass
    with the faults begins. `addresses` of the peer are those that the settings name. `main` is the label of the fault
    that must fire for the schedule to count.
    """

    seed: int
    transport: str
    addresses: tuple[str, ...]
    checksum: str
    page_size: int
    select_all: bool
    first: dict[str, bytes]
    warm: bool
    content: dict[str, bytes]
    faults: tuple[tuple[str, Fault], ...]
    main: str
    pair: tuple[str, str]

    def __str__(self) -> str:
        objects = ", ".join(f"{key.removeprefix(PREFIX)[1:]} {len(data)}" for key, data in self.content.items())
        peer = ", ".join(self.addresses) or "no peer"
        before = f"published before {bool(self.first)}, warm {self.warm}"
        lines = [
            f"seed {self.seed}: {self.transport} ({peer}), {self.checksum}, pages of {self.page_size}, {before}",
            f"  objects: {objects}",
        ]
        lines += [
            f"  fault {label} key {fault.key!r} nth {fault.nth} times {fault.times} amount {fault.amount}"
            for label, fault in self.faults
        ]
        return "\n".join(lines)


def schedule(seed: int) -> Schedule:
    """The schedule of a seed, always the same."""
    return _Maker(seed).make()


@dataclass
class _Maker:
    seed: int
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def make(self) -> Schedule:
        rng = self.rng
        pair = PAIRS[self.seed % len(PAIRS)]
        main, transport = KINDS[pair[0]], pair[1]
        kinds = self._kinds(main, transport)
        content = self._content(kinds)
        hides = any(kind.hides for kind in kinds)
        corrupts = any(kind.corrupts for kind in kinds)
        needs_head = any(kind.op == "head" for kind in kinds)
        known = [name for name in CHECKSUMS if name != "none" and not (needs_head and name.startswith("md5"))]
        first = self._first(content, main) if rng.random() < 0.5 else {}
        return Schedule(
            seed=self.seed,
            transport=transport,
            addresses=self._addresses(transport, main),
            checksum="none" if not (corrupts or hides or needs_head) and rng.random() < 0.1 else rng.choice(known),
            page_size=2 if any(kind.wants == "pages" for kind in kinds) or rng.random() < 0.2 else 1000,
            select_all=f"{PREFIX}/net/config.pbtxt" not in content or rng.random() < 0.3,
            first=first,
            # A peer that has the task asks no origin, whose faults would not strike.
            warm=transport != "direct" and main.op not in ("get", "head") and rng.random() < 0.25,
            content=content,
            faults=tuple((kind.label, fault) for kind in kinds for fault in self._faults(kind, transport, content)),
            main=main.label,
            pair=pair,
        )

    def _kinds(self, main: Kind, transport: str) -> list[Kind]:
        """The main kind and up to three others that this transport meets."""
        kinds = [main]
        if main.wants == "corrupt":
            return [main, KINDS["corrupt-cache@download"]]
        if main.wants == "resume":
            return [main]
        others = [kind for kind in KINDS.values() if transport in kind.transports and not kind.wants]
        for _ in range(self.rng.choice((0, 0, 1, 1, 2, 3))):
            kind = self.rng.choice(others)
            both = [*kinds, kind]
            if kind not in kinds and not (any(k.corrupts for k in both) and any(k.hides for k in both)):
                kinds.append(kind)
        return kinds

    def _content(self, kinds: list[Kind]) -> dict[str, bytes]:
        rng = self.rng
        sizes = [rng.choice(_SIZES) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]
        # One that goes through a peer in several pieces, and directly in several ranges.
        sizes.append(rng.choice(_LARGE) if rng.random() < 0.06 else rng.choice((3 * RANGE + 5, 2 * RANGE, 4 * RANGE)))
        if any(kind.wants == "whole" for kind in kinds):
            sizes.append(rng.choice((1, 100, RANGE)))
        if any(kind.wants == "pages" for kind in kinds) and len(sizes) < 3:
            sizes += [1, 100]
        rng.shuffle(sizes)
        content = {f"{PREFIX}/net/1/{number}.bin": rng.randbytes(size) for number, size in enumerate(sizes)}
        if rng.random() < 0.4:
            content[f"{PREFIX}/net/config.pbtxt"] = CONFIG
        if rng.random() < 0.2:
            content[f"{PREFIX}/aux/1/model.bin"] = rng.randbytes(rng.choice(_SIZES))
        return content

    def _first(self, content: dict[str, bytes], main: Kind) -> dict[str, bytes]:
        """An older content: some objects were others then, some were not there, some are gone now."""
        old = {
            # Large objects always change: faults strike them, so they must be fetched.
            key: data
            if len(data) < RANGE and main.wants != "whole" and self.rng.random() < 0.3
            else self.rng.randbytes(len(data))
            for key, data in content.items()
        }
        if self.rng.random() < 0.2:
            old[f"{PREFIX}/net/1/gone.bin"] = self.rng.randbytes(50)
        if f"{PREFIX}/net/config.pbtxt" in old:
            old[f"{PREFIX}/net/config.pbtxt"] = CONFIG
        return old

    def _addresses(self, transport: str, main: Kind) -> tuple[str, ...]:
        if transport == "direct":
            return ()
        if transport == "proxy":
            return ("proxy", "socket") if self.rng.random() < 0.6 else ("proxy",)
        if transport == "dfdaemon":
            return ("socket",)
        if main.op == "proxy":
            return ("proxy",)
        if main.op in ("download", "stat", "delete"):
            return self.rng.choice((("socket",), ("proxy", "socket")))
        return self.rng.choice((("proxy", "socket"), ("socket",), ("proxy",)))

    def _faults(self, kind: Kind, transport: str, content: dict[str, bytes]) -> list[Fault]:
        rng = self.rng
        name = kind.name.removesuffix("-midway") if kind.op == "get" else kind.name
        nth, times = 1, rng.choice((1, 1, 1, 1, 2, 3, FOREVER))
        key = self._key(kind, content)
        if name == "status-500-at-page-2":
            name, nth = "status-500", 2
        elif kind.wants == "ranges":
            # A peer's first question is for one byte only.
            nth = rng.choice((2, 3)) if kind.name.endswith("midway") or transport != "direct" else 1
        elif kind.op == "get" and transport != "direct" and rng.random() < 0.5:
            nth = 2
        fault = Fault(name, kind.op, key, nth, times, kind.amount(rng))
        if name == "overwrite":
            fault.times, fault.target = 1, rng.choice(sorted(key for key in content if key.endswith(".bin")))
            fault.payload = rng.randbytes(rng.choice((len(content[fault.target]), 777)))
        if kind.wants == "resume":
            return [Fault("broken-off", "proxy", key, 1, 1, BLOCK + rng.randrange(BLOCK)), replaced(fault, nth=2)]
        return [fault]

    def _key(self, kind: Kind, content: dict[str, bytes]) -> str:
        if kind.op in ("list", "stat", "delete"):
            return ""
        if kind.wants == "whole":
            return self.rng.choice(sorted(key for key, data in content.items() if 0 < len(data) <= RANGE))
        large = sorted(key for key, data in content.items() if len(data) > RANGE)
        return self.rng.choice(large) if kind.wants or self.rng.random() < 0.8 else ""


def replaced(fault: Fault, nth: int) -> Fault:
    return Fault(fault.kind, fault.op, fault.key, nth, fault.times, fault.amount)
