"""An S3 server that misbehaves on demand: lists with pages, HEAD, GET with ranges and If-Match, versions, faults.

It checks no signatures, but notes every signed value that it sees, every GET that pins no version (`violations`), and
whatever arrives at the other host that it redirects to (`trapped`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from urllib.parse import parse_qs

from tests.servers.fault_answers import CHANGES, WRITERS, Exchange, send_with_fault
from tests.servers.fault_objects import PART, Version, error_xml, listing_xml
from tests.servers.fault_plan import Fault, FaultPlan
from tests.servers.fault_wire import Answer, Listener, Request, read_request

_REASONS = {
    403: ("AccessDenied", "no"),
    404: ("NoSuchKey", "no such key"),
    412: ("PreconditionFailed", "another version"),
    416: ("InvalidRange", "not satisfiable"),
    429: ("TooManyRequests", "slow down"),
    500: ("InternalError", "we encountered an error"),
    502: ("BadGateway", "bad gateway"),
    503: ("SlowDown", "reduce your request rate"),
}


@dataclass(frozen=True)
class Asked:
    """A request as the store understands it: `op` is list, head or get; a list's key is its prefix."""

    op: str
    bucket: str
    key: str
    request: Request
    params: dict[str, str]


@dataclass
class FaultOrigin:
    """`async with FaultOrigin() as origin`: a store at `origin.url`; `plan` holds its faults.

    `listings` are the complete listings that it gave, key → ETag. `page_size` is objects a page.
    """

    page_size: int = 1000
    plan: FaultPlan = field(default_factory=FaultPlan)
    asked: list[Asked] = field(default_factory=list)
    listings: list[dict[str, str]] = field(default_factory=list)
    signatures: set[str] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)
    trapped: list[Request] = field(default_factory=list)
    versions: dict[str, list[Version]] = field(default_factory=dict)
    _checksums: dict[str, str] = field(default_factory=dict)
    _page: dict[str, str] = field(default_factory=dict)
    _listener: Listener = field(init=False)
    _trap: Listener = field(init=False)

    async def __aenter__(self) -> FaultOrigin:
        self._listener, self._trap = Listener(self._serve), Listener(self._catch)
        await self._listener.open()
        await self._trap.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._listener.close()
        await self._trap.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.port}"

    @property
    def connections(self) -> int:
        return self._listener.connections

    @property
    def swallowed(self) -> int:
        return self._listener.swallowed

    async def end_faults(self) -> None:
        """The store is well from now on."""
        self.plan.faults.clear()
        await self._listener.revive()

    def start_anew(self) -> None:
        """Forgets content, requests and faults."""
        self.plan.clear()
        for kept in (self.asked, self.listings, self.violations, self.trapped):
            kept.clear()
        self.signatures.clear()
        self.versions.clear()
        self._page = {}

    def put(self, key: str, data: bytes, checksum: str = "") -> Version:
        """A new version of the object; without a `checksum` it gets the kind that the one before had."""
        history = self.versions.setdefault(key, [])
        self._checksums[key] = checksum or self._checksums.get(key, "crc32")
        history.append(Version.of(data, self._checksums[key], len(history)))
        return history[-1]

    def content(self, key: str, etag: str) -> bytes | None:
        """The bytes of one version, None where there never was such one."""
        return next((version.data for version in self.versions.get(key, ()) if version.etag == etag), None)

    def requests(self, op: str, key: str) -> list[Request]:
        return [asked.request for asked in self.asked if (asked.op, asked.key) == (op, key)]

    async def _catch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        if request:
            self.trapped.append(request)
            writer.write(Answer(200, {"Connection": "close"}, b"caught").encode())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        exchange = Exchange(reader, writer, self._listener)
        while request := await read_request(reader):
            if not await self._answer(exchange, self._understand(request)) or request.is_last:
                return

    def _understand(self, request: Request) -> Asked:
        bucket, _, key = request.path.removeprefix("/").partition("/")
        params = {name: values[0] for name, values in parse_qs(request.query, keep_blank_values=True).items()}
        op = "list" if not key else request.method.lower()
        asked = Asked(op, bucket, key or params.get("prefix", ""), request, params)
        self.asked.append(asked)
        self.signatures.update(value for name, value in params.items() if name.lower() == "x-amz-signature")
        _, signed, signature = request.headers.get("authorization", "").partition("Signature=")
        self.signatures.update([signature] if signed else [])
        if key and "if-match" not in request.headers:
            self.violations.append(f"{request.method} of {key} pins no version")
        if key and not signed and "X-Amz-Signature" not in params:
            self.violations.append(f"{request.method} of {key} is not signed")
        return asked

    async def _answer(self, exchange: Exchange, asked: Asked) -> bool:
        fault = self.plan.take(asked.op, asked.key)
        if fault and fault.kind == "overwrite":
            self.put(fault.target or asked.key, fault.payload)
            self.plan.fire(fault, asked.op, asked.key)
            fault = None
        answer = self._list(asked, fault) if asked.op == "list" else self._object(asked)
        if fault is None:
            return await exchange.send(answer)
        if fault.kind in CHANGES or fault.kind in WRITERS:
            return await send_with_fault(exchange, answer, fault, lambda: self.plan.fire(fault, asked.op, asked.key))
        wrong = self._wrong(asked, answer, fault)
        if wrong is not None:
            self.plan.fire(fault, asked.op, asked.key)
        return await exchange.send(wrong or answer)

    def _list(self, asked: Asked, fault: Fault | None) -> Answer:
        last = bytes.fromhex(asked.params.get("continuation-token", "")).decode()
        keys = [key for key in sorted(self.versions) if key.startswith(asked.key) and key > last]
        size = min(self.page_size, int(asked.params.get("max-keys", "1000")))
        page = [(key, self.versions[key][-1]) for key in keys[:size]]
        token = page[-1][0].encode().hex() if len(keys) > size else ""
        if "max-keys" not in asked.params:
            self._page = {**(self._page if last else {}), **{key: version.etag for key, version in page}}
            if not token:
                self.listings.append(self._page)
        return Answer(200, {"Content-Type": "application/xml"}, listing_xml(asked.bucket, asked.key, page, token))

    def _object(self, asked: Asked) -> Answer:
        history = self.versions.get(asked.key)
        has_body = asked.op == "get"
        if not history:
            return refusal(404, has_body)
        version, request = history[-1], asked.request
        if request.headers.get("if-match", version.etag).strip('"') != version.etag.strip('"'):
            return refusal(412, has_body)
        headers = {"ETag": version.etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if asked.params.get("partNumber"):
            return self._part(version, headers, has_body)
        span = request.range
        if span is None:
            told = version.headers if request.headers.get("x-amz-checksum-mode") == "ENABLED" else {}
            return Answer(200, {**headers, **told}, version.data, has_body)
        first, last = span[0], min(span[1], len(version.data) - 1)
        if first > last:
            return refusal(416, has_body)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(version.data)}"
        return Answer(206, headers, version.data[first : last + 1], has_body)

    def _part(self, version: Version, headers: dict[str, str], has_body: bool) -> Answer:
        body = version.data[:PART] if version.parts else version.data
        headers |= {"Content-Range": f"bytes 0-{len(body) - 1}/{len(version.data)}", **version.headers}
        if version.parts:
            headers["x-amz-mp-parts-count"] = str(version.parts)
        return Answer(206, headers, body, has_body)

    def _wrong(self, asked: Asked, answer: Answer, fault: Fault) -> Answer | None:
        """The answer with a fault that only a store can have; None where this answer can't have it."""
        if fault.kind.startswith("status-"):
            return refusal(int(fault.kind.removeprefix("status-")), asked.op != "head", retry_after=fault.amount)
        if fault.kind.startswith("redirect-"):
            port = self._trap.port if fault.kind == "redirect-elsewhere" else self._listener.port
            location = f"http://127.0.0.1:{port}{asked.request.target}"
            return Answer((301, 302, 307, 308)[fault.amount % 4], {"Location": location}, has_body=asked.op != "head")
        if asked.op == "list":
            # An empty page after others is one that S3 may give: what it hides, nobody can know.
            is_later = fault.kind == "list-empty" and "continuation-token" in asked.params
            return None if is_later else _LIST_FAULTS[fault.kind](answer)
        history = self.versions.get(asked.key)
        return _OBJECT_FAULTS[fault.kind](answer, history[-1], fault) if history and answer.status < 300 else None


