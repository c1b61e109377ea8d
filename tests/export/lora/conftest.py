"""What the tests of LoRA files share."""

import pytest

import calotype
from calotype.export.sources.lora import fuse_into
from calotype.export.steps.subprocess_task import Outcome


@pytest.fixture
def fuse_in_this_process(monkeypatch):
    """Fuse in this process: a child process takes seconds to import torch."""

    def run(_, function, *__, **arguments):
        assert function == "calotype.export.sources.lora:fuse_into"
        return Outcome(value=fuse_into(**arguments), peak_bytes=0)

    monkeypatch.setattr("calotype.export.sources.lora.run_in_subprocess", run)
    monkeypatch.setattr("calotype.export.steps.stored_step.run_in_subprocess", run)


@pytest.fixture(scope="module")
def eager(sd21_folder):
    return calotype.load(sd21_folder, backend="eager")
