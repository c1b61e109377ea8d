"""Stable Video Diffusion: the frames of diffusers' pipeline with the same weights and seeds, plans, and an engine."""

from dataclasses import replace
from functools import cache, partial

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.backends import choose
from calotype.backends.components import Components
from calotype.backends.torch.cuda import CudaRunner
from calotype.errors import Cancelled
from calotype.export import build, prepare
from calotype.export.quality.metrics import psnr
from calotype.export.tensorrt.builder import build_engine, shapes_of
from calotype.export.tensorrt.options import EngineOptions
from calotype.pipeline import Pipeline
from calotype.plan.profile import Range
from tests.helpers.gpu_standins import Calls, Host
from tests.helpers.parity import MIN_DB
from tests.helpers.small_builds import small_spec
from tests.helpers.tiny_models import save_video

pytestmark = pytest.mark.slow
STEPS = 2
MODEL, TASK = "Stable Video Diffusion", "image to video, frame by frame"


def picture(seed: int, width: int, height: int) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1))


IMAGES = [picture(0, 48, 32), picture(1, 48, 32)]
SIZE = {"height": 16, "width": 24}
# What differs from diffusers' defaults, in both names; the seed, and the images.
CASES = [
    (3, IMAGES[:1], {"num_frames": 5, "decode_chunk_size": 2, "noise_aug_strength": 0.3, "fps": 12}),
    (4, IMAGES[:1], {"num_frames": 1, "min_guidance_scale": 2.0}),
    (5, IMAGES[:1], {"num_frames": 3, "max_guidance_scale": 1.0, "motion_bucket_id": 9, "height": 24, "width": 16}),
    (6, IMAGES, {"num_frames": 2, "max_guidance_scale": 4.5, "decode_chunk_size": 1}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_video(tmp_path_factory.mktemp("video") / "model", side=224)


@pytest.fixture(scope="module")
def expected_of(folder):
    """A function that returns the frames of diffusers' pipeline for a case.  # float32 [N, F, H, W, 3]"""
    theirs = diffusers.StableVideoDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    theirs.set_progress_bar_config(disable=True)

    @cache
    def frames(case):
        seed, images, options = CASES[case]
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(images))]
        options = {"num_inference_steps": STEPS, "generator": generators, "output_type": "np", **SIZE, **options}
        return theirs(images if len(images) > 1 else images[0], **options).frames

    return frames


@pytest.fixture(scope="module")
def eager(folder):
    return calotype.load(folder, backend="eager")


def ours(pipe, case, **more):
    seed, images, options = CASES[case]
    options = {"num_inference_steps": STEPS, "seed": seed, "output_type": "np", **SIZE, **options, **more}
    return pipe(image=images if len(images) > 1 else images[0], **options)


def hold(figures, backend, got, expected):
    assert got.shape == expected.shape
    assert expected.std() > 0.05
    for clip, other in zip(got, expected, strict=True):
        for frame, theirs in zip(clip, other, strict=True):
            figures.hold((MODEL, TASK, "euler"), backend, frame[None], theirs[None])


@pytest.mark.parametrize("case", range(len(CASES)))
def test_frames_are_those_of_diffusers(case, eager, expected_of, figures):
    hold(figures, "eager", ours(eager, case).images, expected_of(case))


@pytest.mark.parametrize(("backend", "cases"), [("onnxruntime", (0, 2)), ("openvino", (0,))])
def test_frames_on_other_backends(backend, cases, folder, expected_of, figures):
    pipe = calotype.load(folder, backend=backend)
    for case in cases:
        hold(figures, backend, ours(pipe, case).images, expected_of(case))
    larger = ours(pipe, cases[0], num_inference_steps=1, height=24)  # what is compiled for one size is not another's
    assert not any("as one graph" in note for note in larger.report.notes)


def test_accelerated_pipelines_use_the_traces_of_load(folder, expected_of):
    pipe = diffusers.StableVideoDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    calotype.accelerate(pipe, backend="onnxruntime", verify=False)
    seed, images, options = CASES[0]
    options = {"num_inference_steps": STEPS, "output_type": "np", **SIZE, **options}
    frames = pipe(images[0], generator=[torch.Generator().manual_seed(seed)], **options).frames
    assert psnr(frames[0], expected_of(0)[0]) >= 60
    report = calotype.accelerate_report(pipe)
    for name in ("unet", "vae.encoder", "vae.decoder", "image_encoder"):
        assert report[name].compiled_calls
        assert not report[name].reasons


