"""What an installed dfagent needs besides its modules is in its wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

from dfagent.demo.models import DRAGONFLY_MODELS, OTHER_MODELS

ROOT = Path(__file__).parents[2]


def test_should_ship_the_sources_of_the_demo_models(tmp_path: Path) -> None:
    """Each model's configuration and code lie in the wheel, with the bytes of the tree."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for model in (*DRAGONFLY_MODELS, *OTHER_MODELS):
            for suffix in ("pbtxt", "py"):
                path = f"dfagent/demo/model_sources/{model}.{suffix}"
                assert archive.read(path) == (ROOT / path).read_bytes()
