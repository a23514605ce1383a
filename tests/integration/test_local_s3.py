"""The S3 server that tests and demo rely on must refuse what a real store refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import boto3
import pytest
from botocore.exceptions import ClientError

from dfagent.local.object_store import REGION, S3Server


def refused(call: Callable[..., Any], **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def test_it_checks_the_secret(s3_server: S3Server, bucket: str) -> None:
    """A server that took any signature would prove nothing about signing."""
    liar = boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint,
        region_name=REGION,
        aws_access_key_id=s3_server.access_key,
        aws_secret_access_key="not the secret",
    )
    assert refused(liar.list_objects_v2, Bucket=bucket) == "SignatureDoesNotMatch"


def test_it_checks_signed_urls(s3_server: S3Server, bucket: str) -> None:
    """The right URL gives the bytes, one with a changed key does not."""
    client = s3_server.client()
    client.put_object(Bucket=bucket, Key="right", Body=b"bytes")
    url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "right"})
    opener = build_opener(ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        assert answer.read() == b"bytes"
    with pytest.raises(HTTPError) as caught:
        opener.open(url.replace("/right?", "/other?"), timeout=10)
    caught.value.close()
    assert caught.value.code == 403


def test_it_makes_no_bucket_by_itself(s3_server: S3Server) -> None:
    """A wrong bucket name has to be noticed."""
    assert refused(s3_server.client().put_object, Bucket="never-made", Key="k", Body=b"") == "NoSuchBucket"


def test_it_keeps_its_data_when_it_starts_again_and_prints_no_secret(tmp_path: Path) -> None:
    """An outage in a test must not empty the store."""
    with S3Server(tmp_path / "s3") as server:
        client = server.client()
        client.create_bucket(Bucket="kept")
        client.put_object(Bucket="kept", Key="k", Body=b"still here")
        server.stop()
        assert not server.process.running
        server.start()
        assert client.get_object(Bucket="kept", Key="k")["Body"].read() == b"still here"
    assert server.secret_key not in server.process.log.read_text()
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{server.port}.sock"))
