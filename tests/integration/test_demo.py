"""`dfagent demo` as a whole, small: every part is real, and nothing that it leaves holds a secret."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tests.servers.program import run


@pytest.mark.dragonfly
@pytest.mark.triton
async def should_show_every_mode_and_leave_a_report_and_records_and_nothing_else(tmp_path: Path) -> None:
    """The session's search for secrets reads both files, and what the demo printed."""
    output = tmp_path / "out"
    told = await run("demo", f"--output={output}", f"--size={8 << 20}", seconds=300)
    assert told.code == 0, told.out + told.err
    assert {path.name for path in output.iterdir()} == {"report.html", "records.jsonl"}
    records = [orjson.loads(line) for line in (output / "records.jsonl").read_bytes().splitlines()]
    assert {record["source"] for record in records if record["kind"] == "object"} >= {"direct", "local"}
    assert all(record["outcome"] == "published" for record in records if record["kind"] == "model")
