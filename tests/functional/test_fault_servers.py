"""Every fault of the fault-injecting servers does on the wire what its name says, and is noted only when it did."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from dragonfly_api import dfdaemon_pb2, dfdaemon_pb2_grpc

from tests.servers.fault_answers import CHANGES, WRITERS
from tests.servers.fault_objects import CHECKSUMS, PART, Version
from tests.servers.fault_origin import FaultOrigin
from tests.servers.fault_peer import FaultPeer
from tests.servers.fault_plan import FOREVER, Fault

KEY = "repo/net/1/weights.bin"
BODY = os.urandom(1 << 10)
# A pool of its own: gRPC's common one goes on for a second saying that the peer is dead.
CHANNEL = (("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1))
SIGNED = "X-Amz-Signature=5ec7e7"


@dataclass
class Seen:
    """What a plain client saw: `end` is "fin", "rst" or "silence"."""

    status: int
    headers: dict[str, str]
    body: bytes
    end: str


async def ask(url: str, target: str, method: str = "GET", most: int = 1 << 20, /, **headers: str) -> Seen:
    """One request; reads until the connection ends, a while passes without a byte, or `most` bytes came."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    fields = {"Host": f"{host}:{port}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode())
    data, end = bytearray(), "fin"
    try:
        while len(data) < most and (chunk := await asyncio.wait_for(reader.read(1 << 16), 2)):
            data += chunk
    except ConnectionResetError:
        end = "rst"
    except asyncio.TimeoutError:
        end = "silence"
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return _seen(bytes(data), end)


def _seen(data: bytes, end: str) -> Seen:
    if not data.startswith(b"HTTP/1.1 "):
        return Seen(0, {}, data, end)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return Seen(int(first.split()[1]), {name.lower(): value for name, _, value in pairs}, body, end)


@pytest.fixture
async def origin() -> AsyncIterator[FaultOrigin]:
    async with FaultOrigin() as started:
        started.put(KEY, BODY)
        yield started


async def get(origin: FaultOrigin, span: str = "", **headers: str) -> Seen:
    etag = origin.versions[KEY][-1].etag
    ranged = {"Range": f"bytes={span}"} if span else {}
    fields = {"If_Match": etag, "Connection": "close", **ranged, **headers}
    return await ask(origin.url, f"/b/{KEY}?{SIGNED}", **fields)


# What a healthy store does


async def should_serve_ranges_and_versions(origin: FaultOrigin) -> None:
    whole = await get(origin)
    assert (whole.status, whole.body, whole.headers["etag"]) == (200, BODY, origin.versions[KEY][-1].etag)
    part = await get(origin, "10-19")
    assert (part.status, part.body, part.headers["content-range"]) == (206, BODY[10:20], "bytes 10-19/1024")
    assert (await get(origin, "1024-")).status == 416
    assert (await get(origin, If_Match='"other"')).status == 412
    old = origin.versions[KEY][-1].etag
    origin.put(KEY, b"new")
    assert (await get(origin, If_Match=old)).status == 412
    assert origin.content(KEY, old) == BODY
    assert (await ask(origin.url, f"/b/none?{SIGNED}", If_Match='"x"', Connection="close")).status == 404
    assert not origin.violations


async def should_note_what_is_not_pinned_or_not_signed(origin: FaultOrigin) -> None:
    await ask(origin.url, f"/b/{KEY}?{SIGNED}", Connection="close")
    assert origin.violations == [f"GET of {KEY} pins no version"]
    assert origin.signatures == {"5ec7e7"}
    await ask(origin.url, f"/b/{KEY}", If_Match='"x"', Connection="close")
    assert origin.violations[1:] == [f"GET of {KEY} is not signed"]


@pytest.mark.parametrize("kind", CHECKSUMS)
async def should_tell_checksums_as_s3_does(origin: FaultOrigin, kind: str) -> None:
    version = origin.put(KEY, os.urandom(PART + 5), kind)
    answer = await ask(
        origin.url,
        f"/b/{KEY}?{SIGNED}",
        "HEAD",
        If_Match=version.etag,
        Connection="close",
        x_amz_checksum_mode="ENABLED",
    )
    told = {name: value for name, value in answer.headers.items() if name.startswith("x-amz-checksum")}
    assert told == version.headers and answer.body == b""
    assert bool(told) == ("md5" not in kind and kind != "none")
    assert Version.of(version.data, kind, 1).etag == version.etag or "md5" not in kind


