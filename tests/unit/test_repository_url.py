"""Repository URLs: Triton's grammar, normalised, and errors that show it."""

import pytest

from dfagent.errors import ConfigError
from dfagent.stores.url import parse_repository_url
from dfagent.types import RepositoryUrl


@pytest.mark.parametrize(
    ("text", "endpoint", "bucket", "prefix"),
    [
        ("s3://bucket", "", "bucket", ""),
        ("s3://bucket/", "", "bucket", ""),
        ("s3://bucket/a/b/", "", "bucket", "a/b"),
        ("s3:///bucket//a///b//", "", "bucket", "a/b"),
        ("  S3://bucket/A b?c=#%20&é \n", "", "bucket", "A b?c=#%20&é"),
        ("s3://my.bucket_1/models", "", "my.bucket_1", "models"),
        ("s3://127.0.0.1:9000/bucket/a", "http://127.0.0.1:9000", "bucket", "a"),
        ("s3://http://minio:9000/bucket", "http://minio:9000", "bucket", ""),
        ("s3://https://MinIO.example:443//bucket//a", "https://minio.example:443", "bucket", "a"),
        ("s3://https://minio.example/bucket/a", "https://minio.example", "bucket", "a"),
        ("s3://[::1]:9000/bucket/a", "http://[::1]:9000", "bucket", "a"),
        ("s3://https://[2001:DB8::1]/bucket", "https://[2001:db8::1]", "bucket", ""),
        ("s3://bucket/http://x", "", "bucket", "http:/x"),
    ],
)
def test_urls_are_read_as_triton_reads_them(text: str, endpoint: str, bucket: str, prefix: str) -> None:
    """host:port without a scheme is http, repeated and trailing slashes go."""
    assert parse_repository_url(text) == RepositoryUrl("s3", endpoint, bucket, prefix)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no scheme"),
        ("bucket/models", "has no scheme"),
        ("/models", "has no scheme"),
        ("s3:/bucket", "has no scheme"),
        ("s3://", "names no bucket"),
        ("s3:////", "names no bucket"),
        ("s3://host:9000", "names no bucket"),
        ("s3://https://host:9000/", "names no bucket"),
        ("s3://host:0/b", "has the port 0"),
        ("s3://host:65536/b", "has the port 65536"),
        ("s3://host:port/b", "where host:port must be"),
        ("s3://my_minio:9000/b", "where host:port must be"),
        ("s3://http:/host/b", "where host:port must be"),
        ("s3://[::1/b", "where host:port must be"),
        ("s3://[::zz]:1/b", "where host:port must be"),
        ("s3://[:::1]:1/b", "where host:port must be"),
        ("s3://[::1]/b", "has a host without its port"),
        ("s3://bu cket/a", "where a bucket's name must be"),
        ("s3://-b/a", "where a bucket's name must be"),
        ("s3://b/a\x00b", "holds control characters"),
        ("s3://b/a\x9bb", "holds control characters"),
        ("s3://b/a\udcff", "is not UTF-8 text"),
        ("s3://b\udcff/a", "is not UTF-8 text"),
        ("\udcff", "has no scheme"),
        ("ftp://host/b", "has the scheme ftp://"),
        ("https://b.s3.amazonaws.com/k?X-Amz-Signature=hush", "has the scheme https://"),
    ],
)
def test_wrong_urls_get_an_error_that_shows_the_grammar(text: str, says: str) -> None:
    """The hint is the grammar; a pasted signature is not repeated."""
    with pytest.raises(ConfigError) as caught:
        parse_repository_url(text)
    assert says in caught.value.message
    assert "s3://bucket/prefix" in caught.value.hint
    assert "hush" not in str(caught.value)
    assert str(caught.value).encode()


@pytest.mark.parametrize("scheme", ["gs", "as", "oss", "obs"])
def test_stores_of_later_releases_say_what_is_supported(scheme: str) -> None:
    """Not yet supported differs from wrong."""
    with pytest.raises(ConfigError, match=rf"{scheme}:// is not yet supported \(supported: s3://\)"):
        parse_repository_url(f"{scheme}://bucket/a")


@pytest.mark.parametrize("text", ["s3://key:hush@host:9000/b", "s3://https://key:hush@host/b", "x3://key:hush@host/b"])
def test_a_password_in_a_url_is_refused_and_not_repeated(text: str) -> None:
    """Passwords belong into the credentials file."""
    with pytest.raises(ConfigError) as caught:
        parse_repository_url(text)
    assert "hush" not in str(caught.value)
