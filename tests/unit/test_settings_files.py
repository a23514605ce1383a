"""Finding and reading the two settings files: one clear sentence for every fault, never a value."""

import json
import logging
from pathlib import Path

import pytest

from dfagent.errors import ConfigError
from dfagent.settings import files
from dfagent.settings.files import load_settings

SEED = Path(__file__).parents[1] / "fixtures" / "seed"
CONFIG = SEED / "dragonfly_config.json"
CREDENTIALS = SEED / "cloud_credential.json"
SECRET = "hush-hush-hush"


@pytest.fixture(autouse=True)
def _no_default_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "DEFAULT_FOLDER", tmp_path / "home-triton")


def write(folder: Path, content: str | bytes | object) -> Path:
    file = folder / "settings.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    file.chmod(0o640)
    return file


def fault_in_credentials(folder: Path, content: str | bytes | object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(None, write(folder, content), {})
    assert caught.value.hint
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, OSError)
    assert caught.value.__context__ is None or isinstance(caught.value.__context__, OSError)
    return caught.value.message


def test_seed_dragonfly_config_means_what_its_document_says() -> None:
    """The seed's own file: a proxy, no headers, and an entry with `&` in it."""
    dragonfly = load_settings(CONFIG, None, {}).dragonfly
    assert dragonfly.proxy == "http://127.0.0.1:65001"
    assert dragonfly.header == {}
    assert dragonfly.filter == tuple(json.loads((SEED / "filter_lists.json").read_text())["S3"])
    assert dragonfly.default_transport() == "auto"
    assert dragonfly.has_peer("auto")


def test_seed_cloud_credential_means_what_its_document_says() -> None:
    """The seed's own file: gs, s3 and as sections, the default and a bucket's own."""
    credentials = load_settings(None, CREDENTIALS, {}).credentials
    default, own = credentials.s3_for("s3://any/model"), credentials.s3_for("s3://s3-bucket-002/model")
    assert default
    assert (default.key_id, default.region) == ("AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION")
    assert (default.session_token, default.profile) == (None, None)
    assert own
    assert own.session_token
    assert own.session_token.get_secret_value() == "AWS_SESSION_TOKEN_2"
    assert credentials.gs[""] == "PATH_TO_GOOGLE_APPLICATION_CREDENTIALS"
    account = credentials.as_[""].account_str
    assert account
    assert account.get_secret_value() == "AZURE_STORAGE_ACCOUNT"
    assert credentials.as_["as://Account-002/Container"].account_key is None


def test_seed_files_warn_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Every key of the seed's files is known."""
    load_settings(CONFIG, CREDENTIALS, {})
    # Their mode is the checkout's.
    assert [record.message for record in caplog.records if "can read" not in record.message] == []


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o604, True), (0o640, False), (0o600, False)])
def test_credentials_that_every_user_can_read_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    file = write(tmp_path, {})
    file.chmod(mode)
    load_settings(None, file, {})
    load_settings(file, None, {})
    messages = [record.message for record in caplog.records]
    assert len(messages) == warned and all(str(file) in message and "chmod o-r" in message for message in messages)


def test_flag_wins_over_environment_over_default(tmp_path: Path) -> None:
    """--config, then TRITON_DRAGONFLY_CONFIG_PATH, then the default folder."""
    flag, variable, default = (tmp_path / name for name in ("flag", "variable", "home-triton"))
    for folder in (flag, variable, default):
        folder.mkdir()
        (folder / "dragonfly_config.json").write_text(json.dumps({"tag": folder.name}))
    env = {"TRITON_DRAGONFLY_CONFIG_PATH": str(variable / "dragonfly_config.json")}
    assert load_settings(flag / "dragonfly_config.json", None, env).dragonfly.tag == "flag"
    assert load_settings(None, None, env).dragonfly.tag == "variable"
    assert load_settings(None, None, {}).dragonfly.tag == "home-triton"
    assert load_settings(None, None, {"TRITON_DRAGONFLY_CONFIG_PATH": ""}).dragonfly.tag == "home-triton"


def test_credentials_come_from_their_variable() -> None:
    """TRITON_CLOUD_CREDENTIAL_PATH is Triton's own variable."""
    settings = load_settings(None, None, {"TRITON_CLOUD_CREDENTIAL_PATH": str(CREDENTIALS)})
    assert settings.credentials.s3_for("s3://any")


def test_only_the_default_file_may_be_absent(tmp_path: Path) -> None:
    """A file that somebody named must be there."""
    assert load_settings(None, None, {}).dragonfly.proxy is None
    missing = tmp_path / "nope.json"
    with pytest.raises(ConfigError, match=r"nope\.json: no such file"):
        load_settings(missing, None, {})
    with pytest.raises(ConfigError, match=r"nope\.json: no such file"):
        load_settings(None, None, {"TRITON_CLOUD_CREDENTIAL_PATH": str(missing)})


def test_a_folder_is_not_a_settings_file(tmp_path: Path) -> None:
    """The variable names a file."""
    with pytest.raises(ConfigError, match="is a folder, expected a JSON file"):
        load_settings(tmp_path, None, {})


def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    """A loop of symlinks can't be read, even by root."""
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match=r"loop\.json: can't be read: "):
        load_settings(loop, None, {})