# Faults in an answer's bytes


async def should_send_what_the_name_of_a_change_says(origin: FaultOrigin) -> None:
    seen = {}
    for kind in CHANGES:
        origin.plan.add(Fault(kind, "get", amount=9))
        seen[kind] = await get(origin, "" if kind == "whole-as-part" else "0-511")
    assert [kind for kind, _, _ in origin.plan.log] == list(CHANGES)
    (different,) = (i for i in range(512) if seen["flipped-bit"].body[i] != BODY[i])
    assert (seen["flipped-bit"].body[different] ^ BODY[different]).bit_count() == 1
    assert seen["length-too-small"].headers["content-length"] == "502" and seen["length-too-small"].body == BODY[:512]
    assert seen["length-too-big"].headers["content-length"] == "522" and seen["length-too-big"].end == "fin"
    assert seen["range-offset"].headers["content-range"] == "bytes 10-521/1024"
    assert seen["range-total"].headers["content-range"] == "bytes 0-511/1034"
    assert (seen["whole-as-part"].status, seen["whole-as-part"].headers["content-range"]) == (206, "bytes 0-1023/1024")
    assert seen["html-page"].status == 200 and b"<html>" in seen["html-page"].body
    assert len(seen["html-page-of-same-size"].body) == 512 and b"<html>" in seen["html-page-of-same-size"].body
    assert gzip.decompress(seen["gzip-unasked"].body) == BODY[:512]
    assert seen["gzip-unasked"].headers["content-encoding"] == "gzip"


async def should_note_no_change_that_an_answer_can_not_have(origin: FaultOrigin) -> None:
    origin.put(KEY, b"")
    for kind in ("flipped-bit", "range-offset", "whole-as-part", "html-page-of-same-size", "length-too-big", "stall"):
        origin.plan.add(Fault(kind, "get"))
        answer = await get(origin)
        assert (answer.status, answer.body) == (200, b"")
        origin.plan.faults.clear()
    assert origin.plan.log == []


# Faults in the way an answer is written


async def should_break_connections_as_the_name_says(origin: FaultOrigin) -> None:
    seen = {}
    for kind in ("reset", "early-close", "broken-off", "early-close-without-length", "silence", "stall", "garbage"):
        origin.plan.add(Fault(kind, "get", amount=300))
        seen[kind] = await get(origin)
    assert len(origin.plan.log) == 7
    assert seen["reset"].end == "rst"
    assert (seen["early-close"].headers["content-length"], seen["early-close"].body) == ("1024", BODY[:300])
    assert (seen["broken-off"].body, seen["broken-off"].end) == (BODY[:300], "fin")
    bare = seen["early-close-without-length"]
    assert "content-length" not in bare.headers and (bare.body, bare.end) == (BODY[:300], "fin")
    assert (seen["silence"].status, seen["silence"].end) == (0, "silence")
    assert (seen["stall"].body, seen["stall"].end) == (BODY[:300], "silence")
    assert seen["garbage"].body == b"this is not HTTP\r\n\r\n"


async def should_be_slow_but_right(origin: FaultOrigin) -> None:
    for kind in ("slow-start", "trickle"):
        origin.plan.add(Fault(kind, "get", amount=30))
        assert (await get(origin)).body == BODY
    assert len(origin.plan.log) == 2


async def should_go_on_for_ever(origin: FaultOrigin) -> None:
    origin.plan.add(Fault("endless", "get", times=2))
    etag = origin.versions[KEY][-1].etag
    some = await ask(origin.url, f"/b/{KEY}?{SIGNED}", "GET", 1 << 20, If_Match=etag)
    assert "content-length" not in some.headers and len(some.body) > 1 << 19
    assert origin.swallowed == 0
    await ask(origin.url, f"/b/{KEY}?{SIGNED}", "GET", 1 << 30, If_Match=etag)
    assert origin.swallowed == 1, "a client without a limit is noticed"


async def should_refuse_connections_for_a_while(origin: FaultOrigin) -> None:
    origin.plan.add(Fault("refused", "get", amount=60_000))
    with suppress(ConnectionResetError):
        await get(origin)
    with pytest.raises(ConnectionRefusedError):
        await get(origin)
    await origin.end_faults()
    assert (await get(origin)).body == BODY


async def should_have_a_test_for_every_way_of_writing() -> None:
    broken = "reset refused broken-off silence stall early-close early-close-without-length garbage"
    assert set(WRITERS) == {*broken.split(), "slow-start", "trickle", "endless"}


