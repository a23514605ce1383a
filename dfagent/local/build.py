"""Dragonfly from the package registries: dfdaemon and dfget by cargo, the scheduler and the old daemon by go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dfagent.errors import PartError
from dfagent.local.cache import CLIENT_VERSION, LEGACY_VERSION, SCHEDULER_VERSION, build_folder
from dfagent.local.process import Process

Report = Callable[[str], None]

REPORT_SECONDS = 20
POLL_SECONDS = 0.2
# What `cargo install dragonfly-client` of this version compiled on Linux; only for the progress line.
CRATES = 538

BUILD_PACKAGES = (
    "build-essential",
    "protobuf-compiler",
    "libprotobuf-dev",
    "clang",
    "libclang-dev",
    "cmake",
    "pkg-config",
    "libssl-dev",
)
BUILD_TOOLS = ("cc", "protoc", "clang", "cmake", "pkg-config")

# Some module mirrors refuse `go install` of a versioned path, but not a module of our own that names it as a tool.
GO_MODULE = """\
module {program}

go 1.25.5

tool d7y.io/dragonfly/v2/cmd/{program}

require d7y.io/dragonfly/v2 v{version}
"""
# The checksum database does not know this version. Its tag was moved two months later; these are the sums of the
# commit that released it ("chore: release v2.0.9", a75edd4), which is what module mirrors have.
LEGACY_SUMS = f"""\
d7y.io/dragonfly/v2 v{LEGACY_VERSION} h1:g+fgrlCSq4iGK5FmCSrJaLLq3EGxucdi+61C3CFXS6k=
d7y.io/dragonfly/v2 v{LEGACY_VERSION}/go.mod h1:kLZb+EsKsofWQKKEcZ0YrMqKzjC/9coLcdac4zMsvIU=
"""


def build_client(bin_folder: Path, report: Report) -> None:
    """Put dfdaemon and dfget into the folder; half an hour on two cores.

    What was compiled is kept until all is, so an interrupted build goes on where it was.
    """
    _need_tool("cargo", "install Rust: https://rustup.rs")
    need_packages("to build Dragonfly", missing_build_packages(), report)
    work = _work_folder("client")
    report("building dfdaemon and dfget from the Rust package registry: half an hour on two cores")
    _run(
        "dfdaemon",
        [
            *("cargo", "install", "dragonfly-client", "--version", CLIENT_VERSION, "--locked"),
            *("--bin", "dfdaemon", "--bin", "dfget", "--root", work / "root"),
        ],
        log=work / "cargo.log",
        env={"CARGO_TARGET_DIR": str(work / "target")},
        report=report,
        progress=lambda log: f"{_count(log, 'Compiling ')} of ~{CRATES} crates compiled",
    )
    for program in ("dfdaemon", "dfget"):
        shutil.move(work / "root" / "bin" / program, bin_folder / program)
    shutil.rmtree(work)


def build_scheduler(bin_folder: Path, report: Report) -> None:
    """Put the scheduler into the folder; five minutes on two cores."""
    _build_go("scheduler", SCHEDULER_VERSION, bin_folder, report, "five minutes")


def build_legacy(bin_folder: Path, report: Report) -> None:
    """Put the Go daemon's `dfget` into the folder; two minutes on two cores."""
    _build_go("dfget", LEGACY_VERSION, bin_folder, report, "two minutes", LEGACY_SUMS)


def _build_go(program: str, version: str, bin_folder: Path, report: Report, takes: str, sums: str = "") -> None:
    """Build one of Dragonfly's Go programs; `sums` are the lines of go.sum for Dragonfly's own module."""
    _need_tool("go", "install Go 1.25 or newer: https://go.dev/doc/install")
    name = f"{program} {version}"
    work = _work_folder(f"{program}-{version}")
    module = work / "module"
    module.mkdir(exist_ok=True)
    (module / "go.mod").write_text(GO_MODULE.format(program=program, version=version))
    (module / "go.sum").write_text(sums)
    report(f"building {name} from the Go module registry: {takes} on two cores")
    # The checksum database lacks one of its dependencies; the module itself ships all of their sums.
    (module / "go.sum").write_text(sums + (_module_folder(module, version) / "go.sum").read_text())
    _run(name, ["go", "mod", "tidy"], log=work / "tidy.log", cwd=module, report=report)
    _run(
        name,
        ["go", "build", "-v", "-ldflags", "-s -w", "-o", work / program, f"d7y.io/dragonfly/v2/cmd/{program}"],
        log=work / "build.log",
        cwd=module,
        report=report,
        progress=lambda log: f"{_count(log, '')} packages compiled",
    )
    shutil.move(work / program, bin_folder / program)
    shutil.rmtree(work)


def _work_folder(name: str) -> Path:
    folder = build_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _module_folder(cwd: Path, version: str) -> Path:
    command = ["go", "mod", "download", "-json", f"d7y.io/dragonfly/v2@v{version}"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip() or done.stdout.strip()
        raise PartError(f"Dragonfly's module of {version} can't be downloaded: {reason}")
    return Path(json.loads(done.stdout)["Dir"])


def _need_tool(tool: str, hint: str) -> None:
    if shutil.which(tool) is None:
        raise PartError(f"Dragonfly has to be built here, and {tool} is not installed", hint=hint)


def need_packages(purpose: str, missing: Sequence[str], report: Report) -> None:
    """Install Debian packages where we may; PartError with the command where we may not."""
    if not missing:
        return
    names = " ".join(missing)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise PartError(f"{purpose}, these are missing: {names}", hint=f"as root: apt-get install {names}")
    report(f"installing {names}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    log = _work_folder("packages") / "apt.log"
    _run("apt-get", ["apt-get", "update"], log=log, env=env, report=report)
    _run("apt-get", ["apt-get", "install", "-y", *missing], log=log, env=env, report=report)


def missing_build_packages() -> list[str]:
    """Debian's packages that the build needs and this machine lacks; programs where there is no Debian."""
    if shutil.which("dpkg-query") is None:
        return [tool for tool in BUILD_TOOLS if shutil.which(tool) is None]
    command = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n", *BUILD_PACKAGES]
    # It fails as soon as one is unknown, and prints the others all the same.
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    installed = {line.split()[0] for line in answer.splitlines() if line.endswith(" installed")}
    return [package for package in BUILD_PACKAGES if package not in installed]


def _run(
    name: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    report: Report,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    progress: Callable[[Path], str] = lambda _log: "still busy",
) -> None:
    """Run one command to its end, with a line of progress now and then; PartError with its log's end."""
    log.unlink(missing_ok=True)
    process = Process(name, command, log=log, env={**os.environ, **(env or {})}, cwd=cwd)
    started = reported = time.monotonic()
    with process:
        while process.running:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            if now - reported >= REPORT_SECONDS:
                report(f"{name}: {progress(log)}, {(now - started) / 60:.0f} min")
                reported = now
    if process.exit_code != 0:
        raise PartError(f"{command[0]} {command[1]} failed; its log ends:\n{process.log_tail(30)}")


def _count(log: Path, word: str) -> int:
    return sum(word in line for line in log.read_text(errors="replace").splitlines())
