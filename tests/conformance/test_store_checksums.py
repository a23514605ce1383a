"""S3's own checksums, asked of a real server, equal what dfagent computes of the bytes."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from dfagent.checksums import checksum_of_file
from dfagent.errors import Changed, NotFound
from dfagent.settings.credentials import S3Credential
from dfagent.stores.s3 import S3Store
from dfagent.types import ObjectEntry, RepositoryUrl
from tests.servers.gate import Gate

PART = 5 << 20  # the smallest that S3 takes
LARGE = b"dragonfly " * (PART // 4)  # 2.5 parts
IN_PARTS = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, use_threads=False)


class Bucket:
    """A bucket of the local server, with and without the SDK's own checksums on upload."""

    def __init__(self, server: Any, name: str) -> None:
        self.server, self.name = server, name
        self.client = server.client()
        self.plain = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    def open(self, endpoint: str = "") -> S3Store:
        url = RepositoryUrl("s3", endpoint or self.server.endpoint, self.name, "")
        credential = {"key_id": self.server.access_key, "secret_key": self.server.secret_key}
        return S3Store(url, S3Credential.model_validate(credential), connect_timeout=2, read_timeout=20)

    def upload_in_parts(self, key: str, content: bytes, sizes: list[int]) -> None:
        """By hand, so that its parts may have any size."""
        upload = self.plain.create_multipart_upload(Bucket=self.name, Key=key)["UploadId"]
        whole, parts = io.BytesIO(content), []
        for number, size in enumerate(sizes, start=1):
            answer = self.plain.upload_part(
                Bucket=self.name, Key=key, UploadId=upload, PartNumber=number, Body=whole.read(size)
            )
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        parts_done: Any = {"Parts": parts}
        self.plain.complete_multipart_upload(Bucket=self.name, Key=key, UploadId=upload, MultipartUpload=parts_done)


@pytest.fixture
def filled(s3_server: Any, bucket: str) -> Iterator[Bucket]:
    made = Bucket(s3_server, bucket)
    yield made
    made.client.close()
    made.plain.close()


@pytest.fixture
async def store(filled: Bucket) -> AsyncIterator[S3Store]:
    opened = filled.open()
    yield opened
    await opened.aclose()


async def entry_of(store: S3Store, filled: Bucket) -> ObjectEntry:
    url = RepositoryUrl("s3", filled.server.endpoint, filled.name, "")
    (entry,) = [entry async for entry in store.list(url)]
    return entry


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "CRC32C", "CRC32", "SHA256", "SHA1"])
@pytest.mark.parametrize("content", [b"weights", b"", LARGE], ids=["small", "empty", "large"])
async def test_every_algorithm_is_the_one_of_the_bytes(
    filled: Bucket, store: S3Store, tmp_path: Path, algorithm: str, content: bytes
) -> None:
    """As a single PUT and in parts, which S3 gives a checksum of checksums (all but CRC64NVME)."""
    extra = {"ChecksumAlgorithm": algorithm}
    filled.client.upload_fileobj(io.BytesIO(content), filled.name, "key", ExtraArgs=extra, Config=IN_PARTS)
    told = await store.checksum(await entry_of(store, filled))
    (tmp_path / "file").write_bytes(content)
    assert told is not None and told.algorithm == algorithm.lower()
    assert told.part_size == (PART if content is LARGE and algorithm != "CRC64NVME" else 0)
    assert checksum_of_file(tmp_path / "file", told) == told


async def test_what_the_sdk_uploads_by_default_is_verifiable(filled: Bucket, store: S3Store, tmp_path: Path) -> None:
    """CRC32, of parts where the file is large."""
    filled.client.upload_fileobj(io.BytesIO(LARGE), filled.name, "key", Config=IN_PARTS)
    told = await store.checksum(await entry_of(store, filled))
    (tmp_path / "file").write_bytes(LARGE)
    assert told is not None and (told.algorithm, told.part_size) == ("crc32", PART)
    assert checksum_of_file(tmp_path / "file", told) == told


@pytest.mark.parametrize("content", [b"weights", b"", LARGE], ids=["small", "empty", "large"])
async def test_an_object_without_a_checksum_has_the_md5_of_its_etag(
    filled: Bucket, store: S3Store, tmp_path: Path, content: bytes
) -> None:
    """What older clients uploaded."""
    filled.plain.upload_fileobj(io.BytesIO(content), filled.name, "key", Config=IN_PARTS)
    told = await store.checksum(await entry_of(store, filled))
    (tmp_path / "file").write_bytes(content)
    assert told is not None and (told.algorithm, told.part_size) == ("md5", PART if content is LARGE else 0)
    assert checksum_of_file(tmp_path / "file", told) == told


async def test_parts_of_different_sizes_have_no_checksum(filled: Bucket, store: S3Store) -> None:
    """It can't be computed without knowing every part, and must not look like corruption."""
    filled.upload_in_parts("key", LARGE, [PART + (2 << 20), PART, PART])
    assert await store.checksum(await entry_of(store, filled)) is None


async def test_another_version_is_changed_and_none_not_found(filled: Bucket, store: S3Store) -> None:
    """A checksum of other bytes would make the right ones look corrupt."""
    filled.client.put_object(Bucket=filled.name, Key="key", Body=b"one")
    entry = await entry_of(store, filled)
    filled.client.put_object(Bucket=filled.name, Key="key", Body=b"two")
    with pytest.raises(Changed, match="overwritten"):
        await store.checksum(entry)
    filled.client.delete_object(Bucket=filled.name, Key="key")
    with pytest.raises(NotFound, match="removed"):
        await store.checksum(entry)


@pytest.mark.parametrize(("content", "requests"), [(b"weights", 1), (LARGE, 2)], ids=["small", "large"])
async def test_it_costs_one_head_and_one_more_for_parts(filled: Bucket, content: bytes, requests: int) -> None:
    """Signed by its header: no signed URL is used for it, and none is in any log of the store's."""
    filled.client.upload_fileobj(io.BytesIO(content), filled.name, "a key+", Config=IN_PARTS)
    async with Gate(int(filled.server.endpoint.rpartition(":")[2])) as gate:
        store = filled.open(gate.endpoint)
        entry = await entry_of(store, filled)
        assert await store.checksum(entry)
        await store.aclose()
    heads = [head for head in gate.heads if head.startswith("HEAD ")]
    assert len(heads) == requests
    for head in heads:
        assert "\r\nAuthorization: AWS4-HMAC-SHA256 " in head and "X-Amz-Signature" not in head
        assert f"\r\nIf-Match: {entry.etag}\r\n" in head
