"""The frozen values that travel through the pipeline; they do nothing and import nothing of dfagent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from urllib.parse import quote, urlsplit


@dataclass(frozen=True, slots=True)
class RepositoryUrl:
    """Where a model repository, or a single model, lies: `scheme://[endpoint/]bucket/prefix`.

    `endpoint` is `http(s)://host:port` or "" for the cloud's own; `prefix` has no slash at either end.
    """

    scheme: str
    endpoint: str
    bucket: str
    prefix: str

    def __str__(self) -> str:
        middle = f"{self.endpoint}/{self.bucket}" if self.endpoint else self.bucket
        return f"{self.scheme}://{middle}" + (f"/{self.prefix}" if self.prefix else "")


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """One object's name for ever, whoever signs for it: scheme, endpoint (host[:port]), bucket, key."""

    scheme: str
    endpoint: str
    bucket: str
    key: str

    def __str__(self) -> str:
        # Percent-encoded, so that the name is ASCII (it travels in an HTTP header) and nothing in a key can look
        # like the version that follows it in a task's identity.
        return f"{self.scheme}://{self.endpoint}/{quote(self.bucket)}/{quote(self.key)}"


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """One object as a listing gave it: `size` in bytes, `etag` as the store writes it (with its quotes)."""

    ref: ObjectRef
    size: int
    etag: str

    @property
    def pin_headers(self) -> dict[str, str]:
        """Unsigned request headers that make the origin refuse (412) any other version of the object."""
        return {"If-Match": self.etag}


@dataclass(frozen=True, slots=True)
class TaskIdentity:
    """What Dragonfly knows an object's bytes by: `content` is the text whose sha256 is the task id.

    It names the object and its version, never the signed URL, so two signatures make one task and an overwritten key
    makes a new one. `isolation` separates the tasks of different credentials.
    """

    content: str

    @classmethod
    def of(cls, entry: ObjectEntry, isolation: str = "") -> TaskIdentity:
        suffix = f"&credential={isolation}" if isolation else ""
        return cls(f"{entry.ref}?etag={quote(entry.etag, safe='')}{suffix}")

    @property
    def id(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SignedUrl:
    """A GET URL that its query signs until `expires_at`.

    `headers` are constants that the signature covers and every request must carry; `signing_params` are the query
    parameters that belong to signing, so never to an object's identity.
    """

    url: str
    expires_at: datetime
    signing_params: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = urlsplit(self.url)
        return f"SignedUrl({parts.scheme}://{parts.netloc}{parts.path}?…, until {self.expires_at:%H:%M:%SZ})"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a store says of an object's bytes, or what we computed of them.

    `algorithm` is one of `dfagent.checksums.ALGORITHMS`, `value` the raw bytes in network order. `part_size` is 0 where
    the checksum covers all bytes at once; else it covers the checksums of parts of that many bytes, one after the
    other (S3's COMPOSITE, and the ETag of a multipart upload).
    """

    algorithm: str
    value: bytes
    part_size: int = 0

    def __str__(self) -> str:
        parts = f"/{self.part_size}" if self.part_size else ""
        return f"{self.algorithm}{parts}:{self.value.hex()}"

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """The checksum that `str` wrote; raises ValueError for anything else."""
        name, _, value = text.partition(":")
        algorithm, _, part_size = name.partition("/")
        checksum = cls(algorithm, bytes.fromhex(value), int(part_size or 0))
        if str(checksum) != text or not (algorithm and checksum.value) or checksum.part_size < 0:
            raise ValueError(f"no checksum: {text[:80]!r}")
        return checksum


async def _none_known() -> Checksum | None:
    return None


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """One object to fetch.

    `sign` is called just before each attempt; `label` names the object in logs; `on_progress` gets every number of
    new bytes (negative when an attempt starts again). `expected` asks for the store's own checksum of this version,
    None where it has none; the answer is remembered, so it may be called often.
    """

    entry: ObjectEntry
    task: TaskIdentity
    sign: Callable[[], Awaitable[SignedUrl]]
    label: str
    on_progress: Callable[[int], None] = lambda _count: None
    expected: Callable[[], Awaitable[Checksum | None]] = _none_known


FileIdentity = tuple[int, int, int, int]
"""A file's device, inode, size and mtime in nanoseconds: while they are the same, so are its bytes."""


def file_identity(file: os.stat_result) -> FileIdentity:
    """What a file that was not touched keeps: device, inode, size in bytes, time of change in nanoseconds."""
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns


class Source(str, Enum):
    """Where an object's bytes came from, in Dragonfly's own word; `unknown` where it can't tell."""

    COLD = "cold"
    REMOTE = "remote"
    LOCAL = "local"
    DIRECT = "direct"
    JOINED = "joined"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes by the piece traffic that Dragonfly reported (BACK_TO_SOURCE, REMOTE_PEER, LOCAL_PEER)."""

    origin: int = 0
    remote_peer: int = 0
    local_peer: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.origin + other.origin,
            self.remote_peer + other.remote_peer,
            self.local_peer + other.local_peer,
        )


@dataclass(frozen=True, slots=True)
class Detour:
    """A way that an object was to come by and did not: `why` is the error's message."""

    tried: str
    then: str
    why: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a transport brought: `path` is its own partial file (None where it only warmed a peer's cache).

    The file may be the P2P cache's inode: it may be renamed, linked or unlinked, never opened for writing and never
    chmod-ed. Seconds are of the attempt that succeeded.

    `computed` is the checksum of the bytes as they were written, where the transport saw them pass, and `written_as`
    the `file_identity` of the file that they went into, by its descriptor; `told` is the store's own checksum in the
    answer that they came in, set only where no peer stood between. `verified` is the store's checksum that the file
    agrees with, None where there is none to agree with; `verified_as` is the file's `file_identity` then, because
    others may write to what is linked. `detours` are what was tried before.
    """

    path: Path | None
    transport: str
    source: Source
    traffic: Traffic
    sign_seconds: float
    fetch_seconds: float
    attempts: int = 1
    computed: Checksum | None = None
    written_as: FileIdentity | None = None
    told: Checksum | None = None
    verified: Checksum | None = None
    verified_as: FileIdentity | None = None
    verify_seconds: float = 0.0
    detours: tuple[Detour, ...] = ()
