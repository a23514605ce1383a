"""`python -m tests.soak`: thousands of schedules, or one that is to be looked at (`--seed N`)."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import islice
from pathlib import Path

from tests.soak.kinds import PAIRS
from tests.soak.run import Outcome
from tests.soak.schedule import schedule
from tests.soak.summary import Summary
from tests.soak.worker import Done, Worker, room, run_chunk

_CHUNK = 48
_LONGEST_TEXT = 2000
_ROUNDS = 4
"""How often seeds of kinds that fired too seldom are added."""


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    # No setting of the machine's, neither a proxy nor a credential.
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        del os.environ[name]
    os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull}
    if options.prove:
        from tests.soak.sabotage import prove

        sys.exit(not prove())
    sys.exit(not (_soak(options) if options.seed is None else _replay(options.seed)))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000, help="how many must count")
    parser.add_argument("--at-least", type=int, default=50, help="how often every kind must fire with every transport")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--lanes", type=int, default=6, help="schedules side by side in each process")
    parser.add_argument("--json", type=Path, help="write the counts there, too")
    parser.add_argument("--prove", action="store_true", help="break one guard after the other: is it noticed?")
    parser.add_argument("--seed", type=int, help="run this one schedule and tell what happened")
    return parser.parse_args(arguments)


def _replay(seed: int) -> bool:
    with room() as folder:
        worker = Worker(1, folder)
        try:
            done = worker.run([seed])
        finally:
            worker.close()
    (outcome,) = done.outcomes
    print(schedule(seed))
    print("\n".join(outcome.said))
    print(f"fired {outcome.fired}, ended {outcome.ended}, counts {outcome.counts}")
    for violation in outcome.violations:
        print(f"{violation.kind}: {violation.text}")
    print("\n".join(done.problems))
    return not outcome.violations and not done.problems


def _soak(options: argparse.Namespace) -> bool:
    summary = Summary()
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with room() as folder, ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        run = partial(run_chunk, lanes=options.lanes, folder=folder)
        following = options.first_seed
        while summary.counted < options.schedules:
            # Not all of them count, but most do.
            more = max(_CHUNK, options.schedules - summary.counted)
            _run(pool, run, summary, range(following, following + more))
            following += more
        for _ in range(_ROUNDS):
            wanted = list(_missing(summary, options.at_least, following))
            if not wanted:
                break
            following = max(wanted) + 1
            _run(pool, run, summary, wanted)
    summary.seconds = time.monotonic() - started
    print(summary)
    if options.json:
        options.json.write_text(json.dumps(summary.to_json(), indent=1) + "\n")
    if summary.failures:
        print(f"failing seeds: {sorted(outcome.seed for outcome in summary.failures)}")
    short = [PAIRS[number] for number in summary.short(options.at_least)]
    if short:
        print(f"fired fewer than {options.at_least} times: {short}")
    return summary.is_clean and not short


def _missing(summary: Summary, least: int, first: int) -> Iterator[int]:
    """Seeds whose main faults are those that fired too seldom, as many as may be enough."""
    for number in summary.short(least):
        lacking = least - summary.count(PAIRS[number])
        start = first + (number - first) % len(PAIRS)
        yield from range(start, start + len(PAIRS) * (lacking * 2), len(PAIRS))


def _run(
    pool: ProcessPoolExecutor, run: Callable[[list[int]], Done], summary: Summary, seeds: range | list[int]
) -> None:
    left = iter(seeds)
    chunks = []
    while chunk := list(islice(left, _CHUNK)):
        chunks.append(pool.submit(run, chunk))
    for number, done in enumerate(as_completed(chunks), start=1):
        summary.add(done.result())
        # At once: a long run may be ended before it tells the rest.
        for outcome in done.result().outcomes:
            if outcome.violations:
                print(_told(outcome), flush=True)
        for problem in done.result().problems:
            print(problem[:_LONGEST_TEXT], flush=True)
        failing = f", {len(summary.failures)} with violations" if summary.failures else ""
        print(f"\r{number}/{len(chunks)} chunks, {summary.run} schedules{failing} ", end="", file=sys.stderr)
    print(file=sys.stderr)


def _told(outcome: Outcome) -> str:
    lines = [f"  {violation.kind}: {violation.text[:_LONGEST_TEXT]}" for violation in outcome.violations]
    return "\n".join([str(schedule(outcome.seed)), *lines, f"  replay: python -m tests.soak --seed {outcome.seed}"])
