"""The demo's table on the terminal and its chart for a browser, both from the same results."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from string import Template

from rich import box
from rich.filesize import decimal
from rich.table import Table

from dfagent.demo.modes import ModeResult
from dfagent.types import Traffic

BIG = "big_table"
READER = "text_reader"

CAVEAT = (
    "On one machine the store is as near as a peer, so cold and remote need not be faster than direct here. "
    "What peers save is the origin's traffic: with many nodes, or a slow link to the origin, that decides."
)
_COLOURS = ("#8c8c8c", "#d9822b", "#2b7bd9", "#2ba36b")
_BAR_PIXELS = 560
_PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>dfagent demo</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
 table { border-collapse: collapse; margin: 1.5rem 0; width: 100% }
 th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
 th:first-child, td:first-child { text-align: left }
 text { font: 14px system-ui, sans-serif; fill: #222 }
 .right { color: #1b7f4b } .wrong { color: #b3261e }
</style></head><body>
<h1>Time to fetch $size, by where the bytes come from</h1>
$chart
<p>Fetch time of one $size object on this machine in one run, all parts real: an S3 server that checks signatures,
Dragonfly's scheduler and peers, Triton. The ratios mean something, the seconds belong to this machine.
A mode's name is what Dragonfly said of the pieces, not a guess from the time.</p>
<p>$caveat</p>
$table
<h2>Answers of the loaded models</h2>
$answers
</body></html>
"""
)


def rows(results: Sequence[ModeResult]) -> tuple[list[str], list[list[str]]]:
    """Headings, and one row a mode."""
    direct = results[0].fetch_seconds(BIG)
    headings = ["mode", "fetch", "× direct", "fetch OCR", "whole pass", "origin", "remote", "local", "answers"]
    body = []
    for result in results:
        traffic = sum((record.traffic for record in result.result.models), Traffic())
        fetch = result.fetch_seconds(BIG)
        right = sum(answer.right for answer in result.answers)
        body.append(
            [
                result.mode.title,
                _seconds(fetch),
                f"{fetch / direct:.3f}",
                _seconds(result.fetch_seconds(READER)),
                _seconds(result.seconds),
                *(_amount(count) for count in (traffic.origin, traffic.remote_peer, traffic.local_peer)),
                f"{right} of {len(result.answers)} right",
            ]
        )
    return headings, body


def table(results: Sequence[ModeResult]) -> Table:
    """The rows for a terminal."""
    headings, body = rows(results)
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in headings:
        drawn.add_column(heading, justify="left" if heading == headings[0] else "right", no_wrap=True)
    for row in body:
        drawn.add_row(*row)
    return drawn


def page(results: Sequence[ModeResult], size: int) -> str:
    """A page that needs nothing else: chart, table, answers."""
    headings, body = rows(results)
    return _PAGE.substitute(
        size=decimal(size),
        caveat=CAVEAT,
        chart=_chart(results),
        table=_html_table(headings, body),
        answers=_html_table(
            ["mode", "model", "asked about", "answer", ""],
            [
                [result.mode.title, answer.model, answer.input, answer.got, "right" if answer.right else "wrong"]
                for result in results
                for answer in result.answers
            ],
        ),
    )


def _chart(results: Sequence[ModeResult]) -> str:
    longest = max(result.fetch_seconds(BIG) for result in results)
    bars = []
    for number, (result, colour) in enumerate(zip(results, _COLOURS, strict=True)):
        seconds, top = result.fetch_seconds(BIG), number * 44
        # A local hit of milliseconds still deserves a visible line.
        width = max(2.0, seconds / longest * _BAR_PIXELS)
        bars.append(
            f'<text x="150" y="{top + 22}" text-anchor="end">{escape(result.mode.title)}</text>'
            f'<rect x="160" y="{top + 4}" width="{width:.1f}" height="28" fill="{colour}"/>'
            f'<text x="{168 + width:.1f}" y="{top + 22}">{_seconds(seconds)}</text>'
        )
    height = len(results) * 44
    return f'<svg viewBox="0 0 820 {height}" width="100%" role="img">{"".join(bars)}</svg>'


def _html_table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = (
        "<tr>" + "".join(f'<td class="{cell if cell in ("right", "wrong") else ""}">{_cell(cell)}</td>' for cell in row)
        for row in body
    )
    return f"<table><tr>{head}</tr>{''.join(line + '</tr>' for line in lines)}</table>"


def _cell(text: str) -> str:
    return escape(text if len(text) <= 40 else f"{text[:16]}…")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"


def _amount(count: int) -> str:
    return decimal(count) if count else "-"
