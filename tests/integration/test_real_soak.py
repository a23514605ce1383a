"""One seeded schedule of each kind from the soak with real dfdaemons (`make soak-real` plays hundreds)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest

from dfagent.local.object_store import S3Server
from tests.soak.real import TRANSPORTS, Schedule, Soak

KINDS = (
    "peer killed",
    "peer's disk full",
    "parent killed",
    "cached task corrupt",
    "link down",
    "origin dead",
    "scheduler dead",
    "overwritten",
    "agent killed",
)


def one_of_each(seed: int) -> Iterator[Schedule]:
    """Each kind with one transport; over several seeds, with all of them."""
    for number, (kind, transport) in enumerate(zip(KINDS, cycle(TRANSPORTS), strict=False)):
        yield Schedule(kind, transport, f"{seed}:{number}")


@pytest.mark.dragonfly
async def should_give_one_version_of_the_stores_or_a_typed_error_whatever_real_parts_suffer(
    session_folder: Path, s3_server: S3Server
) -> None:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.fail("this test cuts links and fills disks, which needs root and iproute2's `ip`")
    folder = session_folder / "soak"
    folder.mkdir()

    outcomes = await Soak(one_of_each(seed=1)).run(folder, s3_server, worlds=2)

    assert [outcome for outcome in outcomes if outcome.violations] == []
    assert {outcome.schedule.kind for outcome in outcomes if outcome.struck} == set(KINDS)
