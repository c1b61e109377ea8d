"""From a job to bytes: the pipeline's pictures, and what cannot be one graph told."""

from contextlib import nullcontext
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

import calotype
from calotype import painter as module
from calotype.backends.device import Gpu
from calotype.errors import BackendError, NotFiniteError
from calotype.painter import Painter
from calotype.request import Request, resolve

SMALL = {"steps": 2, "width": 64, "height": 64}


class Host(Gpu):
    """Stands in for the device in the interpreter."""

    def side_stream(self):
        return nullcontext()

    def hold(self, network):
        return network

    def put(self, array):
        return torch.from_numpy(array)

    def fetch(self, tensor):
        return tensor.numpy()


@pytest.fixture(scope="module")
def pipe():
    return calotype.load("demo", backend="eager")


@pytest.fixture
def painter(pipe, device, recorder, monkeypatch):
    """In the interpreter the networks are left as they are: with kernels in them a picture would take minutes."""
    if device.type == "cpu":
        monkeypatch.setattr(module, "fuse", lambda network: None)
    gpu = Host() if device.type == "cpu" else Gpu()

    def of(plan=pipe.plan, precision="fp32"):
        return Painter(plan, gpu, recorder, precision=precision, limit_bytes=2**34)

    return of


def test_jobs_become_the_pipelines_pictures(pipe, painter, device, recorder):
    paint = painter().paint
    for seed, prompt in enumerate(["a red star", ["a blue ring on a white background", "a green cross"]]):
        said = {"prompt": prompt, "seed": seed, "guidance_scale": 4.0, **SMALL}
        got = paint(resolve(Request(**said), pipe.plan))
        wanted = np.stack([np.asarray(image) for image in pipe(**said).images])
        assert got.shape == wanted.shape
        assert np.abs(got.astype(int) - wanted).max() <= (1 if device.type == "cpu" else 8)
    assert recorder.made == 2


def test_networks_may_have_precisions_of_their_own(pipe, painter):
    kinds = {"text_encoder": "fp32", "unet": "bf16", "vae_decoder": "fp32"}
    said = {"prompt": "a red star", "seed": 3, **SMALL}
    got = painter(precision=kinds).paint(resolve(Request(**said), pipe.plan))
    wanted = np.asarray(pipe(**said).images[0])
    assert 0 < np.abs(got[0].astype(int) - wanted).mean() < 4  # levels of 255


def test_what_cannot_be_one_graph_is_told(pipe, painter):
    plan = pipe.plan
    with pytest.raises(BackendError, match="fp32, fp16, bf16, and int8 was asked for"):
        painter(precision="int8")
    with pytest.raises(BackendError, match=r"vae_decoder .* None was asked for"):
        painter(precision={"text_encoder": "fp32", "unet": "fp32"})
    bare = replace(plan.components["unet"], artefacts=())
    with pytest.raises(BackendError, match="no weights of the unet"):
        painter(replace(plan, components={**plan.components, "unet": bare}))
    with pytest.raises(BackendError, match="without ControlNets"):
        painter(replace(plan, components={**plan.components, "controlnet": plan.components["unet"]}))


def test_numbers_that_are_not_finite_are_told(pipe, painter):
    broken = painter(replace(pipe.plan, scaling_factor=1e-38))
    with pytest.raises(NotFiniteError, match="not finite: take bf16"):
        broken.paint(resolve(Request(prompt="a red star", **SMALL), pipe.plan))


def test_a_scheduler_that_is_no_matrix_is_told(pipe, painter):
    scheduler = diffusers.DDIMScheduler(clip_sample=True)
    job = resolve(Request(prompt="a red star", scheduler=scheduler, **SMALL), pipe.plan)
    with pytest.raises(BackendError, match=r"is no sampler matrix .*: no graph can hold its steps"):
        painter().paint(job)