def test_bad_json_names_line_and_column(tmp_path: Path) -> None:
    """The reader goes straight to the place."""
    text = '{\n  "s3": {\n    "": {"secret_key": "' + SECRET + '",}\n  }\n}'
    message = fault_in_credentials(tmp_path, text)
    assert "settings.json: line 3, column" in message
    assert "not JSON" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"s3": "\xff"}', "byte 8 is not UTF-8"),
        ("[]", "expected an object {…}, got a list"),
        ("null", "expected an object {…}, got null"),
        ("", "line 1, column 1: not JSON"),
        ('{"s3": {}, "s3": {}}', "the key s3 stands twice"),
        ('{"s3": {"": {"' + SECRET + '": 1, "' + SECRET + '": 2}}}', "the key <key number 2> stands twice"),
        ({"s3": {"": {}, SECRET: {}}}, "s3: entry number 2 can match no URL"),
        ({"s3": {"s3://b": {}, SECRET: {"key_id": 5}}}, "s3.<key number 2>.key_id: expected text, got a number"),
        ({"s3": {"s3://" + SECRET + "@b": 5}}, "s3.<key number 1>: expected an object"),
        ({"s3": {"": {"secret_key": SECRET + "\ud800"}}}, 's3."".secret_key: holds NUL or half a character'),
        ({"s3": {"": {"ca_bundle": "/n\0pe"}}}, 's3."".ca_bundle: holds NUL'),
        ({"s3": [{SECRET + "\0": 1}]}, "s3.0.<key number 1>: holds NUL"),
        ("[" * 100_000, "nested too deep"),
        ('{"s3": ' + "9" * 5000 + "}", "a number too long"),
        ({"s3": []}, "s3: expected an object, got a list"),
        ({"s3": {"s3://b": {"secret_key": 5}}}, 's3."s3://b".secret_key: expected text, got a number'),
        ({"s3": {"": {"anonymous": 1}}}, 's3."".anonymous: expected true or false, got a number'),
        ({"s3": {"": {"addressing": SECRET}}}, "s3.\"\".addressing: expected 'auto', 'path' or 'virtual'"),
        ({"s3": {"": {"key_id": "K"}}}, 's3."": key_id and secret_key go together'),
        ({"s3": {"": [SECRET]}}, 's3."": expected an object, got a list'),
        ({"gs": {"": {"private_key": SECRET}}}, 'gs."": expected text, got an object'),
        ({"as": {"": {"account_key": [SECRET], "account_str": {}}}}, "(and 1 more)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_fault_is_one_sentence_with_its_place(tmp_path: Path, content: object, says: str) -> None:
    """File, dotted key and expectation, never the value."""
    message = fault_in_credentials(tmp_path, content)
    assert says in message
    assert "settings.json" in message
    assert SECRET not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"proxy": "http://user:" + SECRET + "@"}, "proxy: expected http://host:port"),
        ({"header": {"Authorization": SECRET + "\n"}}, "the value of 'Authorization' holds characters"),
        ({"header": {"Authorization": [SECRET]}}, "header.Authorization: expected text, got a list"),
        ({"priority": SECRET}, "priority: expected a whole number, got text"),
        ({"concurrency": 100}, "concurrency: expected less than or equal to 64"),
        ({"piece_length": SECRET}, "piece_length: expected bytes as a number"),
        ({"transport": SECRET}, "transport: expected 'auto', 'direct', 'proxy' or 'dfdaemon'"),
        ({"filter": SECRET}, "filter: expected a list, got text"),
        ({"filter": [None]}, "filter.0: expected text, got null"),
        ({"socket": 5}, "socket: expected a path as text, got a number"),
        ({"socket": "\ud800"}, "socket: holds NUL or half a character"),
        ({"filter": ["a", SECRET + "\0"]}, "filter.1: holds NUL"),
        ({"path_map": {"/a": "/" + SECRET + "\udfff"}}, 'path_map."/a": holds NUL'),
        ({"socket": SECRET}, "socket: expected an absolute path of at most 107 bytes"),
        ({"header": {"If-Match": SECRET}}, "header: 'If-Match' is not for a settings file to set"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_faults_in_dragonfly_config_never_show_the_value(tmp_path: Path, document: object, says: str) -> None:
    """A value may be a secret wherever it stands."""
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, document), None, {})
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    """Some editors write one."""
    assert load_settings(write(tmp_path, b'\xef\xbb\xbf{"tag": "t"}'), None, {}).dragonfly.tag == "t"


def test_unknown_keys_are_warned_of_with_the_nearest_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A typing error must not pass in silence, nor stop the agent."""
    with caplog.at_level(logging.WARNING, logger="dfagent.settings"):
        load_settings(write(tmp_path, {"proxi": "http://p:1", "zzz": SECRET}), None, {})
        load_settings(None, write(tmp_path, {"s3": {"s3://b": {"key": SECRET, "secretkey": SECRET}}}), {})
    messages = [record.getMessage() for record in caplog.records]
    assert "settings.json: unknown key proxi is ignored, did you mean 'proxy'?" in messages[0]
    assert "unknown key zzz is ignored, known are proxy, header, filter" in messages[1]
    assert any("s3.\"s3://b\".<key number 2> is ignored, did you mean 'secret_key'?" in message for message in messages)
    assert not any(SECRET in message for message in messages)


def test_unknown_keys_can_neither_drive_a_terminal_nor_show_a_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A key is escaped and cut; where secrets live, one that nobody knows is only counted."""
    with caplog.at_level(logging.WARNING, logger="dfagent.settings"):
        load_settings(write(tmp_path, {"\x1b[2J\x9b\n" + "x" * 500: 1}), None, {})
        load_settings(None, write(tmp_path, {SECRET: 1, "s3": {"": {"region": "r", SECRET: 1}}}), {})
    escaped, top, nested = (record.getMessage() for record in caplog.records)
    assert f'unknown key "\\u001b[2J\\u009b\\n{"x" * 34}\\u2026" is ignored' in escaped
    assert escaped.isprintable()
    assert "unknown key <key number 1> is ignored" in top
    assert 's3."".<key number 2> is ignored' in nested
    assert SECRET not in caplog.text
