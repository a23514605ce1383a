"""No query of a URL gets through, wherever the URL stands in a text; everything else does."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfagent.redact import redact

# What RFC 3986 allows in a query, brackets and quotes included.
QUERY = st.text(string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@/?%[]", min_size=1)
PATH = st.text(string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@/%")
WORDS = st.text(st.characters(exclude_characters="?"))
SECRET = "X-Amz-Signature=0123456789abcdef"


@given(WORDS, st.sampled_from(["http", "https", "HTTPS"]), PATH, QUERY, st.sampled_from(' \n"<>'), WORDS)
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
