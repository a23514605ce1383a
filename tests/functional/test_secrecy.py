"""The search for secrets finds them wherever they were said; and dfagent says none, however it is asked."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from dfagent.local.object_store import S3Server
from tests.servers.canned import CannedDfdaemon, http_answer, serving
from tests.servers.program import MAIN, Finished, SettingsFiles, clean_environment, python, start

HEAD = """
import logging, os, subprocess, sys, tempfile
from pathlib import Path
from dfagent.errors import StoreError
from tests.secrecy.evidence import the_evidence
from tests.servers.program import python

SECRET = "hush/hush+0123456789"

def real_signature():
    from dfagent.stores.s3 import S3Store
    import boto3
    client = boto3.Session(aws_access_key_id="AK", aws_secret_access_key=SECRET, region_name="r").client("s3")
    return client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"}).rpartition("Signature=")[2]

def chained():
    try:
        try:
            raise ValueError(real_signature())
        except ValueError as exc:
            raise StoreError("the cause is not ours") from exc
    except StoreError:
        pass
"""

LEAKS = {
    "log": "real_signature(); logging.getLogger('dfagent.x').debug('it is %s', SECRET)",
    "log of a traceback": """
    try:
        raise ValueError(real_signature())
    except ValueError:
        logging.getLogger("other").exception("failed")""",
    "percent-encoded": "real_signature(); logging.getLogger('dfagent').info('hush%2Fhush%2B0123456789')",
    "error": "StoreError('it is ' + real_signature()[:24])",
    "cause of an error": "chained()",
    "standard output": "print(real_signature())",
    "standard error": "print(real_signature(), file=sys.stderr)",
    "file": "real_signature(); (tmp_path / 'manifest.json').write_text('{\"x\": \"' + SECRET + '\"}')",
    "file's mode": """
    real_signature()
    (tmp_path / "cloud_credential.json").write_text(SECRET)
    (tmp_path / "cloud_credential.json").chmod(0o644)""",
    "link": "real_signature(); (tmp_path / 'link').symlink_to(SECRET)",
    "temporary file": "Path(tempfile.mkdtemp(prefix='dfagent-'), 'left').write_text(real_signature())",
    "arguments": "subprocess.run(['true', real_signature()])",
    "a child's output": "real_signature(); python('import sys; print(sys.argv[1][::-1])', SECRET[::-1])",
    "a child's own signature": '''python("""
import sys
from tests.secrecy.child import watch
watch()
import boto3
client = boto3.Session(aws_access_key_id="AK", aws_secret_access_key="S" * 20, region_name="r").client("s3")
print(client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"}).rpartition("=")[2])
""")''',
    "a file with a child's signature": '''python("""
import sys
from pathlib import Path
from tests.secrecy.child import watch
watch()
import boto3
client = boto3.Session(aws_access_key_id="AK", aws_secret_access_key="S" * 20, region_name="r").client("s3")
url = client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "child"})
Path(sys.argv[1]).write_text(url.rpartition("=")[2])
""", str(tmp_path / "page.html"))''',
    "a child's unknown signature": 'python(\'print("Signature=" + "ab" * 10)\')',
}


def session(folder: Path, *bodies: str) -> subprocess.CompletedProcess[str]:
    """A pytest session of its own, with one test for each body."""
    tests = [f"def test_{number}(tmp_path):\n    {body}\n" for number, body in enumerate(bodies)]
    (folder / "test_leak.py").write_text("\n\n".join((HEAD, *tests)))
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.secrecy.plugin", "-p", "no:cacheprovider", "-q", "."]
    environment = clean_environment(TMPDIR=str(folder))
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def should_fail_the_session_that_showed_a_secret_and_say_where(tmp_path: Path) -> None:
    told = session(tmp_path, *LEAKS.values())
    assert told.returncode == pytest.ExitCode.TESTS_FAILED, told.stdout + told.stderr
    assert f"{len(LEAKS)} passed" in told.stdout, "the tests themselves saw nothing"
    _, _, found = told.stdout.partition("secrets found in what dfagent wrote")
    missed = [leak for number, leak in enumerate(LEAKS) if f"test_leak.py::test_{number}:" not in found]
    assert not missed, told.stdout
    assert "hush" not in told.stdout, "nor is the secret printed now"


def should_pass_the_session_that_kept_its_secrets(tmp_path: Path) -> None:
    """Among them what is written into the settings file, and what only looks like a signature."""
    told = session(
        tmp_path,
        """
    signature = real_signature()
    (tmp_path / "cloud_credential.json").touch(0o600)
    (tmp_path / "cloud_credential.json").write_text(SECRET)
    logging.getLogger("dfagent").warning("https://h/k?X-Amz-Signature=0123456789abcdef0123456789abcdef")""",
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "none of 2 secrets and signatures was found" in told.stdout
    assert not list(tmp_path.glob("dfagent-evidence-*"))


@dataclass
class Store:
    """A bucket with one model, and `dfagent prefetch` from it with every word that it can say."""

    server: S3Server
    bucket: str
    folder: Path

    async def prefetch(self, main: str = MAIN, environment: dict[str, str] | None = None, **dragonfly: Any) -> Finished:
        for key, body in (("config.pbtxt", b'backend: "python"'), ("1/model.py", b"pass")):
            self.server.client().put_object(Bucket=self.bucket, Key=f"repo/net/{key}", Body=body)
        credential: dict[str, object] = {"key_id": self.server.access_key, "secret_key": self.server.secret_key}
        settings = SettingsFiles(self.folder, credential, dragonfly).options()
        url = f"s3://{self.server.endpoint}/{self.bucket}/repo"
        program = await start(
            "prefetch", url, f"--to={self.folder / 'm'}", "--all", "-v", *settings, environment=environment, main=main
        )
        return await program.finished()


@pytest.fixture
def store(s3_server: S3Server, bucket: str, tmp_path: Path) -> Store:
    return Store(s3_server, bucket, tmp_path)


async def should_keep_every_library_silent_that_was_made_to_talk(store: Store) -> None:
    """A library's own level, and Python's own wishes in the environment, change nothing of what dfagent prints."""
    loud = """
