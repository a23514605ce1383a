"""What an origin's HTTP status means for us, whoever carried it (aiohttp, dfdaemon's proxy, dfdaemon's gRPC)."""

from __future__ import annotations

import json
import re
import time
from email.utils import parsedate_to_datetime

from dfagent.errors import Changed, DfagentError, NotFound, OriginStatus, Overloaded, SignedUrlExpired
from dfagent.redact import redact_quote

_TAG = r"<(?:\w+:)?{0}(?:\s[^<>]*)?>\s*([^<]{{1,{1}}}?)\s*</"
_XML_CODE = re.compile(_TAG.format("Code", 100), re.IGNORECASE)
_XML_MESSAGE = re.compile(_TAG.format("Message", 600), re.IGNORECASE)
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired")
_MESSAGE_LIMIT = 300


def origin_error(label: str, status: int, body: str = "", retry_after: float | None = None) -> DfagentError:
    """The typed error for an origin's answer other than 200 or 206; `body` may hold the store's own reason."""
    reason = store_reason(body)
    said = f"{label}: the origin answered {status}" + (f" {reason}" if reason else "")
    # S3 answers 400 to a session token that has ended; a peer passes the status on without the body that says so.
    if status in (401, 403) or (status == 400 and (not body or reason.startswith(_EXPIRED))):
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


def seconds_to_wait(retry_after: str) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date (RFC 9110, 10.2.3)."""
    value = retry_after.strip()
    try:
        return float(value) if value.isdecimal() else max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def store_reason(body: str) -> str:
    """`Code: message` of an error as S3, Azure, GCS, OSS and OBS write it, in XML or JSON; "" for anything else.

    An HTML page is nobody's reason. No signature that a store quotes comes through, nor what would break a log's line.
    """
    code, message = _json_reason(body) if body.lstrip("\ufeff \r\n\t").startswith("{") else _xml_reason(body)
    message = message[:_MESSAGE_LIMIT]
    text = " ".join("".join(c if c.isprintable() else " " for c in f"{code}: {message}").split())
    return redact_quote(text.strip(": "))


def _xml_reason(body: str) -> tuple[str, str]:
    code, message = _XML_CODE.search(body), _XML_MESSAGE.search(body)
    # Without a code it may be anybody's page.
    return (code[1], message[1] if message else "") if code else ("", "")


def _json_reason(body: str) -> tuple[str, str]:
    try:
        parsed = json.loads(body.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return "", ""
    error = parsed.get("error", parsed)
    if not isinstance(error, dict):
        return "", ""
    fields = {str(name).lower(): value for name, value in error.items()}
    # Google's `code` is the HTTP status again; its `status` has the name.
    code = next((value for value in (fields.get("code"), fields.get("status")) if isinstance(value, str)), "")
    message = fields.get("message")
    return code[:100], message if isinstance(message, str) else ""
