"""Three seconds of fuzzing for each parser, always the same inputs; `make fuzz` goes on for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.run import TARGETS, fuzz


@pytest.mark.parametrize("target", TARGETS)
def should_find_no_fault(target: str, tmp_path: Path) -> None:
    """The failure shows libFuzzer's report: the input in base64, and the traceback."""
    outcome = fuzz(target, runs=-1, seconds=3, seed=1, folder=tmp_path)
    assert not outcome.failure, outcome.failure
    assert outcome.runs >= 50


def should_report_what_can_not_run(tmp_path: Path) -> None:
    """Else a target that ends at once would look like one without faults."""
    assert "ModuleNotFoundError" in fuzz("nothing", runs=1, seconds=1, seed=1, folder=tmp_path).failure
