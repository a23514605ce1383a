"""Reading a config.pbtxt, and taking the dragonfly agent out of it."""

from pathlib import Path

import pytest

from dfagent.errors import InvalidModelConfig
from dfagent.repository.config_pbtxt import (
    MAX_CONFIG_BYTES,
    _tokens,
    declares_dragonfly,
    parse_config,
    without_dragonfly,
)

SEED = Path(__file__).parents[1] / "fixtures" / "seed" / "densenet_onnx.config.pbtxt"
DRAGONFLY = 'model_repository_agents { agents [ { name: "dragonfly" } ] }'


def test_should_read_the_seed_configuration() -> None:
    """Its trailing comma is legal, and it declares the agent."""
    config = parse_config(SEED.read_bytes(), "densenet_onnx/config.pbtxt")
    assert config.message.name == "densenet_onnx"
    assert config.agents == ("dragonfly",) and declares_dragonfly(config)


def test_should_take_the_agent_out_of_the_seed_configuration() -> None:
    """What is left is the file up to the agents, byte for byte."""
    before = SEED.read_bytes()
    after = without_dragonfly(before)
    assert after.rstrip() == before[: before.index(b"model_repository_agents")].rstrip()
    assert not declares_dragonfly(parse_config(after, "x"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        'name: "m"  # dragonfly',
        'model_repository_agents { agents { name: "checksum" } }',
        'parameters { key: "model_repository_agents" value { string_value: "dragonfly" } }',
        'name: "m" ' + '# \u5728\u8fd9 {{{ [ "\n',
    ],
)
def test_should_leave_a_configuration_without_the_agent_alone(text: str) -> None:
    """Not one byte changes."""
    assert without_dragonfly(text.encode()) == text.encode()
    assert not declares_dragonfly(parse_config(text.encode(), "x"))


def test_should_drop_an_empty_block_of_agents_that_would_end_triton() -> None:
    """Triton 2.51 dies of it, whoever wrote it."""
    assert without_dragonfly(b'name: "m"\nmodel_repository_agents { }\n').strip() == b'name: "m"'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('agents { name: "a" } agents { name: "dragonfly" } agents { name: "b" }', ("a", "b")),
        ('agents: [ { name: "a" }, { name: "dragonfly", parameters { key: "k" value: "]}" } }, <name: "b">, ]', ()),
        ('agents [ { name: "a" }, { name: "dragonfly" }, <name: "b"> ]; agents: { name: "c" },', ("a", "b", "c")),
        ("agents [ { name: 'dragon' \"fly\" } , { name: '}' } ]", ("}",)),
        ('agents { name: "\\144ragonfly" } agents { name: "\\"dragonfly" }', ('"dragonfly',)),
        ('agents { # } name: "x"\n name: "dragonfly" # }\n} agents { name: "a" }', ("a",)),
        ('agents { name: "dragonfly" } agents { name: "dragonfly" } agents { name: "a" }', ("a",)),
    ],
)
def test_should_keep_the_other_agents(before: str, after: tuple[str, ...]) -> None:
    """In every way that the text format has to write them; a list with a trailing comma is none of them."""
    text = f'name: "m"model_repository_agents: {{ {before} }}max_batch_size: 4'.encode()
    if not after:
        with pytest.raises(InvalidModelConfig):
            without_dragonfly(text)
        return
    config = parse_config(without_dragonfly(text), "x")
    assert config.agents == after
    assert (config.message.name, config.message.max_batch_size) == ("m", 4)


def test_should_keep_comments_and_fields_that_only_a_newer_triton_knows() -> None:
    """Bytes outside the agent do not change, whatever they say and in whatever encoding."""
    head = b'name: "m"\n# caf\xe9 {\nfrom_the_future { depth: [1, 2] what: -inf nested < x: "}" \'y\' > }\n'
    tail = b'\nanother: [ { a: 1 }, { b: "#" } ] # "\n'
    assert without_dragonfly(head + DRAGONFLY.encode() + tail) == head + tail


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        (b'name: "m"\ninput [ { name: "x" }\n', "m/config.pbtxt:3:1", 'Expected ","'),
        (b'name: "m"\n  max_batch_size "4"\n', "m/config.pbtxt:2:18", 'Expected ":"'),
        (b'name: "m\n', "m/config.pbtxt:1:7", "missing ending quote"),
        (b"max_batch_size: many", "m/config.pbtxt:1:17", "Couldn't parse integer: many"),
        (b"input { data_type: TYPE_FP4 }", "m/config.pbtxt:1:20", "no value named TYPE_FP4"),
        (b'{"name": "m"}', "m/config.pbtxt:1:1", "Expected identifier"),
        (b'name: "\\xe9"', "m/config.pbtxt:1:13: Couldn't parse", "utf-8"),
        (b"\x00\x01\x02", "m/config.pbtxt:1:1", "Expected identifier"),
        (b'name: "a" name: "b"', "m/config.pbtxt:1:", "should not have multiple"),
        (b'name: "caf\xe9"', "m/config.pbtxt:1:7", "utf-8"),
        (b"x {" * 40_000, "m/config.pbtxt:1:195", "nests deeper than 64"),
        (b"x [" * 40_000, "m/config.pbtxt:1:195", "nests deeper than 64"),
        (b"# " + b"x" * MAX_CONFIG_BYTES, "m/config.pbtxt", "bytes"),
        (b'name: "' + b"x" * 100_000, "m/config.pbtxt:1:7", "ending quote"),
        (b'name: "' + b'\\"' * 60_000, "m/config.pbtxt:1:7", "at end of string"),
        (b'name: "m"\ninput [ { data_type:\x95TYPE_FP32 } ]', "m/config.pbtxt:2:21", "not UTF-8"),
    ],
)
def test_should_say_where_a_broken_configuration_is_broken(text: bytes, place: str, expected: str) -> None:
    """Model, line and column, and what was expected there, in a message that a terminal can show."""
    for read in (parse_config, without_dragonfly):
        with pytest.raises(InvalidModelConfig) as caught:
            read(text, "m/config.pbtxt")
        assert caught.value.message.startswith(place) and expected in caught.value.message
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ['"' + '\\"' * 99, "'" + "\\'" * 99, '"a', "'", '"\\'])
def test_should_take_a_string_without_an_end_for_one_token(text: str) -> None:
    """To look for one from each quote in it takes minutes, in which nothing else runs."""
    assert [token.kind for token in _tokens(text)] in (["string"], ["string", "mark"])
