"""Every kind of fault, where it strikes, and which transports meet it."""

from __future__ import annotations

import random
from dataclasses import dataclass

TRANSPORTS = ("direct", "proxy", "dfdaemon", "auto")
Amounts = tuple[int, ...] | range
_PLACES = range(1 << 22)
_AWAY = (20, 60, 120, 200)
_LATE = (10, 40, 100)
_STATUSES = (403, 404, 412, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Kind:
    """One kind of fault at one place.

    `corrupts`: bytes of the right size can be wrong because of it. `hides`: the store's checksum can be missing because
    of it; the two never meet in one schedule, because nobody could tell wrong bytes then. `wants` is what the schedule
    must have for it to strike: "ranges" (an object in several ranges), "whole" (one that is not), "pages" (a listing of
    two pages), "corrupt" (a corrupt task in the peer's cache), "resume" (an answer that breaks off before).
    """

    name: str
    op: str
    transports: tuple[str, ...]
    amounts: Amounts = _PLACES
    corrupts: bool = False
    hides: bool = False
    wants: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}@{self.op}"

    def amount(self, rng: random.Random) -> int:
        return rng.choice(self.amounts)


def _words(text: str) -> list[str]:
    return text.split()


def _store(op: str, names: str, **more: Amounts) -> list[Kind]:
    return [Kind(name, op, TRANSPORTS, more.get(name.replace("-", "_"), _PLACES)) for name in _words(names)]


def _lists() -> list[Kind]:
    names = (
        "reset refused silence garbage slow-start trickle stall early-close early-close-without-length length-too-small"
        " length-too-big html-page gzip-unasked status-403 status-404 status-429 status-500 status-502 status-503"
        " redirect-loop redirect-elsewhere list-cut-xml list-empty list-empty-body list-without-end"
    )
    kinds = _store("list", names, refused=_AWAY, slow_start=_LATE, status_429=range(2), status_503=range(2))
    return [*kinds, Kind("status-500-at-page-2", "list", TRANSPORTS, wants="pages")]


def _heads() -> list[Kind]:
    kinds = _store(
        "head",
        "reset refused silence garbage slow-start status-429 status-500 status-503 status-412 status-404"
        " redirect-elsewhere redirect-loop",
        refused=_AWAY,
        slow_start=_LATE,
        status_429=range(2),
        status_503=range(2),
    )
    return [
        *kinds,
        Kind("status-403", "head", TRANSPORTS, hides=True),
        Kind("without-checksum", "head", TRANSPORTS, hides=True),
    ]


def _gets() -> list[Kind]:
    made = [
        Kind(name, "get", TRANSPORTS, corrupts=name in _CORRUPTING)
        for name in _words(
            "reset silence stall trickle early-close broken-off early-close-without-length endless garbage flipped-bit"
            " length-too-small length-too-big range-offset range-total html-page html-page-of-same-size"
            " gzip-unasked other-version redirect-elsewhere redirect-loop status-403 status-404 status-412 status-416"
            " status-500 status-502 overwrite"
        )
    ]
    return [
        *made,
        Kind("refused", "get", TRANSPORTS, _AWAY),
        Kind("slow-start", "get", TRANSPORTS, _LATE),
        Kind("status-429", "get", TRANSPORTS, range(2)),
        Kind("status-503", "get", TRANSPORTS, range(2)),
        # Peers always ask for ranges.
        Kind("whole-as-part", "get", ("direct",), wants="whole"),
        Kind("range-ignored", "get", TRANSPORTS, corrupts=True, wants="ranges"),
        Kind("other-bytes", "get", TRANSPORTS, corrupts=True, wants="ranges"),
        Kind("status-403-midway", "get", TRANSPORTS, wants="ranges"),
        Kind("other-version-midway", "get", TRANSPORTS, corrupts=True, wants="ranges"),
    ]


_CORRUPTING = {
    "flipped-bit", "length-too-small", "range-offset", "range-total", "whole-as-part", "html-page",
    "html-page-of-same-size", "gzip-unasked", "other-version", "endless",
}  # fmt: skip


def _proxies() -> list[Kind]:
    way = ("proxy", "auto")
    made = [
        Kind(name, "proxy", way, corrupts=name in (*_CORRUPTING, "forged-checksum", "corrupt-cache"))
        for name in _words(
            "reset silence stall trickle early-close broken-off early-close-without-length endless garbage flipped-bit"
            " length-too-small length-too-big whole-as-part html-page html-page-of-same-size gzip-unasked"
            " other-task forged-checksum corrupt-cache"
        )
    ]
    return [
        *made,
        Kind("refused", "proxy", way, _AWAY),
        Kind("peer-dies", "proxy", way, _AWAY),
        Kind("slow-start", "proxy", way, _LATE),
        Kind("status-429", "proxy", way, range(2)),
        *(Kind(f"error-{kind}", "proxy", way, _STATUSES) for kind in ("backend", "proxy", "dfdaemon")),
        Kind("range-ignored", "proxy", way, wants="resume"),
        Kind("range-as-200", "proxy", way, wants="resume"),
        Kind("range-offset", "proxy", way, wants="resume", corrupts=True),
    ]


def _downloads() -> list[Kind]:
    way = ("dfdaemon", "auto")
    wrong = ("flipped-bit", "ends-early", "link-with-holes", "corrupt-cache")
    made = [
        Kind(name, "download", way, corrupts=name in wrong)
        for name in _words(
            "resource-exhausted unavailable internal no-space no-space-for-task link-exdev link-exists link-missing"
            " stall silence unavailable-midway ends-early piece-twice no-file wrong-size flipped-bit wrong-size-told"
            " other-task link-with-holes corrupt-cache late-file"
        )
    ]
    return [
        *made,
        Kind("peer-dies", "download", way, _AWAY),
        Kind("error-backend", "download", way, _STATUSES),
        *(Kind(name, "stat", way) for name in ("silence", "unavailable", "internal", "lies-here")),
        *(Kind(name, "delete", way, corrupts=True, wants="corrupt") for name in ("silence", "unavailable", "internal")),
    ]


KINDS = {kind.label: kind for kind in (*_lists(), *_heads(), *_gets(), *_proxies(), *_downloads())}
PAIRS = tuple((label, transport) for label, kind in KINDS.items() for transport in kind.transports)
"""Every kind with every transport that it applies to: a seed's main fault is number `seed` of them, round and round."""
