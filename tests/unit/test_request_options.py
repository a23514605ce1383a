"""Which of the headers and filters of the settings go where."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from dfagent.errors import PeerUnavailable
from dfagent.transports.options import RequestOptions, check_task_id
from dfagent.types import FetchRequest, ObjectEntry, ObjectRef, SignedUrl, TaskIdentity

ENTRY = ObjectEntry(ObjectRef("s3", "host", "bucket", "key"), 1, '"etag"')
SIGNED = SignedUrl(
    "http://host/key", datetime.now(timezone.utc), ("X-Amz-Date", "X-Amz-Signature"), {"x-amz-checksum-mode": "ENABLED"}
)


async def _sign() -> SignedUrl:
    return SIGNED


REQUEST = FetchRequest(ENTRY, TaskIdentity.of(ENTRY), _sign, "key")


def should_send_the_users_headers_with_the_signatures_and_the_pin() -> None:
    options = RequestOptions(headers={"X-Team": "vision"})
    assert options.origin_headers(REQUEST, SIGNED) == {
        "X-Team": "vision",
        "x-amz-checksum-mode": "ENABLED",
        "If-Match": '"etag"',
    }


@pytest.mark.parametrize("name", ["If-Match", "if-match", "X-AMZ-Checksum-Mode", "Range", "range"])
def should_let_no_user_set_what_pins_and_signs_a_request(name: str) -> None:
    sent = RequestOptions(headers={name: "mine"}).origin_headers(REQUEST, SIGNED)
    assert sent == RequestOptions().origin_headers(REQUEST, SIGNED)


def should_keep_what_speaks_to_dragonfly_from_the_origin() -> None:
    options = RequestOptions(headers={"x-dragonfly-Tag": "t", "X-Team": "vision"})
    assert options.dragonfly_headers() == {"x-dragonfly-Tag": "t"}
    assert "x-dragonfly-Tag" not in options.origin_headers(REQUEST, SIGNED)


def should_filter_what_the_user_lists_and_what_belongs_to_the_signature() -> None:
    options = RequestOptions(filtered_params=("ns", "X-Amz-Signature"))
    assert list(options.filters_for(SIGNED)) == ["ns", "X-Amz-Signature", "X-Amz-Date"]


@pytest.mark.parametrize("told", ["", "f" * 64])
def should_refuse_a_peer_that_names_the_task_otherwise(told: str) -> None:
    check_task_id(REQUEST, REQUEST.task.id)
    with pytest.raises(PeerUnavailable, match=told[:12] or "without a task id"):
        check_task_id(REQUEST, told)
