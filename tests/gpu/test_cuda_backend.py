"""The cuda backend compared with the eager one; the interpreter uses stand-ins for the device and captures."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

from calotype.backends import choose
from calotype.backends.torch.cuda import CudaRunner
from calotype.backends.torch.modules import load_module
from calotype.errors import BackendError
from calotype.plan import networks
from calotype.plan.plan import Artifact, PlannedComponent

CONFIGS = {"text_encoder": {"max_position_embeddings": 7}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(4)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(32,),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=24,
    )
    unet.save_pretrained(tmp_path_factory.mktemp("unet") / "model")
    return next(tmp_path_factory.getbasetemp().glob("unet*/model"))


@pytest.fixture
def component(folder):
    config = diffusers.UNet2DConditionModel.load_config(folder)
    tensors = networks.unet({"unet": config, **CONFIGS})
    artifact = Artifact(form="diffusers", path=folder, precision="fp32", check={})
    return PlannedComponent(
        name="unet", inputs=tensors.inputs, outputs=tensors.outputs, artifacts=(artifact,), refused={}
    )


def open_runner(component, precision, gpu, recorder) -> CudaRunner:
    artifact = replace(component.artifacts[0], precision=precision)
    return CudaRunner(component, artifact, gpu, recorder, limit_bytes=2**30)


def inputs(height, seed, batch=2):
    draw = np.random.default_rng(seed)
    sizes = {"sample": (batch, 4, height, 4), "encoder_hidden_states": (batch, 7, 24)}
    arrays = {n: draw.standard_normal(s, dtype=np.float32) for n, s in sizes.items()}
    return arrays | {"timestep": np.array([999.0, 3.0][:batch], dtype=np.float32)}


def relative_error(got, expected) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("precision", "tolerance", "heights"), [("fp32", 1e-5, (2, 1)), ("bf16", 3e-2, (1,))])
def test_it_computes_what_eager_computes_at_every_size(precision, tolerance, heights, component, gpu, recorder, folder):
    runner = open_runner(component, precision, gpu, recorder)
    module = load_module("unet", folder)
    for seed, height in enumerate(heights):
        arrays = inputs(height, seed)
        with torch.inference_mode():
            (expected,) = module(**{n: torch.from_numpy(a) for n, a in arrays.items()})
        got = runner(arrays)["out_sample"]
        assert got.dtype == np.float32
        assert relative_error(got, expected.numpy()) <= tolerance
    assert runner.precision == precision
    assert recorder.count == len(set(heights))


def test_it_uses_the_kernels(component, gpu, recorder):
    assert set(open_runner(component, "fp32", gpu, recorder).replaced) == {
        "ResnetBlock2D",
        "BasicTransformerBlock",
        "Attention",
        "GEGLU",
        "GroupNorm",
    }


def test_an_unsupported_precision_raises(component, gpu, recorder):
    with pytest.raises(BackendError, match="int8"):
        open_runner(component, "int8", gpu, recorder)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        choose("cuda")
