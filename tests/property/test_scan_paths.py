"""No key, whatever is in it, leads out of a model's folder."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dfagent.errors import EmptyRepository
from dfagent.repository.scan import scan
from dfagent.types import ObjectEntry, ObjectRef, RepositoryUrl

COMPONENT = st.sampled_from(["..", ".", "", "1", "a", "config.pbtxt", ".x", "a\0", "b" * 300]) | st.text(max_size=5)
KEYS = st.lists(st.lists(COMPONENT, min_size=1, max_size=5).map("/".join), max_size=8)


@given(KEYS, st.sampled_from(["", "a", "a/1"]))
def test_should_keep_every_file_inside_its_model(keys: list[str], prefix: str) -> None:
    """What scan gives without a problem joins to distinct paths strictly inside the folder of a safely named model."""
    root = Path("/repository")
    entries = [ObjectEntry(ObjectRef("s3", "", "bucket", key), 1, '"e"') for key in keys]
    try:
        models = scan(RepositoryUrl("s3", "", "bucket", prefix), entries)
    except EmptyRepository:
        return
    names = [model.name for model in models]
    assert len(names) == len(set(names))
    for model in models:
        targets = [root / model.name / file.path for file in model.files]
        assert len(targets) == len(set(targets))
        for target in targets:
            assert ".." not in target.parts and (root / model.name) in target.parents
            assert (root / model.name).parent == root
            assert not any(other in target.parents for other in targets)
