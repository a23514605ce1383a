"""The demo's models: built, uploaded, loaded in a real Triton, and asked questions with known answers."""

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from mypy_boto3_s3 import S3Client

from dfagent.demo.models import DRAGONFLY_MODELS, OTHER_MODELS, DemoRepository, build_repository, check_answers, upload
from dfagent.errors import LoadRejected, PartError
from dfagent.local.cache import parts_folder
from dfagent.local.object_store import S3Server
from dfagent.local.triton import TritonServer
from dfagent.repository.config_pbtxt import declares_dragonfly, parse_config, without_dragonfly
from dfagent.triton.client import TritonClient

SIZE = 24 << 20


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRepository:
    parts = parts_folder()
    if parts is None:
        pytest.fail("the demo's ONNX model is not installed: `make parts` installs it", pytrace=False)
    return build_repository(tmp_path_factory.mktemp("demo"), parts, SIZE)


@pytest.fixture
def published(demo: DemoRepository, tmp_path: Path) -> DemoRepository:
    """A copy of the repository as dfagent would publish it."""
    folder = shutil.copytree(demo.folder, tmp_path / "published")
    for model in DRAGONFLY_MODELS:
        config = folder / model / "config.pbtxt"
        config.write_bytes(without_dragonfly(config.read_bytes(), model))
    return DemoRepository(folder, demo.table_size, demo.table_sha256)


@pytest.fixture
async def triton(
    published: DemoRepository, start_triton: Callable[..., TritonServer]
) -> AsyncIterator[tuple[TritonClient, str]]:
    """A client of a Triton that serves the published copy, and its address."""
    server = start_triton(published.folder)
    client = TritonClient(server.grpc, load_timeout=60)
    yield client, server.grpc
    await client.aclose()


def test_should_declare_the_agent_for_what_dragonfly_brings_only(demo: DemoRepository) -> None:
    """The third model is there to be left alone."""
    declared = {
        model: declares_dragonfly(parse_config((demo.folder / model / "config.pbtxt").read_bytes(), model))
        for model in (*DRAGONFLY_MODELS, *OTHER_MODELS)
    }
    assert declared == {"text_reader": True, "big_table": True, "left_alone": False}


def test_should_build_the_same_bytes_again(demo: DemoRepository, tmp_path: Path) -> None:
    """The right answers are known because the seed is; the size is what was asked for."""
    parts = parts_folder()
    assert parts is not None
    again = build_repository(tmp_path, parts, SIZE)
    assert again.table_sha256 == demo.table_sha256
    assert [path.relative_to(tmp_path) for path in again.files] == [
        path.relative_to(demo.folder) for path in demo.files
    ]
    assert (tmp_path / "big_table" / "1" / "weights.bin").stat().st_size == SIZE


def test_should_say_that_the_parts_are_missing(tmp_path: Path) -> None:
    """With the command that installs them, and before anything is written."""
    with pytest.raises(PartError, match="make parts"):
        build_repository(tmp_path / "demo", tmp_path, SIZE)
    assert not (tmp_path / "demo").exists()


def test_should_upload_every_file_below_the_prefix(demo: DemoRepository, bucket: str, s3_server: S3Server) -> None:
    """Every byte is counted, and nothing is beside the prefix."""
    client: S3Client = s3_server.client()
    sent: list[int] = []
    upload(demo, client, bucket, "team/models", sent.append)
    listed = {entry["Key"]: entry["Size"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]}
    files = {f"team/models/{path.relative_to(demo.folder)}": path.stat().st_size for path in demo.files}
    assert listed == files
    assert sum(sent) == sum(files.values())
    assert "team/models/text_reader/1/model.onnx" in files


async def test_should_get_the_right_answers_of_two_models_to_two_inputs_each(
    triton: tuple[TritonClient, str], published: DemoRepository
) -> None:
    """Different inputs have different answers, so no constant would do."""
    client, address = triton
    for model in DRAGONFLY_MODELS:
        await client.load(model)
    answers = await check_answers(address, published)
    assert [(answer.model, answer.right) for answer in answers] == [
        (model, True) for model in ("text_reader", "text_reader", "big_table", "big_table")
    ]
    assert len({answer.expected for answer in answers}) == 4


async def test_should_see_that_a_model_file_was_swapped(
    triton: tuple[TritonClient, str], published: DemoRepository
) -> None:
    """Files of the same size that load just as well: only the answers tell."""
    client, address = triton
    reader = published.folder / "text_reader" / "1" / "model.onnx"
    weights = reader.read_bytes()
    assert weights.count(b"\nN\nO\n") == 1
    reader.write_bytes(weights.replace(b"\nN\nO\n", b"\nO\nN\n"))
    with (published.folder / "big_table" / "1" / "weights.bin").open("r+b") as table:
        table.seek(SIZE // 2)
        byte = table.read(1)[0]
        table.seek(SIZE // 2)
        table.write(bytes([byte ^ 1]))
    for model in DRAGONFLY_MODELS:
        await client.load(model)
    answers = await check_answers(address, published)
    assert [answer.right for answer in answers] == [False] * 4
    assert answers[0].got == "DRAGNOFLY"


async def test_should_not_call_a_model_right_that_says_nothing(
    triton: tuple[TritonClient, str], published: DemoRepository
) -> None:
    """Neither one that is not loaded, nor one whose ONNX model is another kind, nor any where nobody listens."""
    client, address = triton
    parts = parts_folder()
    assert parts is not None
    other = next((parts / "rapidocr" / "models").glob("*_det_*.onnx"))
    shutil.copyfile(other, published.folder / "text_reader" / "1" / "model.onnx")
    with pytest.raises(LoadRejected, match="character"):
        await client.load("text_reader")
    for answer in (*await check_answers(address, published), *await check_answers("127.0.0.1:1", published)):
        assert not answer.right
        assert answer.got.startswith("no answer: ")
