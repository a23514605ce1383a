"""The search for secrets finds them wherever they were said; and dfagent says none, however it is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.program import clean_environment

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
