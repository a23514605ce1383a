"""Redaction: whatever stands around a signature, it does not survive."""

from __future__ import annotations

import atheris

from dfagent.redact import printable, redact, redact_quote
from dfagent.stores.signing import SIGNING_PARAMS

_SIGNATURE = "5f9aa3c1d4b8e7f05f9aa3c1d4b8e7f0"
_NAMES = sorted({name for names in SIGNING_PARAMS.values() for name in names if "ignature" in name or "Token" in name})
SEEDS = [
    b"\x00https://h/k?X=",
    b"\x01GET /b?list-type=2&",
    b"\x02'",
    b'\x03"https://h/a"b?',
    b"\x00https://h/\x00\x00?a",
]


def check(data: bytes) -> None:
    """As a parameter by its name, and anywhere in the query of a URL."""
    given = atheris.FuzzedDataProvider(data)
    name = _NAMES[given.ConsumeIntInRange(0, len(_NAMES) - 1)]
    before = given.ConsumeUnicode(given.ConsumeIntInRange(0, 200))
    after = given.ConsumeUnicode(200)
    for equals in ("=", "%3D", "%253d"):
        shown = redact(f"{before}{name}{equals}{_SIGNATURE}{after}")
        assert _SIGNATURE not in shown, equals
    # The same in a quote of what a store or a peer said, with nothing that tells what it is.
    said = redact_quote(f"{before} {_SIGNATURE * 2} {after}")
    assert _SIGNATURE not in said
    redact(data.decode("latin-1"))
    # Where a URL ends only white space and quotes can tell, so they are not part of its path.
    path = "".join(char for char in before if not char.isspace() and char not in '"<>?')
    query = "".join(char for char in after if not char.isspace() and char not in '"<>')
    assert _SIGNATURE not in redact(f"{before} https://host/{path}?{query}={_SIGNATURE}{after}")
    assert all(line.isprintable() for line in printable(before).replace("\t", "").split("\n"))
