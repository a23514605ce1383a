"""Reads a model's `config.pbtxt` and takes the `dragonfly` repository agent out of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dfagent.errors import InvalidModelConfig

AGENT_NAME = "dragonfly"
MAX_CONFIG_BYTES = 128 << 10
"""A larger file is not a model configuration: parsing takes seconds a MiB."""

# A parser that recurses meets hostile text here: real configurations nest six deep.
_DEEPEST = 64
_LONGEST_COMPLAINT = 200
# A string without its end is one token too: the parser refuses it, and looking for an end from each of its escaped
# quotes would take minutes.
_TOKEN = re.compile(
    r"""(?P<skip> \s+ | \#[^\n]* )
      | (?P<string> "(?:[^"\\\n]|\\.)*"? | '(?:[^'\\\n]|\\.)*'? )
      | (?P<word> [-+.\w]+ )
      | (?P<mark> . )""",
    re.VERBOSE | re.DOTALL,
)
_NOT_UTF_8 = re.compile(r"[\ud800-\udfff]")
_CLOSING = {"{": "}", "<": ">", "[": "]"}


@dataclass(frozen=True)
class ModelConfig:
    """A model configuration: `data` as it lies in the store, `message` an `inference.ModelConfig` of Triton's.

    Fields that this tritonclient does not know yet are in `data` only. `where` names the file in errors.
    """

    where: str
    data: bytes
    message: Any

    @property
    def agents(self) -> tuple[str, ...]:
        """The names of the repository agents that the model declares."""
        return tuple(agent.name for agent in self.message.model_repository_agents.agents)


def parse_config(data: bytes, where: str) -> ModelConfig:
    """Parses protobuf text with Triton's own definitions; imports gRPC, and is work for a thread.

    Raises `InvalidModelConfig` with line and column where the text is broken. An unknown field is no error: Triton
    may be newer than we are, and says itself what it does not take.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidModelConfig(
            f"{where} has {len(data)} bytes, more than the {MAX_CONFIG_BYTES} that are read of one"
        )
    return ModelConfig(where, data, _parse(_decode(data), where))


def declares_dragonfly(config: ModelConfig) -> bool:
    """Whether the model asks to be brought by Dragonfly."""
    return AGENT_NAME in config.agents


def without_dragonfly(data: bytes, where: str = "config.pbtxt") -> bytes:
    """The configuration without the `dragonfly` agent; its other bytes stay as they are, comments included.

    Other agents stay too; with the last agent the whole `model_repository_agents` goes. Triton has no such agent and
    would not load the model; an empty `model_repository_agents` ends the whole server (2.51), so that one goes too.
    """
    config = parse_config(data, where)
    if not declares_dragonfly(config) and not _has_empty_block(config):
        return data
    text = _decode(data)
    for start, end, replacement in sorted(_edits(text, config), reverse=True):
        text = text[:start] + replacement + text[end:]
    # The text was cut by a scanner of ours: only Triton's parser can tell that it still means the same.
    if _parse(text, where) != _message_without_dragonfly(config):
        raise InvalidModelConfig(
            f"{where}: the {AGENT_NAME} agent can't be taken out safely",
            hint="write model_repository_agents { agents [ { name: ... } ] } in the plain form",
        )
    return _encode(text)


def _has_empty_block(config: ModelConfig) -> bool:
    return config.message.HasField("model_repository_agents") and not config.agents


def _decode(data: bytes) -> str:
    # Comments may be in any encoding; strings must be UTF-8, which the parser checks.
    return data.decode("utf-8", errors="surrogateescape")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")


def _parse(text: str, where: str) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    for token in _tokens(text):
        if token.depth > _DEEPEST:
            raise InvalidModelConfig(f"{where}:{_position(text, token.start)}: nests deeper than {_DEEPEST} levels")
        # Protobuf's parser dies of it where it looks for a name.
        if token.kind != "string" and _NOT_UTF_8.search(token.text):
            raise InvalidModelConfig(f"{where}:{_position(text, token.start)}: is not UTF-8 text")
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig(), allow_unknown_field=True)
    except text_format.ParseError as exc:
        raise _invalid(where, text, exc) from exc


