"""What an origin's answer means, and whose reason is told."""

from __future__ import annotations

import pytest

from dfagent.errors import Changed, NotFound, OriginStatus, Overloaded, SignedUrlExpired
from dfagent.transports.origin import origin_error, store_reason

XML = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message><RequestId>7</RequestId></Error>"


@pytest.mark.parametrize(
    ("status", "expected", "retryable"),
    [
        (301, OriginStatus, False),
        (307, OriginStatus, False),
        (401, SignedUrlExpired, False),
        (403, SignedUrlExpired, False),
        (404, NotFound, False),
        (405, OriginStatus, False),
        (408, OriginStatus, True),
        (412, Changed, False),
        (416, OriginStatus, False),
        (425, OriginStatus, True),
        (429, Overloaded, True),
        (500, OriginStatus, True),
        (502, OriginStatus, True),
        (503, Overloaded, True),
    ],
)
def should_know_what_a_status_asks_for(status: int, expected: type[Exception], retryable: bool) -> None:
    error = origin_error("net/1/weights", status)
    assert type(error) is expected
    assert error.retryable is retryable
    assert error.message == f"net/1/weights: the origin answered {status}" and error.hint


def should_tell_the_stores_own_reason() -> None:
    error = origin_error("x", 403, XML.format("SignatureDoesNotMatch", "Check your secret"))
    assert error.message == "x: the origin answered 403 SignatureDoesNotMatch: Check your secret"


def should_keep_how_long_a_busy_store_asks_to_wait() -> None:
    error = origin_error("x", 503, retry_after=7.0)
    assert isinstance(error, Overloaded) and error.retry_after == 7.0


def should_take_a_token_that_has_ended_for_an_expired_signature_and_no_other_bad_request() -> None:
    """S3 answers 400 to it, and a peer passes on nothing but the status."""
    for code in ("ExpiredToken", "TokenRefreshRequired"):
        assert isinstance(origin_error("x", 400, XML.format(code, "It has expired")), SignedUrlExpired)
    assert isinstance(origin_error("x", 400), SignedUrlExpired)
    assert type(origin_error("x", 400, XML.format("InvalidArgument", "no"))) is OriginStatus


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", ""),
        ("<Error><Code>NoSuchKey</Code></Error>", "NoSuchKey"),
        (XML.format("AccessDenied", "No"), "AccessDenied: No"),
        ("<html><head><title>403 Forbidden</title></head><body>nginx</body></html>", ""),
        ("a plain word", ""),
        ('{"code": 403}', ""),
        ("{", ""),
        ("[" * 5000, ""),
        ('{"a":' * 5000, ""),
        ('{"error": "invalid_grant"}', ""),
        ('{"error": {"code": 403, "message": "No", "status": "PERMISSION_DENIED"}}', "PERMISSION_DENIED: No"),
        ('{"error": {"code": 404, "message": "No such object: b/k"}}', "No such object: b/k"),
        (
            '{"error": {"code": "AuthenticationFailed", "message": "Server failed"}}',
            "AuthenticationFailed: Server failed",
        ),
        ('{"Code": "NoSuchBucket", "Message": "gone"}', "NoSuchBucket: gone"),
        (
            (
                "\ufeff<Error><Code>AuthenticationFailed</Code><Message>Server failed.\nRequestId:1\n"
                "Time:2</Message><AuthenticationErrorDetail>sig=secret</AuthenticationErrorDetail></Error>"
            ),
            "AuthenticationFailed: Server failed. RequestId:1 Time:2",
        ),
        ('<e:Error xmlns:e="u"><e:Code a="b"> X </e:Code><e:Message>y</e:Message></e:Error>', "X: y"),
        (XML.format("InvalidAccessKeyId", "m" * 500), "InvalidAccessKeyId: " + "m" * 300),
        (XML.format("X", "a\x1b[31mred\r\nINFO fake line"), "X: a [31mred INFO fake line"),
        (XML.format("X", "see http://h/k?X-Amz-Signature=5ec7e7"), "X: see http://h/k?…"),
        (XML.format("X", "X-Amz-Signature=5ec7e7 is wrong"), "X: X-Amz-Signature=… is wrong"),
        (f"<Error><Code>{'x' * 200}</Code></Error>", ""),
    ],
)
def should_read_a_reason_only_where_a_store_gave_one(body: str, reason: str) -> None:
    assert store_reason(body) == reason