import logging
for name in ("boto3", "botocore", "urllib3", "aiohttp", "grpc", "asyncio", "s3transfer", "concurrent"):
    logging.getLogger(name).setLevel(logging.DEBUG)
"""
    told = await store.prefetch(loud + MAIN, {"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1"})
    assert told.code == 0, told.err
    assert "INFO dfagent.agent: net/1/model.py" in told.err
    others = re.findall(r"^\S+ \S+ (?:DEBUG|INFO) (?!dfagent\.).*", told.err, re.MULTILINE)
    assert not others


async def should_not_let_grpc_trace_what_it_sends(store: Store) -> None:
    """Its core writes to standard error by itself, as its variables in the environment say."""

    async def refuse(download: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.INTERNAL, f"error sending request for url ({download.url})")
        yield  # an answer is a stream

    environment = {"GRPC_VERBOSITY": "debug", "GRPC_TRACE": "all"}
    async with serving(CannedDfdaemon(refuse), store.folder / "d.sock") as dfdaemon:
        told = await store.prefetch(
            environment=environment, socket=str(store.folder / "d.sock"), transport="dfdaemon", concurrency=1
        )
        assert dfdaemon.asked
    assert told.code == 4 and "GRPC_TRACE is ignored" in told.err
    assert "error sending request for url (http" in told.err and "X-Amz" not in told.err


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    """A proxy that tells in its errors everything that it was told."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        url = head.split()[1]
        signature = url.partition("X-Amz-Signature=")[2][:64]
        authorization = re.search(r"(?im)^authorization: .*$", head)
        said = f"no {signature} {authorization and authorization[0]} {url}"[:290].replace("&", "&amp;")
        body = f"<Error><Code>AccessDenied</Code><Message>{said}</Message></Error>".encode()
        writer.write(http_answer(400, body, X_Dragonfly_Error_Type="backend"))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


async def should_not_repeat_what_a_proxy_says_of_our_request(store: Store, unused_address: tuple[str, int]) -> None:
    """Neither the signature, nor the header that its user set, nor the password in the proxy's address."""
    header = {"Authorization": "Bearer hush-token-0123456789"}
    async with echo() as address:
        for place in (address, f"{unused_address[0]}:{unused_address[1]}"):
            told = await store.prefetch(header=header, proxy=f"http://user:hush-password@{place}", transport="proxy")
            assert told.code in (3, 4) and "hint:" in told.err
            assert "hush" not in told.err and not re.search("[0-9a-f]{64}", told.err)


def should_redact_whatever_way_a_text_takes_to_standard_error() -> None:
    told = python("""
import logging, threading, warnings
from dfagent.cli.running import set_up_logging
set_up_logging(logging.DEBUG)
URL = "https://h/k?X-Amz-Signature=" + "0123456789abcdef" * 4
def fail(where):
    raise ValueError(f"{where} {URL}")
class Lost:
    def __del__(self):
        fail("unraisable")
logging.getLogger("dfagent.x").debug("ours %s", URL)
logging.getLogger("urllib3").warning("theirs %s", URL)
logging.getLogger("urllib3").info("silent")
logging.getLogger("dfagent").info("%d wrong call", URL)
try:
    fail("caught")
except ValueError:
    logging.getLogger("x").exception("chain")
warnings.warn("warned " + URL, stacklevel=1)
Lost()
thread = threading.Thread(target=fail, args=("thread",))
thread.start()
thread.join()
fail("uncaught")
""")
    assert told.code == 1
    for kind in ("ours", "theirs", "caught", "warned", "unraisable", "thread", "uncaught"):
        assert f"{kind} https://h/k?…" in told.err, kind
    assert "can't be written" in told.err and "silent" not in told.err
    assert "0123456789abcdef" not in told.err
