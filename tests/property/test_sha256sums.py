"""What the real `sha256sum` writes is read back; whatever else comes ends as a typed error."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dfagent.errors import InvalidSha256Sums
from dfagent.repository.sha256sums import MAX_SUMS_BYTES, parse

# Everything that a file's name may hold, and more often what the tool has to write in another way.
NAME = (
    st.text(st.sampled_from("ab\\\n\r *#./é") | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    .map(lambda name: name.replace("/", "-").replace("\0", "-"))
    .filter(lambda name: name not in (".", "..") and len(name.encode()) <= 200)
)
FOLDER = st.sampled_from(["", "1/", "1/assets/"])
FILES = st.dictionaries(st.tuples(FOLDER, NAME).map("".join), st.binary(max_size=20), min_size=1, max_size=6)
DIGEST = "0" * 64


@settings(max_examples=60, deadline=None)
@given(FILES, st.sampled_from(["--text", "--binary"]), st.booleans())
@example({"a\\b\nc": b"", " *x": b"1", "#": b"2", "1/\r": b"3"}, "--binary", True)
def test_should_read_what_the_tool_writes(files: dict[str, bytes], marker: str, with_dot: bool) -> None:
    """Names with spaces, stars, backslashes and line ends too, with and without `./` before them."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        names = [f"./{name}" if with_dot else name for name in files]
        tool = subprocess.run(["sha256sum", marker, "--", *names], cwd=folder, capture_output=True, check=True)
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert parse(tool.stdout, "net/SHA256SUMS") == expected


LINE = st.sampled_from(
    [
        f"{DIGEST}  a".encode(),
        f"\\{DIGEST} *a\\n".encode(),
        b"",
        b"# comment",
        f"{DIGEST}  ../a".encode(),
        f"{'1' * 64}  a".encode(),
    ]
)


@given(st.lists(LINE | st.binary(max_size=90), max_size=6).map(b"\n".join))
def test_should_read_any_bytes_or_say_what_is_wrong(data: bytes) -> None:
    """Nothing but a typed error comes out, and no path that leads out of the model's folder."""
    sums: dict[str, str] = {}
    refused: InvalidSha256Sums | None = None
    try:
        sums = parse(data, "net/SHA256SUMS")
    except InvalidSha256Sums as error:
        refused = error
    assert refused is None or (refused.hint and str(refused).isprintable())
    root = Path("/repository/net")
    for path, digest in sums.items():
        assert len(digest) == 64 and digest == digest.lower()
        assert Path(os.path.normpath(root / path)) == root / path and root in (root / path).parents


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"<html><body>403</body></html>", "expected a sha256"),
        (b"0" * 63 + b"  a", "expected a sha256"),
        (DIGEST.encode() + b"\ta", "expected a sha256"),
        (DIGEST.encode() + b" a", "expected a sha256"),
        (DIGEST.encode() + b"  ", "expected a sha256"),
        (b"SHA256 (a) = " + DIGEST.encode(), "expected a sha256"),
        (DIGEST.encode() + b"  /etc/passwd", "absolute"),
        (DIGEST.encode() + b"  .//etc/passwd", "absolute"),
        (DIGEST.encode() + b"  ../other/weights", "no plain path"),
        (DIGEST.encode() + b"  1/../../weights", "no plain path"),
        (DIGEST.encode() + b"  1//weights", "no plain path"),
        (DIGEST.encode() + b"  ./", "no plain path"),
        (DIGEST.encode() + b"  a\0b", "no plain path"),
        (DIGEST.encode() + b"  \xff", "not UTF-8"),
        (b"\\" + DIGEST.encode() + b"  a\\t", "escape"),
        (b"\\" + DIGEST.encode() + b"  a\\", "escape"),
        (DIGEST.encode() + b"  ok\n" + b"1" * 64 + b" *ok", "two digests"),
    ],
)
def test_should_say_which_line_is_wrong_and_why(line: bytes, says: str) -> None:
    """A comment and an empty line before it count as lines."""
    number = 4 if b"\n" in line else 3
    with pytest.raises(InvalidSha256Sums, match=f"^net/SHA256SUMS:{number}: .*{says}") as caught:
        parse(b"# made by a person\n\n" + line + b"\n", "net/SHA256SUMS")
    assert caught.value.hint


def test_should_tolerate_what_editors_and_careless_commands_do() -> None:
    """Line ends of Windows, capital letters, no line end at the end, the same line twice."""
    data = f"{'AB' * 32}  a\r\n{'ab' * 32} *./a\r\n \t\r\n#\n{DIGEST}  b".encode()
    assert parse(data, "x") == {"a": "ab" * 32, "b": DIGEST}


def test_should_not_read_what_is_too_large_to_be_a_list() -> None:
    """The bound is said."""
    with pytest.raises(InvalidSha256Sums, match=str(MAX_SUMS_BYTES)):
        parse(b"#" * (MAX_SUMS_BYTES + 1), "x")
