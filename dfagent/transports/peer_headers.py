"""What a peer's HTTP proxy is told and what it answers: today's dfdaemon, and the Go daemon that was before it.

The Go daemon (`dfget daemon` of Dragonfly 2.0 and 2.1, port 65001) knows no content id: it names a task by the URL
without the filtered parameters, the range, the tag and the application. So the version of the object goes into the
tag, and a range is never asked for: each would be a task of its own that no other node shares, 2.0's answers make up a
total size (the range's end), and a range past the end is answered by 206 and nothing. All of it comes from its cache.
For today's dfdaemon the tag is a label of its metrics, which must not have a value for every object.
"""

from __future__ import annotations

from collections.abc import Mapping

from dfagent.errors import DfagentError, PeerUnavailable
from dfagent.transports.options import RequestOptions, check_task_id
from dfagent.types import FetchRequest, SignedUrl

TASK_ID = "X-Dragonfly-Task-Id"
FINISHED = "X-Dragonfly-Task-Download-Finished"
ERROR_TYPE = "X-Dragonfly-Error-Type"
LEGACY_TASK = "X-Dragonfly-Task"
LEGACY_PEER = "X-Dragonfly-Peer"


def request_headers(
    options: RequestOptions, request: FetchRequest, signed: SignedUrl, *, legacy: bool | None
) -> dict[str, str]:
    """All headers of a GET through the peer but a range; None speaks to today's dfdaemon and lets the other answer."""
    headers = _common(options)
    if legacy:
        own = options.dragonfly_headers()
        tag = next((value for name, value in own.items() if name.lower() == "x-dragonfly-tag"), options.tag)
        ours = {
            "X-Dragonfly-Filter": "&".join(options.filters_for(signed)),
            "X-Dragonfly-Tag": f"{tag}-{request.task.id}" if tag else request.task.id,
        }
        names = {name.lower() for name in ours}
        headers = {**headers, **{name: value for name, value in own.items() if name.lower() not in names}, **ours}
    else:
        ours = {
            "X-Dragonfly-Use-P2P": "true",
            "X-Dragonfly-Filtered-Query-Params": ",".join(options.filters_for(signed)),
            "X-Dragonfly-Content-For-Calculating-Task-ID": request.task.content,
        }
        if legacy is None:
            # Its answer to these words is thrown away, but without the filter each signature would be a new task of
            # its own: every run would cost the origin one more download.
            ours["X-Dragonfly-Filter"] = "&".join(options.filters_for(signed))
        if options.tag:
            ours["X-Dragonfly-Tag"] = options.tag
        if options.piece_length is not None:
            ours["X-Dragonfly-Piece-Length"] = f"{options.piece_length}b"
        headers = {**headers, **ours, **options.dragonfly_headers()}
    return {**headers, **options.origin_headers(request, signed)}


def _common(options: RequestOptions) -> dict[str, str]:
    headers = {}
    if options.application:
        headers["X-Dragonfly-Application"] = options.application
    if options.priority is not None:
        headers["X-Dragonfly-Priority"] = str(options.priority)
    return headers


def is_legacy(answer: Mapping[str, str]) -> bool | None:
    """Which of the two answered; None where nothing tells."""
    if TASK_ID in answer or ERROR_TYPE in answer:
        return False
    return True if LEGACY_TASK in answer and LEGACY_PEER in answer else None


def check_peer(request: FetchRequest, answer: Mapping[str, str], *, legacy: bool) -> None:
    """Refuses bytes of a peer that does not say that they are the task that we mean."""
    if not legacy:
        check_task_id(request, answer.get(TASK_ID, ""))
    elif is_legacy(answer) is False:
        raise PeerUnavailable(
            f"{request.label}: the peer is not the legacy daemon that the settings say, but today's dfdaemon",
            hint="leave the setting out: dfagent finds out by itself",
        )
    elif is_legacy(answer) is None:
        raise PeerUnavailable(
            f"{request.label}: the legacy daemon passed the request on to the store instead of fetching it as a task",
            hint="its `proxy.proxies` need a rule (`regx`) that matches the store's URLs; leave `legacy` out where the "
            "peer is today's dfdaemon",
        )


def peer_error(request: FetchRequest, status: int, answer: Mapping[str, str], *, legacy: bool) -> DfagentError | None:
    """The peer's own failure; None where the status is the origin's."""
    if is_legacy(answer) is True and legacy:
        return None
    kind = answer.get(ERROR_TYPE, "")
    if kind in ("proxy", "dfdaemon"):
        return PeerUnavailable(
            f"{request.label}: the Dragonfly peer failed with {status} ({kind} error)",
            hint="dfdaemon's log on this node has the reason",
        )
    if kind or (TASK_ID in answer and not legacy):
        return None
    if legacy:
        return PeerUnavailable(
            f"{request.label}: the legacy Dragonfly daemon failed with {status}",
            hint="the daemon's log on this node has the reason",
        )
    return PeerUnavailable(
        f"{request.label}: what answers at the proxy's address is not dfdaemon: {status}",
        hint="is `proxy` in dragonfly_config.json the address of dfdaemon's proxy (often port 4001)?",
    )
