"""Translates what boto3 raises into dfagent's errors; imports the SDK, so only the S3 adapter's threads import it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError

from dfagent.errors import (
    AccessDenied,
    Changed,
    ConfigError,
    DfagentError,
    NotFound,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from dfagent.redact import redact_quote
from dfagent.stores.s3_listing import NOT_S3_HINT

_NOT_FOUND_HINTS = {
    "NoSuchBucket": "check the bucket's name, and that the URL names the right endpoint",
    "NoSuchKey": "check the object's key",
}
_DENIED_HINTS = {
    "SignatureDoesNotMatch": "secret_key does not belong to key_id: correct it where the credential comes from",
    "InvalidAccessKeyId": "the store does not know this key id: check key_id, and that the endpoint is its store",
    "AccessDenied": "the credential needs the rights s3:ListBucket and s3:GetObject here",
    "ExpiredToken": "the temporary credential has expired: get a new one",
    "ExpiredTokenException": "the temporary credential has expired: get a new one",
    "InvalidToken": "the session token does not belong to the key: get a new temporary credential",
    "RequestTimeTooSkewed": "correct this machine's clock",
}
_REGION_CODES = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
_THROTTLING = ("SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException")
_BUSY_HINT = "the store is overloaded: fewer agents at a time, or a higher quota"
_NO_CREDENTIALS_HINT = (
    "put key_id and secret_key into cloud_credential.json, give this process a role or AWS_* variables, "
    'or set "anonymous": true for a public bucket'
)
_BAD_CONFIGURATION = (
    sdk.PartialCredentialsError,
    sdk.ProfileNotFound,
    sdk.ConfigNotFound,
    sdk.ConfigParseError,
    sdk.InvalidConfigError,
    sdk.ParamValidationError,
    sdk.UnknownCredentialError,
    sdk.EndpointProviderError,
)
_NO_TOKEN = (
    sdk.CredentialRetrievalError,
    sdk.TokenRetrievalError,
    sdk.MetadataRetrievalError,
    sdk.SSOError,
    sdk.LoginError,
)

_UNREADABLE = (
    ResponseParserError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Turns the SDK's exceptions into `StoreError` and `ConfigError`; `place` names the bucket in their messages."""
    try:
        yield
    except (sdk.ClientError, sdk.BotoCoreError) as exc:
        raise translate(exc, place) from exc


@contextmanager
def readable(place: str) -> Iterator[None]:
    """Turns what the SDK's parser raises on an answer that it can't read into `StoreError`."""
    try:
        yield
    except _UNREADABLE as exc:
        if isinstance(exc, sdk.BotoCoreError):
            raise  # some of the SDK's own exceptions are ValueErrors too
        raise StoreError(f"{place}: the answer is not S3's ({type(exc).__name__})", hint=NOT_S3_HINT) from exc


def translate_head(exc: sdk.ClientError, place: str) -> StoreError | None:
    """The error of a HEAD, None where the store takes no HEAD of an object that it may well serve.

    The answer to a HEAD has no body, so there is only its status to tell them apart.
    """
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status == 412:
        return Changed(f"{place} was overwritten after the listing", hint="run again")
    if status == 404:
        return NotFound(f"{place} was removed after the listing", hint="run again")
    if status in (429, 503):
        return StoreBusy(f"{place}: HEAD answered {status}", hint=_BUSY_HINT)
    if status == 408 or (status >= 500 and status != 501):
        return StoreUnavailable(f"{place}: HEAD answered {status}", hint="the store is overloaded or broken: try again")
    if 300 <= status < 400:
        return StoreError(f"{place}: HEAD answered {status}", hint="check the bucket's region")
    return None


def translate(exc: sdk.ClientError | sdk.BotoCoreError, place: str) -> DfagentError:
    """The error to raise for one of the SDK's, most specific first; never with a signature or a secret in it."""
    if isinstance(exc, sdk.ClientError):
        return _translate_answer(exc, place)
    if isinstance(exc, sdk.NoCredentialsError):
        return ConfigError(f"{place}: no S3 credentials found", hint=_NO_CREDENTIALS_HINT)
    if isinstance(exc, _BAD_CONFIGURATION):
        return ConfigError(f"{place}: {_said(str(exc))}", hint="check cloud_credential.json and the SDK's own files")
    if isinstance(exc, sdk.InvalidRegionError):
        # Ours is checked before any request: this one was in an answer, and is not shown.
        return StoreError(f"{place}: the store names a region that can be none", hint=NOT_S3_HINT)
    if isinstance(exc, _NO_TOKEN):
        return AccessDenied(f"{place}: {_said(str(exc))}", hint="the credential's provider gave no credential")
    return _translate_connection(exc, place)


def _translate_connection(exc: sdk.BotoCoreError, place: str) -> DfagentError:
    cause = exc.kwargs.get("error", exc)
    if isinstance(exc, sdk.SSLError) or isinstance(cause, ssl.SSLError):
        return StoreError(f"{place}: TLS with the store failed: {_said(str(cause))}", hint=_tls_hint(str(cause)))
    if isinstance(exc, sdk.ProxyConnectionError):
        return StoreUnavailable(f"{place}: the HTTP proxy does not answer", hint="check HTTP_PROXY and HTTPS_PROXY")
    if isinstance(exc, (sdk.EndpointConnectionError, sdk.ConnectTimeoutError)):
        asked = urlsplit(str(exc.kwargs.get("endpoint_url", "")))
        return StoreUnavailable(
            f"{place}: nothing answers at {asked.scheme}://{asked.netloc}",
            hint="check the URL's host and port, and the network",
        )
    if isinstance(exc, (sdk.HTTPClientError, sdk.ConnectionError)):
        return StoreUnavailable(f"{place}: the connection broke ({type(exc).__name__})", hint="try again")
    return StoreError(
        f"{place}: the answer is not S3's ({type(exc).__name__})",
        hint=NOT_S3_HINT,
    )


def _tls_hint(reason: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return 'set "ca_bundle" in cloud_credential.json to the PEM file of the CA that signed the store\'s certificate'
    if "No such file" in reason:
        return "AWS_CA_BUNDLE or the SDK's config file names a file that is not there"
    return "check that the store speaks TLS at this port: for plain HTTP write s3://http://host:port/…"


def _translate_answer(exc: sdk.ClientError, place: str) -> DfagentError:
    error = exc.response.get("Error", {})
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    # Whoever is not S3 answers without a code.
    code = str(error.get("Code") or status)
    # Only code and message: stores put the string to sign and their own signature beside them.
    message = str(error.get("Message") or "")
    problem = f"{place}: {exc.operation_name} answered {_said(code)}" + (f": {_said(message)}" if message else "")
    if status == 404 or code in _NOT_FOUND_HINTS:
        return NotFound(problem, hint=_NOT_FOUND_HINTS.get(code, "check the URL"))
    # MinIO says which of its limits it was: SlowDownRead, SlowDownWrite.
    if code.startswith(_THROTTLING) or status == 429:
        return StoreBusy(problem, hint=_BUSY_HINT)
    if code == "RequestTimeout" or status >= 500:
        return StoreUnavailable(problem, hint="the store is overloaded or broken: try again")
    if code in _REGION_CODES:
        return StoreError(problem, hint="set the bucket's region in cloud_credential.json")
    if status in (401, 403) or code in _DENIED_HINTS:
        return AccessDenied(problem, hint=_DENIED_HINTS.get(code, "check the credential for this URL"))
    return StoreError(problem, hint="the store's code and message say why")


def _said(text: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in text)
    return redact_quote(" ".join(printable.split()) or "no reason given")[:300]
