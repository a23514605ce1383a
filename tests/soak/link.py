"""A link that can be cut: a network namespace behind a pair of virtual Ethernet ends."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from contextlib import suppress
from itertools import cycle

from dfagent.errors import PartError

# From a random one on, for other soaks on this machine, and no two of ours alike.
_numbers = cycle(range(1, 255))
for _ in range(random.randrange(254)):
    next(_numbers)


class Link:
    """`with Link() as link`: `near` and `far` are the addresses of its ends, `far` that of the namespace.

    Needs root and iproute2's `ip`; everything is gone after the block.
    """

    def __init__(self) -> None:
        if shutil.which("ip") is None or os.geteuid() != 0:
            raise PartError("a cut link needs root and the program `ip`", hint="Debian has it in iproute2")
        number = next(_numbers)
        self.namespace = f"dfagent-{os.getpid()}-{number}"
        # An interface's name has at most 15 characters.
        self._ends = f"dfa{os.getpid() % 100_000}-{number}n"[:15], f"dfa{os.getpid() % 100_000}-{number}f"[:15]
        self.near, self.far = f"10.213.{number}.1", f"10.213.{number}.2"

    def inside(self) -> list[str]:
        """The beginning of a command that is to run in the namespace."""
        return ["ip", "netns", "exec", self.namespace]

    def up(self) -> None:
        _ip("link", "set", self._ends[0], "up")

    def down(self) -> None:
        _ip("link", "set", self._ends[0], "down")

    def __enter__(self) -> Link:
        near, far = self._ends
        _ip("netns", "add", self.namespace)
        try:
            _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", self.namespace)
            _ip("address", "add", f"{self.near}/30", "dev", near)
            self.up()
            inside = ["-n", self.namespace]
            _ip(*inside, "address", "add", f"{self.far}/30", "dev", far)
            _ip(*inside, "link", "set", far, "up")
            _ip(*inside, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # The pair goes with the namespace, but only when its last process has: so the near end first.
        for command in (("link", "del", self._ends[0]), ("netns", "del", self.namespace)):
            with suppress(PartError):
                _ip(*command)


def _ip(*args: str) -> None:
    done = subprocess.run(["ip", *args], check=False, capture_output=True, text=True)
    if done.returncode:
        raise PartError(f"ip {' '.join(args)}: {done.stderr.strip()}")
