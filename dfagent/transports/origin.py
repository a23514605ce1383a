"""What an origin's HTTP status means for us, whoever carried it (aiohttp, dfdaemon's proxy, dfdaemon's gRPC)."""

from __future__ import annotations

import re

from dfagent.errors import Changed, DfagentError, NotFound, OriginStatus, Overloaded, SignedUrlExpired
from dfagent.redact import redact_quote

_S3_REASON = re.compile(r"<Code>([^<]{1,100})</Code>(?:.*?<Message>([^<]{1,300})</Message>)?", re.DOTALL)


def origin_error(label: str, status: int, body: str = "", retry_after: float | None = None) -> DfagentError:
    """The typed error for an origin's answer other than 200 or 206; `body` may hold the store's own reason."""
    reason = store_reason(body)
    said = f"{label}: the origin answered {status}" + (f" {reason}" if reason else "")
    # S3 answers 400 to a session token that has ended; a peer passes the status on without the body that says so.
    if status in (401, 403) or (status == 400 and (not body or reason.startswith("ExpiredToken"))):
        return SignedUrlExpired(said, hint="the signature is refused: check the credentials and this machine's clock")
    if status == 404:
        return NotFound(said, hint="the object was deleted after the listing; run again")
    if status == 412:
        return Changed(said, hint="the object was overwritten after the listing; run again")
    if status in (429, 503):
        return Overloaded(said, hint="lower `concurrency`, or try again later", retry_after=retry_after)
    if 300 <= status < 400:
        return OriginStatus(said, status=status, hint="redirects are not followed: check the bucket's region")
    return OriginStatus(said, status=status, hint="see the store's log for the reason")


def store_reason(body: str) -> str:
    """`Code: message` of an S3-style XML error, "" for anything else: an HTML page is nobody's reason."""
    found = _S3_REASON.search(body)
    return redact_quote(": ".join(part for part in found.groups() if part)) if found else ""
