"""A bounded part of the soak: every kind of fault with every transport, at least once, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.soak.kinds import KINDS, PAIRS, TRANSPORTS
from tests.soak.schedule import schedule

ROOT = Path(__file__).parents[2]
SCHEDULES = 230
MOST_SECONDS = 600.0


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.soak", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
    )


def should_bring_right_bytes_or_a_clear_error_whatever_goes_wrong(tmp_path: Path) -> None:
    ran = soak("--schedules", str(SCHEDULES), "--at-least", "1", "--first-seed", "0", "--json", str(tmp_path / "json"))
    assert ran.returncode == 0, ran.stdout[-8000:]
    told: dict[str, Any] = json.loads((tmp_path / "json").read_text())
    assert told["schedules"] >= SCHEDULES and told["fewest_of_a_kind"] >= 1
    assert not any(told["violations"].values()) and not told["problems"]
    assert all(told["ended"][transport].get("well") for transport in TRANSPORTS)


@pytest.mark.parametrize("seed", [3, 77])
def should_make_the_same_schedule_of_a_seed(seed: int) -> None:
    assert str(schedule(seed)) == str(schedule(seed)) and schedule(seed).content == schedule(seed).content
    assert schedule(seed).content != schedule(seed + 1).content


def should_never_let_wrong_bytes_meet_a_store_that_tells_no_checksum() -> None:
    """Nobody could tell them from right ones."""
    for seed in range(2 * len(PAIRS)):
        plan = schedule(seed)
        kinds = [KINDS[label] for label, _ in plan.faults]
        if any(kind.corrupts for kind in kinds):
            assert plan.checksum != "none" and not any(kind.hides for kind in kinds)


def should_notice_every_guard_that_is_taken_out() -> None:
    """Verification, the pin, redirects, discarding, the cache's files, secrets, listings, atomicity, leaks, types."""
    ran = soak("--prove")
    assert ran.returncode == 0 and "NOT NOTICED" not in ran.stdout, ran.stdout + ran.stderr[-2000:]
