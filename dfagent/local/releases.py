"""Dragonfly's own release binaries, taken only when their published checksum matches."""

from __future__ import annotations

import hashlib
import http.client
import json
import platform
import subprocess
import tarfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfagent.local.cache import CLIENT_VERSION, LEGACY_VERSION, SCHEDULER_VERSION

API = "https://api.github.com/repos"
DOWNLOADS = "https://github.com"
# For connecting, and for every single read.
TIMEOUT_SECONDS = 10
CHUNK = 1 << 20

Report = Callable[[str], None]


class ReleaseUnavailable(Exception):
    """Why the release can't be used here, in a few words; whoever asks falls back to building."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One archive of a release: where it is, and the sha256 that its bytes must have."""

    url: str
    sha256: str


def client_from_release(bin_folder: Path, report: Report, *, api: str = API) -> None:
    """Put dfdaemon and dfget into the folder; ReleaseUnavailable leaves nothing that could be run."""
    machine = _machine({"x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"})
    name = f"dragonfly-client-v{CLIENT_VERSION}-{machine}-unknown-linux-musl.tar.gz"
    asset = _asset_by_digest(f"{api}/dragonflyoss/client/releases/tags/v{CLIENT_VERSION}", name)
    _install(asset, ("dfdaemon", "dfget"), "--version", bin_folder, report)


def scheduler_from_release(bin_folder: Path, report: Report, *, downloads: str = DOWNLOADS) -> None:
    """Put the scheduler into the folder; ReleaseUnavailable leaves nothing that could be run."""
    _go_from_release(SCHEDULER_VERSION, "scheduler", bin_folder, report, downloads)


def legacy_from_release(bin_folder: Path, report: Report, *, downloads: str = DOWNLOADS) -> None:
    """Put the Go daemon's `dfget` into the folder; ReleaseUnavailable leaves nothing that could be run."""
    _go_from_release(LEGACY_VERSION, "dfget", bin_folder, report, downloads)


def _go_from_release(version: str, program: str, bin_folder: Path, report: Report, downloads: str) -> None:
    machine = _machine({"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"})
    folder = f"{downloads}/dragonflyoss/dragonfly/releases/download/v{version}"
    asset = _asset_by_checksums(folder, f"dragonfly-{version}-linux-{machine}.tar.gz")
    _install(asset, (program,), "version", bin_folder, report)


def _machine(names: dict[str, str]) -> str:
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in names:
        raise ReleaseUnavailable(f"there is none for {platform.system()} on {machine}")
    return names[machine]


def _asset_by_digest(url: str, name: str) -> Asset:
    # This project publishes no file of checksums; the release's own record has a digest of each archive.
    try:
        assets: list[dict[str, Any]] = json.loads(_read(url))["assets"]
        by_name = {asset["name"]: asset for asset in assets}
    except (ValueError, KeyError, TypeError) as exc:
        raise ReleaseUnavailable("the answer about the release is not understood") from exc
    asset = by_name.get(name)
    if asset is None:
        raise ReleaseUnavailable(f"it has no {name}")
    algorithm, _, digest = str(asset.get("digest") or "").partition(":")
    if algorithm != "sha256" or not digest:
        raise ReleaseUnavailable(f"no sha256 is published for {name}")
    return Asset(str(asset.get("browser_download_url")), digest)


def _asset_by_checksums(folder: str, name: str) -> Asset:
    lines = _read(f"{folder}/checksums.txt").decode(errors="replace").splitlines()
    for line in lines:
        digest, _, file = line.partition(" ")
        if file.strip().lstrip("*") == name:
            return Asset(f"{folder}/{name}", digest)
    raise ReleaseUnavailable(f"no sha256 is published for {name}")


def _install(asset: Asset, programs: Sequence[str], question: str, bin_folder: Path, report: Report) -> None:
    archive = bin_folder / "release.tar.gz"
    report(f"downloading {asset.url.rpartition('/')[2]}")
    try:
        digest = _download(asset.url, archive)
        if digest != asset.sha256:
            raise ReleaseUnavailable(f"its sha256 is {digest[:12]}…, published is {asset.sha256[:12]}…")
        _unpack(archive, programs, bin_folder)
    finally:
        archive.unlink(missing_ok=True)
    for program in programs:
        _check_that_it_runs(bin_folder / program, question)


def _read(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 — http(s) of our own constants
            return bytes(answer.read())
    except (OSError, http.client.HTTPException) as exc:
        raise ReleaseUnavailable(_why(exc)) from exc


def _download(url: str, path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, path.open("wb") as file:  # noqa: S310
            while chunk := answer.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise ReleaseUnavailable(_why(exc)) from exc
    return digest.hexdigest()


def _why(exc: Exception) -> str:
    # urllib wraps the system's own reason.
    return str(getattr(exc, "reason", "") or exc)


def _unpack(archive: Path, programs: Sequence[str], bin_folder: Path) -> None:
    missing = set(programs)
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                content = tar.extractfile(member) if name in missing and member.isfile() else None
                if content is not None:
                    # Only the bytes: the archive's paths, modes and owners stay outside.
                    (bin_folder / name).write_bytes(content.read())
                    (bin_folder / name).chmod(0o755)
                    missing.remove(name)
    except (tarfile.TarError, OSError, EOFError) as exc:
        raise ReleaseUnavailable(f"the archive can't be unpacked: {exc}") from exc
    if missing:
        raise ReleaseUnavailable(f"the archive has no {', '.join(sorted(missing))}")


def _check_that_it_runs(program: Path, question: str) -> None:
    try:
        subprocess.run([program, question], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as exc:
        raise ReleaseUnavailable(f"{program.name} does not run here: {exc}") from exc
