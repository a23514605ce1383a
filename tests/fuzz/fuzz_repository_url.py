"""Repository URLs: parsed, or a `ConfigError`; what was parsed is written so that it parses to the same."""

from __future__ import annotations

import atheris

from dfagent.errors import ConfigError
from dfagent.stores.url import parse_repository_url

SEEDS = [
    b"s3://bucket/prefix",
    b"S3://host:9000//bucket///a//b/",
    b"s3://https://[::1]:9000/bucket/pre fix",
    b"s3://http://h/b/%41?x#y",
    b"s3://user:pass@host:1/b",
    b"gs://b",
    b"s3://[fe80::1%25eth0]:1/b",
]


def check(data: bytes) -> None:
    """Bytes as a command line gives them, and any other text."""
    for text in (data.decode("utf-8", "surrogateescape"), atheris.FuzzedDataProvider(data).ConsumeUnicode(len(data))):
        try:
            url = parse_repository_url(text)
        except ConfigError:
            continue
        assert parse_repository_url(str(url)) == url
        assert not url.prefix.startswith("/") and not url.prefix.endswith("/")
        assert str(url).encode() and "\n" not in str(url) and "@" not in url.endpoint
