"""dfdaemon's gRPC errors, with the details that it sends, as ours."""

from __future__ import annotations

import json

import grpc
import pytest

from dfagent.errors import (
    Changed,
    ConnectFailed,
    DfagentError,
    NoHardLink,
    NotFound,
    OriginStatus,
    Overloaded,
    PeerUnavailable,
    SignedUrlExpired,
    StoreUnavailable,
)
from dfagent.transports.dfdaemon_client import link_error, peer_error

SECRET = "X-Amz-Signature=0123456789abcdef"


def failure(code: grpc.StatusCode, details: str = "", backend: object = None) -> grpc.aio.AioRpcError:
    """A call's error, and what dfdaemon puts beside it for an error of the origin."""
    raw = backend if isinstance(backend, bytes) else json.dumps(backend).encode()
    trailing = grpc.aio.Metadata(*([] if backend is None else [("grpc-status-details-bin", raw)]))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=details)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (403, SignedUrlExpired),
        (404, NotFound),
        (412, Changed),
        (416, OriginStatus),
        (500, OriginStatus),
        (503, Overloaded),
    ],
)
def should_tell_the_origins_error_by_its_status(status: int, expected: type[DfagentError]) -> None:
    error = peer_error("net/1/w", failure(grpc.StatusCode.INTERNAL, backend={"status_code": status}), heard=True)
    assert type(error) is expected
    assert error.message.startswith("net/1/w: ") and str(status) in error.message


@pytest.mark.parametrize(
    "text",
    [
        "no space left on device: not enough space to store the task: content_length=9",
        "No space left on device (os error 28)",
        "IO error: No space left on device: While appending to file: /d/metadata/000004.log",
    ],
)
def should_fall_back_when_dfdaemons_own_disk_is_full(text: str) -> None:
    error = peer_error("net/1/w", failure(grpc.StatusCode.INTERNAL, text), heard=True)
    assert type(error) is PeerUnavailable and "no room" in error.message and text in error.message


def should_wait_as_long_as_the_busy_store_told_dfdaemon() -> None:
    for headers, expected in (
        ({"Retry-After": "7"}, 7),
        ({"retry-after": "7"}, 7),
        ({}, None),
        ({"retry-after": "x"}, None),
    ):
        backend = {"status_code": 503, "header": headers}
        error = peer_error("net/1/w", failure(grpc.StatusCode.INTERNAL, backend=backend), heard=True)
        assert isinstance(error, Overloaded) and error.retry_after == expected
    odd = {"status_code": 503, "header": ["retry-after"]}
    assert isinstance(peer_error("x", failure(grpc.StatusCode.INTERNAL, backend=odd), heard=True), Overloaded)


@pytest.mark.parametrize("backend", [{"status_code": None}, {"status_code": 0, "message": "dns"}])
def should_say_that_the_origin_was_not_reached(backend: object) -> None:
    error = peer_error("x", failure(grpc.StatusCode.INTERNAL, "no route", backend), heard=True)
    assert isinstance(error, StoreUnavailable) and "no route" in error.message


@pytest.mark.parametrize("backend", [None, b"\xff\x00 no json", b"[404]", {"other": 1}])
def should_call_anything_else_the_peers_own_failure(backend: object) -> None:
    error = peer_error("x", failure(grpc.StatusCode.INTERNAL, "file exists", backend), heard=True)
    assert isinstance(error, PeerUnavailable) and "INTERNAL: file exists" in error.message


def should_tell_a_peer_that_is_not_there_from_one_that_went_away() -> None:
    gone = failure(grpc.StatusCode.UNAVAILABLE, "socket closed")
    before, after = peer_error("x", gone, heard=False), peer_error("x", gone, heard=True)
    assert isinstance(before, ConnectFailed) and before.retryable and "`socket`" in before.hint
    assert isinstance(after, PeerUnavailable) and "in the middle" in after.message


def should_know_that_a_busy_peer_means_later() -> None:
    error = peer_error("x", failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded"), heard=False)
    assert isinstance(error, Overloaded) and error.retryable


@pytest.mark.parametrize(
    "text",
    ["Invalid cross-device link (os error 18)", "No such file or directory (os error 2)", "… (os error 30)"],
)
def should_know_that_a_link_can_not_be_made(text: str) -> None:
    error = link_error("net/1/w", failure(grpc.StatusCode.INTERNAL, text), forced=True)
    assert isinstance(error, NoHardLink) and not error.retryable
    assert text in error.message and "path_map" in error.hint and "one mount" in error.hint
    copying = link_error("net/1/w", failure(grpc.StatusCode.INTERNAL, text), forced=False)
    assert type(copying) is PeerUnavailable and text in copying.message and "path_map" in copying.hint


@pytest.mark.parametrize("text", ["", "No space left on device (os error 28)", "task 18 not found", "File exists"])
def should_not_take_another_failure_for_a_link_that_can_not_be_made(text: str) -> None:
    assert link_error("net/1/w", failure(grpc.StatusCode.INTERNAL, text), forced=True) is None


@pytest.mark.parametrize("code", list(grpc.StatusCode))
@pytest.mark.parametrize("backend", [None, {"status_code": None}, {"status_code": 404}])
def should_never_tell_the_signature_that_dfdaemon_quotes(code: grpc.StatusCode, backend: object) -> None:
    error = peer_error("x", failure(code, f"error sending (https://h/k?a=(b)&{SECRET}): no", backend), heard=True)
    assert SECRET not in f"{error} {error!r}"
