"""Taking the dragonfly agent out changes nothing else, whatever the configuration holds."""

import contextlib
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from dfagent.errors import InvalidModelConfig
from dfagent.repository.config_pbtxt import AGENT_NAME, declares_dragonfly, parse_config, without_dragonfly

TEXT = st.text(max_size=8) | st.sampled_from(["}", '"', "'", "\\", "# {", "a\nb", "[", "dragonfly", "\0"])
AGENT = st.sampled_from([AGENT_NAME, AGENT_NAME, "checksum", "dragonfly2"]) | TEXT
COMMENT = st.sampled_from(["", "\n", "# } ] >\n", '#"\n', "# agents { name: 'dragonfly' }\n"])
WORD = st.sampled_from(
    [
        *"{}[]<>:,;#\n\"'\\",
        " ",
        "name",
        "model_repository_agents",
        "agents",
        '"dragonfly"',
        "-1.5e3f",
        "\\x",
        "0x",
        "é",
        "\0",
    ]
)


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=8) if field.type == FieldDescriptor.TYPE_BYTES else TEXT
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return st.floats(width=32, allow_nan=False)
    bits = 64 if kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64) else 32
    if kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64):
        return st.integers(0, 2**bits - 1)
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _fill(draw: st.DrawFn, message: Any, descriptor: Descriptor, depth: int = 0) -> None:
    """Sets a few random fields of a message of any type, so that no part of Triton's definitions is left out."""
    names = st.sets(st.sampled_from([field.name for field in descriptor.fields]), max_size=4)
    for name in sorted(draw(names)) if descriptor.fields else []:
        field = descriptor.fields_by_name[name]
        target = getattr(message, name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[part] for part in ("key", "value"))
            for item in draw(st.lists(_scalar(key), max_size=2, unique=True)):
                if value.message_type:
                    _fill(draw, target[item], value.message_type, depth + 1)
                else:
                    target[item] = draw(_scalar(value))
        elif field.message_type and depth < 4:
            targets = [target.add() for _ in range(draw(st.integers(1, 2)))] if field.is_repeated else [target]
            for one in targets:
                one.SetInParent()
                _fill(draw, one, field.message_type, depth + 1)
        elif not field.message_type and field.is_repeated:
            target.extend(draw(st.lists(_scalar(field), max_size=3)))
        elif not field.message_type:
            setattr(message, name, draw(_scalar(field)))


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """A configuration with anything in it, and agents of which some are ours."""
    message = ModelConfig()
    _fill(draw, message, ModelConfig.DESCRIPTOR)
    message.ClearField("model_repository_agents")
    for name in draw(st.lists(AGENT, max_size=4)):
        agent = message.model_repository_agents.agents.add(name=name)
        agent.parameters.update(draw(st.dictionaries(TEXT, TEXT, max_size=2)))
    return message


def _printed(draw: st.DrawFn, message: Any) -> str:
    text: str = text_format.MessageToString(
        message,
        as_utf8=draw(st.booleans()),
        as_one_line=draw(st.booleans()),
        pointy_brackets=draw(st.booleans()),
        use_short_repeated_primitives=draw(st.booleans()),
    )
    return text


def _block(draw: st.DrawFn, message: ModelConfig) -> str:
    """`model_repository_agents` in one of the many ways to write it."""

    def element(agent: Any) -> str:
        opening, closing = draw(st.sampled_from([("{", "}"), ("<", ">")]))
        return f"{opening}{draw(COMMENT)}{_printed(draw, agent)}{draw(COMMENT)}{closing}{draw(COMMENT)}"

    agents = list(message.model_repository_agents.agents)
    body = ""
    while agents:
        many = draw(st.integers(1, len(agents)))
        elements = [element(agent) for agent in agents[:many]]
        agents = agents[many:]
        value = elements[0] if many == 1 and draw(st.booleans()) else f"[{draw(COMMENT)}{','.join(elements)}]"
        body += f"agents{draw(st.sampled_from([' ', ':', ' : ']))}{value}{draw(st.sampled_from(['', ',', ';']))}"
    return f"model_repository_agents{draw(st.sampled_from(['', ':']))} {{{draw(COMMENT)}{body}}}"


@st.composite
def written(draw: st.DrawFn) -> tuple[ModelConfig, bytes]:
    """A configuration and a text of it, with its agents before or after the other fields."""
    message = draw(configs())
    rest = ModelConfig()
    rest.CopyFrom(message)
    rest.ClearField("model_repository_agents")
    parts = [_printed(draw, rest) + "\n"]
    if message.HasField("model_repository_agents"):
        parts.insert(draw(st.integers(0, 1)), _block(draw, message) + draw(st.sampled_from(["", ",", ";"])))
    return message, (draw(COMMENT) + "".join(parts) + draw(COMMENT)).encode()


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(written())
def test_should_remove_that_one_agent_and_nothing_else(case: tuple[ModelConfig, bytes]) -> None:
    """Parsed again, the text is the original message with only the agent gone; without an agent, the same bytes."""
    message, text = case
    assert parse_config(text, "x").message == message
    kept = [agent for agent in message.model_repository_agents.agents if agent.name != AGENT_NAME]
    declared = len(kept) < len(message.model_repository_agents.agents)
    event(f"declared: {declared}, others: {bool(kept)}")
    assert declares_dragonfly(parse_config(text, "x")) == declared
    expected = ModelConfig()
    expected.CopyFrom(message)
    if declared:
        expected.ClearField("model_repository_agents")
        if kept:
            expected.model_repository_agents.agents.extend(kept)
    after = without_dragonfly(text)
    assert parse_config(after, "x").message == expected
    if not declared:
        assert after == text


@settings(deadline=None)
@given(st.binary(max_size=40) | st.lists(WORD, max_size=25).map(lambda words: "".join(words).encode()))
def test_should_answer_any_bytes_with_a_configuration_or_one_typed_error(data: bytes) -> None:
    """Neither the parser's own exceptions nor those of our scanner get out."""
    with contextlib.suppress(InvalidModelConfig):
        assert AGENT_NAME not in parse_config(without_dragonfly(data), "x").agents
