"""dragonfly_config.json: each key means what its table says, and what can't work is refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dfagent.errors import ConfigError
from dfagent.settings.dragonfly import DragonflySettings


def test_filter_entries_are_split_stripped_and_kept_once_in_order() -> None:
    """An entry may itself hold `&`, as the seed's does."""
    settings = DragonflySettings.model_validate({"filter": ["B& A ", "", "C&B", "&"]})
    assert settings.filter == ("B", "A", "C")


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("http://127.0.0.1:65001", "http://127.0.0.1:65001"),
        ("https://peer.local:4001/", "https://peer.local:4001"),
        ("http://[::1]:4001", "http://[::1]:4001"),
        ("http://user:pass@peer:4001", "http://user:pass@peer:4001"),
        ("", None),
        (None, None),
    ],
)
def test_proxy_takes_http_addresses(address: str | None, kept: str | None) -> None:
    """The address is kept without its trailing slash; "" means unset."""
    assert DragonflySettings.model_validate({"proxy": address}).proxy == kept


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:65001", "peer", "http://peer", "socks5://peer:1", "http://peer:0", "http://peer:99999", "http://:80",
     "http://peer:1/path", "http://peer:1?x=y", "http://pe er:1", "http://peer:port"],
)  # fmt: skip
def test_proxy_refuses_other_addresses_without_showing_them(address: str) -> None:
    """Only http(s)://host:port can be a proxy, and the value may hold a password."""
    with pytest.raises(ValidationError, match="expected http://host:port") as caught:
        DragonflySettings.model_validate({"proxy": address})
    assert address not in str(caught.value)


def test_repr_hides_the_proxy_password_and_header_values() -> None:
    """Settings are logged; tokens in them must not be."""
    settings = DragonflySettings.model_validate(
        {"proxy": "http://user:s3cret@peer:1", "header": {"Authorization": "Bearer t0ken"}}
    )
    for text in (repr(settings), str(settings)):
        assert "s3cret" not in text
        assert "t0ken" not in text
        assert "peer:1" in text
        assert "Authorization" in text


@pytest.mark.parametrize(
    ("written", "length"),
    [(4194304, 4194304), ("4mib", 4194304), ("16 MiB", 16777216), ("1gib", 1 << 30), ("8388608", 8388608)],
)
def test_piece_length_is_bytes_or_text_with_a_unit(written: object, length: int) -> None:
    """dfdaemon takes pieces of 4 MiB and more."""
    assert DragonflySettings.model_validate({"piece_length": written}).piece_length == length


@pytest.mark.parametrize(
    "document",
    [
        {"piece_length": 4194303},
        {"piece_length": "1mib"},
        {"piece_length": "16 parsecs"},
        {"piece_length": "mib"},
        {"piece_length": 4194304.0},
        {"piece_length": True},
        {"priority": 7},
        {"priority": -1},
        {"priority": "1"},
        {"concurrency": 0},
        {"concurrency": 65},
        {"concurrency": 1.5},
        {"isolation": "per-user"},
        {"transport": "carrier-pigeon"},
        {"header": {"bad name": "x"}},
        {"header": {"X-A": "line\r\nX-B: injected"}},
        {"header": {"X-A": 1}},
        {"header": {"host": "elsewhere"}},
        {"header": {"RANGE": "bytes=0-1"}},
        {"header": {"Transfer-Encoding": "chunked"}},
        {"header": {"accept-encoding": "gzip"}},
        {"socket": "dfdaemon.sock"},
        {"socket": "/" + "s" * 107},
        {"socket": "/" + "é" * 54},
        {"tag": "naïve"},
        {"filter": "X-Amz-Date"},
        {"filter": [1]},
        {"path_map": {"models": "/host"}},
        {"path_map": {"/models": "host"}},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(document: dict[str, object]) -> None:
    """Nothing is silently clamped or coerced."""
    with pytest.raises(ValidationError):
        DragonflySettings.model_validate(document)


def test_defaults_are_safe_under_load_shedding() -> None:
    """An empty file means downloads without a peer, 16 at a time, no isolation."""
    settings = DragonflySettings()
    assert (settings.concurrency, settings.isolation, settings.priority) == (16, "none", 0)
    assert settings.default_transport() == "auto"
    assert not settings.has_peer("auto")


@pytest.mark.parametrize(
    ("document", "asked", "transport"),
    [
        ({"proxy": "http://p:1"}, None, "auto"),
        ({"proxy": "http://p:1", "socket": "/s"}, None, "auto"),
        ({"proxy": "http://p:1", "socket": "/s", "transport": "proxy"}, None, "proxy"),
        ({"proxy": "http://p:1", "transport": "proxy"}, "direct", "direct"),
    ],
)
def test_default_transport_is_auto_unless_one_is_chosen(
    document: dict[str, object], asked: str | None, transport: str
) -> None:
    """Flag before file before auto."""
    assert DragonflySettings.model_validate(document).default_transport(asked) == transport


@pytest.mark.parametrize(
    ("document", "asked", "says"),
    [
        ({"transport": "proxy"}, None, "address of the peer's HTTP proxy"),
        ({"transport": "dfdaemon", "proxy": "http://p:1"}, None, "unix socket"),
        ({}, "dfdaemon", "unix socket"),
        ({}, "pigeon", "unknown transport 'pigeon'"),
    ],
)
def test_a_transport_without_its_address_is_a_config_error(
    document: dict[str, object], asked: str | None, says: str
) -> None:
    """Asking for Dragonfly where none is configured must not fall back in silence."""
    with pytest.raises(ConfigError, match=says):
        DragonflySettings.model_validate(document).default_transport(asked)


@pytest.mark.parametrize(
    ("path", "mapped"),
    [
        ("/models/a", "/host/a"),
        ("/models", "/host"),
        ("/models/big/a", "/mnt/a"),
        ("/models-2/a", "/models-2/a"),
        ("/other", "/other"),
    ],
)
def test_map_path_replaces_the_longest_prefix_at_a_boundary(path: str, mapped: str) -> None:
    """dfdaemon sees our folder under another name; /models must not match /models-2."""
    settings = DragonflySettings.model_validate({"path_map": {"/models/": "/host", "/models/big": "/mnt/"}})
    assert settings.map_path(Path(path)) == Path(mapped)


def test_the_longest_socket_path_that_the_kernel_takes_is_kept() -> None:
    """107 bytes, and the address is full."""
    path = "/" + "s" * 106
    assert DragonflySettings.model_validate({"socket": path}).socket == Path(path)


def test_headers_for_the_origin_are_kept() -> None:
    """Only those that decide about the connection or the bytes are refused."""
    headers = {"Authorization": "t", "X-Tenant": "a", "X-Dragonfly-Tag": "b"}
    assert DragonflySettings.model_validate({"header": headers}).header == headers
