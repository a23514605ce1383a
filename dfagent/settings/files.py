"""Finds, reads and checks the two settings files; every fault is one `ConfigError` that names file and place."""

from __future__ import annotations

import difflib
import json
import logging
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from dfagent.errors import ConfigError
from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.dragonfly import DragonflySettings
from dfagent.settings.places import place, shown

CONFIG_VARIABLE = "TRITON_DRAGONFLY_CONFIG_PATH"
CREDENTIALS_VARIABLE = "TRITON_CLOUD_CREDENTIAL_PATH"
DEFAULT_FOLDER = Path("/home/triton")

_log = logging.getLogger("dfagent.settings")
_Model = TypeVar("_Model", bound=BaseModel)
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
_JSON_TYPES = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}
_EXPECTED_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "dict_type": "an object",
    "model_type": "an object",
    "tuple_type": "a list",
    "path_type": "a path as text",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Both settings files, checked."""

    dragonfly: DragonflySettings
    credentials: CloudCredentials


def load_settings(config: Path | None, credentials: Path | None, env: Mapping[str, str]) -> Settings:
    """Reads the two files that the flags name, else the TRITON_* variables in `env`, else the defaults.

    Only a default file may be absent. Unknown keys are logged as warnings. Raises `ConfigError`, never with a value
    from a file in its text, because it may be a secret.
    """
    dragonfly = _load(DragonflySettings, config, env.get(CONFIG_VARIABLE), "dragonfly_config.json")
    cloud = _load(CloudCredentials, credentials, env.get(CREDENTIALS_VARIABLE), "cloud_credential.json")
    return Settings(dragonfly, cloud)


def _load(model: type[_Model], flag: Path | None, variable: str | None, default_name: str) -> _Model:
    named = flag or (Path(variable) if variable else None)
    file = named or DEFAULT_FOLDER / default_name
    text = _read(file, may_be_absent=named is None, credentials=model is CloudCredentials)
    if text is None:
        return model()
    if model is CloudCredentials:
        _warn_of_readers(file)
    document = _parse(model, file, text)
    _check_text(model, file, document)
    settings = _validate(model, file, document)
    _warn_of_unknown_keys(model, file, document)
    return settings


def _read(file: Path, *, may_be_absent: bool, credentials: bool) -> str | None:
    flag, variable = ("--credentials", CREDENTIALS_VARIABLE) if credentials else ("--config", CONFIG_VARIABLE)
    hint = f"name another file by {flag} or by {variable}"
    try:
        # Some editors begin a UTF-8 file with a byte order mark, which JSON does not allow.
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as exc:
        if may_be_absent:
            return None
        raise ConfigError(f"{file}: no such file", hint=hint) from exc
    except IsADirectoryError as exc:
        raise ConfigError(f"{file}: is a folder, expected a JSON file", hint=hint) from exc
    except OSError as exc:
        raise ConfigError(f"{file}: can't be read: {exc.strerror}", hint="check the file's owner and mode") from exc
    except UnicodeDecodeError as exc:
        problem = f"{file}: byte {exc.start} is not UTF-8"
    # Raised outside of the handler: the decoder's exception carries the whole file, secrets included.
    raise ConfigError(problem, hint="save the file as UTF-8 text")


def _warn_of_readers(file: Path) -> None:
    # Only told: a secret that Kubernetes mounts has mode 0644 unless `defaultMode` says otherwise.
    with suppress(OSError):
        if stat.S_ISREG(mode := file.stat().st_mode) and mode & stat.S_IROTH:
            _log.warning("%s: every user of this machine can read these credentials: chmod o-r", file)


def _parse(model: type[BaseModel], file: Path, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as exc:
        problem = f"{file}: line {exc.lineno}, column {exc.colno}: not JSON: {exc.msg}"
    except _DuplicateKeyError as exc:
        problem = f"{file}: the key {shown(model, *exc.args)} stands twice in one object"
    except (RecursionError, ValueError):
        problem = f"{file}: not JSON that a settings file may hold: nested too deep, or a number too long"
    else:
        if isinstance(document, dict):
            return document
        problem = f"{file}: expected an object {{…}}, got {_json_type(document)}"
    # Raised outside of the handler: the parser's exception carries the whole document, secrets included.
    raise ConfigError(problem, hint="correct the file")


class _DuplicateKeyError(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for number, (key, value) in enumerate(pairs, start=1):
        if key in keys:
            raise _DuplicateKeyError(key, number)
        keys[key] = value
    return keys


def _check_text(model: type[BaseModel], file: Path, document: dict[str, Any]) -> None:
    # JSON's escapes can write what neither a file's name nor a request can hold. No recursion: depth is the file's.
    waiting: list[tuple[tuple[int | str, ...], Any]] = [((), document)]
    while waiting:
        location, value = waiting.pop()
        inner: Iterable[tuple[int | str, Any]] = ()
        if isinstance(value, dict):
            inner = value.items()
        elif isinstance(value, list):
            inner = enumerate(value)
        for key, item in inner:
            if any(isinstance(text, str) and _NO_TEXT.search(text) for text in (key, item)):
                problem = f"{file}: {place(model, document, (*location, key))}: holds NUL or half a character"
                raise ConfigError(problem, hint="correct this key in the file")
            waiting.append(((*location, key), item))


def _validate(model: type[_Model], file: Path, document: dict[str, Any]) -> _Model:
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        faults = exc.errors(include_url=False)
    first = faults[0]
    problem = f"{file}: {place(model, document, first['loc'])}: {_explain(first['type'], first['msg'], first['input'])}"
    if len(faults) > 1:
        problem += f" (and {len(faults) - 1} more)"
    # Raised outside of the handler: the validator's exception carries the values, secrets included.
    raise ConfigError(problem, hint="correct this key in the file")


def _explain(kind: str, message: str, value: Any) -> str:
    if kind in _EXPECTED_TYPES:
        return f"expected {_EXPECTED_TYPES[kind]}, got {_json_type(value)}"
    return message.removeprefix("Value error, ").replace("Input should be", "expected", 1)


def _json_type(value: Any) -> str:
    return _JSON_TYPES.get(type(value), "null")


def _warn_of_unknown_keys(model: type[BaseModel], file: Path, document: dict[str, Any]) -> None:
    for location, known in _unknown_keys(model, document, ()):
        nearest = difflib.get_close_matches(location[-1], known, n=1)
        advice = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
        _log.warning("%s: unknown key %s is ignored, %s", file, place(model, document, location), advice)


def _unknown_keys(
    model: type[BaseModel], document: dict[str, Any], parents: tuple[str, ...]
) -> Iterable[tuple[tuple[str, ...], list[str]]]:
    known = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for key, value in document.items():
        if key not in known:
            yield (*parents, key), list(known)
            continue
        nested = [kind for kind in get_args(known[key]) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if nested:
            for prefix, entry in value.items():
                yield from _unknown_keys(nested[0], entry, (key, prefix))
