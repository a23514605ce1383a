"""Laws of signed URLs that hold for any key."""

import asyncio
from dataclasses import replace
from datetime import datetime, timezone
from urllib.parse import parse_qsl, unquote, urlsplit

from hypothesis import given, settings
from hypothesis import strategies as st

from dfagent.settings.credentials import S3Credential
from dfagent.stores.s3 import S3Store
from dfagent.stores.url import parse_repository_url
from dfagent.types import ObjectEntry, ObjectRef, SignedUrl, TaskIdentity

URL = parse_repository_url("s3://127.0.0.1:9/bucket")
KEYS = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=40)
STORES = [
    S3Store(URL, S3Credential.model_validate({"key_id": key, "secret_key": "SK", "region": region, **more}))
    for key, region, more in (
        ("AK1", "us-east-1", {}),
        ("AK2", "eu-west-1", {"session_token": "T+/=&?"}),
    )
]


def entry(key: str) -> ObjectEntry:
    return ObjectEntry(ObjectRef("s3", "127.0.0.1:9", "bucket", key), 1, '"e"')


async def sign_by_all(key: str) -> list[SignedUrl]:
    # A lock of asyncio belongs to the loop that first waited on it, and each example has a loop of its own.
    return [await store.sign(entry(key)) for store in STORES]


@settings(max_examples=60, deadline=None)
@given(KEYS)
def test_without_its_signing_parameters_every_signature_is_the_same_url(key: str) -> None:
    """This is what Dragonfly sees where it must name a task by URL."""
    bare = set()
    for signed in asyncio.run(sign_by_all(key)):
        parts = urlsplit(signed.url)
        kept = [pair for pair in parse_qsl(parts.query) if pair[0] not in signed.signing_params]
        assert unquote(parts.path) == f"/bucket/{key}"
        bare.add((parts.scheme, parts.netloc, parts.path, tuple(kept)))
    assert len(bare) == 1
    assert not next(iter(bare))[3]


@given(KEYS, st.from_regex(r"[A-Za-z0-9]{8,64}", fullmatch=True))
def test_a_signed_url_never_shows_its_query(key: str, signature: str) -> None:
    """Neither in a repr, nor in a str, nor inside of another value's."""
    secret = f"hush{signature}"
    url = f"https://bucket.example/path?X-Amz-Credential={secret}&X-Amz-Signature={secret}"
    signed = SignedUrl(url, datetime.now(timezone.utc), ("X-Amz-Signature",))
    for text in (repr(signed), str(signed), f"{signed}", repr([signed]), repr({key: signed})):
        assert secret not in text.replace(key, "")


@given(KEYS, KEYS, KEYS, KEYS)
def test_tasks_are_the_same_exactly_where_object_and_version_are(key: str, tag: str, key2: str, tag2: str) -> None:
    """No key or etag can be written so that it looks like another pair of them."""
    one, two = replace(entry(key), etag=tag), replace(entry(key2), etag=tag2)
    assert (TaskIdentity.of(one) == TaskIdentity.of(two)) == ((key, tag) == (key2, tag2))
    assert TaskIdentity.of(one) == TaskIdentity.of(replace(entry(key), etag=tag))
    assert TaskIdentity.of(one).content.isascii()
