"""Which models a listing holds."""

from pathlib import PurePosixPath

import pytest

from dfagent.errors import EmptyRepository, UnsafePath
from dfagent.repository.folding import folding
from dfagent.repository.scan import ModelSource, scan
from dfagent.types import ObjectEntry, ObjectRef, RepositoryUrl


def listing(*keys: str, size: int = 7) -> list[ObjectEntry]:
    return [ObjectEntry(ObjectRef("s3", "store:1", "bucket", key), size, '"e"') for key in keys]


def marker(key: str) -> ObjectEntry:
    return listing(key, size=0)[0]


def repository(prefix: str) -> RepositoryUrl:
    return RepositoryUrl("s3", "http://store:1", "bucket", prefix)


def paths(model: ModelSource) -> list[str]:
    return [str(file.path) for file in model.files]


def test_should_find_one_model_in_each_folder_below_the_prefix() -> None:
    """Nested files keep their folders, and every file knows its object."""
    entries = listing("models/a/1/model.onnx", "models/a/config.pbtxt", "models/b/1/sub/model.py")
    first, second = scan(repository("models"), entries)
    assert (first.name, paths(first)) == ("a", ["1/model.onnx", "config.pbtxt"])
    assert (second.name, paths(second)) == ("b", ["1/sub/model.py"])
    assert [file.entry for file in first.files] == entries[:2]


def test_should_find_the_models_of_a_whole_bucket() -> None:
    """An empty prefix is the bucket itself."""
    assert [model.name for model in scan(repository(""), listing("a/config.pbtxt", "b/config.pbtxt"))] == ["a", "b"]


def test_should_never_take_a_longer_name_along() -> None:
    """`foo` is not `foo-hf`, nor an object whose name merely begins with the prefix."""
    entries = listing("foo-hf/a/config.pbtxt", "foo.txt", "foo/b/config.pbtxt", "foo", "foobar/c/1/m")
    assert [model.name for model in scan(repository("foo"), entries)] == ["b"]


@pytest.mark.parametrize("keys", [("m/r50/config.pbtxt", "m/r50/labels.txt"), ("m/r50/1/model.onnx",)])
def test_should_take_a_prefix_for_one_model(keys: tuple[str, ...]) -> None:
    """config.pbtxt or a version folder right below the prefix makes it a model with the prefix's last name."""
    (model,) = scan(repository("m/r50"), listing(*keys))
    assert model.name == "r50"
    assert paths(model) == [key.removeprefix("m/r50/") for key in keys]


def test_should_name_a_model_after_its_bucket() -> None:
    """A bucket may be a model."""
    assert scan(repository(""), listing("config.pbtxt", "1/model.onnx"))[0].name == "bucket"


def test_should_tell_a_model_called_by_a_number_from_a_version() -> None:
    """A folder with a config.pbtxt of its own is a model, whatever its name."""
    models = scan(repository("m"), listing("m/7/config.pbtxt", "m/7/1/model.onnx", "m/x/config.pbtxt"))
    assert [model.name for model in models] == ["7", "x"]


@pytest.mark.parametrize("folder", ["0", "01", "v1", "1a", "\uff11"])
def test_should_not_take_a_folder_for_a_version_that_triton_would_ignore(folder: str) -> None:
    """Only decimal names without a leading zero are versions."""
    assert [model.name for model in scan(repository("m"), listing(f"m/{folder}/model.onnx"))] == [folder]


def test_should_ignore_loose_files_beside_models() -> None:
    """A README at the top is no model, and does not clash with a model of its name."""
    assert [m.name for m in scan(repository("m"), listing("m/README.md", "m/a", "m/a/config.pbtxt"))] == ["a"]


def test_should_keep_folders_that_only_a_marker_names() -> None:
    """An ensemble needs its version folder, though nothing lies in it."""
    entries = [marker("m/"), marker("m/ens/"), marker("m/ens/1/"), *listing("m/ens/config.pbtxt"), marker("m/none/")]
    (model,) = scan(repository("m"), entries)
    assert model.problem is None
    assert (paths(model), model.folders) == (["config.pbtxt"], (PurePosixPath("1"),))


