"""config.pbtxt: whatever it holds, the agent is taken out and nothing else, or it is an `InvalidModelConfig`."""

from __future__ import annotations

from dfagent.errors import InvalidModelConfig
from dfagent.repository import config_pbtxt
from dfagent.repository.config_pbtxt import parse_config, without_dragonfly

_AGENT = b'model_repository_agents { agents [ { name: "dragonfly", } ] }\n'
SEEDS = [
    b'name: "net"\nbackend: "python"\n' + _AGENT,
    b'model_repository_agents { agents { name: "dragonfly" parameters { key: "a" value: "b" } } agents { name: "x" } }',
    b"model_repository_agents: < agents: [ <name: 'dragon' 'fly'>, {name: 'other'} ] >; max_batch_size: 8 # end",
    b'input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]',
    b'parameters { key: "k" value: { string_value: "\\377" } }',
    b"instance_group [ { kind: KIND_GPU count: 2 } ]\nunknown_field { a: [1, 2.5e3, -inf] }\n" + _AGENT,
    b"[type.googleapis.com/inference.ModelConfig] { }\n",
    b"{" * 80,
    b'name: "' + b'\\"' * 5000,
    b'model_repository_agents { agents { name: "dragonfly" } } model_repository_agents { agents { name: "x" } }',
]


def check(data: bytes) -> None:
    """The rest of the message stays what it was."""
    try:
        config = parse_config(data, "m/config.pbtxt")
        published = without_dragonfly(data, "m/config.pbtxt")
    except InvalidModelConfig as refused:
        assert len(str(refused)) < 1000
        return
    after = parse_config(published, "m/config.pbtxt")
    assert "dragonfly" not in after.agents
    assert after.message == config_pbtxt._message_without_dragonfly(config)
    assert without_dragonfly(published) == published