def refusal(status: int, has_body: bool = True, retry_after: int = -1) -> Answer:
    """An S3 error; `retry_after` in seconds where that makes sense."""
    headers = {"Content-Type": "application/xml"}
    if status in (429, 503) and retry_after >= 0:
        headers["Retry-After"] = str(retry_after)
    return Answer(status, headers, error_xml(*_REASONS[status]) if has_body else b"", has_body)


def _cut(answer: Answer) -> Answer:
    return replace(answer, body=answer.body[: len(answer.body) * 2 // 3])


def _empty_list(answer: Answer) -> Answer:
    name = answer.body.partition(b"<Name>")[2].partition(b"</Name>")[0].decode()
    return replace(answer, body=listing_xml(name, "", (), ""))


def _repeats_token(answer: Answer) -> Answer | None:
    if b"<IsTruncated>true" in answer.body:
        return None
    more = b"<IsTruncated>true</IsTruncated><NextContinuationToken></NextContinuationToken>"
    return replace(answer, body=answer.body.replace(b"<IsTruncated>false</IsTruncated>", more))


_LIST_FAULTS: dict[str, Callable[[Answer], Answer | None]] = {
    "list-cut-xml": _cut,
    "list-empty": _empty_list,
    "list-empty-body": lambda answer: replace(answer, body=b""),
    "list-without-end": _repeats_token,
}


def _ignores_range(answer: Answer, version: Version, _fault: Fault) -> Answer | None:
    if answer.status != 206 or not answer.has_body:
        return None
    headers = {name: value for name, value in answer.headers.items() if name != "Content-Range"}
    return Answer(200, headers, version.data)


def _other_bytes(answer: Answer, version: Version, fault: Fault) -> Answer | None:
    """The headers of the range that was asked for, the bytes of another one."""
    size, total = len(answer.body), len(version.data)
    if answer.status != 206 or not answer.has_body or size == total:
        return None
    doubled = version.data * 2
    start = (version.data.find(answer.body) + 1 + fault.amount % (total - 1)) % total
    other = doubled[start : start + size]
    return replace(answer, body=other) if other != answer.body else None


def _other_version(answer: Answer, version: Version, fault: Fault) -> Answer | None:
    """New bytes under a new ETag, as if nobody had asked for a version."""
    if not answer.body or not answer.has_body:
        return None
    seed = hashlib.sha256(version.data + bytes([fault.amount % 256])).digest()
    body = (seed * (len(answer.body) // len(seed) + 1))[: len(answer.body)]
    return replace(answer, headers={**answer.headers, "ETag": f'"{seed.hex()[:32]}"'}, body=body)


def _without_checksum(answer: Answer, _version: Version, _fault: Fault) -> Answer | None:
    kept = {name: value for name, value in answer.headers.items() if not name.startswith("x-amz-checksum")}
    return replace(answer, headers=kept) if kept != answer.headers else None


_OBJECT_FAULTS: dict[str, Callable[[Answer, Version, Fault], Answer | None]] = {
    "range-ignored": _ignores_range,
    "other-bytes": _other_bytes,
    "other-version": _other_version,
    "without-checksum": _without_checksum,
}
