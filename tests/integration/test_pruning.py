"""`--prune` with a real Triton: what the bucket no longer holds stops to serve, and everything else serves on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dfagent.errors import TritonUnavailable
from dfagent.local.object_store import S3Server
from dfagent.local.triton import TritonServer
from dfagent.triton.client import TritonClient
from tests.servers.gate import Gate
from tests.servers.passes import AGENT, Place

StartTriton = Callable[..., TritonServer]
CONFIG = f"""backend: "python"
max_batch_size: 0
input [ {{ name: "NUMBER" data_type: TYPE_INT64 dims: [ 1 ] }} ]
output [ {{ name: "RESULT" data_type: TYPE_INT64 dims: [ 1 ] }} ]
{AGENT}
"""
CODE = """
class TritonPythonModel:
    def execute(self, requests):
        return []
"""


@pytest.fixture
async def place(s3_server: S3Server, bucket: str, tmp_path: Path) -> AsyncIterator[Place]:
    async with Gate(s3_server.port) as gate:
        place = Place(s3_server, bucket, gate, tmp_path / "node" / "models", options={"load_timeout": 60})
        place.target.mkdir(parents=True)
        for model in ("net", "gone"):
            place.put_files(f"repo/{model}", {"config.pbtxt": CONFIG.encode(), "1/model.py": CODE.encode()})
        yield place


async def ready(triton: TritonServer) -> set[str]:
    """The models that serve, also in the words of the index."""
    client = TritonClient(triton.grpc)
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        try:
            serving = {entry.name for entry in await client.index() if entry.state == "READY"}
            break
        except TritonUnavailable:
            # A client that was just refused by the address waits for a moment.
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
    assert {model for model in ("net", "gone") if await client.ready(model)} == serving
    await client.aclose()
    return serving


async def should_unload_what_the_bucket_no_longer_holds(place: Place, start_triton: StartTriton) -> None:
    triton = start_triton(place.target)
    await place.run(triton=triton.grpc)
    assert await ready(triton) == {"net", "gone"}
    place.delete("repo/gone/")
    assert place.outcomes(await place.run(triton=triton.grpc)) == {"net": "unchanged"}
    assert await ready(triton) == {"net", "gone"}
    result = await place.run(triton=triton.grpc, prune=True)
    assert not result.errors and place.outcomes(result) == {"net": "unchanged", "gone": "removed"}
    assert await ready(triton) == {"net"} and place.names() == ["net"]
    place.put_files("repo/gone", {"config.pbtxt": CONFIG.encode(), "1/model.py": CODE.encode()})
    await place.run(triton=triton.grpc, prune=True)
    assert await ready(triton) == {"net", "gone"}, "it may come back"
    place.delete("repo/")
    assert (await place.run(triton=triton.grpc, prune=True)).errors
    assert await ready(triton) == {"net", "gone"}, "an empty listing unloads nothing"


async def should_keep_the_link_until_triton_let_go(place: Place, start_triton: StartTriton) -> None:
    triton = start_triton(place.target)
    await place.run(triton=triton.grpc)
    place.delete("repo/gone/")
    triton.stop()
    result = await place.run(triton=triton.grpc, prune=True)
    assert place.outcomes(result)["gone"] == "failed"
    assert any(isinstance(error, TritonUnavailable) and "gone" in error.message for error in result.errors)
    assert place.names() == ["gone", "net"] and place.published("gone")
    triton.start()
    await ready(triton)
    result = await place.run(triton=triton.grpc, prune=True)
    assert not result.errors and place.outcomes(result)["gone"] == "removed"
    assert await ready(triton) == {"net"} and place.names() == ["net"]