# Faults that only a store can have


async def should_answer_wrongly_as_the_name_says(origin: FaultOrigin) -> None:
    seen = {}
    for kind in ("range-ignored", "other-bytes", "other-version", "redirect-elsewhere", "redirect-loop"):
        origin.plan.add(Fault(kind, "get", amount=3))
        seen[kind] = await get(origin, "100-199")
    assert len(origin.plan.log) == 5
    assert (seen["range-ignored"].status, seen["range-ignored"].body) == (200, BODY)
    assert seen["other-bytes"].headers["content-range"] == "bytes 100-199/1024"
    assert seen["other-bytes"].body != BODY[100:200] and seen["other-bytes"].body in BODY * 2
    assert seen["other-version"].headers["etag"] != origin.versions[KEY][-1].etag
    assert seen["other-version"].body != BODY[100:200]
    assert seen["redirect-elsewhere"].status == seen["redirect-loop"].status == 308
    assert seen["redirect-loop"].headers["location"].startswith(f"{origin.url}/b/{KEY}")
    elsewhere = seen["redirect-elsewhere"].headers["location"]
    assert not elsewhere.startswith(origin.url) and origin.trapped == []
    host, _, path = elsewhere.removeprefix("http://").partition("/")
    await ask(f"http://{host}", f"/{path}", Connection="close")
    assert [request.path for request in origin.trapped] == [f"/b/{KEY}"]


async def should_refuse_with_every_status(origin: FaultOrigin) -> None:
    for status in (403, 404, 412, 416, 429, 500, 502, 503):
        origin.plan.add(Fault(f"status-{status}", "get", amount=7))
        answer = await get(origin)
        assert answer.status == status and b"<Code>" in answer.body
        assert ("retry-after" in answer.headers) == (status in (429, 503))


async def should_fire_at_the_request_it_was_made_for(origin: FaultOrigin) -> None:
    origin.plan.add(Fault("status-403", "get", KEY, nth=2, times=FOREVER), Fault("status-500", "get", "another/key"))
    assert [(await get(origin)).status for _ in range(4)] == [200, 403, 403, 403]
    assert origin.plan.log == [("status-403", "get", KEY)] * 3


async def should_overwrite_in_the_middle(origin: FaultOrigin) -> None:
    origin.plan.add(Fault("overwrite", "get", KEY, nth=2, target=KEY, payload=b"new"))
    etag = origin.versions[KEY][-1].etag
    assert [(await get(origin, If_Match=etag)).status for _ in range(2)] == [200, 412]
    assert (await get(origin)).body == b"new"


async def should_break_listings_as_the_name_says(origin: FaultOrigin) -> None:
    for number in range(5):
        origin.put(f"repo/net/1/{number}", b"x")
    origin.page_size = 4
    target = "/b?list-type=2&prefix=repo%2F&encoding-type=url"
    first = await ask(origin.url, target, Connection="close")
    token = first.body.partition(b"<NextContinuationToken>")[2].partition(b"<")[0].decode()
    last = await ask(origin.url, f"{target}&continuation-token={token}", Connection="close")
    assert (first.body.count(b"<Key>"), last.body.count(b"<Key>")) == (4, 2)
    assert b"<IsTruncated>false" in last.body
    assert origin.listings == [{key: versions[-1].etag for key, versions in origin.versions.items()}]
    seen = {}
    for kind in ("list-cut-xml", "list-empty", "list-empty-body", "list-without-end"):
        origin.page_size = 1000
        origin.plan.add(Fault(kind, "list"))
        seen[kind] = (await ask(origin.url, target, Connection="close")).body
    assert len(origin.plan.log) == 4
    assert not seen["list-cut-xml"].endswith(b">") or b"</ListBucketResult>" not in seen["list-cut-xml"]
    assert b"<KeyCount>0</KeyCount>" in seen["list-empty"]
    assert seen["list-empty-body"] == b""
    assert b"<IsTruncated>true" in seen["list-without-end"]


# The peer


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[FaultPeer]:
    async with FaultPeer(tmp_path / "peer", piece_length=256, origin_timeout=1) as started:
        yield started


CONTENT = "s3://store/b/key?etag=1"
TASK = hashlib.sha256(CONTENT.encode()).hexdigest()


