"""Opening a store by its URL's scheme, without paying for SDKs that are not used."""

import pytest

from dfagent.errors import ConfigError
from dfagent.settings.credentials import CloudCredentials
from dfagent.stores.registry import open_store
from dfagent.types import RepositoryUrl
from tests.servers.program import python

PROGRAM = """
import asyncio, sys
from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.files import load_settings
from dfagent.stores.registry import open_store
from dfagent.stores.url import parse_repository_url

def loaded():
    return [name for name in ("boto3", "botocore") if name in sys.modules]

file = CloudCredentials.model_validate({"s3": {"": {"key_id": "AK", "secret_key": "SK"}}})
assert not loaded(), loaded()
store = open_store(parse_repository_url("s3://bucket"), file)
assert not loaded(), loaded()
assert asyncio.run(store.credential_id()) == "AK"
assert loaded() == ["boto3", "botocore"]
"""


def test_the_sdk_is_imported_only_on_first_use() -> None:
    """`dfagent --help` and a wrong URL must not wait half a second for boto3."""
    done = python(PROGRAM)
    assert done.code == 0, done.err


def test_a_scheme_without_a_store_is_a_config_error() -> None:
    """Whatever the parser lets through later."""
    with pytest.raises(ConfigError, match="gs:// is not yet supported"):
        open_store(RepositoryUrl("gs", "", "bucket", ""), CloudCredentials())
