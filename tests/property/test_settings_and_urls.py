"""Laws of filters, prefixes, path maps and URLs that hold for any input."""

from datetime import datetime, timezone
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.dragonfly import DragonflySettings, split_filter
from dfagent.stores.url import parse_repository_url
from dfagent.transports.options import RequestOptions
from dfagent.types import SignedUrl

NAMES = st.text(st.characters(codec="ascii", exclude_characters="&", categories=("L", "N", "P")), min_size=1)
SEGMENTS = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/"), min_size=1, max_size=8)
BUCKETS = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True)
HOSTS = st.one_of(st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True), st.just("[::1]"), st.just("127.0.0.1"))
ENDPOINTS = st.one_of(
    st.just(""),
    st.builds("{}:{}/".format, HOSTS, st.integers(1, 65535)),
    st.builds("{}://{}/".format, st.sampled_from(["http", "https"]), HOSTS),
    st.builds("{}://{}:{}/".format, st.sampled_from(["http", "https"]), HOSTS, st.integers(1, 65535)),
)
SLASHES = st.sampled_from(["/", "//", "///"])


@st.composite
def repository_urls(draw: st.DrawFn) -> str:
    path = "".join(draw(SLASHES) + segment for segment in draw(st.lists(SEGMENTS, max_size=4)))
    return f"s3://{draw(ENDPOINTS)}{draw(BUCKETS)}{path}{draw(st.sampled_from(['', '/', '//']))}"


@given(st.lists(st.lists(NAMES, max_size=4).map("&".join)))
def test_splitting_filters_is_idempotent_and_loses_no_name(entries: list[str]) -> None:
    """However names are joined, each stands once and in its order."""
    names = split_filter(entries)
    assert split_filter(names) == names == split_filter(["&".join(entries)])
    assert set(names) == {name for entry in entries for name in entry.split("&") if name}
    assert len(set(names)) == len(names)


@given(st.lists(NAMES), st.lists(NAMES))
def test_union_begins_with_the_user_and_holds_everything(user: list[str], signing: list[str]) -> None:
    """Nobody's parameter is lost, and the user's order is kept."""
    signed = SignedUrl("http://host/key?q", datetime.now(timezone.utc), tuple(signing))
    union = RequestOptions(filtered_params=tuple(user)).filters_for(signed)
    assert set(union) == {*user, *signing}
    assert len(set(union)) == len(union)
    assert union[: len(set(user))] == list(dict.fromkeys(user))


@given(repository_urls())
def test_urls_round_trip(text: str) -> None:
    """What a URL prints is read as the same URL, and normalised only once."""
    url = parse_repository_url(text)
    assert parse_repository_url(str(url)) == url
    assert "//" not in f"{url.bucket}/{url.prefix}".rstrip("/")


@given(repository_urls(), st.lists(SEGMENTS, max_size=3), st.sampled_from(["", "/"]))
def test_a_prefix_matches_itself_and_all_below_it_only(text: str, below: list[str], slash: str) -> None:
    """The boundary is a slash, so no sibling with a longer name gets the credential."""
    url = str(parse_repository_url(text))
    file = CloudCredentials.model_validate({"s3": {url + slash: {"region": "here"}}})
    assert file.s3_for("/".join([url, *below]))
    assert file.s3_for(url + "x") is None


@given(st.lists(repository_urls(), min_size=1, max_size=5), repository_urls())
def test_the_longest_matching_prefix_wins(prefixes: list[str], text: str) -> None:
    """Checked against the definition: the longest of those that the URL equals or lies below."""
    url = str(parse_repository_url(text))
    places = {str(parse_repository_url(prefix)) for prefix in prefixes}
    file = CloudCredentials.model_validate({"s3": {place: {"region": place} for place in places}})
    matching = [place for place in places if url == place or url.startswith(f"{place}/")]
    found = file.s3_for(url)
    assert (found.region if found else None) == (max(matching, key=len) if matching else None)


@given(st.lists(st.sampled_from(["a", "ab", "b"]), max_size=4), st.lists(st.sampled_from(["a", "ab"]), max_size=3))
def test_path_map_keeps_what_follows_the_prefix(path: list[str], prefix: list[str]) -> None:
    """A mapped path is the new prefix plus the unchanged rest; others stay as they are."""
    settings = DragonflySettings.model_validate({"path_map": {"/" + "/".join(prefix): "/host/x"}})
    source = Path("/", *path)
    expected = Path("/host/x", *path[len(prefix) :]) if path[: len(prefix)] == prefix else source
    assert settings.map_path(source) == expected
