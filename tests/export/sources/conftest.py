"""Models and steps that the tests of sources share."""

import shutil
from pathlib import Path

import pytest

from calotype.export.sources import convert
from calotype.export.steps import stored_step
from calotype.export.steps.subprocess_task import Outcome
from tests.helpers.components_in_files import autoencoder


@pytest.fixture
def convert_in_this_process(monkeypatch):
    """Convert in this process: a child process takes seconds to import torch."""

    def run(_, function, *__, **arguments):
        return Outcome(value=getattr(convert, function.partition(":")[2])(**arguments), peak_bytes=0)

    monkeypatch.setattr(stored_step, "run_in_subprocess", run)


@pytest.fixture(scope="module")
def base(demo_folder, tmp_path_factory):
    """The demonstration model with an autoencoder that has attention, and the scaling factor `SCALE`."""
    folder = Path(shutil.copytree(demo_folder, tmp_path_factory.mktemp("base") / "model"))
    shutil.rmtree(folder / "vae")
    autoencoder(demo_folder, 0).save_pretrained(folder / "vae")
    return folder
