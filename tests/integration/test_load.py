"""A few agents on one node whose store throttles (`make load` runs the full size)."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfagent.local.dragonfly import DragonflyCluster
from dfagent.local.object_store import S3Server
from tests.load.fleet import Fleet
from tests.load.plan import Load


@pytest.mark.dragonfly
async def should_bring_every_model_within_bounded_requests_though_the_store_throttles(
    session_folder: Path, s3_server: S3Server, dragonfly: DragonflyCluster
) -> None:
    folder = session_folder / "load"
    folder.mkdir()

    report = await Fleet(Load(agents=6, objects=120, rate=40, burst=10), folder, s3_server, dragonfly.peers[0]).carry()

    assert report.broken() == []
    assert report.refused > 0, "the store never throttled"
    assert {"direct", "dfdaemon"} <= set(report.transports)
