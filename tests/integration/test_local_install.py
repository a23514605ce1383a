"""Installing Dragonfly: upstream's release only when its checksum matches, else a build, and never half of anything."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dfagent.errors import PartError
from dfagent.local import install
from dfagent.local.build import build_client, missing_build_packages
from dfagent.local.cache import CLIENT_VERSION, LEGACY_VERSION, SCHEDULER_VERSION
from dfagent.local.process import free_ports
from dfagent.local.releases import ReleaseUnavailable, client_from_release, legacy_from_release, scheduler_from_release
from tests.servers.polling import eventually

ARCHIVE = f"dragonfly-client-v{CLIENT_VERSION}-{platform.machine()}-unknown-linux-musl.tar.gz"
RELEASE = f"/dragonflyoss/client/releases/tags/v{CLIENT_VERSION}"
SCHEDULERS = f"/dragonflyoss/dragonfly/releases/download/v{SCHEDULER_VERSION}"
SCHEDULER_ARCHIVE = (
    f"dragonfly-{SCHEDULER_VERSION}-linux-{'amd64' if platform.machine() == 'x86_64' else 'arm64'}.tar.gz"
)


class Site:
    """A web server with the pages that a test gives it."""

    def __init__(self) -> None:
        pages = self.pages = dict[str, bytes]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = pages.get(self.path)
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def client_release(self, archive: bytes, digest: str | None = None) -> None:
        """A release whose record has the archive's right digest, or the given one."""
        digest = f"sha256:{hashlib.sha256(archive).hexdigest()}" if digest is None else digest
        asset = {"name": ARCHIVE, "digest": digest, "browser_download_url": f"{self.url}/archive"}
        self.pages |= {RELEASE: json.dumps({"assets": [asset]}).encode(), "/archive": archive}


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield site
    site.server.shutdown()
    thread.join()
    site.server.server_close()


def archive_of(**programs: str) -> bytes:
    """A release's archive: shell scripts in a folder, and something that wants to be elsewhere."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in {"../../outside": "", **programs}.items():
            body = text.encode()
            member = tarfile.TarInfo(name if "/" in name else f"dragonfly/{name}")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return buffer.getvalue()


GOOD = archive_of(dfdaemon="#!/bin/sh\n", dfget="#!/bin/sh\n")
MARKED = "#!/bin/sh\ntouch {}\n"


def installed(folder: Path, site: Site) -> tuple[list[str], list[str]]:
    """Installs the client into the folder, `building` by writing the word; gives what is there and what was said."""

    def build(bin_folder: Path, _report: install.Report) -> None:
        for name in ("dfdaemon", "dfget"):
            (bin_folder / name).write_text("built")

    said: list[str] = []
    install._install("client", folder / "bin", partial(client_from_release, api=site.url), build, said.append)
    return sorted(path.read_text() for path in (folder / "bin").iterdir()), said


def test_the_release_is_used_when_its_checksum_matches(site: Site, tmp_path: Path) -> None:
    """Only the two programs come out of the archive, wherever its other members want to go."""
    site.client_release(GOOD)
    contents, _ = installed(tmp_path / "client", site)
    assert contents == ["#!/bin/sh\n", "#!/bin/sh\n"]
    assert os.access(tmp_path / "client" / "bin" / "dfdaemon", os.X_OK)
    assert [path.name for path in tmp_path.iterdir()] == ["client"]


def test_bytes_that_do_not_match_are_never_run(site: Site, tmp_path: Path) -> None:
    """The program would leave a trace."""
    trace = tmp_path / "it-ran"
    evil = archive_of(dfdaemon=MARKED.format(trace), dfget=MARKED.format(trace))
    site.client_release(evil, digest=f"sha256:{hashlib.sha256(GOOD).hexdigest()}")
    contents, said = installed(tmp_path / "client", site)
    assert contents == ["built", "built"]
    assert any("its sha256 is" in line and "so it is built" in line for line in said)
    assert not trace.exists()
    # The trace is real: with the right digest the same program runs.
    site.client_release(evil)
    installed(tmp_path / "other", site)
    assert trace.exists()


@pytest.mark.parametrize(
    ("archive", "digest", "reason"),
    [
        (GOOD, "", "no sha256 is published"),
        (GOOD, "md5:0123", "no sha256 is published"),
        (b"not an archive", None, "can't be unpacked"),
        (GOOD[: len(GOOD) // 2], None, "can't be unpacked"),
        (archive_of(dfget="#!/bin/sh\n"), None, "the archive has no dfdaemon"),
        (archive_of(dfdaemon="#!/bin/sh\nexit 1\n", dfget="#!/bin/sh\n"), None, "dfdaemon does not run here"),
    ],
)
def test_any_fault_of_the_release_falls_back_with_its_reason(
    site: Site, tmp_path: Path, archive: bytes, digest: str | None, reason: str
) -> None:
    """One line says why, and nothing of the release stays."""
    site.client_release(archive, digest)
    contents, said = installed(tmp_path / "client", site)
    assert contents == ["built", "built"]
    assert any(reason in line for line in said)


@pytest.mark.parametrize("page", [b"{", b'{"assets": 3}', b'{"assets": []}'])
def test_a_release_record_that_is_not_one_falls_back(site: Site, tmp_path: Path, page: bytes) -> None:
    """Whatever answers there, it is no traceback."""
    site.pages[RELEASE] = page
    assert installed(tmp_path / "client", site)[0] == ["built", "built"]


def test_an_unreachable_release_falls_back(tmp_path: Path) -> None:
    """Nobody listens there."""
    with pytest.raises(ReleaseUnavailable, match="refused"):
        client_from_release(tmp_path, lambda _line: None, api=f"http://127.0.0.1:{free_ports(1)[0]}")


def test_the_scheduler_is_checked_against_the_published_list(site: Site, tmp_path: Path) -> None:
    """The right line of checksums.txt counts, and only a match is unpacked."""
    archive = archive_of(scheduler="#!/bin/sh\n")
    right = hashlib.sha256(archive).hexdigest()
    checksums = f"{SCHEDULERS}/checksums.txt"
    site.pages |= {f"{SCHEDULERS}/{SCHEDULER_ARCHIVE}": archive}
    site.pages[checksums] = f"{'0' * 64}  other.tar.gz\n{right}  {SCHEDULER_ARCHIVE}\n".encode()
    scheduler_from_release(tmp_path, lambda _line: None, downloads=site.url)
    assert (tmp_path / "scheduler").exists()
    for text in (f"{'0' * 64}  {SCHEDULER_ARCHIVE}\n", f"{right}  other.tar.gz\n"):
        site.pages[checksums] = text.encode()
        (tmp_path / "scheduler").unlink(missing_ok=True)
        with pytest.raises(ReleaseUnavailable, match="sha256"):
            scheduler_from_release(tmp_path, lambda _line: None, downloads=site.url)
        assert not (tmp_path / "scheduler").exists()


def test_the_old_daemon_is_checked_likewise(site: Site, tmp_path: Path) -> None:
    """Its `dfget` knows `version`, not `--version`."""
    archive = archive_of(dfget='#!/bin/sh\n[ "$1" = version ]\n')
    folder, name = (text.replace(SCHEDULER_VERSION, LEGACY_VERSION) for text in (SCHEDULERS, SCHEDULER_ARCHIVE))
    site.pages[f"{folder}/{name}"] = archive
    site.pages[f"{folder}/checksums.txt"] = f"{hashlib.sha256(archive).hexdigest()}  {name}\n".encode()
    legacy_from_release(tmp_path, lambda _line: None, downloads=site.url)
    assert (tmp_path / "dfget").exists()


def test_a_failed_build_leaves_nothing_that_looks_installed(site: Site, tmp_path: Path) -> None:
    """Neither the folder nor its partial."""

    def fail(bin_folder: Path, _report: install.Report) -> None:
        (bin_folder / "dfdaemon").write_text("half")
        raise PartError("the disk is full")

    with pytest.raises(PartError, match="disk is full"):
        install._install("client", tmp_path / "client" / "bin", partial(client_from_release, api=site.url), fail, print)
    assert list(tmp_path.iterdir()) == []


def test_a_second_installer_waits_and_repeats_what_the_first_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts only when the first is done."""
    monkeypatch.setenv("DFAGENT_CACHE", str(tmp_path))
    monkeypatch.setattr(install, "WAIT_SECONDS", 0.02)
    said: list[str] = []

    def second() -> None:
        with install._alone("thing", said.append):
            said.append("mine")

    thread = threading.Thread(target=second)
    with install._alone("thing", lambda _line: None) as say:
        say("10 of 20")
        thread.start()
        assert eventually(lambda: "10 of 20" in said)
        say("20 of 20")
        assert eventually(lambda: "20 of 20" in said)
        assert "mine" not in said
    thread.join(10)
    assert said == ["another process installs it; waiting for that one", "10 of 20", "20 of 20", "mine"]


