"""No query of a URL gets through, wherever the URL stands in a text; everything else does."""

from __future__ import annotations

import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfagent.redact import redact, redact_quote

# What RFC 3986 allows in a query, brackets and quotes included.
QUERY = st.text(string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@/?%[]", min_size=1)
PATH = st.text(string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@/%")
WORDS = st.text(st.characters(exclude_characters="?"))
SECRET = "X-Amz-Signature=0123456789abcdef"


@given(
    WORDS,
    st.sampled_from(["http", "https", "HTTPS"]),
    PATH,
    QUERY,
    st.sampled_from([" ", "\nand ", '"', "<", ">"]),
    WORDS,
)
def should_take_the_query_out_of_any_url(before: str, scheme: str, path: str, query: str, end: str, after: str) -> None:
    told = redact(f"{before}{scheme}://host/{path}?{query}&{SECRET}{end}{after}")
    assert SECRET not in told
    assert f"{scheme}://host/{path}?…" in told
    assert told.endswith(after)


@given(WORDS)
def should_leave_a_text_without_a_query_as_it_is(text: str) -> None:
    assert redact(text) == text
    assert redact(f"{text} http://host/path {text}") == f"{text} http://host/path {text}"


@given(st.text())
def should_find_nothing_more_the_second_time(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"error for url (http://h/k?a=(b)&{SECRET}): refused", "error for url (http://h/k?…): refused"),
        (f"{{'url': 'http://h/k?{SECRET}', 'x': 2}}", "{'url': 'http://h/k?…', 'x': 2}"),
        (f'{{"url":"http://h/k?{SECRET}","x":2}}', '{"url":"http://h/k?…","x":2}'),
        (f"http://h/it's?{SECRET}", "http://h/it's?…"),
        (f"http://a/?{SECRET} and https://b/?{SECRET}.", "http://a/?… and https://b/?…."),
        ("is it http://h/k ? yes", "is it http://h/k ? yes"),
    ],
)
def should_keep_the_sentence_around_a_url(text: str, told: str) -> None:
    assert redact(text) == told


@given(QUERY, st.integers(0, 200), st.sampled_from(["\n", "\r\n", "\n    ", "\n\t"]))
def should_follow_a_url_that_somebody_broke_into_lines(query: str, at: int, line_break: str) -> None:
    signed = f"{query}&{SECRET}"
    at = min(at, len(signed) - 8)  # a piece of a signature that is shorter than that is none
    told = redact(f"http://h/k?{signed[:at]}{line_break}{signed[at:]}\nthen it failed")
    assert "0123456789abcdef" not in told.replace(line_break, "") and "89abcdef" not in told
    assert told.startswith("http://h/k?…") and told.endswith("\nthen it failed")


@given(st.text(string.ascii_letters + string.digits + "/", min_size=1), st.integers(1, 3))
def should_know_a_signed_url_inside_another_url(path: str, times: int) -> None:
    inner = f"https://h/{path}?X-Amz-Date=1&{SECRET}&x-id=GetObject"
    for _ in range(times):
        inner = quote(inner, safe="")
    assert "0123456789abcdef" not in redact(f"https://proxy/fetch/{inner} failed")
    assert redact(f"https://proxy/fetch/{inner} failed").endswith(" failed")


@pytest.mark.parametrize(
    "text",
    [
        r'{"url":"https://h/k?a=1\u0026X-Amz-Signature=%s"}',
        r'{"said": "{\"url\": \"https://h/k?a=1\u0026X-Amz-Signature=%s\"}"}',
        r"the query was a\u003d1\u0026X-Amz-Signature\u003d%s",
        "the query was a=1&amp;Signature=%s&amp;b=2",
        "the string to sign held X-Amz-Credential=%s&x=1",
        "x-oss-security-token=%s",
        "{'X-Amz-Signature': '%s', 'x': 1}",
        "{b'X-Amz-Signature': b'%s'}",
        '{"X-Amz-Security-Token":"%s"}',
        "X-Amz-Security-Token: %s",
        "x-oss-security-token: %s",
        "Authorization: AWS4-HMAC-SHA256 Credential=AK/2026/s3/aws4_request, SignedHeaders=host, Signature=%s",
        "{'Authorization': b'AWS4-HMAC-SHA256 Credential=AK/2026, SignedHeaders=host, Signature=%s'}",
        "[(b'authorization', b'Bearer %s')]",
        '{"headers": "{\\"Proxy-Authorization\\": \\"Basic %s\\"}"}',
        "Authorization: %s",
        "Authorization: OSS AKID:%s=",
        "http://user:%s@proxy:4001 refused the connection",
        "http://user:p@%s@proxy:4001/ refused the connection",
        "https://%s@h/k",
    ],
)
def should_know_what_signs_in_every_spelling(text: str) -> None:
    value = "0123456789abcdef0123456789abcdef"
    told = redact(text.replace("%s", value))
    assert value not in told and "…" in told


@pytest.mark.parametrize(
    "text",
    [
        "cloud.json: header.Authorization: expected text, got a list",
        "the value of 'Authorization' holds characters that an HTTP header can't carry",
        "AuthorizationHeaderMalformed: the region 'us-east-1' is wrong",
        "s3://bucket/repo@2: mail me@example.com",
        "see http://h/k\nand a=b there",
        f"generation {'0123456789abcdef' * 4} is whole",
    ],
)
def should_leave_our_own_words_alone(text: str) -> None:
    assert redact(text) == text


def should_not_trust_what_a_store_quotes_to_hold_no_signature() -> None:
    told = redact_quote(f"we calculated {'0123456789abcdef' * 4} and {'q' * 27}= for key 12")
    assert told == "we calculated … and … for key 12"
    assert len(redact_quote("x" * 1_000_000)) < 10_000


def should_take_no_long_time_for_a_long_text() -> None:
    """Quadratic time would let a hostile answer hold the event loop: this would take minutes."""
    for text in ("http://h/?" + ")" * 200_000 + "x", "http://h/k?a=1" + "\na=" * 100_000, "authorization:" * 50_000):
        redact(text)