async def by_proxy(peer: FaultPeer, origin: FaultOrigin, **headers: str) -> Seen:
    etag = origin.versions[KEY][-1].etag
    return await ask(
        peer.proxy,
        f"{origin.url}/b/{KEY}?{SIGNED}",
        If_Match=etag,
        Connection="close",
        X_Dragonfly_Content_For_Calculating_Task_ID=CONTENT,
        **headers,
    )


async def should_proxy_as_dfdaemon_does(peer: FaultPeer, origin: FaultOrigin) -> None:
    cold = await by_proxy(peer, origin)
    assert (cold.status, cold.body, cold.headers["x-dragonfly-task-id"]) == (200, BODY, TASK)
    assert "x-dragonfly-task-download-finished" not in cold.headers
    assert [request.headers["range"] for request in origin.requests("get", KEY)] == [
        "bytes=0-0",
        *(f"bytes={start}-{start + 255}" for start in range(0, 1024, 256)),
    ]
    assert not origin.violations, "the pin and the signature go on to the origin"
    assert not any(name.startswith("x-dragonfly") for name in origin.requests("get", KEY)[0].headers)
    local = await by_proxy(peer, origin, Range="bytes=1000-")
    assert (local.status, local.body, local.headers["content-range"]) == (206, BODY[1000:], "bytes 1000-1023/1024")
    assert local.headers["x-dragonfly-task-download-finished"] == "true"
    assert len(origin.requests("get", KEY)) == 5, "a local hit asks nobody"


async def should_pass_on_an_origins_error_without_its_body(peer: FaultPeer, origin: FaultOrigin) -> None:
    for status in (403, 404, 412, 503):
        origin.plan.add(Fault(f"status-{status}", "get"))
        answer = await by_proxy(peer, origin)
        assert (answer.status, answer.body, answer.headers["x-dragonfly-error-type"]) == (status, b"", "backend")
    for kind in ("reset", "silence", "garbage"):
        origin.plan.add(Fault(kind, "get", amount=3))
        assert (await by_proxy(peer, origin)).status == 500
    assert (await by_proxy(peer, origin)).body == BODY


async def should_keep_what_the_origin_gave_wrongly(peer: FaultPeer, origin: FaultOrigin) -> None:
    origin.plan.add(Fault("flipped-bit", "get", nth=2, amount=8))
    wrong = (await by_proxy(peer, origin)).body
    assert wrong != BODY and (await by_proxy(peer, origin)).body == wrong
    assert peer.cache.delete(TASK) and not peer.cache.delete(TASK)
    assert (await by_proxy(peer, origin)).body == BODY


async def should_misbehave_as_a_proxy_can(peer: FaultPeer, origin: FaultOrigin) -> None:
    seen = {}
    faults = [
        *(Fault(f"error-{kind}", "proxy", amount=status) for kind, status in (("proxy", 500), ("dfdaemon", 403))),
        Fault("error-backend", "proxy", amount=502),
        Fault("status-429", "proxy", amount=1),
        Fault("other-task", "proxy"),
        Fault("forged-checksum", "proxy"),
        Fault("html-page", "proxy"),
        Fault("reset", "proxy", amount=200),
    ]
    for fault in faults:
        peer.plan.add(fault)
        seen[fault.kind] = await by_proxy(peer, origin)
    assert [kind for kind, _, _ in peer.plan.log] == [fault.kind for fault in faults]
    for kind, status in (("proxy", 500), ("dfdaemon", 403), ("backend", 502)):
        answer = seen[f"error-{kind}"]
        assert (answer.status, answer.body, answer.headers["x-dragonfly-error-type"]) == (status, b"", kind)
    assert (seen["status-429"].status, seen["status-429"].headers["retry-after"]) == (429, "1")
    assert seen["other-task"].headers["x-dragonfly-task-id"] not in ("", TASK)
    forged = seen["forged-checksum"]
    assert forged.body != BODY and forged.headers["etag"] == f'"{hashlib.md5(forged.body).hexdigest()}"'
    assert not any(name.startswith("x-dragonfly") for name in seen["html-page"].headers)
    assert seen["reset"].end == "rst"
    for kind in ("range-ignored", "range-as-200"):
        peer.plan.add(Fault(kind, "proxy"))
        answer = await by_proxy(peer, origin, Range="bytes=0-9")
        assert (answer.status, answer.body) == (200, BODY if kind == "range-ignored" else BODY[:10])
        assert ("content-range" in answer.headers) == (kind == "range-as-200")


@dataclass
class Streamed:
    """What a download's stream told."""

    messages: list[Any]
    code: grpc.StatusCode | None = None
    details: str = ""


