"""cloud_credential.json: which credential belongs to which URL, and which entries can't work."""

from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from dfagent.settings.credentials import CloudCredentials, S3Credential
from dfagent.stores.url import parse_repository_url


def credentials(**s3: Mapping[str, object]) -> CloudCredentials:
    return CloudCredentials.model_validate({"s3": s3})


def region(file: CloudCredentials, url: str) -> str | None:
    credential = file.s3_for(parse_repository_url(url))
    return credential.region if credential else None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://b", "bucket"),
        ("s3://b/deep/model", "deep"),
        ("s3://b/deeper", "bucket"),
        ("s3://bb", "default"),
        ("s3://bb/deep", "default"),
        ("s3://host:9000/b", "host"),
        ("s3://http://host:9000/b/x", "host"),
        ("s3://HOST:9000/b", "host"),
        ("s3://https://host:9000/b", "default"),
    ],
)
def test_the_longest_prefix_at_a_slash_wins(url: str, expected: str) -> None:
    """s3://b never matches s3://bb, and host:port means http as it does in URLs."""
    file = credentials(
        **{
            "": {"region": "default"},
            "s3://b/": {"region": "bucket"},
            "s3://b/deep": {"region": "deep"},
            "s3://Host:9000": {"region": "host"},
        }
    )
    assert region(file, url) == expected


def test_no_section_and_no_match_leave_it_to_the_sdk() -> None:
    """None is the SDK's own chain, which an absent file must not block."""
    assert CloudCredentials().s3_for("s3://b") is None
    assert credentials(**{"s3://a": {"region": "r"}}).s3_for("s3://b") is None


def test_empty_strings_mean_unset() -> None:
    """The seed's file writes "" for what it does not use."""
    empty = dict.fromkeys(("secret_key", "key_id", "region", "session_token", "profile", "addressing", "ca_bundle"), "")
    assert S3Credential.model_validate(empty) == S3Credential()


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"key_id": "K"}, "secret_key is missing"),
        ({"secret_key": "S"}, "key_id is missing"),
        ({"session_token": "T"}, "session_token needs"),
        ({"key_id": "K", "secret_key": "pasted\n"}, "holds a space, a line break"),
        ({"key_id": "K ", "secret_key": "S"}, "holds a space, a line break"),
        ({"anonymous": True, "key_id": "K", "secret_key": "S"}, "anonymous excludes"),
        ({"anonymous": "yes"}, "boolean"),
        ({"addressing": "dns"}, "'auto', 'path' or 'virtual'"),
    ],
)
def test_entries_that_contradict_themselves_are_refused(entry: dict[str, object], says: str) -> None:
    """Half a key would make the SDK take another one in silence."""
    with pytest.raises(ValidationError, match=says):
        S3Credential.model_validate(entry)


def test_prefixes_that_can_match_nothing_or_the_same_are_refused() -> None:
    """A prefix without its scheme would be ignored in silence, two spellings of one place would race."""
    with pytest.raises(ValidationError, match="entry number 2 can match no URL") as caught:
        credentials(**{"": {}, "my-bucket": {}})
    assert "my-bucket" not in str(caught.value)
    with pytest.raises(ValidationError, match="entries number 1 and 2 name the same place"):
        credentials(**{"s3://b": {}, "s3://b/": {}})


def test_repr_hides_every_secret() -> None:
    """Secret key, session token and Azure key never show in a repr."""
    file = CloudCredentials.model_validate(
        {
            "s3": {"": {"key_id": "K", "secret_key": "hush-1", "session_token": "hush-2"}},
            "as": {"": {"account_str": "hush-3", "account_key": "hush-4"}},
        }
    )
    assert "hush" not in repr(file)
    assert "hush" not in str(file)
    found = file.s3_for("s3://x")
    assert found
    assert found.secret_key
    assert found.secret_key.get_secret_value() == "hush-1"
