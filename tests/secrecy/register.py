"""Every secret and signature that a session used, and the search for them in a text.

Only what really signs is registered: secrets of stores that were opened, signatures that an SDK made, what a test names
itself. So tests of redaction may hold strings that merely look like signatures, and nothing has to be left out.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

# Shorter ones ("SK") stand in any text, so they would be found everywhere.
SHORTEST = 8
_SHORTEST_SIGNATURE = 16
_HEX_RUN = re.compile(r"[0-9a-fA-F]{16,}")
_SIGNING_VALUES = ("x-amz-signature", "x-goog-signature", "x-oss-signature", "signature", "sig", "x-amz-security-token")
_IN_HEADER = re.compile(r"Signature=([0-9A-Za-z+/=]{16,})")
# For texts of whole programs, where nothing is canned: whatever looks like a signature is one.
_LOOKS_SIGNED = re.compile(
    r"(?:X-(?:Amz|Goog|Oss)-Signature|\bSignature|\bsig)(?:=|%3D)([0-9A-Za-z+/%_-]{16,})", re.IGNORECASE
)


@dataclass(frozen=True)
class Hit:
    """A secret in a text: what it is, and the text around it without it."""

    what: str
    around: str


class Register:
    """Secrets (found in every spelling that a text may have) and signatures (found by their first characters)."""

    def __init__(self) -> None:
        self._secrets: dict[str, str] = {}
        self._signatures: dict[str, str] = {}
        self.count = 0

    def secret(self, what: str, value: str) -> bool:
        """True if it is new and long enough to be told from ordinary text."""
        if len(value) < SHORTEST or value in self._secrets:
            return False
        self.count += 1
        for spelling in _spellings(value):
            self._secrets.setdefault(spelling, what)
        return True

    def signature(self, value: str) -> bool:
        """True if it is new."""
        if len(value) < _SHORTEST_SIGNATURE:
            return False
        if not _HEX_RUN.fullmatch(value):
            return self.secret("a signature", value)
        key = value[:_SHORTEST_SIGNATURE].lower()
        new = key not in self._signatures
        self.count += new
        self._signatures[key] = "a signature"
        return new

    def find(self, text: str, *, guess: bool = False) -> Iterator[Hit]:
        """Every registered value in the text; with `guess` also what only looks like a signature."""
        for value, what in self._secrets.items():
            start = text.find(value)
            if start >= 0:
                yield _hit(what, text, start, start + len(value))
        for run in _HEX_RUN.finditer(text):
            hexes = run[0].lower()
            for at in range(len(hexes) - _SHORTEST_SIGNATURE + 1):
                if hexes[at : at + _SHORTEST_SIGNATURE] in self._signatures:
                    yield _hit("a signature", text, *run.span())
                    break
        for looks in _LOOKS_SIGNED.finditer(text) if guess else ():
            yield _hit("what looks like a signature", text, *looks.span(1))


def signatures_in(url: str, headers: str = "") -> Iterator[str]:
    """The values that sign a URL (in its query) or a request (in its headers)."""
    for name, value in parse_qsl(urlsplit(url).query):
        if name.lower() in _SIGNING_VALUES:
            yield value
    yield from _IN_HEADER.findall(headers)


def _spellings(value: str) -> set[str]:
    plain = {value, quote(value, safe=""), quote(value), quote_plus(value), json.dumps(value)[1:-1]}
    # As a password in Basic authorization it can stand behind any name, so at any of three offsets.
    coded = {base64.b64encode(b"x" * lead + value.encode())[4 * (lead > 0) : -4].decode() for lead in range(3)}
    return plain | {text for text in coded if len(text) >= 2 * SHORTEST}


def _hit(what: str, text: str, start: int, end: int) -> Hit:
    around = text[max(0, start - 120) : end + 60].replace(text[start:end], f"‹{what}›")
    return Hit(what, around.replace("\n", "⏎"))