def tools(folder: Path, **scripts: str) -> str:
    """A PATH with the given shell scripts, after which come a few real programs."""
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name.replace("_", "-")).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name.replace("_", "-")).chmod(0o755)
    for name in ("sh", "sleep", "setpriv"):
        (folder / name).symlink_to(f"/bin/{name}")
    return str(folder)


ALL_PACKAGES = 'shift 3; for name; do echo "$name installed"; done'


def test_a_missing_toolchain_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    monkeypatch.setenv("PATH", tools(tmp_path / "bin"))
    with pytest.raises(PartError, match=r"cargo is not installed.*install Rust"):
        build_client(tmp_path, print)


def test_missing_build_packages_are_named_where_we_may_not_install_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unprivileged user gets the command."""
    only_clang = 'echo "clang installed"; echo "cmake config-files"; exit 1'
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", cargo="", dpkg_query=only_clang))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "clang" not in missing_build_packages()
    with pytest.raises(PartError, match=r"apt-get install .*protobuf-compiler .*cmake"):
        build_client(tmp_path, print)


def runs(pid: int) -> bool:
    """Whether the process does anything; one that ended but was not yet collected by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_without_a_release_it_is_built_and_ending_it_ends_the_build(tmp_path: Path) -> None:
    """The whole command, with a cargo that takes long: it says why it builds, and SIGTERM leaves no compiler behind."""
    pid = tmp_path / "cargo.pid"
    cargo = f"echo $$ > {pid}; echo '   Compiling libc v0.2'; sleep 60"
    environment = {
        "PATH": tools(tmp_path / "bin", cargo=cargo, dpkg_query=ALL_PACKAGES),
        "DFAGENT_CACHE": str(tmp_path / "cache"),
        # No release can be reached through a proxy that is not there.
        "https_proxy": f"http://127.0.0.1:{free_ports(1)[0]}",
    }
    command = [sys.executable, "-m", "dfagent.local.install", "dragonfly"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert eventually(lambda: pid.exists() and pid.read_text().endswith("\n"))
        child.terminate()
        output, _ = child.communicate(timeout=30)
    assert child.returncode == 143
    assert "upstream's release can't be used" in output and "building dfdaemon" in output
    assert eventually(lambda: not runs(int(pid.read_text())))
    left = {
        path.relative_to(tmp_path / "cache" / "dragonfly").parts[0]
        for path in (tmp_path / "cache" / "dragonfly").iterdir()
    }
    assert left == {"build"}
