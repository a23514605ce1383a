"""Keeps signatures out of texts that other programs wrote: their error messages quote whole URLs."""

from __future__ import annotations

import re

# A query may hold quotes and brackets, so it ends where no URL goes on; what closes the sentence around it is kept.
_QUERY = re.compile(r"""(https?://[^\s?"<>]*)\?[^\s"<>]*?([])}',.:;]*)(?=[\s"<>]|$)""", re.IGNORECASE)


def redact(text: str) -> str:
    """The text with the query of every URL in it replaced by `?…`."""
    return _QUERY.sub(r"\1?…\2", text)
