"""The one retry policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from dfagent.errors import (
    AccessDenied,
    Changed,
    ConnectFailed,
    DfagentError,
    DigestMismatch,
    NotFound,
    OriginStatus,
    Overloaded,
    SignedUrlExpired,
    Stalled,
    StoreBusy,
    Truncated,
)
from dfagent.transports.retrying import Retrying, RetryPolicy
from dfagent.types import (
    Fetched,
    FetchRequest,
    ObjectEntry,
    ObjectRef,
    SignedUrl,
    Source,
    TaskIdentity,
    Traffic,
)

SIZE = 100
POLICY = RetryPolicy(attempts=3, overloaded_attempts=5, first_pause=0.001, longest_pause=0.002)


class Script:
    """A transport that does one step an attempt: moves some bytes, then raises or succeeds."""

    name = "script"

    def __init__(self, *steps: tuple[int, DfagentError | None], source: Source = Source.DIRECT) -> None:
        self._steps = list(steps)
        self._source = source
        self.attempts = 0

    async def aclose(self) -> None: ...

    async def fetch(self, request: FetchRequest, folder: Path | None) -> Fetched:
        moved, error = self._steps[min(self.attempts, len(self._steps) - 1)]
        self.attempts += 1
        assert self.attempts < 50, "it never gives up"
        request.on_progress(moved)
        if error:
            raise error
        return Fetched(None, self.name, self._source, Traffic(), 0.0, 0.0)


def request(on_progress: Callable[[int], None] = lambda _count: None) -> FetchRequest:
    entry = ObjectEntry(ObjectRef("s3", "host", "bucket", "key"), SIZE, '"etag"')

    async def sign() -> SignedUrl:
        return SignedUrl("http://host/key", datetime.now(timezone.utc), ())

    return FetchRequest(entry, TaskIdentity.of(entry), sign, "key", on_progress)


async def should_try_a_retryable_error_again_and_count_the_attempts() -> None:
    script = Script((0, Stalled("stuck")), (0, Truncated("short")), (SIZE, None))
    assert (await Retrying(script, POLICY).fetch(request(), None)).attempts == 3


@pytest.mark.parametrize("error", [NotFound("no"), Changed("other"), OriginStatus("bad", status=400)])
async def should_not_try_what_will_not_get_better(error: DfagentError) -> None:
    script = Script((0, error))
    with pytest.raises(type(error)):
        await Retrying(script, POLICY).fetch(request(), None)
    assert script.attempts == 1


async def should_try_a_server_error_again() -> None:
    script = Script((0, OriginStatus("oops", status=500)), (SIZE, None))
    assert (await Retrying(script, POLICY).fetch(request(), None)).attempts == 2


async def should_give_up_after_the_last_attempt_with_the_last_error() -> None:
    script = Script((0, Stalled("first")), (0, Stalled("second")), (0, Stalled("third")), (SIZE, None))
    with pytest.raises(Stalled, match="third"):
        await Retrying(script, POLICY).fetch(request(), None)


@pytest.mark.parametrize("error", [Overloaded("later"), StoreBusy("SlowDown")])
async def should_be_more_patient_with_a_peer_or_a_store_that_sheds_load(error: DfagentError) -> None:
    script = Script(*[(0, error)] * 4, (SIZE, None))
    assert (await Retrying(script, POLICY).fetch(request(), None)).attempts == 5


async def should_count_attempts_anew_while_the_transfer_gets_further() -> None:
    script = Script(*[(count, Truncated("cut")) for count in (10, 20, 30, 40, 50)], (SIZE, None))
    assert (await Retrying(script, POLICY).fetch(request(), None)).attempts == 6


async def should_not_be_asked_for_every_byte_by_a_server_that_lets_one_through_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dfagent.transports.retrying._FAILURES_AT_MOST", 20)
    script = Script(*[(count, Truncated("cut")) for count in range(1, 40)])
    with pytest.raises(Truncated):
        await Retrying(script, POLICY).fetch(request(), None)
    assert script.attempts == 21


async def should_not_count_the_same_bytes_again_as_getting_further() -> None:
    script = Script((10, Truncated("cut")))
    with pytest.raises(Truncated):
        await Retrying(script, POLICY).fetch(request(), None)
    assert script.attempts == 3


async def should_sign_again_as_long_as_bytes_come_and_then_deny() -> None:
    script = Script((10, SignedUrlExpired("403")), (20, SignedUrlExpired("403")), (20, SignedUrlExpired("403")))
    with pytest.raises(AccessDenied):
        await Retrying(script, POLICY).fetch(request(), None)
    assert script.attempts == 4


async def should_take_the_bytes_of_a_failed_attempt_back_from_the_progress() -> None:
    counts: list[int] = []
    script = Script((60, Truncated("cut")), (SIZE, None))
    await Retrying(script, POLICY).fetch(request(counts.append), None)
    assert sum(counts) == SIZE


def should_wait_longer_after_every_failure_but_never_the_same_for_all() -> None:
    """Peers that failed together would come back together."""
    policy = RetryPolicy(first_pause=1.0, longest_pause=10.0)
    for failures, ceiling in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (9, 10.0)):
        pauses = {policy.pause(failures, Stalled("stuck")) for _ in range(50)}
        assert ceiling / 2 <= min(pauses) < max(pauses) <= ceiling


async def should_wait_between_attempts_but_not_for_a_new_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def noted(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("dfagent.transports.retrying.asyncio.sleep", noted)
    script = Script((0, Stalled("stuck")), (0, SignedUrlExpired("403")), (0, Stalled("stuck")), (SIZE, None))
    await Retrying(script, RetryPolicy(first_pause=4.0)).fetch(request(), None)
    first, second = waits
    assert 2.0 <= first <= 4.0 <= second <= 8.0


def should_wait_as_long_as_a_busy_server_asks_within_reason() -> None:
    assert RetryPolicy().pause(1, Overloaded("later", retry_after=7.0)) >= 7.0
    assert RetryPolicy().pause(1, Overloaded("later", retry_after=86_400.0)) <= 60.0


def should_not_come_back_with_all_others_that_a_busy_server_sent_away() -> None:
    pauses = {RetryPolicy().pause(1, Overloaded("later", retry_after=7.0)) for _ in range(50)}
    assert max(pauses) - min(pauses) > 0.1


@pytest.mark.parametrize(
    ("failure", "source", "told"),
    [
        (Stalled("stuck"), Source.LOCAL, Source.UNKNOWN),  # the peer may have gone on by itself and brought it
        (Truncated("cut"), Source.REMOTE, Source.UNKNOWN),
        (Stalled("stuck"), Source.COLD, Source.COLD),
        (Overloaded("later"), Source.LOCAL, Source.LOCAL),  # nothing had begun
        (ConnectFailed("nobody"), Source.REMOTE, Source.REMOTE),
    ],
)
async def should_not_believe_a_source_that_an_earlier_attempt_may_have_made(
    failure: DfagentError, source: Source, told: Source
) -> None:
    script = Script((0, failure), (SIZE, None), source=source)
    assert (await Retrying(script, POLICY).fetch(request(), None)).source is told


async def should_fetch_wrong_bytes_once_more_and_no_oftener() -> None:
    """Each attempt is a whole download, and who sends wrong bytes twice will do it again."""
    script = Script((SIZE, DigestMismatch("other bytes")))
    with pytest.raises(DigestMismatch):
        await Retrying(script, POLICY).fetch(request(), None)
    assert script.attempts == 2


async def should_not_wait_for_a_second_stall_where_another_way_follows() -> None:
    script = Script((0, Stalled("no byte")))
    with pytest.raises(Stalled):
        await Retrying(script, replace(POLICY, after_stall=False)).fetch(request(), None)
    assert script.attempts == 1
