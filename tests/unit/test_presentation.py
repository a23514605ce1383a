"""What people see: bars that never pass their end, lines where there is no terminal, a table that fits."""

from __future__ import annotations

import io
import sys

import orjson
import pytest
from rich.console import Console
from rich.progress import Progress

from dfagent.agent import PassResult
from dfagent.cli.progress import Bars, Lines, Silent, watch_progress
from dfagent.cli.report import fitting_table, print_result, shown
from dfagent.records import ModelRecord, Seconds
from dfagent.types import Source, Traffic

NAME = "densenet_onnx"


def record(model: str = NAME, outcome: str = "published", *, loaded: bool = True) -> ModelRecord:
    seconds = Seconds(list=1.25, fetch=2.5, publish=3.75, load=4.125)
    source = Source.REMOTE if outcome == "published" else None
    return ModelRecord(
        model, "s3://b/r", outcome, 10**9, 10**9, 3, "dfdaemon", source, Traffic(), seconds, loaded=loaded
    )


def printed(models: list[ModelRecord], width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(fitting_table(console, models))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


@pytest.fixture
def progress() -> Progress:
    return Progress(console=Console(file=io.StringIO()))


def should_move_a_bar_to_its_end_and_not_past_it(progress: Progress) -> None:
    """Bytes of a failed attempt are taken back before they are counted again."""
    bars = Bars(progress)
    bars.fetching("net", 100)
    for count in (60, -60, 100):
        bars.progress("net", count)
    (task,) = progress.tasks
    assert (task.completed, task.total, task.finished) == (100, 100, True)
    bars.finished(record("net"))
    assert task.description == "net: published"


def should_begin_a_bar_again_when_its_model_is_listed_again(progress: Progress) -> None:
    bars = Bars(progress)
    bars.fetching("net", 100)
    bars.progress("net", 70)
    bars.fetching("net", 40)
    bars.progress("net", 40)
    (task,) = progress.tasks
    assert (task.completed, task.total) == (40, 40)


def should_draw_no_bar_for_a_model_of_which_nothing_is_missing(progress: Progress) -> None:
    bars = Bars(progress)
    bars.fetching("net", 0)
    bars.progress("net", 0)
    bars.finished(record("net", "unchanged"))
    assert progress.tasks == []


def should_print_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.fetching("net", 0)
    lines.fetching("net", 10**9)
    lines.progress("net", 5)
    lines.finished(record("net"))
    assert capsys.readouterr().err.splitlines() == ["net: fetching 1.0 GB", "net: published"]


def should_choose_what_suits_where_standard_error_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    with watch_progress(quiet=True) as observer:
        assert isinstance(observer, Silent)
    with watch_progress(quiet=False) as observer:
        assert isinstance(observer, Lines)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with watch_progress(quiet=False) as observer:
        assert isinstance(observer, Bars)


def should_show_a_bars_model_by_the_name_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets are no markup."""
    terminal = io.StringIO()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", terminal)
    with watch_progress(quiet=False) as observer:
        observer.fetching("net[/]", 100)
        observer.progress("net[/]", 100)
    assert "net[/]" in terminal.getvalue()


def should_show_every_phase_where_there_is_room() -> None:
    text = printed([record()], 120)
    for word in (NAME, "published, READY", "1.0 GB", "remote (dfdaemon)", "1.250", "2.500", "3.750", "4.125"):
        assert word in text


@pytest.mark.parametrize("width", [120, 100, 80, 60, 40, 30])
def should_show_the_models_name_on_a_terminal_of_any_width(width: int) -> None:
    text = printed([record(), record("other", "unchanged", loaded=False)], width)
    assert NAME in text and "other" in text
    assert max(map(len, text.splitlines())) <= width


def should_fold_a_name_that_is_longer_than_the_terminal() -> None:
    text = printed([record("n" * 200)], 80)
    assert text.count("n") >= 200 and "published, READY" in text


def should_show_names_as_they_are_but_no_control_character() -> None:
    text = printed([record("net[/]"), record("net[red]"), record("a\x1b[2Jb")], 120)
    assert "net[/]" in text and "net[red]" in text and r"a\x1b[2Jb" in text
    assert shown("größe-模型") == "größe-模型"


def should_print_json_lines_and_nothing_else(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    print_result(PassResult(models=[record()]), as_json=True)
    (line,) = capfdbinary.readouterr().out.splitlines()
    assert orjson.loads(line)["model"] == NAME


def should_print_no_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(PassResult(), as_json=False)
    assert capsys.readouterr().out == ""
