"""The two settings files: any bytes are settings or a `ConfigError`, and no error and no repr shows a secret."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

from dfagent.errors import ConfigError
from dfagent.settings.files import load_settings
from dfagent.types import RepositoryUrl

SEEDS = [
    json.dumps(settings).encode()
    for settings in (
        {"s3": {"": {"key_id": "KEY", "secret_key": "hush-hush", "region": "eu"}, "s3://b": {"profile": "p"}}},
        {"s3": {"s3://h:9000/b": {"key_id": "K", "secret_key": "S", "session_token": "T", "anonymous": False}}},
        {"gs": {"": "path"}, "as": {"as://a": {"account_str": "", "account_key": "k"}}},
        {"proxy": "http://127.0.0.1:65001", "header": {"A": "b"}, "filter": ["X&Y", "Z"], "piece_length": "16mib"},
        {"socket": "/run/dfdaemon.sock", "concurrency": 8, "path_map": {"/a": "/b"}, "isolation": "per-credential"},
    )
] + [b"[" * 5000, b'{"a": ' * 2000, b"\xef\xbb\xbf{}", b'{"s3": {"\\ud800": {}}}', b'{"concurrency": 1e400}']
_FOLDER = tempfile.TemporaryDirectory(prefix="dfagent-fuzz-")
_FILE, _EMPTY = Path(_FOLDER.name, "file.json"), Path(_FOLDER.name, "empty.json")
_EMPTY.write_text("{}")
logging.getLogger("dfagent").setLevel(logging.ERROR)


def check(data: bytes) -> None:
    """As either file."""
    _FILE.write_bytes(data)
    try:
        settings = load_settings(_FILE, _EMPTY, {})
        settings.dragonfly.map_path(Path("/a/b"))
    except ConfigError as refused:
        assert refused.message.isprintable()
    try:
        settings = load_settings(_EMPTY, _FILE, {})
    except ConfigError as refused:
        assert refused.message.isprintable()
        return
    settings.credentials.s3_for(RepositoryUrl("s3", "http://h:9000", "b", "x"))
    for credential in settings.credentials.s3.values():
        secret = credential.secret_key.get_secret_value() if credential.secret_key else ""
        assert len(secret) < 8 or secret == credential.key_id or f"'{secret}'" not in repr(credential)
