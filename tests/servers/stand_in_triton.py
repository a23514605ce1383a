"""A stand-in for Triton's model control over gRPC: it reads a model's files when it is told to load it.

The real one takes a second for each load; this one is for the many runs that a soak makes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc


def files_of(model: Path) -> dict[str, bytes]:
    """A model's files by their names below its folder."""
    return {str(path.relative_to(model)): path.read_bytes() for path in sorted(model.rglob("*")) if path.is_file()}


@dataclass
class StandInTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves the folder `repository`; `serves` are the files of each model as they were when it was loaded.

    A load takes `load_seconds`.
    """

    repository: Path
    load_seconds: float = 0.0
    address: str = ""
    serves: dict[str, dict[str, bytes]] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)

    async def ServerLive(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Is live."""
        return pb.ServerLiveResponse(live=True)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Reads the files, and serves them from then on."""
        name = request.model_name
        self.loads.append(name)
        await asyncio.sleep(self.load_seconds)
        files = files_of(self.repository / name) if (self.repository / name).is_dir() else {}
        if "config.pbtxt" not in files:
            await context.abort(
                grpc.StatusCode.INTERNAL, f"failed to load '{name}', failed to poll from model repository"
            )
        self.serves[name] = files
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """Forgets the model."""
        self.serves.pop(request.model_name, None)
        return pb.RepositoryModelUnloadResponse()

    async def RepositoryIndex(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Every model of the folder."""
        models = [
            pb.RepositoryIndexResponse.ModelIndex(
                name=name, version="1" if name in self.serves else "", state="READY" if name in self.serves else ""
            )
            for name in sorted({path.name for path in self.repository.iterdir()} | set(self.serves))
        ]
        return pb.RepositoryIndexResponse(models=models)

    async def ModelReady(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """Says whether it was loaded."""
        return pb.ModelReadyResponse(ready=request.name in self.serves)


@asynccontextmanager
async def stand_in_triton(repository: Path, load_seconds: float = 0.0) -> AsyncIterator[StandInTriton]:
    """The service on a port of loopback."""
    triton = StandInTriton(repository, load_seconds)
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    triton.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield triton
    finally:
        await server.stop(None)
