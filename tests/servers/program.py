"""The one way in which tests start `dfagent` as a process: in a clean environment, with everything that it says kept.

Standard output and error go to files of the session's evidence, so a killed process's last words are there too, and
the search for secrets (`tests/secrecy`) reads them together with its arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from tests.secrecy.evidence import CHILD_VARIABLE, Evidence, the_evidence

ROOT = Path(__file__).parents[2]
LEAKS = ("AWS_", "AZURE_", "GOOGLE_", "TRITON_", "DFDAEMON_", "GRPC_")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
NEUTRAL = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
MAIN = "from tests.secrecy.child import watch; watch()\nfrom dfagent.cli import main; main()"


def leaks_in(environment: Mapping[str, str]) -> list[str]:
    """The variables of a developer's machine that would make dfagent behave otherwise."""
    return [name for name in environment if name.startswith(LEAKS) or name.lower() in PROXIES]


def clean_environment(**more: str) -> dict[str, str]:
    """Ours without those variables, with this checkout first on Python's path, and `more`."""
    leaks = set(leaks_in(os.environ))
    kept = {name: value for name, value in os.environ.items() if name not in leaks}
    return {**kept, **NEUTRAL, "PYTHONPATH": str(ROOT), **more}


@dataclass(frozen=True)
class Finished:
    """How a process ended (negative: by that signal) and what it said."""

    code: int
    out: str
    err: str


@dataclass
class Running:
    """A `dfagent` that runs; its output is in files, so it may be read at any time and never blocks the process."""

    process: asyncio.subprocess.Process
    out_file: Path
    err_file: Path

    @property
    def code(self) -> int | None:
        return self.process.returncode

    @property
    def out(self) -> str:
        return self.out_file.read_text(errors="replace") if self.out_file.exists() else ""

    @property
    def err(self) -> str:
        return self.err_file.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def finished(self, seconds: float = 60) -> Finished:
        """Waits for its end; one that does not come is the test's failure, with what it said so far."""
        try:
            code = await asyncio.wait_for(self.process.wait(), seconds)
        except asyncio.TimeoutError:
            await self.kill()
            raise AssertionError(f"it does not end within {seconds:g} s; it said:\n{self.err}") from None
        return Finished(code, self.out, self.err)

    async def stopped(self, number: signal.Signals = signal.SIGTERM, seconds: float = 30) -> Finished:
        self.send(number)
        return await self.finished(seconds)

    async def kill(self) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    async def says(self, words: str, times: int = 1, seconds: float = 60) -> None:
        """Returns when these words stand that often in its standard error."""
        deadline = time.monotonic() + seconds
        while self.err.count(words) < times:
            assert self.code is None, f"it ended without saying {words!r}: {self.err}"
            assert time.monotonic() < deadline, f"it does not say {words!r}: {self.err}"
            await asyncio.sleep(0.02)


async def start(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    main: str = MAIN,
    umask: int = -1,
    inside: Sequence[str] = (),
) -> Running:
    """Starts `dfagent` with these arguments; `environment` is added to a clean one, `main` replaces its first lines.

    `inside` is the beginning of a command that starts it in a namespace.
    """
    evidence = the_evidence()
    place = evidence.process(arguments)
    with place.out.open("wb") as out, place.err.open("wb") as err:
        process = await asyncio.create_subprocess_exec(
            *inside,
            sys.executable,
            "-c",
            main,
            *arguments,
            stdin=subprocess.DEVNULL,
            stdout=out if stdout is None else stdout,
            stderr=err if stderr is None else stderr,
            env=_environment(evidence, environment),
            umask=umask,
        )
    place.arguments_of(process.pid)
    return Running(process, place.out, place.err)


async def run(*arguments: str, environment: Mapping[str, str] | None = None, seconds: float = 60) -> Finished:
    """Runs `dfagent` to its end."""
    running = await start(*arguments, environment=environment)
    return await running.finished(seconds)


def python(script: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Finished:
    """Runs a Python script of a test's own, with dfagent to import, in the same way."""
    evidence = the_evidence()
    place = evidence.process(arguments)
    with place.out.open("wb") as out, place.err.open("wb") as err:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=_environment(evidence, environment),
            check=False,
            timeout=120,
        )
    return Finished(done.returncode, place.out.read_text(), place.err.read_text())


def _environment(evidence: Evidence, more: Mapping[str, str] | None) -> dict[str, str]:
    return clean_environment(
        **{CHILD_VARIABLE: str(evidence.folder), "TMPDIR": str(evidence.temporary)}, **(more or {})
    )


@dataclass
class SettingsFiles:
    """Both settings files in `folder`, readable by their owner alone, and the options that name them."""

    folder: Path
    credential: dict[str, object] = field(default_factory=dict)
    dragonfly: dict[str, object] = field(default_factory=dict)

    def options(self) -> list[str]:
        """Writes the files."""
        config = _private(self.folder / "dragonfly_config.json", self.dragonfly)
        credentials = _private(self.folder / "cloud_credential.json", {"s3": {"": self.credential}})
        self._register()
        return [f"--config={config}", f"--credentials={credentials}"]

    def _register(self) -> None:
        for name in ("secret_key", "session_token"):
            the_evidence().secret(name, str(self.credential.get(name) or ""))
        headers = self.dragonfly.get("header")
        for name, value in headers.items() if isinstance(headers, dict) else ():
            the_evidence().secret(f"the header {name}", value)
        with contextlib.suppress(ValueError):
            the_evidence().secret("a proxy's password", urlsplit(str(self.dragonfly.get("proxy") or "")).password or "")


def _private(path: Path, document: object) -> Path:
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    file: IO[str]
    with open(path, "w", opener=opener) as file:
        json.dump(document, file)
    return path
