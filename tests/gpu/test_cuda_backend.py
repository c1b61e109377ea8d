"""The cuda backend compared with the eager one; the interpreter uses stand-ins for the device and captures."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

from calotype.backends import choose
from calotype.backends.torch.cuda import CudaRunner
from calotype.backends.torch.modules import load_module
from calotype.cuda.capture import warm_up
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
    assert set(open_runner(component, "fp32", gpu, recorder).replaced) >= {
        *("FusedResnet", "FusedTransformer2D", "FusedTransformerBlock", "FusedAttention", "FusedGeglu"),
        *("FusedGroupNorm", "FusedLayerNorm", "DownBlock", "MiddleBlock", "UpBlock", "DirectConvolution"),
    }


def test_weights_arrive_in_their_type_without_random_ones(component, gpu, recorder, monkeypatch):
    """SDXL's first random weights would take 10 GB."""
    monkeypatch.setattr(
        diffusers.UNet2DConditionModel, "from_pretrained", lambda *_, **__: pytest.fail("random weights")
    )
    runner = open_runner(component, "bf16", gpu, recorder)
    parameters = list(runner.network._module.parameters())
    assert {p.dtype for p in parameters} == {torch.bfloat16}
    assert not any(p.is_meta for p in parameters)


def test_weights_that_do_not_fit_are_explained(component, folder, gpu, recorder, tmp_path):
    from safetensors.torch import load_file, save_file

    renamed = tmp_path / "model"
    renamed.mkdir()
    (renamed / "config.json").write_text((folder / "config.json").read_text())
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file({**weights, "extra": torch.zeros(1)}, renamed / "diffusion_pytorch_model.safetensors")
    with pytest.raises(BackendError, match="extra"):
        open_runner(
            replace(component, artifacts=(replace(component.artifacts[0], path=renamed),)), "fp32", gpu, recorder
        )


def test_no_switch_of_the_process_changes_for_full_float32(component, gpu, recorder, references, monkeypatch):
    """Convolutions themselves ask for no TF32: another thread's networks do not notice."""
    flags = []

    def convolution(*args):
        flags.append((args[-1], torch.backends.cudnn.allow_tf32))
        return convolve(*args)

    convolve, before = torch._convolution, torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch, "_convolution", convolution)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    open_runner(component, "fp32", gpu, recorder)(inputs(2, 0))
    assert set(flags) == {(False, True)}
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)


def test_convolutions_search_only_before_a_capture(component, gpu, recorder, references, monkeypatch):
    flags = []

    def convolution(*args):
        flags.append(args[9])
        return convolve(*args)

    convolve = torch._convolution
    monkeypatch.setattr(torch, "_convolution", convolution)
    runner = open_runner(component, "fp32", gpu, recorder)
    arrays = {name: torch.from_numpy(array) for name, array in inputs(2, 0).items()}
    with torch.inference_mode():
        warm_up(lambda: runner.network(arrays))
        assert set(flags) == {True}
        flags.clear()
        runner.network(arrays)
    assert set(flags) == {False}


def test_an_unsupported_precision_raises(component, gpu, recorder):
    with pytest.raises(BackendError, match="int8"):
        open_runner(component, "int8", gpu, recorder)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        choose("cuda")