async def by_grpc(
    peer: FaultPeer, origin: FaultOrigin, output: Path | None, force: bool = True, patience: float = 30
) -> Streamed:
    channel = grpc.aio.insecure_channel(f"unix:{peer.socket}", options=CHANNEL)
    async with channel:
        stub: Any = dfdaemon_pb2_grpc.DfdaemonDownloadStub(channel)  # type: ignore[no-untyped-call]
        request = dfdaemon_pb2.DownloadTaskRequest()
        request.download.url = f"{origin.url}/b/{KEY}?{SIGNED}"
        request.download.content_for_calculating_task_id = CONTENT
        request.download.request_header["If-Match"] = origin.versions[KEY][-1].etag
        request.download.force_hard_link = force
        if output:
            request.download.output_path = str(output)
        got = Streamed([])
        try:
            async for message in stub.DownloadTask(request, timeout=patience):
                got.messages.append(message)
        except grpc.aio.AioRpcError as exc:
            got.code, got.details = exc.code(), exc.details() or ""
        return got


async def should_link_from_the_cache_as_dfdaemon_does(peer: FaultPeer, origin: FaultOrigin, tmp_path: Path) -> None:
    got = await by_grpc(peer, origin, tmp_path / "out")
    started, *pieces = got.messages
    assert got.code is None and started.task_id == TASK
    assert started.download_task_started_response.content_length == 1024
    assert [message.download_piece_finished_response.piece.length for message in pieces] == [256] * 4
    assert {message.download_piece_finished_response.piece.traffic_type for message in pieces} == {0}
    assert (tmp_path / "out").samefile(peer.cache.tasks[TASK].path) and (tmp_path / "out").read_bytes() == BODY
    again = await by_grpc(peer, origin, tmp_path / "out2")
    assert again.messages[0].download_task_started_response.is_finished
    assert {message.download_piece_finished_response.piece.traffic_type for message in again.messages[1:]} == {2}
    (tmp_path / "out3").write_bytes(b"mine")
    refused = await by_grpc(peer, origin, tmp_path / "out3")
    assert (refused.code, refused.details) == (grpc.StatusCode.INTERNAL, "File exists (os error 17)")
    assert (await by_grpc(peer, origin, tmp_path / "no/out")).details == "No such file or directory (os error 2)"
    assert (await by_proxy(peer, origin)).headers["x-dragonfly-task-download-finished"] == "true"
    assert peer.cache.damage() == []


async def should_notice_what_others_do_to_its_cache(peer: FaultPeer, origin: FaultOrigin, tmp_path: Path) -> None:
    got = await by_grpc(peer, origin, tmp_path / "out")
    assert got.code is None, got.details
    (tmp_path / "out").chmod(0o600)
    assert "was changed" in peer.cache.damage()[0]
    peer.cache.clear()
    await by_grpc(peer, origin, tmp_path / "out2")
    with (tmp_path / "out2").open("r+b") as file:
        file.write(b"overwritten")
    assert len(peer.cache.damage()) == 2
    peer.cache.tasks[TASK].path.unlink()
    (peer.cache.folder / "foreign").touch()
    assert [line.partition(" ")[2] for line in peer.cache.damage()] == ["is gone", "was added"]


async def should_refuse_downloads_as_the_name_says(peer: FaultPeer, origin: FaultOrigin, tmp_path: Path) -> None:
    expected = {
        "resource-exhausted": ("RESOURCE_EXHAUSTED", "overloaded"),
        "unavailable": ("UNAVAILABLE", "refused"),
        "internal": ("INTERNAL", "piece"),
        "no-space": ("INTERNAL", "No space left on device"),
        "no-space-for-task": ("INTERNAL", "no space left on device"),
        "error-backend": ("INTERNAL", "backend error: 403"),
        "link-exdev": ("INTERNAL", "Invalid cross-device link"),
        "link-exists": ("INTERNAL", "File exists"),
        "link-missing": ("INTERNAL", "No such file"),
        "unavailable-midway": ("UNAVAILABLE", "closing"),
        "stall": ("DEADLINE_EXCEEDED", ""),
        "silence": ("DEADLINE_EXCEEDED", ""),
        "late-file": ("INTERNAL", "failed"),
    }
    for kind, (code, details) in expected.items():
        peer.plan.add(Fault(kind, "download", amount=403))
        got = await by_grpc(peer, origin, tmp_path / kind, patience={"silence": 0.5, "stall": 5}.get(kind, 30))
        assert got.code is not None and got.code.name == code and details in got.details, kind
        assert bool(got.messages) == (kind in ("unavailable-midway", "stall", "late-file"))
    assert [kind for kind, _, _ in peer.plan.log] == list(expected)
    await peer.end_faults()
    assert (tmp_path / "late-file").read_bytes() == b"late"


