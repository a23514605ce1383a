"""What only S3 has: the shape of its signed URLs, its providers of credentials and their lives."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from yarl import URL

from dfagent.errors import AccessDenied, ConfigError, StoreError
from dfagent.settings.credentials import S3Credential
from dfagent.stores.s3 import S3Store
from dfagent.stores.url import parse_repository_url
from dfagent.types import ObjectEntry, ObjectRef, RepositoryUrl, SignedUrl

AWS = parse_repository_url("s3://some-bucket/models")
ENTRY = ObjectEntry(ObjectRef("s3", "s3.amazonaws.com", "some-bucket", "models/a b.onnx"), 1, '"e"')


@pytest.fixture(autouse=True)
def _no_credentials_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION",
                     "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):  # fmt: skip
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def static(**more: Any) -> S3Credential:
    return S3Credential.model_validate({"key_id": "AK", "secret_key": "SK", **more})


def query(signed: SignedUrl) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(signed.url).query).items()}


def put(server: Any, bucket: str, **more: str) -> RepositoryUrl:
    """Writes one object under a name of its own; the URL names it."""
    key = f"{uuid.uuid4().hex}.onnx"
    server.client().put_object(Bucket=bucket, Key=key, Body=b"x", **more)
    return RepositoryUrl("s3", server.endpoint, bucket, key)


async def listed(store: S3Store, url: RepositoryUrl) -> ObjectEntry:
    (entry,) = [entry async for entry in store.list(url)]
    return entry


def provider(tmp_path: Path, lives: timedelta, key_id: str = "AK", secret: str = "SK") -> None:
    """Writes an AWS profile whose credential comes from a process and ends after `lives`."""
    ends = datetime.now(timezone.utc) + lives
    answer = {"Version": 1, "AccessKeyId": key_id, "SecretAccessKey": secret, "Expiration": ends.isoformat()}
    (tmp_path / "answer.json").touch(mode=0o600)
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    (tmp_path / "say.py").write_text(f"print(open({str(tmp_path / 'answer.json')!r}).read())")
    (tmp_path / "aws-config").write_text(
        f"[profile short]\nregion = eu-west-3\ncredential_process = {sys.executable} {tmp_path / 'say.py'}\n"
    )


@asynccontextmanager
async def tls_front(folder: Path, port: int) -> AsyncIterator[str]:
    """A TLS listener before the server at `port`, with a certificate that only `folder/ca.pem` vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    (folder / "ca.pem").write_bytes(pem)
    (folder / "server.pem").write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_only_the_host_is_signed_and_every_parameter_is_known_as_signing() -> None:
    """Range, If-Match and what else dfdaemon sends stay free."""
    signed = await S3Store(AWS, static(session_token="TOKEN")).sign(ENTRY)
    parameters = query(signed)
    assert parameters["X-Amz-SignedHeaders"] == "host"
    assert parameters["X-Amz-Security-Token"] == "TOKEN"
    assert set(parameters) <= set(signed.signing_params)
    assert signed.headers == {}


async def test_life_is_the_ttl_in_utc() -> None:
    """`expires_at` says what the URL says."""
    signed = await S3Store(AWS, static(), ttl=timedelta(minutes=3)).sign(ENTRY)
    parameters = query(signed)
    date = datetime.strptime(parameters["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    assert parameters["X-Amz-Expires"] == "180"
    assert signed.expires_at.tzinfo is timezone.utc
    assert date <= signed.expires_at <= date + timedelta(seconds=180)


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(days=7, seconds=1)])
def test_a_ttl_that_s3_does_not_allow_is_refused(ttl: timedelta) -> None:
    """Signature Version 4 ends at seven days."""
    with pytest.raises(ConfigError, match="can't live for"):
        S3Store(AWS, static(), ttl=ttl)


