"""A real Triton on this machine: the tritonserver of the nvidia-pytriton wheel, with its python backend."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from dfagent.errors import PartError
from dfagent.local.cache import parts_folder
from dfagent.local.process import Process, clean_environment, free_ports

TRITON_VERSION = "2.51"
START_SECONDS = 60
STUB = "triton_python_backend_stub"


class TritonServer:
    """A tritonserver on 127.0.0.1 that serves `repository`; a context manager.

    `grpc` and `http` are `127.0.0.1:port`. Its python models import what this Python environment has, with numpy 1
    where there is one (up to Python 3.12; later only `numpy.from_dlpack(tensor)` and `Tensor.from_dlpack` are right).
    Its log and its copy of the python backend lie in `folder`.
    """

    def __init__(
        self, repository: Path, folder: Path, *, mode: str = "explicit", extra_args: Sequence[str] = ()
    ) -> None:
        parts = _installed()
        self.repository = repository
        self._tritonserver = parts / "pytriton" / "tritonserver"
        self._backends = folder / "backends"
        # The name of every shared-memory segment begins with it, so that we know which are ours to remove.
        self._shm_prefix = f"dfagent_{secrets.token_hex(6)}_"
        http, grpc, metrics = free_ports(3)
        self.http, self.grpc = f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        args = [
            f"--model-repository={repository}",
            f"--model-control-mode={mode}",
            f"--backend-directory={self._backends}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            # A model that does not load is the caller's business, not the server's end.
            "--exit-on-error=false",
            "--exit-timeout-secs=5",
            *(f"--{door}-address=127.0.0.1" for door in ("http", "grpc", "metrics")),
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            f"--metrics-port={metrics}",
            *extra_args,
        ]
        self._parts = parts
        self._python = folder / "python"
        self._env = _environment(parts, self._python)
        command: list[str | Path] = [self._tritonserver / "bin" / "tritonserver", *args]
        self.process = Process("Triton", command, log=folder / "triton.log", env=self._env)

    def start(self) -> TritonServer:
        """Start it; returns when it is live. Models are not loaded in explicit mode."""
        _make_environment(self._python, self._parts)
        self._copy_backend()
        self.process.start()
        try:
            self.process.wait_until(self._live, seconds=START_SECONDS, what="live")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it with all its models' processes, and remove the shared memory that they leave."""
        self.process.stop(seconds=15)
        for segment in Path("/dev/shm").glob(f"{self._shm_prefix}*"):  # noqa: S108 — where POSIX shared memory lives
            segment.unlink(missing_ok=True)

    def _copy_backend(self) -> None:
        # Triton looks for the stub beside the backend, and the wheel keeps one a Python version elsewhere.
        shutil.rmtree(self._backends, ignore_errors=True)
        shutil.copytree(self._tritonserver / "backends", self._backends)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        if sys.version_info >= (3, 13):
            raise PartError(
                f"Triton {TRITON_VERSION} needs numpy 1, which Python {version} does not have",
                hint="use Python 3.10, 3.11 or 3.12: make PYTHON=/path/to/python3.12 …",
            )
        source = self._tritonserver / "python_backend_stubs" / version / STUB
        if not source.exists():
            known = ", ".join(sorted(folder.name for folder in source.parents[1].iterdir()))
            raise PartError(f"Triton's python backend has no stub for Python {version}", hint=f"use one of {known}")
        stub = self._backends / "python" / STUB
        shutil.copy2(source, stub)
        _check_stub(stub, self._env)

    def _live(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{self.http}/v2/health/live", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _installed() -> Path:
    parts = parts_folder()
    if parts is None:
        raise PartError("Triton is not installed", hint="`make parts` installs it")
    return parts


def _environment(parts: Path, python: Path) -> dict[str, str]:
    env = clean_environment()
    # The stub ignores PYTHONPATH and PYTHONHOME: it belongs to the first `python3` on the PATH.
    env["PATH"] = os.pathsep.join((str(python / "bin"), env.get("PATH", os.defpath)))
    libraries = [str(parts / "nvidia_pytriton.libs")]
    if folder := sysconfig.get_config_var("LIBDIR"):
        # The stub is linked against libpython: this one belongs to the interpreter that we run on ourselves.
        libraries.append(folder)
    env["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
    return env


def _make_environment(python: Path, parts: Path) -> None:
    """A virtual environment that shows our own packages, but the parts' numpy before our numpy.

    This Triton's python backend is built for numpy 1; with numpy 2 every tensor has wrong values, without an error.
    """
    venv.create(python, symlinks=True, with_pip=False)
    ours = sysconfig.get_paths()
    theirs = sysconfig.get_path("purelib", vars={"base": str(python), "platbase": str(python)})
    lines = dict.fromkeys((str(parts), ours["purelib"], ours["platlib"]))
    Path(theirs, "dfagent.pth").write_text("\n".join(lines) + "\n")


def _check_stub(stub: Path, env: Mapping[str, str]) -> None:
    """See that the stub's libraries are found: where they are not, Triton never answers a load."""
    done = subprocess.run([stub], env=dict(env), capture_output=True, text=True, check=False, timeout=60)
    if done.returncode == 127:
        raise PartError(
            f"Triton's python backend can't start: {done.stderr.strip()}",
            hint="use a Python with its shared library (Debian: apt-get install libpython3-dev)",
        )
