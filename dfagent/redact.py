"""Keeps what signs, and what drives a terminal, out of texts that others wrote: their errors, logs and names."""

from __future__ import annotations

import re

# A query may hold quotes and brackets, so it ends where no URL goes on; what closes the sentence around it is kept. It
# goes on after a line break where the next line can only be more of it: another parameter, or the rest of a signature.
_QUERY = re.compile(
    r"""(https?://[^\s?"<>]{0,4000})\?"""
    r"""([^\s"<>]*(?:\r?\n[ \t]*(?:[^\s"<>&=%]*[&=%][^\s"<>]*|[0-9a-f]{8,})(?=[\s"<>]|$))*)""",
    re.IGNORECASE,
)
_CLOSING = "])}',.:;"

_EQUALS = r"(?:=|%(?:25)*3D|\\u003d)"

# What signs, also where only a part of a URL, a percent-encoded URL or a string to sign is quoted.
_PARAMETER = re.compile(
    rf"((?:X-(?:Amz|Goog|Obs|Oss)-[\w-]{{1,40}}|x-oss-[\w-]{{1,40}}|Signature|sig|AWSAccessKeyId|GoogleAccessId"
    rf"|security-token){_EQUALS})[^\s&\"'<>\\]+",
    re.IGNORECASE,
)

# The same names as headers, or as keys of a dictionary that somebody printed.
_FIELD = re.compile(
    r"""((?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|x-(?:oss|obs)-(?:signature|security-token))"""
    r"""\\?["']?\s*[:,]\s*(?:b?\\?["'])?)[^\s&"'<>\\,]+""",
    re.IGNORECASE,
)

# A scheme with all that follows it, or one word that only a machine can have written: our own messages name the header.
_AUTHORIZATION = re.compile(
    r"""(authorization\\?["']?\s*[:,]\s*(?:b?\\?["'])?)"""
    r"""(?:(?:AWS4-[\w-]+|AWS4?|Basic|Bearer|Digest|Negotiate|OSS4?|OBS|GOOG[\w-]*|SharedKey|Token)\s+[^\r\n"'\\]+"""
    r"""|(?=[^\s"']{0,200}\d)[^\s"'\\]{16,})""",
    re.IGNORECASE,
)

_PASSWORD = re.compile(r"(\w{1,20}://)[^\s/?#\"'<>…]{1,300}@(?=[\w.\[-])")

# Only in what others said: our own messages name digests of files.
_BARE_SIGNATURE = re.compile(r"\b[0-9a-f]{64}\b|\b[0-9A-Za-z+/]{27,86}=", re.IGNORECASE)


_LONGEST_QUOTE = 2000


def redact(text: str) -> str:
    """The text with `…` for the query of every URL, signing parameters, authorization headers and passwords."""
    text = _QUERY.sub(_without_query, text)
    for pattern in (_PARAMETER, _FIELD, _AUTHORIZATION):
        text = pattern.sub(r"\1…", text)
    return _PASSWORD.sub(r"\1…@", text)


def redact_quote(text: str) -> str:
    """What a store or a peer said: as `redact`, without what may be a signature that stands alone, and not too long."""
    return _BARE_SIGNATURE.sub("…", redact(text[:_LONGEST_QUOTE]))


def _without_query(found: re.Match[str]) -> str:
    query = found[2]
    return f"{found[1]}?…{query[len(query.rstrip(_CLOSING)) :]}"


def printable(text: str) -> str:
    """The text as a terminal may have it: escapes for what controls it, hides or turns letters around."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)
