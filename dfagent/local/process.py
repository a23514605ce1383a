"""One owned child server: started, waited for, paused, killed, and never left behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dfagent.errors import PartError

LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.05
TAIL_LINES = 15

# Ports are asked for long before a server takes them; nobody gets one twice.
_given: set[int] = set()


class Process:
    """A server that this process owns, in a process group of its own, with its output in a log file.

    It dies with us, even when we are killed. The kernel ties that to the *thread* that started it: start it from one
    that lives as long as the server shall (the main thread, or an event loop's), not from a short-lived worker.
    """

    def __init__(
        self,
        name: str,
        args: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._args = [str(arg) for arg in args]
        self._env = env
        self._cwd = cwd
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id, which is its group's id too; PartError where it was never started."""
        if self._child is None:
            raise PartError(f"{self.name} was not started")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended (negative: by that signal), None while it runs."""
        return None if self._child is None else self._child.poll()

    def start(self) -> Process:
        """Start it, or start it again; its log goes on at the end of the same file."""
        if self.running:
            raise PartError(f"{self.name} runs already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            try:
                self._child = subprocess.Popen(
                    [*_dies_with_us(), *self._args],
                    env=None if self._env is None else dict(self._env),
                    cwd=self._cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as exc:
                raise PartError(f"{self.name} can't be started: {exc}") from exc
        return self

    def wait_until(self, ready: Callable[[], bool], *, seconds: float, what: str = "ready") -> None:
        """Return as soon as `ready()` is true; PartError with the log's end when it exits first or takes longer."""
        deadline = time.monotonic() + seconds
        while True:
            if not self.running:
                raise PartError(f"{self.name} ended with code {self.exit_code}; its log ends:\n{self.log_tail()}")
            if ready():
                return
            if time.monotonic() > deadline:
                raise PartError(f"{self.name} is not {what} after {seconds:.0f} s; its log ends:\n{self.log_tail()}")
            time.sleep(POLL_SECONDS)

    def stop(self, *, seconds: float = 10) -> None:
        """Ask it to end, then kill whatever is left of its group; nothing happens where it does not run."""
        if self._child is None:
            return
        self.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)
        self.kill()

    def terminate(self) -> None:
        """Ask it to end (SIGTERM) without waiting; `stop` waits."""
        if self._child is not None and self.running:
            # A paused process would sit on the request.
            os.killpg(self._child.pid, signal.SIGCONT)
            self._child.terminate()

    def kill(self) -> None:
        """End it and its whole group at once, with SIGKILL."""
        if self._child is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def pause(self) -> None:
        """Freeze the whole group (SIGSTOP): connections stay open and nobody answers."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused group go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def log_tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of what it printed; "" where there is nothing."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Process:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def clean_environment() -> dict[str, str]:
    """Our environment without the settings that would make a local server behave as the developer's cloud tools do.

    A proxy would take loopback traffic away, and credentials in AWS_* would become further users of the S3 server.
    """
    leaks = ("AWS_", "S3_", "WEED_", "DFDAEMON_", "SCHEDULER_", "TRITON_")
    proxies = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
    return {
        name: value for name, value in os.environ.items() if not name.startswith(leaks) and name.lower() not in proxies
    }


def free_ports(count: int) -> list[int]:
    """Different TCP and UDP ports that nobody uses now.

    They lie below the range from which the kernel takes ports for outgoing connections, so that no client takes one
    between now and the server's start.
    """
    ports: list[int] = []
    while len(ports) < count:
        # 10,000 below the end: some servers take `port + 10000` for their gRPC.
        port = random.randrange(12_000, 22_000)
        if port not in _given and _is_free(port):
            ports.append(port)
            _given.add(port)
    return ports


def listens(port: int) -> bool:
    """Whether something accepts connections at the loopback port."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                return False
    return True


def _dies_with_us() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
