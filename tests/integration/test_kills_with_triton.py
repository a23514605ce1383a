"""A kill of the agent while a real Triton loads: a whole version serves, and the next run makes it the store's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import pytest

from dfagent.local.object_store import S3Server
from dfagent.local.triton import TritonServer
from tests.integration.test_loading import AGENT, CONFIG, TIMES, infer
from tests.soak.kill_server import Moment
from tests.soak.kills import MODEL, Place, World, world

MOMENTS = [
    Moment("load", "before", 1, 0, "SIGKILL"),
    Moment("load", "during", 1, 0, "SIGKILL"),
    Moment("load", "during", 1, 34, "SIGKILL"),
    Moment("load", "during", 1, 34, "SIGTERM"),
    Moment("load", "after", 1, 0, "SIGKILL"),
    Moment("load", "after", 1, 0, "SIGTERM"),
]


@pytest.fixture
async def stage(s3_server: S3Server, tmp_path: Path) -> AsyncIterator[World]:
    async with world(s3_server, tmp_path / "world") as stage:
        yield stage


async def put_factor(place: Place, factor: int) -> None:
    code = TIMES.replace("DIARY", str(place.base / "diary")).replace("FACTOR", str(factor))
    files = {"config.pbtxt": (CONFIG + AGENT).encode(), "1/model.py": code.encode()}
    place.world.put(place.prefix, files, place.stored)
    place.stored = files


async def should_serve_a_whole_version_whenever_its_load_is_cut_off(
    stage: World, start_triton: Callable[..., TritonServer]
) -> None:
    place = stage.place(Random(1))
    place.target.mkdir()
    triton = start_triton(place.target)
    await put_factor(place, 1)
    assert (await place.run("prefetch", "direct", triton.grpc))[0].code == 0
    for factor, moment in enumerate(MOMENTS, start=2):
        await put_factor(place, factor)
        ended, said = await place.run("prefetch", "direct", triton.grpc, moment)
        assert ended.struck and not ended.hung and ended.code in (-9, 143), said
        assert await infer(triton.grpc, MODEL, 10) in (10 * (factor - 1), 10 * factor)
        ended, said = await place.run("prefetch", "direct", triton.grpc)
        assert ended.code == 0, said
        assert await infer(triton.grpc, MODEL, 10) == 10 * factor
        generations, _, published = place.generations()
        assert generations == {published} and not place.left_over()
