"""Names a place in a settings file for an error or a warning, without showing a secret that stands there as a key."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from dfagent.settings.credentials import AzureCredential, CloudCredentials, S3Credential

_LONGEST = 40  # characters of an unknown key that are shown
_PLAIN = re.compile(r"[A-Za-z0-9_]{1,40}")
_PREFIX = re.compile(r"((s3|gs|as)://[A-Za-z0-9._:/-]*)?")
_KNOWN_KEYS = {
    field.alias or name
    for model in (CloudCredentials, S3Credential, AzureCredential)
    for name, field in model.model_fields.items()
}


def place(model: type[BaseModel], document: dict[str, Any], location: Sequence[int | str]) -> str:
    """The dotted name of `location` in the model's file, like `s3."s3://bucket".key_id` or `filter.0`."""
    parts = []
    inside: Any = document
    for key in location:
        if key == "[key]":  # the validator's own word for the key before it
            continue
        number = list(inside).index(key) + 1 if isinstance(inside, dict) and key in inside else 0
        parts.append(shown(model, key, number))
        inside = inside[key] if number or isinstance(inside, list) else None
    return ".".join(parts)


def shown(model: type[BaseModel], key: int | str, number: int) -> str:
    """The key as a message may show it; in the file of credentials only known keys and URLs, else its number."""
    if isinstance(key, int):
        return str(key)
    if model is CloudCredentials and key not in _KNOWN_KEYS and not _PREFIX.fullmatch(key):
        return f"<key number {number}>"
    if _PLAIN.fullmatch(key):
        return key
    return json.dumps(key if len(key) <= _LONGEST or model is CloudCredentials else f"{key[:_LONGEST]}…")