def test_should_find_the_configuration_of_a_model() -> None:
    """Only the one at the top of the model's folder counts."""
    with_one, without = scan(repository(""), listing("a/1/config.pbtxt", "a/config.pbtxt", "b/1/config.pbtxt"))
    assert with_one.config is not None and with_one.config.entry.ref.key == "a/config.pbtxt"
    assert without.config is None


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("m/bad/../../etc/passwd", "is '..'"),
        ("m/bad/./x", "is '.'"),
        ("m/bad//x", "is empty"),
        ("m/bad/x/", "is empty"),
        ("m/bad/nul\0", "control character"),
        ("m/bad//etc/passwd", "is empty"),
        ("m/bad/..", "is '..'"),
        ("m/bad/c1\x9b2J", "control character"),
        ("m/bad/line\nbreak", "control character"),
        ("m/bad/half\ud800", "control character"),
        ("m/bad/" + "é" * 128, "longer than 255 bytes"),
    ],
)
def test_should_refuse_a_key_that_is_no_safe_path(key: str, complaint: str) -> None:
    """The model fails with its name and the quoted key; the models beside it do not."""
    bad, good = scan(repository("m"), listing("m/bad/config.pbtxt", key, "m/good/config.pbtxt"))
    assert bad.problem is not None and bad.files == ()
    assert complaint in str(bad.problem) and "'bad'" in str(bad.problem) and repr(key) in str(bad.problem)
    assert good.problem is None and paths(good) == ["config.pbtxt"]


@pytest.mark.parametrize("name", ["..", ".", "", ".hidden", "tab\there", "x" * 256])
def test_should_refuse_a_model_with_an_unsafe_name(name: str) -> None:
    """Names that begin with a dot too: Triton would index them, and our state folder has such a name."""
    bad, good = scan(repository("m"), listing(f"m/{name}/config.pbtxt", "m/good/config.pbtxt"))
    assert bad.problem is not None and bad.files == () and repr(name) in str(bad.problem)
    assert good.problem is None


def test_should_refuse_an_unsafe_name_that_the_prefix_gives() -> None:
    """A single model is named by the prefix: that is not trusted either."""
    assert scan(repository("m/.."), listing("m/../config.pbtxt"))[0].problem is not None


@pytest.mark.parametrize("other", ["m/a/1/x", "m/a/1/x/y"])
def test_should_refuse_a_key_that_is_a_file_and_a_folder(other: str) -> None:
    """One of them could not be written."""
    (model,) = scan(repository("m"), listing("m/a/config.pbtxt", "m/a/1", other))
    assert model.problem is not None and "'m/a/1' is a file and a folder" in str(model.problem)


def test_should_refuse_a_file_that_a_marker_calls_a_folder() -> None:
    """Also where nothing else lies in that folder, or the marker is of a folder further down."""
    for key in ("m/a/1/", "m/a/1/2/"):
        (model,) = scan(repository("m"), [*listing("m/a/config.pbtxt", "m/a/1"), marker(key)])
        assert model.problem is not None


def test_should_refuse_a_key_that_is_listed_twice() -> None:
    """Which of the two would be the model's is not ours to choose."""
    (model,) = scan(repository("m"), listing("m/a/config.pbtxt", "m/a/config.pbtxt"))
    assert model.problem is not None and "twice" in str(model.problem)


FOLDS = folding(by_case=True, by_form=True, by_end=True)
TWINS = [
    ("1/Model.py", "1/model.py"),
    ("caf\u00e9", "cafe\u0301"),
    ("Lib/a.py", "lib/b.py"),
    ("lib", "LIB/a.py"),
    ("lib/a.py", "LIB"),
    ("name", "name."),
    ("name ", "name"),
    ("na\u200bme", "name"),
]


