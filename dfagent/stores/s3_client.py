"""Builds the boto3 client that the S3 store works with; imports the SDK, so only the S3 adapter's threads import it."""

from __future__ import annotations

import logging
import re
import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import InvalidRegionError, NoCredentialsError

from dfagent.errors import AccessDenied, ConfigError, StoreError
from dfagent.settings.credentials import S3Credential
from dfagent.stores.s3_listing import NOT_S3_HINT
from dfagent.types import RepositoryUrl

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3.client import S3Client

AWS_ENDPOINT = "s3.amazonaws.com"
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")
_XML = re.compile(rb"(\xef\xbb\xbf)?\s*<(\?xml|[A-Za-z])")
_REGION = re.compile(r"(?![0-9]+$)(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_HOST = re.compile(r"https?://[A-Za-z0-9.:\[\]-]{1,270}(?=[/?#]|$)")
_CONNECTIONS = 32  # as many as all our threads may use at once
_log = logging.getLogger("dfagent.stores.s3")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for a connection and for each answer of the store."""

    connect: float = 10.0
    read: float = 60.0


@dataclass(frozen=True, slots=True)
class Connection:
    """A client of one store; `endpoint` is the host and port that names it in an object's identity."""

    client: S3Client
    credentials: Credentials | None
    endpoint: str

    def refreshed(self) -> tuple[str, datetime | None]:
        """The access key id that signs now, and when it expires where the SDK knows that.

        A credential near its end is refreshed before. Raises `AccessDenied` where its provider has no newer one.
        """
        if self.credentials is None:
            return "", None
        try:
            frozen = self.credentials.get_frozen_credentials()
        except RuntimeError as exc:
            raise AccessDenied(
                "the temporary S3 credential has expired and its provider gave no newer one",
                hint="check the role, token file or instance metadata that it comes from",
            ) from exc
        # The SDK has no public name for it; static credentials have no such attribute.
        return frozen.access_key or "", getattr(self.credentials, "_expiry_time", None)


def connect(url: RepositoryUrl, credential: S3Credential | None, timeouts: Timeouts) -> Connection:
    """A client for the URL's endpoint; no request is sent, except to the provider of the credential.

    Raises `ConfigError` for a CA bundle or a host that can't be one, and the SDK's exceptions.
    """
    _silence_sdk_loggers()
    settings = credential or S3Credential()
    if settings.ca_bundle:
        _check_ca_bundle(settings.ca_bundle)
    session = _session(settings)
    credentials = None if settings.anonymous else session.get_credentials()
    if credentials is None and not settings.anonymous:
        raise NoCredentialsError
    provider = credentials.method if credentials else "none (anonymous)"
    _log.info("S3 credentials for %s come from: %s", url, provider)
    client = _client(session, url, settings, timeouts, "path" if url.endpoint else "virtual")
    endpoint = _endpoint_name(client.meta.endpoint_url)
    if endpoint != AWS_ENDPOINT and not url.endpoint:
        # AWS_ENDPOINT_URL or the SDK's config file names another store, which may not serve bucket names as hosts.
        client = _client(session, url, settings, timeouts, "path")
    # The SDK's own handler takes a page that is no XML for a fault of the store's, and asks again. It stands first at
    # `before-parse.s3.*`, and only a handler at a wildcard nearer to the event's root comes before it.
    client.meta.events.register_first("before-parse.*.ListObjectsV2", _refuse_what_is_not_xml)
    client.meta.events.register_first("before-parse.*.*", _refuse_redirects)
    return Connection(client, credentials, endpoint)


def _refuse_what_is_not_xml(response_dict: dict[str, Any], **_: Any) -> None:
    body = response_dict["body"]
    if response_dict["status_code"] == 200 and body.strip() and not _XML.match(body):
        raise StoreError("the answer to ListObjectsV2 is not S3's: it is no XML", hint=NOT_S3_HINT)


def _refuse_redirects(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    """Ends a request that is redirected elsewhere than to another region of the same store.

    The SDK never sends a request to a host that a Location header names. But where a redirect names no region, it asks
    the redirecting server for one, in a recursion that only Python's own limit ends.
    """
    headers = response_dict["headers"]
    if 300 <= response_dict["status_code"] < 400 and not _REGION.fullmatch(headers.get("x-amz-bucket-region", "")):
        host = _HOST.match(headers.get("location", ""))
        raise StoreError(
            f"{operation_model.name} was redirected{f' to {host[0]}' if host else ''} ({response_dict['status_code']})",
            hint="a signed request is never sent to another host: correct the URL's endpoint, or the bucket's region",
        )


def _check_ca_bundle(bundle: Path) -> None:
    try:
        ssl.create_default_context(cafile=str(bundle))
    except OSError as exc:
        problem = "holds no PEM certificate" if isinstance(exc, ssl.SSLError) else f"can't be read: {exc.strerror}"
        raise ConfigError(f"ca_bundle {bundle}: {problem}", hint="correct it in cloud_credential.json") from exc


def _session(settings: S3Credential) -> boto3.Session:
    if not (settings.key_id and settings.secret_key):
        return boto3.Session(profile_name=settings.profile)
    token = settings.session_token
    return boto3.Session(
        aws_access_key_id=settings.key_id,
        aws_secret_access_key=settings.secret_key.get_secret_value(),
        aws_session_token=token.get_secret_value() if token else None,
    )


def _client(
    session: boto3.Session,
    url: RepositoryUrl,
    settings: S3Credential,
    timeouts: Timeouts,
    default_style: Literal["path", "virtual"],
) -> S3Client:
    # Never the SDK's own "auto": with it, a signed URL names AWS's global host, which redirects new buckets.
    style = default_style if settings.addressing == "auto" else settings.addressing
    signature: Any = UNSIGNED if settings.anonymous else "s3v4"
    config = Config(
        signature_version=signature,
        connect_timeout=timeouts.connect,
        read_timeout=timeouts.read,
        max_pool_connections=_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": 3},
        s3={"addressing_style": style},
    )
    try:
        return session.client(
            "s3",
            region_name=settings.region or session.region_name or "us-east-1",
            endpoint_url=url.endpoint or None,
            verify=str(settings.ca_bundle) if settings.ca_bundle else None,
            config=config,
        )
    except InvalidRegionError as exc:
        raise ConfigError(
            f"{url}: the region is not one that a host's name can hold",
            hint='correct "region" in cloud_credential.json, or AWS_REGION and the SDK\'s config file',
        ) from exc
    except ValueError as exc:  # boto3's own answer to a host name that can't be one
        raise ConfigError(f"{url}: {exc}", hint="correct the URL, or AWS_ENDPOINT_URL") from exc


def _endpoint_name(endpoint_url: str) -> str:
    """`host:port`, or one name for AWS whatever the region: a bucket's name is global, and so must its tasks be."""
    parts = urlsplit(endpoint_url)
    host = parts.hostname or ""
    if host.endswith(_AWS_DOMAINS):
        return AWS_ENDPOINT
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _silence_sdk_loggers() -> None:
    # At DEBUG they print signatures, strings to sign and session tokens.
    for name in ("boto3", "botocore", "urllib3"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.WARNING:
            logger.setLevel(logging.WARNING)
