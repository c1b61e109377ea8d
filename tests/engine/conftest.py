"""Plans whose manifests a test changes as a stranger would, with a new digest; and a tiny model."""

import json
import os
import shutil
from pathlib import Path

import pytest

import calotype
from calotype.files.digest import digest_of, file_digest
from tests.helpers.tiny_models import save_tiny_model


class Editable:
    """A copy of the demonstration model's plan. Its files are hard links: replace, do not change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = json.loads((folder / "plan.json").read_text())
        self.data.pop("digest")

    def seal(self) -> Path:
        """Write the manifest with its digest, and return the plan's folder."""
        (self.folder / "plan.json").unlink(missing_ok=True)
        (self.folder / "plan.json").write_text(json.dumps({**self.data, "digest": digest_of(self.data)}))
        return self.folder

    def put(self, name: str, content: bytes) -> None:
        """Replace a file of the plan, and list it with its digest."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        self.data["files"][name] = [len(content), file_digest(path)]


@pytest.fixture
def editable(saved_plan, tmp_path) -> Editable:
    return Editable(Path(shutil.copytree(saved_plan, tmp_path / "plan", copy_function=os.link)))


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory, demo_folder) -> Path:
    """A model with a tiny U-Net of random weights."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", demo_folder)


@pytest.fixture(scope="module")
def tiny_pipe(tiny_folder):
    return calotype.load(tiny_folder, backend="eager")
