"""`dragonfly_config.json`: how to reach the Dragonfly peer on this node and what makes a download a task."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from dfagent.errors import ConfigError
from dfagent.settings.fields import OptionalPath, OptionalText

TransportName = Literal["auto", "direct", "proxy", "dfdaemon"]

MIN_PIECE_LENGTH = 4 * 1024 * 1024  # bytes; dfdaemon refuses shorter pieces

_SIZE_UNITS = {"": 1, "b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_SIZE = re.compile(r"(\d{1,18})\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Of one connection, or of dfagent's own requests: ranges, conditions and encodings decide which bytes arrive.
_HEADERS_NOT_FOR_USERS = {
    "host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect",
    "proxy-connection", "proxy-authorization", "proxy-authenticate", "accept-encoding", "range", "if-range",
    "if-match", "if-none-match", "if-modified-since", "if-unmodified-since",
}  # fmt: skip
_LONGEST_SOCKET = 107  # bytes that a unix socket's address holds
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")


def split_filter(entries: Iterable[str]) -> tuple[str, ...]:
    """The query parameters that filter entries name: each split on `&`, stripped, the first of duplicates kept."""
    names = (name.strip() for entry in entries for name in entry.split("&"))
    return tuple(dict.fromkeys(name for name in names if name))


def _bytes_of(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    unit = _SIZE_UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError('expected bytes as a number, or text like "16mib" (units kib, mib, gib)')
    return int(match[1]) * unit


Bytes = Annotated[int, BeforeValidator(_bytes_of)]


class DragonflySettings(BaseModel):
    """The validated content of `dragonfly_config.json`; sizes are bytes, "" means unset.

    `proxy`, `header` and `filter` are the Dragonfly Repository Agent's keys, the others are dfagent's own.
    `concurrency` bounds the objects in flight, because dfdaemon sheds load above a few dozen. With `sha256_manifest`
    every model must have a SHA256SUMS.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    proxy: OptionalText = None
    header: dict[str, str] = Field(default_factory=dict)
    filter: tuple[str, ...] = ()
    transport: TransportName | None = None
    legacy: bool | None = Field(default=None, strict=True)
    socket: OptionalPath = None
    tag: OptionalText = None
    application: OptionalText = None
    priority: int = Field(default=0, ge=0, le=6, strict=True)
    piece_length: Annotated[Bytes, Field(ge=MIN_PIECE_LENGTH, strict=True)] | None = None
    concurrency: int = Field(default=16, ge=1, le=64, strict=True)
    isolation: Literal["none", "per-credential"] = "none"
    path_map: dict[str, str] = Field(default_factory=dict)
    sha256_manifest: bool = Field(default=False, strict=True)

    @field_validator("proxy")
    @classmethod
    def _check_proxy(cls, value: str | None) -> str | None:
        # The message never shows the value: a proxy's address may hold a password.
        wrong = ValueError("expected http://host:port or https://host:port")
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            raise wrong from None
        if parts.scheme not in ("http", "https") or not parts.hostname or not port:
            raise wrong
        if parts.path.strip("/") or parts.query or parts.fragment or re.search(r"[\s\x00-\x1f\x7f]", value):
            raise wrong
        return value.rstrip("/")

    @field_validator("header")
    @classmethod
    def _check_header(cls, value: dict[str, str]) -> dict[str, str]:
        for name, content in value.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"{name[:40]!r} is not an HTTP header name")
            if name.lower() in _HEADERS_NOT_FOR_USERS:
                raise ValueError(f"{name!r} is not for a settings file to set")
            if not _HEADER_VALUE.fullmatch(content):
                raise ValueError(f"the value of {name[:40]!r} holds characters that an HTTP header can't carry")
        return value

    @field_validator("filter")
    @classmethod
    def _split_filter(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return split_filter(value)

    @field_validator("tag", "application")
    @classmethod
    def _check_header_text(cls, value: str | None) -> str | None:
        if value is not None and not _HEADER_VALUE.fullmatch(value):
            raise ValueError("expected printable ASCII, because it travels in an HTTP header")
        return value

    @field_validator("socket")
    @classmethod
    def _check_socket(cls, value: Path | None) -> Path | None:
        if value and not (value.is_absolute() and len(os.fsencode(value)) <= _LONGEST_SOCKET):
            raise ValueError(f"expected an absolute path of at most {_LONGEST_SOCKET} bytes")
        return value

    @field_validator("path_map")
    @classmethod
    def _check_path_map(cls, value: dict[str, str]) -> dict[str, str]:
        if not all(Path(prefix).is_absolute() for pair in value.items() for prefix in pair):
            raise ValueError("expected absolute paths on both sides")
        return value

    def map_path(self, path: Path) -> Path:
        """The same file as dfdaemon names it: the longest prefix in `path_map` at a path boundary is replaced."""
        prefixes = [prefix for prefix in self.path_map if path.is_relative_to(prefix)]
        if not prefixes:
            return path
        longest = max(prefixes, key=lambda prefix: len(Path(prefix).parts))
        return Path(self.path_map[longest]) / path.relative_to(longest)

    def default_transport(self, asked: str | None = None) -> str:
        """The transport to use: `asked`, else the file's, else `auto`, which takes whatever is configured.

        Raises `ConfigError` for an unknown name and for one whose address (`socket`, `proxy`) is not set.
        """
        chosen = asked or self.transport or "auto"
        if chosen not in get_args(TransportName):
            raise ConfigError(f"unknown transport {chosen!r}", hint="choose auto, direct, proxy or dfdaemon")
        self._check_address(chosen)
        return chosen

    def has_peer(self, transport: str) -> bool:
        """Whether a Dragonfly peer has a part in the transport, so that there is a cache to warm."""
        return transport in ("proxy", "dfdaemon") or (transport == "auto" and bool(self.socket or self.proxy))

    def _check_address(self, name: str) -> None:
        if name == "proxy" and not self.proxy:
            raise ConfigError(
                "transport proxy needs the address of the peer's HTTP proxy",
                hint='set "proxy": "http://host:port" in dragonfly_config.json',
            )
        if name == "dfdaemon" and not self.socket:
            raise ConfigError(
                "transport dfdaemon needs the path of the peer's unix socket",
                hint='set "socket": "/path/to/dfdaemon.sock" in dragonfly_config.json',
            )

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Hides a password in the proxy's address and the values of headers, which may be tokens."""
        for name, value in super().__repr_args__():
            if name == "proxy" and value:
                yield name, re.sub(r"//[^/]*@", "//***@", value)
            elif name == "header":
                yield name, dict.fromkeys(value, "***")
            else:
                yield name, value
