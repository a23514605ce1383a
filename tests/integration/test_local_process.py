"""What every local server relies on: an owned child that starts, answers and is never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dfagent.errors import PartError
from dfagent.local.process import Process, free_ports
from tests.servers.polling import eventually


def alive(pid: int) -> bool:
    """A zombie that nobody reaped is not alive."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_child_that_exits_before_it_is_ready_shows_the_end_of_its_log(tmp_path: Path) -> None:
    """The log's end comes at once, not at the deadline."""
    broken = Process("broken", ["sh", "-c", "echo no such database; exit 3"], log=tmp_path / "log")
    with broken, pytest.raises(PartError, match=r"(?s)broken ended with code 3.*no such database"):
        broken.wait_until(lambda: False, seconds=60)


def test_a_child_that_never_becomes_ready_is_an_error(tmp_path: Path) -> None:
    """The deadline holds and the message says what was waited for."""
    with (
        Process("slow", ["sleep", "60"], log=tmp_path / "log") as slow,
        pytest.raises(PartError, match="slow is not healthy after 0 s"),
    ):
        slow.wait_until(lambda: False, seconds=0.1, what="healthy")


def test_stop_takes_the_whole_group(tmp_path: Path) -> None:
    """A grandchild ends as well, also where the child itself does not obey and is paused."""
    grandchild = tmp_path / "grandchild"
    script = f"trap '' TERM; sleep 60 & echo $! > {grandchild}; wait; wait"
    process = Process("stubborn", ["sh", "-c", script], log=tmp_path / "log").start()
    assert eventually(lambda: grandchild.exists() and grandchild.read_text().strip() != "")
    process.pause()
    process.stop(seconds=0.2)
    assert not process.running
    assert eventually(lambda: not alive(int(grandchild.read_text())))


def test_a_missing_program_is_a_sentence(tmp_path: Path) -> None:
    """Whether the system or setpriv notices it, the message names the server."""
    missing = Process("ghost", [tmp_path / "nothing-here"], log=tmp_path / "log")
    with pytest.raises(PartError, match="ghost"), missing:
        missing.wait_until(lambda: False, seconds=5)


def test_the_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL leaves us no chance to clean up; the kernel does it."""
    pid_file = tmp_path / "pid"
    code = (
        "import pathlib, sys, time\n"
        "from dfagent.local.process import Process\n"
        "p = Process('server', ['sleep', '60'], log=pathlib.Path(sys.argv[1] + '.log')).start()\n"
        "pathlib.Path(sys.argv[1]).write_text(str(p.pid))\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(pid_file)])
    try:
        assert eventually(lambda: pid_file.exists() and pid_file.read_text() != "")
        child = int(pid_file.read_text())
        # The parent writes the id right after the fork; setpriv must have run before the kill means anything.
        assert eventually(lambda: b"sleep" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0])
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    assert eventually(lambda: not alive(child))


def test_free_ports_differ() -> None:
    """A cluster asks for all its ports at once."""
    ports = free_ports(50)
    assert len(set(ports)) == 50
