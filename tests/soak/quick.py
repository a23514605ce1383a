"""Makes a pass cheap enough for ten thousand: clients that are built once, pauses of milliseconds, small portions.

Nothing that decides about bytes is changed. Building a boto3 client takes longer than ten passes, its pauses between
attempts are seconds, and dfdaemon's limit of 4 MiB would need models of many.
"""

from __future__ import annotations

import time
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import botocore.endpoint

from dfagent.stores import patience, s3_client
from dfagent.transports import fallback
from dfagent.transports.options import Timeouts
from dfagent.transports.retrying import RetryPolicy
from dfagent.ways import Tuning
from tests.soak.schedule import BLOCK, RANGE, SMALL

TUNING = Tuning(
    block_size=BLOCK,
    range_size=RANGE,
    retries=RetryPolicy(overloaded_attempts=6, first_pause=0.005, longest_pause=0.05),
    peer_retries=RetryPolicy(
        attempts=2, overloaded_attempts=4, first_pause=0.005, longest_pause=0.05, after_stall=False
    ),
)
IMPATIENT = Timeouts(connect=0.5, stall=0.3)
PATIENT = Timeouts(connect=10.0, stall=10.0)
_LONGEST_SDK_PAUSE = 0.02


_CLIENTS: list[Any] = []


def close_clients(endpoint: str) -> None:
    """Closes the kept clients of a store: a HEAD that was given up may have used one after the product closed it."""
    for client in _CLIENTS:
        if client.meta.endpoint_url == endpoint:
            client.close()


def make_quick() -> None:
    """Changes this process, once and for good."""
    original: Any = s3_client.connect
    if hasattr(original, "cache_info"):
        return
    # One client for each store and timeout, one session for all: the product closes a client, which can be used again.
    session: Any = s3_client._session
    s3_client._session = lru_cache(8)(session)

    @lru_cache(64)
    def connect(*arguments: Any) -> s3_client.Connection:
        made: s3_client.Connection = original(*arguments)
        _CLIENTS.append(made.client)
        return made

    s3_client.connect = connect
    # The SDK calls `time.sleep` by its module's name, and nothing else of it.
    botocore.endpoint.time = SimpleNamespace(  # type: ignore[attr-defined]
        sleep=lambda seconds: time.sleep(min(seconds, _LONGEST_SDK_PAUSE))
    )
    patience.PAUSES = (0.01, 0.02)
    fallback.NEVER_SHARED = SMALL