def _invalid(where: str, text: str, exc: Any) -> InvalidModelConfig:
    complaint, position = str(exc) or "it is not protobuf text", ""
    if exc.GetLine():
        position = f":{exc.GetLine()}:{exc.GetColumn()}"
        # The parser quotes the whole line, which may be the whole file.
        line = text.split("\n")[exc.GetLine() - 1]
        complaint = complaint.partition(" : ")[2].removeprefix(f"'{line}': ").removeprefix("'': ")
    if len(complaint) > _LONGEST_COMPLAINT:
        complaint = f"{complaint[:_LONGEST_COMPLAINT]}…"
    return InvalidModelConfig(
        f"{where}{position}: {complaint}", hint="it has to be a Triton model configuration in protobuf text format"
    )


def _position(text: str, at: int) -> str:
    return f"{text.count(chr(10), 0, at) + 1}:{at - text.rfind(chr(10), 0, at)}"


def _message_without_dragonfly(config: ModelConfig) -> Any:
    message = type(config.message)()
    message.CopyFrom(config.message)
    agents = message.model_repository_agents.agents
    kept = [agent for agent in config.message.model_repository_agents.agents if agent.name != AGENT_NAME]
    del agents[:]
    agents.extend(kept)
    if not kept:
        message.ClearField("model_repository_agents")
    return message


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int
    depth: int


@dataclass(frozen=True)
class _Field:
    """One field of a message: its place in the text with its separator, and the tokens of each of its values."""

    name: str
    start: int
    end: int
    values: list[list[_Token]]


def _tokens(text: str) -> Iterator[_Token]:
    depth = 0
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind == "skip":
            continue
        if match[0] in _CLOSING:
            depth += 1
        yield _Token(kind, match[0], match.start(), match.end(), depth)
        if match[0] in _CLOSING.values():
            depth -= 1


def _edits(text: str, config: ModelConfig) -> Iterator[tuple[int, int, str]]:
    """What to replace (start, end, by what) so that the agent is gone."""
    (block,) = (field for field in _fields(list(_tokens(text))) if field.name == "model_repository_agents")
    if set(config.agents) <= {AGENT_NAME}:
        # Triton 2.51 dies of a block without agents.
        yield block.start, block.end, ""
        return
    names = iter(config.agents)
    for field in _fields(block.values[0][1:-1]):
        if field.name != "agents":
            continue
        kept = [value for value in field.values if next(names) != AGENT_NAME]
        if len(kept) < len(field.values):
            sources = (text[value[0].start : value[-1].end] for value in kept)
            yield field.start, field.end, " ".join(f"agents {source}" for source in sources)


def _fields(tokens: list[_Token]) -> Iterator[_Field]:
    """The fields of one message whose text the parser has accepted; what lies deeper is inside their values."""
    at = 0
    while at < len(tokens):
        first = at
        at = _value_end(tokens, at)
        name = "".join(token.text for token in tokens[first:at])
        if tokens[at].text == ":":
            at += 1
        values, at = _values(tokens, at)
        if at < len(tokens) and tokens[at].text in (",", ";"):
            at += 1
        yield _Field(name, tokens[first].start, tokens[at - 1].end, values)


def _values(tokens: list[_Token], at: int) -> tuple[list[list[_Token]], int]:
    end = _value_end(tokens, at)
    if tokens[at].text != "[":
        return [tokens[at:end]], end
    values = []
    at += 1
    while at < end - 1:
        stop = _value_end(tokens, at)
        values.append(tokens[at:stop])
        at = stop + 1
    return values, end


def _value_end(tokens: list[_Token], at: int) -> int:
    """The index after the value (or name) that begins at `at`: a bracketed one, adjacent strings, or one word."""
    if tokens[at].text in _CLOSING:
        depth = tokens[at].depth
        closing = _CLOSING[tokens[at].text]
        while tokens[at].text != closing or tokens[at].depth != depth:
            at += 1
        return at + 1
    at += 1
    while tokens[at - 1].kind == "string" and at < len(tokens) and tokens[at].kind == "string":
        at += 1
    return at
