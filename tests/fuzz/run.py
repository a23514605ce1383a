"""Fuzzes what parses bytes from outside: `python -m tests.fuzz.run [TARGET…] [--runs N] [--seconds S] [--seed N]`.

A target is a module `fuzz_<name>` here: `SEEDS`, inputs to begin with, and `check(data)`, which raises for a fault.
Each runs in a process of its own, because libFuzzer ends the one that it runs in. What made a target fail is written
to `build/fuzz/<name>/`, with the command that repeats it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
TARGETS = tuple(sorted(file.stem.removeprefix("fuzz_") for file in Path(__file__).parent.glob("fuzz_*.py")))
SLOWEST_INPUT_SECONDS = 20  # on a busy machine; an input that takes longer is a bomb
MOST_MEMORY_MB = 1024
LONGEST_INPUT = 16 << 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one target: the number of inputs, and what libFuzzer said where one failed."""

    target: str
    runs: int
    seconds: int
    failure: str


def fuzz(target: str, *, runs: int, seconds: int, seed: int, folder: Path) -> Outcome:
    """Runs the target in a process of its own, until `runs` inputs (-1: any number) or `seconds` (0: any time)."""
    corpus = folder / target / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    options = [
        f"-runs={runs}",
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-timeout={SLOWEST_INPUT_SECONDS}",
        f"-rss_limit_mb={MOST_MEMORY_MB}",
        f"-max_len={LONGEST_INPUT}",
        f"-artifact_prefix={folder / target}/",
        "-print_final_stats=1",
        str(corpus),
    ]
    command = [sys.executable, "-m", "tests.fuzz.run", "--child", target, *options]
    # libFuzzer ends the process without any tidying up.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with TemporaryDirectory(prefix="dfagent-fuzz-", dir=memory) as temporary:
        environment = {**os.environ, "TMPDIR": temporary}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
    said = done.stdout + done.stderr
    counted = re.search(r"^Done (\d+) runs in (\d+) second", said, re.MULTILINE)
    count, took = (int(counted[1]), int(counted[2])) if counted else (0, 0)
    return Outcome(target, count, took, "" if done.returncode == 0 and counted else said[-6000:])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=-1, help="inputs for each target")
    parser.add_argument("--seconds", type=int, default=180, help="time for each target")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failed = 0
    for target in options.targets or TARGETS:
        outcome = fuzz(
            target, runs=options.runs, seconds=options.seconds, seed=options.seed, folder=ROOT / "build" / "fuzz"
        )
        failed += bool(outcome.failure)
        print(f"{target:18} {outcome.runs:9,} inputs in {outcome.seconds} s", "FAILED" if outcome.failure else "")
        if outcome.failure:
            print(outcome.failure)
            print(f"again: {sys.executable} -m tests.fuzz.run --child {target} FILE (named above)")
    sys.exit(1 if failed else 0)


def child(target: str, options: list[str]) -> None:
    """Becomes libFuzzer."""
    import atheris

    with atheris.instrument_imports(include=["dfagent", "tests.fuzz"]):
        module = importlib.import_module(f"tests.fuzz.fuzz_{target}")
    corpus = Path(options[-1])
    if corpus.is_dir():
        for number, seed in enumerate(module.SEEDS):
            (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([f"fuzz_{target}", *options], module.check)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    else:
        main()
