"""Names that mislead whoever reads a log: what turns letters around or hides them is shown as an escape."""

from __future__ import annotations

import logging

import pytest

from dfagent.cli.running import complain, set_up_logging
from dfagent.redact import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("zero\u200bwidth", r"zero\u200bwidth"),
        ("\x1b[2J\x9b2J\x07\r", r"\x1b[2J\x9b2J\x07\r"),
        ("two\u2028lines\x85more", r"two\u2028lines\x85more"),
        ("half\ud800", r"half\ud800"),
        ("ünïcödé 日本 🦊\tand\nlines", "ünïcödé 日本 🦊\tand\nlines"),
    ],
)
def test_should_escape_what_can_not_be_seen(text: str, shown: str) -> None:
    """Letters of any script stay, and so do the lines of a traceback."""
    assert printable(text) == shown


def test_should_escape_names_in_logs_and_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever in the message they stand."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(logging.getLogger("dfagent"), "level", logging.NOTSET)
    set_up_logging(logging.INFO)
    logging.getLogger("dfagent.test").info("%s: left alone", "a\u202eb")
    complain("error: a\u202eb")
    said = capsys.readouterr().err
    assert said.count(r"a\u202eb") == 2 and "\u202e" not in said