@pytest.mark.parametrize(
    ("url", "more", "begins"),
    [
        ("s3://some-bucket", {"region": "eu-west-1"}, "https://some-bucket.s3.eu-west-1.amazonaws.com/models/"),
        ("s3://some-bucket", {}, "https://some-bucket.s3.amazonaws.com/models/"),
        ("s3://some-bucket", {"addressing": "path"}, "https://s3.amazonaws.com/some-bucket/models/"),
        ("s3://minio.local:9000/some-bucket", {}, "http://minio.local:9000/some-bucket/models/"),
        ("s3://https://minio.local/some-bucket", {}, "https://minio.local/some-bucket/models/"),
        (
            "s3://https://minio.local/some-bucket",
            {"addressing": "virtual"},
            "https://some-bucket.minio.local/models/",
        ),
    ],
)
async def test_addressing_fits_the_endpoint(url: str, more: dict[str, str], begins: str) -> None:
    """Virtual-hosted with the region's host at AWS, path style elsewhere, or as asked."""
    signed = await S3Store(parse_repository_url(url), static(**more)).sign(ENTRY)
    assert signed.url.startswith(begins + "a%20b.onnx?")


async def test_an_endpoint_from_the_environment_gets_path_style(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_ENDPOINT_URL belongs to the SDK's own chain; such servers rarely serve buckets as hosts."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.local:9000")
    assert (await S3Store(AWS, static()).sign(ENTRY)).url.startswith("http://minio.local:9000/some-bucket/models/")


async def test_an_endpoint_from_the_environment_names_its_objects(
    monkeypatch: pytest.MonkeyPatch, s3_server: Any, bucket: str
) -> None:
    """They are not AWS's, so they share no task with a bucket of the same name there."""
    url = replace(put(s3_server, bucket), endpoint="")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    store = S3Store(url)
    assert (await listed(store, url)).ref.endpoint == urlsplit(s3_server.endpoint).netloc
    await store.aclose()


async def test_anonymous_urls_are_plain() -> None:
    """A public bucket needs no credential, and none of this machine's is used."""
    store = S3Store(AWS, S3Credential(anonymous=True))
    signed = await store.sign(ENTRY)
    assert signed.url == "https://some-bucket.s3.amazonaws.com/models/a%20b.onnx"
    assert await store.credential_id() == ""


async def test_checksums_are_signed_sent_and_answered(s3_server: Any, bucket: str, http: aiohttp.ClientSession) -> None:
    """With checksums asked for, the header is part of the signature and stands in `headers`."""
    url = put(s3_server, bucket, ChecksumAlgorithm="CRC32")
    credential = S3Credential.model_validate({"key_id": s3_server.access_key, "secret_key": s3_server.secret_key})
    store = S3Store(url, credential, checksums=True)
    signed = await store.sign(await listed(store, url))
    await store.aclose()
    assert query(signed)["X-Amz-SignedHeaders"] == "host;x-amz-checksum-mode"
    async with http.get(URL(signed.url, encoded=True), headers=signed.headers) as answer:
        assert (answer.status, await answer.read()) == (200, b"x")
        assert answer.headers["x-amz-checksum-crc32"]
    async with http.get(URL(signed.url, encoded=True)) as answer:
        assert answer.status == 403


async def test_a_url_never_outlives_its_credential(
    tmp_path: Path, s3_server: Any, bucket: str, http: aiohttp.ClientSession
) -> None:
    """min(ttl, what is left of the credential), and the URL works (boto3#2392)."""
    url = put(s3_server, bucket)
    provider(tmp_path, timedelta(seconds=90), s3_server.access_key, s3_server.secret_key)
    ends = datetime.fromisoformat(json.loads((tmp_path / "answer.json").read_text())["Expiration"])
    store = S3Store(url, S3Credential(profile="short"))
    signed = await store.sign(await listed(store, url))
    await store.aclose()
    assert signed.expires_at <= ends
    assert int(query(signed)["X-Amz-Expires"]) <= 90
    async with http.get(URL(signed.url, encoded=True)) as answer:
        assert answer.status == 200


async def test_a_renewed_credential_lengthens_the_next_url(tmp_path: Path) -> None:
    """Its provider is asked again before each signature near the end (T#2871)."""
    provider(tmp_path, timedelta(seconds=90))
    store = S3Store(AWS, S3Credential(profile="short"))
    before = await store.sign(ENTRY)
    provider(tmp_path, timedelta(hours=1), key_id="AK2")
    after = await store.sign(ENTRY)
    assert int(query(before)["X-Amz-Expires"]) < 90
    assert query(after)["X-Amz-Expires"] == "900"
    assert await store.credential_id() == "AK2"


async def test_an_expired_credential_without_a_newer_one_is_access_denied(tmp_path: Path) -> None:
    """Said here, not by a 403 at some peer."""
    provider(tmp_path, timedelta(seconds=-60))
    with pytest.raises(AccessDenied, match="has expired"):
        await S3Store(AWS, S3Credential(profile="short")).sign(ENTRY)


async def test_a_broken_provider_is_access_denied(tmp_path: Path) -> None:
    """The provider's own words, not a stack trace."""
    (tmp_path / "aws-config").write_text(f"[profile short]\ncredential_process = {sys.executable} -c fail(\n")
    with pytest.raises(AccessDenied, match="provider gave no credential"):
        await S3Store(AWS, S3Credential(profile="short")).sign(ENTRY)


async def test_an_unknown_profile_is_a_config_error() -> None:
    """It names the profile."""
    with pytest.raises(ConfigError, match="nobody"):
        await S3Store(AWS, S3Credential(profile="nobody")).sign(ENTRY)


async def test_no_credentials_at_all_is_a_config_error_that_says_what_to_do() -> None:
    """Not a request that fails later."""
    with pytest.raises(ConfigError, match="no S3 credentials found") as caught:
        await S3Store(AWS).sign(ENTRY)
    assert "cloud_credential.json" in caught.value.hint


async def test_an_absent_or_broken_ca_bundle_is_named(tmp_path: Path) -> None:
    """A wrong setting, found before any request."""
    with pytest.raises(ConfigError, match=r"ca_bundle .*none\.pem: can't be read: No such file"):
        await S3Store(AWS, static(ca_bundle=str(tmp_path / "none.pem"))).sign(ENTRY)
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(ConfigError, match=r"ca_bundle .*junk\.pem: holds no PEM certificate"):
        await S3Store(AWS, static(ca_bundle=str(tmp_path / "junk.pem"))).sign(ENTRY)


async def test_a_host_that_can_be_none_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it comes from the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://a..b:9000")
    with pytest.raises(ConfigError, match="Invalid endpoint"):
        await S3Store(AWS, static()).sign(ENTRY)


async def test_a_certificate_of_an_unknown_ca_is_no_matter_of_credentials(
    tmp_path: Path, s3_server: Any, bucket: str
) -> None:
    """T#5371: the hint names `ca_bundle`, and with it the store is trusted."""
    url = put(s3_server, bucket)
    credential = {"key_id": s3_server.access_key, "secret_key": s3_server.secret_key}
    async with tls_front(tmp_path, int(URL(s3_server.endpoint).port or 0)) as endpoint:
        url = replace(url, endpoint=endpoint)
        with pytest.raises(StoreError, match="TLS with the store failed") as caught:
            await listed(S3Store(url, S3Credential.model_validate(credential)), url)
        assert type(caught.value) is StoreError
        assert "ca_bundle" in caught.value.hint
        trusting = S3Store(url, S3Credential.model_validate({**credential, "ca_bundle": str(tmp_path / "ca.pem")}))
        assert (await listed(trusting, url)).ref.endpoint == URL(endpoint).authority
        await trusting.aclose()


async def test_the_winning_provider_is_logged_once_without_its_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A silent fall-through from one provider to the next is a bug elsewhere."""
    caplog.set_level(logging.INFO, logger="dfagent.stores.s3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    store = S3Store(AWS)
    await store.sign(ENTRY)
    await store.sign(ENTRY)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["S3 credentials for s3://some-bucket/models come from: env"]


async def test_region_comes_from_the_credential_then_the_sdk_then_a_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store without regions needs none."""

    async def region(credential: S3Credential) -> str:
        return query(await S3Store(AWS, credential).sign(ENTRY))["X-Amz-Credential"].split("/")[2]

    assert await region(static()) == "us-east-1"
    provider(tmp_path, timedelta(hours=1))
    assert await region(S3Credential(profile="short")) == "eu-west-3"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    assert await region(static()) == "ap-south-1"
    assert await region(static(region="sa-east-1")) == "sa-east-1"


async def test_aws_objects_have_one_name_whatever_the_region() -> None:
    """Two nodes in two regions share one task."""
    from dfagent.stores.s3_client import Timeouts, connect

    names = {connect(AWS, static(region=region), Timeouts()).endpoint for region in ("us-east-1", "eu-west-1")}
    assert names == {"s3.amazonaws.com"}
