"""Keeps signatures, and what drives a terminal, out of texts that others wrote: error messages, names in a bucket."""

from __future__ import annotations

import re

# A query may hold quotes and brackets, so it ends where no URL goes on; what closes the sentence around it is kept.
_QUERY = re.compile(r"""(https?://[^\s?"<>]*)\?[^\s"<>]*?([])}',.:;]*)(?=[\s"<>]|$)""", re.IGNORECASE)

# What signs, also where only a part of a URL or a string to sign is quoted.
_PARAMETER = re.compile(
    r"((?:X-(?:Amz|Goog|Obs|Oss)-[\w-]+|x-oss-[\w-]+|Signature|sig|AWSAccessKeyId|GoogleAccessId|security-token)=)"
    r"[^\s&\"'<>]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text with the query of every URL in it, and the value of every signing parameter, replaced by `…`."""
    return _PARAMETER.sub(r"\1…", _QUERY.sub(r"\1?…\2", text))


def printable(text: str) -> str:
    """The text as a terminal may have it: escapes for what controls it, hides or turns letters around."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)