@pytest.mark.parametrize(("one", "other"), TWINS)
def test_should_refuse_two_keys_that_are_one_name_on_the_disk(one: str, other: str) -> None:
    """One file would overwrite the other, or two folders become one; both keys are named, the beside models come."""
    entries = listing(f"m/bad/{one}", f"m/bad/{other}", "m/good/config.pbtxt")
    bad, good = scan(repository("m"), entries, FOLDS)
    assert isinstance(bad.problem, UnsafePath) and bad.files == ()
    assert ascii(f"m/bad/{one}") in str(bad.problem) and ascii(f"m/bad/{other}") in str(bad.problem)
    assert good.problem is None
    apart, _ = scan(repository("m"), entries)
    assert apart.problem is None and paths(apart) == [one, other]


def test_should_refuse_markers_that_are_one_name_on_the_disk() -> None:
    """An empty folder counts as well."""
    entries = [*listing("m/bad/config.pbtxt", "m/bad/A/x"), marker("m/bad/a/")]
    assert scan(repository("m"), entries, FOLDS)[0].problem is not None
    assert scan(repository("m"), entries)[0].problem is None


def test_should_not_take_a_folder_of_many_files_for_twins() -> None:
    """The same name twice is one folder, with its marker or without."""
    entries = [marker("m/a/1/"), *listing("m/a/1/x", "m/a/1/y", "m/a/config.pbtxt")]
    assert scan(repository("m"), entries, FOLDS)[0].problem is None


@pytest.mark.parametrize(("one", "other"), [("Net", "net"), ("caf\u00e9", "cafe\u0301"), ("net", "net.")])
def test_should_refuse_models_that_are_one_name_on_the_disk(one: str, other: str) -> None:
    """Neither is chosen, and a third model is not touched."""
    entries = listing(f"m/{one}/config.pbtxt", f"m/{other}/config.pbtxt", "m/good/config.pbtxt")
    first, second, good = scan(repository("m"), entries, FOLDS)
    for model in (first, second):
        assert isinstance(model.problem, UnsafePath) and model.files == ()
        for name in (one, other):
            assert ascii(f"m/{name}/config.pbtxt") in str(model.problem)
    assert (first.name, second.name, good.problem) == (one, other, None)
    assert all(model.problem is None for model in scan(repository("m"), entries))


def test_should_refuse_a_path_that_is_too_long_as_a_whole() -> None:
    """Each component may be right: the path of the generation comes before it, and PATH_MAX is 4096."""
    longest = "/".join(["x" * 250] * 13)[:3071]
    right, wrong = (f"m/{name}/{longest}{more}" for name, more in (("right", ""), ("wrong", "x")))
    good, bad = scan(repository("m"), listing(right, wrong))
    assert good.problem is None and len(str(good.files[0].path)) == 3071
    assert isinstance(bad.problem, UnsafePath) and "longer than 3071 bytes" in str(bad.problem)
    assert len(str(bad.problem)) < 1000


def test_should_refuse_a_path_that_is_too_deep() -> None:
    """A thousand folders in each other fit into PATH_MAX, and overflow the stack of whoever makes them."""
    right, wrong = "m/right/" + "d/" * 99 + "x", "m/wrong/" + "d/" * 100 + "x"
    good, bad = scan(repository("m"), listing(right, wrong))
    assert good.problem is None
    assert isinstance(bad.problem, UnsafePath) and "deeper than 100 folders" in str(bad.problem)


@pytest.mark.parametrize(
    "name",
    ["dot.", "space ", " space", "..hidden", "...", "\u202egnp.x", "zero\u200bwidth", "a\\b", "-rf", "~", "CON"],
)
def test_should_take_odd_names_that_lead_nowhere_else(name: str) -> None:
    """A file system of Linux holds each of them as it is."""
    (model,) = scan(repository("m"), listing(f"m/a/{name}/{name}"))
    assert model.problem is None and paths(model) == [f"{name}/{name}"]


def test_should_say_that_a_repository_is_empty() -> None:
    """The hint tells how many objects there were, so that a wrong prefix is seen."""
    with pytest.raises(EmptyRepository, match=r"s3://http://store:1/bucket/m .*holds 2 objects"):
        scan(repository("m"), listing("m/README", "model/a/config.pbtxt"))
    with pytest.raises(EmptyRepository):
        scan(repository("m"), [])
