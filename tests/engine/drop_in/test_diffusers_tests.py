"""Diffusers' own pipeline tests on accelerated pipelines.

    DIFFUSERS_TESTS=diffusers/tests pytest tests/engine/drop_in/test_diffusers_tests.py -k StableDiffusionPipeline

Each class of diffusers' tests that makes a tiny pipeline with a U-Net is compared with eager, and each test of its
mixins runs with every pipeline accelerated. A test that fails without acceleration, for lack of a file or a package, is
skipped. `ACCELERATE_TABLE=FILE` appends a line for each class: the PSNR, and what stays in PyTorch.
"""

import functools
import inspect
import os
import sys
import unittest
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import calotype
from calotype.benchmarks.scripts import open_folders
from calotype.drop_in.image_check import psnr_db

FOLDER = os.environ.get(open_folders.ROOT_VARIABLE)
MIN_DB = 45.0  # pipelines with many steps or with inversion carry float32's rounding further


def kinds_in(folder: Path) -> list[type]:
    """Import diffusers' tests, whose package has the name of ours."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "tests"}
    config, pytest.mark._config = pytest.mark._config, None  # their marks are not ours
    try:
        with warnings.catch_warnings(action="ignore"):
            return [type(each) for each in open_folders.testers(folder, ())]
    finally:
        pytest.mark._config = config
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        sys.modules.update(ours)


KINDS = kinds_in(Path(FOLDER)) if FOLDER else []
# Time, warnings and memory are not those of an accelerated pipeline; the others need packages and devices.
LEFT_OUT = ("float16", "save_load_local_optional", "xformers", "accelerator", "layerwise", "to_dtype")

pytestmark = [
    pytest.mark.skipif(FOLDER is None, reason=f"{open_folders.ROOT_VARIABLE} is not set"),
    pytest.mark.filterwarnings("ignore"),
]


def title(kind) -> str:
    return f"{kind.pipeline_class.__name__}-{kind.__name__}"


def mixin_tests():
    for kind in KINDS:
        for name in dir(kind):
            of_mixin = any(name in vars(base) for base in kind.__mro__ if base.__name__.endswith("TesterMixin"))
            if name.startswith("test_") and of_mixin and not any(word in name for word in LEFT_OUT):
                yield pytest.param(kind, name, id=f"{title(kind)}-{name}")


@pytest.fixture(autouse=True)
def _tokenizers(monkeypatch):
    from transformers import CLIPTokenizer

    monkeypatch.setattr(CLIPTokenizer, "from_pretrained", lambda name, **_: open_folders._byte_tokenizer())


def run_dummy(kind, pipe):
    torch.manual_seed(0)
    np.random.seed(0)
    tester = object.__new__(kind)
    args = ["cpu"] if "device" in inspect.signature(tester.get_dummy_inputs).parameters else []
    return pipe(**tester.get_dummy_inputs(*args))


@pytest.mark.parametrize("kind", KINDS, ids=title)
def test_the_image_is_eagers(kind):
    try:
        pipe = kind.pipeline_class(**object.__new__(kind).get_dummy_components())
        pipe.set_progress_bar_config(disable=True)
        expected = run_dummy(kind, pipe)
    except Exception as failed:
        pytest.skip(f"fails without acceleration: {failed!s:.80}")
    calotype.accelerate(pipe, backend="onnxruntime", verify=False)
    decibels = psnr_db(run_dummy(kind, pipe), expected)
    report = calotype.accelerate_report(pipe)
    if table := os.environ.get("ACCELERATE_TABLE"):
        ran = [m.name for m in report.modules if m.compiled_calls]
        eager = [f"{m.name}: {reason}" for m in report.modules for reason in (*m.reasons, *m.notes)]
        line = f"| `{kind.pipeline_class.__name__}` | {decibels:.0f} | {', '.join(ran)} | {'; '.join(eager)} |\n"
        with Path(table).open("a") as file:
            file.write(line)
    assert decibels > MIN_DB


def run_mixin_test(kind, name) -> None:
    if issubclass(kind, unittest.TestCase):
        kind(name).debug()
        return
    tester = kind()
    for prepare in ("setup_method", "setUp"):
        if hasattr(tester, prepare):
            getattr(tester, prepare)()
            break
    getattr(tester, name)()


@pytest.mark.parametrize(("kind", "name"), list(mixin_tests()))
def test_diffusers_own_tests(kind, name, monkeypatch):
    try:
        run_mixin_test(kind, name)
    except unittest.SkipTest as skipped:
        pytest.skip(str(skipped))
    except BaseException as failed:
        pytest.skip(f"fails without acceleration: {failed!s:.80}")
    make = kind.pipeline_class.__init__

    @functools.wraps(make)
    def accelerated(self, *args, **kwargs):
        make(self, *args, **kwargs)
        calotype.accelerate(self, backend="onnxruntime", verify=False)

    monkeypatch.setattr(kind.pipeline_class, "__init__", accelerated)
    run_mixin_test(kind, name)
