"""Chooses the store for a URL; an SDK is imported only when one of its own URLs is opened and used."""

from __future__ import annotations

from datetime import timedelta

from dfagent.errors import ConfigError
from dfagent.settings.credentials import CloudCredentials
from dfagent.stores.base import Store
from dfagent.types import RepositoryUrl


def open_store(
    url: RepositoryUrl,
    credentials: CloudCredentials,
    *,
    connect_timeout: float = 10.0,
    read_timeout: float = 60.0,
    ttl: timedelta = timedelta(minutes=15),
    checksums: bool = False,
) -> Store:
    """The store that serves the URL, with the credential of the longest matching prefix; sends no request.

    Timeouts are seconds; `ttl` bounds the life of signed URLs. With `checksums`, answers to signed GETs carry the
    store's checksum too, and each must send `SignedUrl.headers`; `Store.checksum` asks by itself in any case. Raises
    `ConfigError` for a scheme without a store.
    """
    if url.scheme == "s3":
        from dfagent.stores.s3 import S3Store

        return S3Store(
            url,
            credentials.s3_for(url),
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            ttl=ttl,
            checksums=checksums,
        )
    raise ConfigError(f"{url.scheme}:// is not yet supported", hint="supported: s3://")
