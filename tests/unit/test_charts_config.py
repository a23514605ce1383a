"""The values for Dragonfly's chart say the same as the agent."""

from __future__ import annotations

from pathlib import Path

from dfagent.stores.signing import SIGNING_PARAMS

VALUES = Path(__file__).parents[2] / "charts-config.yaml"


def test_the_rule_filters_what_signs_an_s3_url_and_nothing_else() -> None:
    """A parameter that one side leaves out would split a task in two; one too many would mix two objects."""
    _, _, rule = VALUES.read_text().partition("filteredQueryParams:\n")
    listed = []
    for line in rule.splitlines():
        entry = line.strip()
        if entry.startswith("- "):
            listed.append(entry.removeprefix("- "))
        elif not entry.startswith("#"):
            break
    assert sorted(listed) == sorted(SIGNING_PARAMS["s3"])
