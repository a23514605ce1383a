"""The search for secrets as a part of pytest: it watches the whole session, and a hit fails it."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from dfagent.errors import DfagentError
from dfagent.records import ModelRecord, ObjectRecord
from tests.secrecy.child import after, watch
from tests.secrecy.evidence import begin, end, the_evidence

_undo: list[Callable[[], None]] = []
_errors: list[DfagentError] = []
_temporary: dict[str, str] = {}
_watching: list[bool] = []


class _Keeper(logging.Handler):
    """Keeps every record that reaches the root logger, whatever others do with it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = f"{record.name} {record.levelname} {self.format(record)}"
        except Exception as exc:  # noqa: BLE001 — what can't be formatted is no test's failure here
            text = f"{record.name}: {exc}"
        the_evidence().said("log", text)


_keeper = _Keeper()


def pytest_sessionstart() -> None:
    begin()
    logging.getLogger().addHandler(_keeper)
    logging.getLogger("dfagent").setLevel(logging.DEBUG)
    _undo.append(after(DfagentError, "__init__", lambda error, *_, **__: _errors.append(error)))
    _undo.extend(after(record, "__init__", _keep_record) for record in (ObjectRecord, ModelRecord))
    watch()
    if not _watching:  # an audit hook can't be taken back
        sys.addaudithook(_audit)
    _watching[:] = [True]


def _keep_record(record: Any, *_: Any, **__: Any) -> None:
    the_evidence().said("record", orjson.dumps(asdict(record)).decode())


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not (_watching and _watching[0]):
        return
    if event == "subprocess.Popen":
        the_evidence().said("arguments of a process", " ".join(map(str, (arguments[0], *_listed(arguments[1])))))
    elif event in ("tempfile.mkdtemp", "tempfile.mkstemp"):
        name = Path(str(arguments[0])).name
        if name.startswith("dfagent-") and not name.startswith(("dfagent-evidence-", "dfagent-tests-")):
            _temporary[str(arguments[0])] = the_evidence().test


def _listed(arguments: Any) -> list[Any]:
    return [arguments] if isinstance(arguments, (str, bytes)) else list(arguments)


def pytest_runtest_logstart(nodeid: str) -> None:
    the_evidence().test = nodeid


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if isinstance(folder, Path):
        the_evidence().look_at_files(folder)
    result = yield
    _keep_errors()
    return result


def _keep_errors() -> None:
    """The errors made meanwhile, with causes, contexts and tracebacks: whoever caught them might print them."""
    for error in _errors:
        the_evidence().said("error", f"{error!r} {error} " + "".join(traceback.format_exception(error)))
    _errors.clear()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        for heading, text in report.sections:
            the_evidence().said(heading, text)
    if report.failed:
        the_evidence().said("failure", report.longreprtext)


def pytest_sessionfinish(session: pytest.Session) -> None:
    _watching[:] = [False]
    logging.getLogger().removeHandler(_keeper)
    while _undo:
        _undo.pop()()
    _keep_errors()
    evidence = the_evidence()
    for folder, evidence.test in sorted(_temporary.items()):
        if Path(folder).exists():
            evidence.look_at_files(Path(folder))
    evidence.test = "outside of tests"
    session.config.stash[_FOUND] = [str(finding) for finding in evidence.search()]
    session.config.stash[_COUNT] = evidence.register.count
    end()
    if session.config.stash[_FOUND]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_FOUND = pytest.StashKey[list[str]]()
_COUNT = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash.get(_FOUND, [])
    count = config.stash.get(_COUNT, 0)
    if not found:
        terminalreporter.write_line(f"secrets: none of {count} secrets and signatures was found in what dfagent wrote")
        return
    terminalreporter.section("secrets found in what dfagent wrote", red=True)
    for line in dict.fromkeys(found):
        terminalreporter.write_line(line)