def test_networks_on_cuda_stay_in_pytorch(eager, expected_of, monkeypatch):
    opens = partial(CudaRunner, gpu=Host(), recorder=Calls(), limit_bytes=1 << 30)
    pipe = Pipeline(eager.plan, Components(eager.plan, choose("eager")))
    for name in ("unet", "vae_decoder"):
        component = eager.plan.components[name]
        monkeypatch.setattr(pipe.component(name), "runner", opens(component, component.artifact("diffusers")))
        assert not pipe.component(name).runner.replaced
    assert psnr(ours(pipe, 0).images[0], expected_of(0)[0]) >= MIN_DB["eager"]


def test_another_scheduler(eager, folder, expected_of):
    theirs = diffusers.StableVideoDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    options = {"num_frames": 2, "num_inference_steps": STEPS, "output_type": "np", **SIZE}
    expected = theirs(IMAGES[0], generator=torch.manual_seed(1), **options).frames
    got = eager(image=IMAGES[0], generator=torch.manual_seed(1), scheduler=theirs.scheduler, **options).images
    assert psnr(got[0], expected[0]) >= MIN_DB["eager"]


def test_outputs_callback_stream_and_cancel(eager):
    options = {"image": IMAGES[0], "frames": 3, "steps": STEPS, "seed": 2, **SIZE}
    result = eager(**options)
    (video,) = result.videos
    assert (len(video), video.size, video.fps, len(result.frames[0])) == (3, (24, 16), 7, 3)
    assert video.array.shape == (3, 16, 24, 3)
    arrays = eager(**options, output_type="np")
    assert np.abs(np.rint(arrays.images[0] * 255) - video.array).max() <= 1
    assert eager(**options, output_type="pt").frames.shape == (1, 3, 3, 16, 24)
    latents = eager(**options, output_type="latent").images
    assert latents.shape == (1, 3, 4, 8, 12)
    assert np.abs(eager.decode(latents, output_type="np") - arrays.images).max() < 1e-5
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append(tuple(tensors["latents"].shape))
        return {"latents": tensors["latents"] * 0 + 1}

    changed = eager(**options, output_type="latent", callback_on_step_end=callback).images
    assert seen == [(1, 3, 4, 8, 12)] * STEPS
    assert np.abs(changed - 1).max() < 1e-6
    events = eager.stream(**options)
    assert len(next(events).preview()) == 3
    eager.cancel()
    with pytest.raises(Cancelled):
        list(events)


def test_a_video_of_a_batch_is_that_of_its_seed(eager):
    options = {"frames": 2, "steps": 1, "output_type": "np", **SIZE}
    several = eager(image=IMAGES[0], num_images=2, seed=8, **options)
    alone = eager(image=IMAGES[0], seed=9, **options)
    assert several.images.shape == (2, 2, 16, 24, 3)
    assert psnr(several.images[1], alone.images[0]) >= MIN_DB["eager"]
    given = eager(IMAGES[0], latents=np.zeros((1, 2, 4, 8, 12), np.float32), seed=9, **options).images
    assert np.isfinite(given).all()


def test_a_plan(folder, eager, tmp_path):
    side = Range(min=16, opt=16, max=24)
    spec = small_spec("onnxruntime", tmp_path / "plan", model=str(folder), height=side, width=side)
    built = build(replace(spec, frames=Range(min=1, opt=2, max=5), proof_steps=1))
    assert built.plan.build["proof"]["psnr"] >= 60
    planned = calotype.load(tmp_path / "plan")
    assert planned.plan.profile.frames == Range(min=1, opt=2, max=5)
    assert psnr(ours(planned, 2).images[0], ours(eager, 2).images[0]) >= MIN_DB["onnxruntime"]


def test_an_engine_of_each_network(folder):
    plan = prepare(folder)
    side, trt = Range(min=16, opt=16, max=24), pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13")
    frames = Range(min=1, opt=2, max=4)
    profile = replace(plan.profile, batch=Range(min=1, opt=1, max=1), height=side, width=side, frames=frames)
    for name in ("unet", "vae_decoder"):
        component = plan.components[name]
        shapes = shapes_of(name, component.inputs, profile)
        assert shapes[component.inputs[0].name][2][:2] == (2 if name == "unet" else 1, 4)
        assert build_engine(trt, component.artifact("onnx").path, [shapes], EngineOptions(targets=(89,))).engine
