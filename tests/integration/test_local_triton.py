"""The Triton that tests and demo share: it serves a real python model and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from dfagent.local.triton import TritonServer

MODEL = """
import onnxruntime  # what the environment has, models can import
import triton_python_backend_utils as utils

class TritonPythonModel:
    def execute(self, requests):
        numbers = [utils.get_input_tensor_by_name(request, "NUMBERS").as_numpy() for request in requests]
        return [utils.InferenceResponse([utils.Tensor("DOUBLED", number * 2)]) for number in numbers]
"""
CONFIG = """
name: "doubler" backend: "python"
input [{ name: "NUMBERS" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "DOUBLED" data_type: TYPE_FP32 dims: [-1] }]
"""

pytestmark = pytest.mark.triton


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    model = tmp_path / "models" / "doubler"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(CONFIG)
    (model / "1" / "model.py").write_text(MODEL)
    return tmp_path / "models"


def doubled(server: TritonServer, values: list[float]) -> list[float]:
    """What the model answers, after an explicit load."""
    with triton.InferenceServerClient(server.grpc) as client:
        client.load_model("doubler", client_timeout=60)
        numbers = triton.InferInput("NUMBERS", [len(values)], "FP32")
        numbers.set_data_from_numpy(np.array(values, dtype=np.float32))
        answer = client.infer("doubler", [numbers], client_timeout=30).as_numpy("DOUBLED")
    return list(map(float, answer))


def processes_that_use(folder: Path) -> list[str]:
    """Command lines of living processes that name the folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in lines if str(folder) in line]


def test_a_python_model_answers_and_nothing_is_left(repository: Path, tmp_path: Path) -> None:
    """Its values are right (numpy 2 would make them wrong), and its processes and shared memory end with the server."""
    before = set(Path("/dev/shm").iterdir())
    with TritonServer(repository, tmp_path / "triton") as server:
        assert doubled(server, [1, 2, 3.5]) == [2, 4, 7]
        assert len(processes_that_use(tmp_path / "triton")) >= 2
        assert [segment for segment in Path("/dev/shm").iterdir() if segment not in before]
    assert processes_that_use(tmp_path / "triton") == []
    assert not [path for path in Path("/dev/shm").iterdir() if path.name.startswith(server._shm_prefix)]


def test_nothing_is_left_of_a_server_that_was_killed(repository: Path, tmp_path: Path) -> None:
    """A stub outlives its server's death unless somebody ends it."""
    with TritonServer(repository, tmp_path / "triton") as server:
        doubled(server, [1])
        server.process.kill()
    assert processes_that_use(tmp_path / "triton") == []
    assert not [path for path in Path("/dev/shm").iterdir() if path.name.startswith(server._shm_prefix)]
