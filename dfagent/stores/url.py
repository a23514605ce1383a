"""The grammar of repository URLs, as Triton Inference Server reads them."""

from __future__ import annotations

import ipaddress
import re

from dfagent.errors import ConfigError
from dfagent.types import RepositoryUrl

SUPPORTED_SCHEMES = ("s3",)
_LATER_SCHEMES = ("gs", "as", "oss", "obs")
_GRAMMAR = "expected s3://bucket/prefix or s3://[http://|https://]host:port/bucket/prefix"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_ENDPOINT_SCHEME = re.compile(r"(https?)://(.*)", re.DOTALL | re.IGNORECASE)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.-]+)(?::(?P<port>[0-9]{1,5}))?")
_BUCKET = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,254}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NOT_UTF_8 = re.compile(r"[\ud800-\udfff]")  # what Python makes of a command line's bytes that are not UTF-8


def parse_repository_url(text: str) -> RepositoryUrl:
    """Parses `s3://bucket/prefix` or `s3://[http://|https://]host:port/bucket/prefix`.

    As in Triton (`S3FileSystem` in its core), `host:port` without a scheme is spoken to over http, and the path loses
    slashes at its end and repeated slashes within. Beyond Triton, a host may lack its port where http:// or https://
    stands before it, and may be an IPv6 address in brackets. A prefix is taken literally, never percent-decoded.
    Raises `ConfigError`, which shows the grammar.
    """
    match = _SCHEME.fullmatch(text.strip())
    if match is None:
        raise _wrong(text, "has no scheme")
    scheme, rest = match[1].lower(), match[2]
    _check_scheme(text, scheme)
    if _CONTROL.search(rest):
        raise _wrong(text, "holds control characters")
    if _NOT_UTF_8.search(rest):
        raise _wrong(text, "is not UTF-8 text")
    endpoint, path = _split_endpoint(text, rest)
    bucket, *segments = [segment for segment in path.split("/") if segment] or [""]
    if not bucket:
        raise _wrong(text, "names no bucket")
    if not _BUCKET.fullmatch(bucket):
        raise _wrong(text, f"has {bucket!r} where a bucket's name must be")
    return RepositoryUrl(scheme, endpoint, bucket, "/".join(segments))


def _check_scheme(text: str, scheme: str) -> None:
    supported = ", ".join(f"{name}://" for name in SUPPORTED_SCHEMES)
    if scheme in _LATER_SCHEMES:
        raise ConfigError(f"{scheme}:// is not yet supported", hint=f"supported: {supported}")
    if scheme not in SUPPORTED_SCHEMES:
        raise _wrong(text, f"has the scheme {scheme}://, which is no object store")


def _split_endpoint(text: str, rest: str) -> tuple[str, str]:
    explicit = _ENDPOINT_SCHEME.fullmatch(rest)
    if explicit is None and not re.match(r"\[|[^/]*:", rest):
        return "", rest
    protocol, rest = (explicit[1].lower(), explicit[2]) if explicit else ("http", rest)
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise ConfigError("a repository URL can't hold a password", hint="put credentials into cloud_credential.json")
    match = _AUTHORITY.fullmatch(authority)
    if match is None or not _is_host(match["host"]):
        raise _wrong(text, f"has {authority!r} where host:port must be")
    if match["port"] is None and explicit is None:
        raise _wrong(text, "has a host without its port")
    if match["port"] is None:
        return f"{protocol}://{match['host'].lower()}", path
    port = int(match["port"])
    if not 1 <= port <= 65535:
        raise _wrong(text, f"has the port {port}, which is not in 1 to 65535")
    return f"{protocol}://{match['host'].lower()}:{port}", path


def _is_host(host: str) -> bool:
    if not host.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True


def _wrong(text: str, problem: str) -> ConfigError:
    # A pasted signed URL or password must not reach a log.
    shown = re.sub(r"//[^/]*@", "//***@", text.strip().split("?", 1)[0])
    return ConfigError(f"{shown!r} {problem}", hint=_GRAMMAR)