async def should_deliver_what_is_not_the_object(peer: FaultPeer, origin: FaultOrigin, tmp_path: Path) -> None:
    files = {}
    kinds = ("ends-early", "no-file", "wrong-size", "flipped-bit", "wrong-size-told", "other-task", "piece-twice")
    for kind in (*kinds, "link-with-holes", "corrupt-cache"):
        peer.cache.delete(TASK)
        peer.plan.add(Fault(kind, "download", amount=100))
        got = await by_grpc(peer, origin, tmp_path / kind)
        assert got.code is None, kind
        files[kind] = (tmp_path / kind).read_bytes() if (tmp_path / kind).exists() else None
        started, *pieces = got.messages
        assert (started.task_id == TASK) == (kind != "other-task")
        assert (started.download_task_started_response.content_length == 1024) == (kind != "wrong-size-told")
        assert len(pieces) == {"ends-early": 0, "piece-twice": 8}.get(kind, 4)
    assert {kind for kind, _, _ in peer.plan.log} == set(files)
    assert files["ends-early"] == bytes(1024)
    assert files["no-file"] is None and files["wrong-size"] == BODY[:100]
    assert files["wrong-size-told"] == files["other-task"] == files["piece-twice"] == BODY
    assert files["link-with-holes"] == BODY[:100] + bytes(924)
    for kind in ("flipped-bit", "corrupt-cache"):
        assert len(files[kind] or b"") == 1024 and files[kind] != BODY
    assert (await by_proxy(peer, origin)).body == files["corrupt-cache"], "it stays until it is deleted"
    assert peer.cache.damage() == []


async def should_copy_what_it_can_not_link(peer: FaultPeer, origin: FaultOrigin, tmp_path: Path) -> None:
    peer.plan.add(Fault("link-exdev", "download"))
    assert (await by_grpc(peer, origin, tmp_path / "out", force=False)).code is None
    assert (tmp_path / "out").read_bytes() == BODY and (tmp_path / "out").stat().st_nlink == 1


async def should_die_and_come_back_with_its_cache(peer: FaultPeer, origin: FaultOrigin, tmp_path: Path) -> None:
    await by_proxy(peer, origin)
    for op in ("proxy", "download"):
        peer.plan.add(Fault("peer-dies", op, amount=60_000))
        if op == "proxy":
            assert (await by_proxy(peer, origin)).end == "rst"
        else:
            assert (await by_grpc(peer, origin, None)).code is not None
        with pytest.raises(ConnectionRefusedError):
            await by_proxy(peer, origin)
        assert (await by_grpc(peer, origin, None)).code is grpc.StatusCode.UNAVAILABLE
        await peer.end_faults()
        assert (await by_proxy(peer, origin)).headers["x-dragonfly-task-download-finished"] == "true"
        assert (await by_grpc(peer, origin, tmp_path / op)).code is None


async def should_tell_and_delete_tasks(peer: FaultPeer, origin: FaultOrigin) -> None:
    channel = grpc.aio.insecure_channel(f"unix:{peer.socket}", options=CHANNEL)
    async with channel:
        stub: Any = dfdaemon_pb2_grpc.DfdaemonDownloadStub(channel)  # type: ignore[no-untyped-call]
        question = dfdaemon_pb2.StatLocalTaskRequest(task_id=TASK)
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.StatLocalTask(question)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        peer.plan.add(Fault("lies-here", "stat"))
        assert (await stub.StatLocalTask(question)).HasField("finished_at")
        await by_proxy(peer, origin)
        assert (await stub.StatLocalTask(question)).HasField("finished_at")
        peer.plan.add(Fault("internal", "delete"))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.DeleteLocalTask(dfdaemon_pb2.DeleteLocalTaskRequest(task_id=TASK))
        assert peer.cache.deleted == []
        await stub.DeleteTask(dfdaemon_pb2.DeleteTaskRequest(task_id=TASK))
    assert peer.cache.deleted == [TASK] and not list(peer.cache.folder.iterdir())
    assert len(peer.plan.log) == 2
