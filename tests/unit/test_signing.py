"""The table of signing parameters holds whatever real URLs and the seed's lists hold."""

import json
from pathlib import Path

from dfagent.stores.signing import SIGNING_PARAMS

SEED = Path(__file__).parents[1] / "fixtures" / "seed"


def test_the_table_covers_the_seed_list_of_s3() -> None:
    """What the seed tells S3 users to filter is filtered without being told."""
    assert set(json.loads((SEED / "filter_lists.json").read_text())["S3"]) <= set(SIGNING_PARAMS["s3"])


def test_the_session_token_is_filtered_in_both_spellings() -> None:
    """V4 and V2 write it differently and Dragonfly compares case-sensitively."""
    assert {"X-Amz-Security-Token", "x-amz-security-token"} <= set(SIGNING_PARAMS["s3"])


def test_versions_and_response_overrides_stay_in_the_identity() -> None:
    """These change the bytes, so they must never be filtered."""
    assert not {"versionId", "partNumber", "response-content-encoding"} & set(SIGNING_PARAMS["s3"])
