"""The seed's config.pbtxt blocks are what Triton's own schema reads, trailing comma included."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

SEED = Path(__file__).parents[1] / "fixtures" / "seed"


@pytest.mark.parametrize("name", ["densenet_onnx.config.pbtxt", "model_repository_agents.pbtxt"])
def test_seed_config_declares_the_dragonfly_agent(name: str) -> None:
    """The block that every user of the seed copies parses, and declares one agent."""
    config = text_format.Parse((SEED / name).read_text(), model_config_pb2.ModelConfig())
    assert [agent.name for agent in config.model_repository_agents.agents] == ["dragonfly"]
