"""Every backend on all cores, in a process of its own: workers of these tests keep to one core each."""

import subprocess
import sys

import numpy as np
import pytest

from calotype.export.quality.metrics import psnr
from tests.helpers.cores import CORES, all_cores
from tests.helpers.parity import MIN_DB

PROMPT, OPTIONS = "a large red circle on a blue background", {"seed": 7, "steps": 2, "output_type": "np"}
SCRIPT = f"""
import os, sys
import numpy as np
import torch
import calotype
from calotype.backends.openvino import requests

images = {{}}
for backend in {list(MIN_DB)}:
    images[backend] = calotype.load("demo", backend=backend)({PROMPT!r}, **{OPTIONS}).images
threads, left = [torch.get_num_threads(), requests._threads()], sorted(os.sched_getaffinity(0))
np.savez(sys.argv[1], threads=threads, left=left, **images)
"""


@pytest.fixture(scope="module")
def saved(pipes, tmp_path_factory):
    path = tmp_path_factory.mktemp("threads") / "images.npz"
    with all_cores():
        subprocess.run([sys.executable, "-P", "-c", SCRIPT, path], check=True)
    with np.load(path) as arrays:
        yield dict(arrays)


def test_backends_use_a_thread_for_each_core(saved):
    assert saved["threads"].tolist() == [len(CORES)] * 2


def test_openvino_pins_its_own_threads_only(saved):
    assert saved["left"].tolist() == CORES


@pytest.mark.parametrize("backend", MIN_DB)
def test_all_cores_generate_the_image_of_one(pipes, saved, backend):
    expected = pipes["eager"](PROMPT, **OPTIONS).images
    assert psnr(saved[backend], expected) >= MIN_DB[backend]
