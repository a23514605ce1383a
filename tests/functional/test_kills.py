"""A kill or SIGTERM at any moment: the model is the old version or the new one, and the next run mends the rest.

A few seeded ones; `python -m tests.soak.kills` plays as many as wanted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path

import pytest

from dfagent.local.object_store import S3Server
from tests.soak.kill_server import PHASES
from tests.soak.kills import World, play, schedules, sweep, world

SEED = 7
COUNT = 12
STEP = 12


@pytest.fixture
async def stage(s3_server: S3Server, tmp_path: Path) -> AsyncIterator[World]:
    async with world(s3_server, tmp_path / "world") as stage:
        yield stage


async def should_show_nothing_half_and_end_well_whenever_it_is_killed(stage: World) -> None:
    outcomes = [await play(stage, schedule) for schedule in islice(schedules(SEED), COUNT)]
    assert [outcome for outcome in outcomes if outcome.violations] == []
    struck = {(outcome.schedule.moment.phase, outcome.schedule.moment.signal) for outcome in outcomes if outcome.struck}
    assert {phase for phase, _ in struck} == {*PHASES, "event"}
    assert {signal for _, signal in struck} == {"SIGKILL", "SIGTERM"}


async def should_survive_a_kill_between_any_two_changes_on_the_disk(stage: World) -> None:
    outcomes = await sweep(stage, step=STEP)
    assert [outcome for outcome in outcomes if outcome.violations] == []
    assert not outcomes[-1].struck, "every change of an update had its turn"
    assert sum(outcome.struck for outcome in outcomes) >= 40 / STEP
