"""Motion modules (AnimateDiff): the frames of diffusers' pipeline with the same weights and seeds, and plans."""

import re
from dataclasses import replace
from functools import cache, partial

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import calotype
from calotype import cli
from calotype.backends import choose
from calotype.backends.components import Components
from calotype.backends.torch.cuda import CudaRunner
from calotype.errors import Cancelled
from calotype.export import build
from calotype.export.quality.metrics import psnr
from calotype.export.tensorrt.builder import shapes_of
from calotype.pipeline import Pipeline
from calotype.plan.profile import Range
from tests.helpers.gpu_standins import Calls, Host
from tests.helpers.parity import MIN_DB
from tests.helpers.small_builds import small_spec
from tests.helpers.tiny_models import save_motion, save_tiny_model

pytestmark = pytest.mark.slow
STEPS = 2
MODEL, TASK = "Stable Diffusion 1 with motion modules", "text to video, frame by frame"
SIZE = {"height": 32, "width": 48}
# The seeds and prompts of a call, and what differs from the defaults, in diffusers' names.
CASES = [
    ([3], ["a red ring"], {"num_frames": 5, "negative_prompt": "blue", "decode_chunk_size": 2}),
    ([4], ["a blue square"], {"num_frames": 8, "guidance_scale": 1.0, "height": 32, "width": 32}),
    ([5, 6], ["a ring", "a square"], {"num_frames": 1, "height": 48, "width": 32, "guidance_scale": 3.0}),
]


@pytest.fixture(scope="module")
def folders(demo_folder, tmp_path_factory):
    """A model of Stable Diffusion 1, and motion modules."""
    work = tmp_path_factory.mktemp("motion")
    return save_tiny_model(work / "model", demo_folder), save_motion(work / "modules")


@pytest.fixture(scope="module")
def theirs(folders):
    model, modules = folders
    adapter = diffusers.MotionAdapter.from_pretrained(modules, low_cpu_mem_usage=False)
    options = {"motion_adapter": adapter, "dtype": torch.float32, "low_cpu_mem_usage": False}
    pipe = diffusers.AnimateDiffPipeline.from_pretrained(model, **options)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def expected_of(theirs):
    """A function that returns the frames of diffusers' pipeline for a case.  # float32 [N, F, H, W, 3]"""

    @cache
    def frames(case):
        seeds, prompts, options = CASES[case]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        options = {"guidance_scale": 7.5, "num_inference_steps": STEPS, "output_type": "np", **SIZE, **options}
        return theirs(prompts if len(prompts) > 1 else prompts[0], generator=generators, **options).frames

    return frames


@pytest.fixture(scope="module")
def eager(folders):
    return calotype.load(folders[0], motion_adapter=folders[1], backend="eager")


def ours(pipe, case, **more):
    seeds, prompts, options = CASES[case]
    options = {"guidance_scale": 7.5, "num_inference_steps": STEPS, "output_type": "np", **SIZE, **options, **more}
    return pipe(prompts, seed=seeds, scheduler="euler", **options)


def hold(figures, backend, got, expected):
    assert got.shape == expected.shape
    assert expected.std() > 0.05
    for clip, other in zip(got, expected, strict=True):
        for frame, their_frame in zip(clip, other, strict=True):
            figures.hold((MODEL, TASK, "euler"), backend, frame[None], their_frame[None])


@pytest.mark.parametrize("case", range(len(CASES)))
def test_frames_are_those_of_diffusers(case, eager, expected_of, figures):
    hold(figures, "eager", ours(eager, case).images, expected_of(case))


@pytest.mark.parametrize(("backend", "cases"), [("onnxruntime", (0, 2)), ("openvino", (0,))])
def test_frames_on_other_backends(backend, cases, folders, expected_of, figures):
    pipe = calotype.load(folders[0], motion_adapter=folders[1], backend=backend)
    for case in cases:
        result = ours(pipe, case)
        hold(figures, backend, result.images, expected_of(case))
        assert not any("as one graph" in note for note in result.report.notes)


@pytest.mark.parametrize(("strength", "backend"), [(0.5, "eager"), (0.8, "openvino")])
def test_video_to_video(strength, backend, folders, theirs, eager, figures):
    pipe = diffusers.AnimateDiffVideoToVideoPipeline(**theirs.components)
    pipe.set_progress_bar_config(disable=True)
    clip = [blocks(seed) for seed in range(3)]
    options = {"num_inference_steps": 4, "strength": strength, "guidance_scale": 5.0, "output_type": "np"}
    expected = pipe(clip, "a ring", generator=torch.manual_seed(7), **SIZE, **options).frames
    model = eager if backend == "eager" else calotype.load(folders[0], motion_adapter=folders[1], backend=backend)
    got = model("a ring", video=clip, seed=7, scheduler="euler", **options).images
    assert got.shape == expected.shape
    for frame, other in zip(got[0], expected[0], strict=True):
        figures.hold((MODEL, "video to video, frame by frame", "euler"), backend, frame[None], other[None])


def blocks(seed: int) -> Image.Image:
    """Return an image of colored blocks, of `SIZE`."""
    colors = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(colors.repeat(8, axis=0).repeat(8, axis=1))


def test_networks_on_cuda_stay_in_pytorch(eager, expected_of, monkeypatch):
    opens = partial(CudaRunner, gpu=Host(), recorder=Calls(), limit_bytes=1 << 30)
    pipe = Pipeline(eager.plan, Components(eager.plan, choose("eager")))
    component = eager.plan.components["unet"]
    monkeypatch.setattr(pipe.component("unet"), "runner", opens(component, component.artifact("diffusers")))
    assert not pipe.component("unet").runner.replaced
    assert psnr(ours(pipe, 1).images[0], expected_of(1)[0]) >= MIN_DB["eager"]


def test_schedulers_that_draw_noise_draw_that_of_diffusers(eager, theirs, monkeypatch):
    scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(theirs.scheduler.config)
    monkeypatch.setattr(theirs, "scheduler", scheduler)
    options = {"num_frames": 2, "num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "latent", **SIZE}
    expected = theirs("a ring", generator=torch.manual_seed(1), **options).frames.numpy()
    got = eager("a ring", generator=torch.manual_seed(1), scheduler=scheduler, **options).images
    assert got.shape == expected.shape == (1, 4, 2, 4, 6)
    assert psnr(got, expected, float(np.ptp(expected))) >= MIN_DB["eager"]


def test_outputs_latents_callback_stream_and_cancel(eager):
    options = {"frames": 2, "steps": STEPS, "seed": 2, **SIZE}
    result = eager("a ring", **options)
    (video,) = result.videos
    assert (len(video), video.size, video.fps, len(result.frames[0])) == (2, (48, 32), 8, 2)
    arrays = eager("a ring", **options, output_type="np", fps=12)
    assert np.abs(np.rint(arrays.images[0] * 255) - video.array).max() <= 1
    assert arrays.videos[0].fps == 12
    latents = eager("a ring", **options, output_type="latent").images
    assert np.abs(eager.decode(latents, output_type="np") - arrays.images).max() < 1e-5
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append(tuple(tensors["latents"].shape))
        return {"latents": tensors["latents"] * 0 + 1}

    changed = eager("a ring", **options, output_type="latent", callback_on_step_end=callback).images
    assert seen == [(1, 4, 2, 4, 6)] * STEPS
    assert np.abs(changed - 1).max() < 1e-6
    noise = torch.randn(1, 4, 2, 4, 6, generator=torch.Generator().manual_seed(2))
    again = eager("a ring", **options | {"seed": 9}, latents=noise, output_type="latent").images
    assert psnr(again, latents, float(np.ptp(latents))) >= MIN_DB["eager"]
    events = eager.stream("a ring", **options)
    assert len(next(events).preview()) == 2
    eager.cancel()
    with pytest.raises(Cancelled):
        list(events)


def test_motion_loras(eager, theirs, tmp_path):
    """A LoRA of motion modules, in diffusers' names and in AnimateDiff's."""
    generator, layouts = torch.Generator().manual_seed(0), ({}, {})
    layers = [name for name, each in theirs.unet.named_modules() if "motion_modules" in name and hasattr(each, "to_q")]
    for layer in layers:
        width = theirs.unet.get_submodule(layer).to_q.weight.shape[0]
        module, block, attention = re.fullmatch(r"(.+)\.transformer_blocks\.(\d)\.attn(\d)", layer).groups()
        named = f"{module}.temporal_transformer.transformer_blocks.{block}.attention_blocks.{int(attention) - 1}"
        for ours, old in (("to_q", "to_q"), ("to_out.0", "to_out")):
            pair = (torch.randn(2, width, generator=generator), 0.3 * torch.randn(width, 2, generator=generator))
            for part, tensor in zip(("down", "up"), pair, strict=True):
                layouts[0][f"unet.{layer}.{ours}.lora.{part}.weight"] = tensor
                layouts[1][f"{named}.processor.{old}_lora.{part}.weight"] = tensor
    files = [tmp_path / "diffusers.safetensors", tmp_path / "original.safetensors"]
    for tensors, file in zip(layouts, files, strict=True):
        save_file(tensors, file)
    options = {"num_frames": 2, "num_inference_steps": 1, "guidance_scale": 5.0, "output_type": "np", **SIZE}
    plain = eager("a ring", seed=1, scheduler="euler", **options).images
    theirs.load_lora_weights(str(files[0]), adapter_name="zoom")
    try:
        expected = theirs("a ring", generator=torch.manual_seed(1), **options).frames
    finally:
        theirs.unload_lora_weights()
    assert psnr(plain[0], expected[0]) < 40
    try:
        for file in files:
            eager.set_lora(file)
            got = eager("a ring", seed=1, scheduler="euler", **options).images
            assert psnr(got[0], expected[0]) >= MIN_DB["eager"]
    finally:
        eager.set_lora(None)


def test_a_plan(folders, eager, tmp_path):
    side, frames = Range(min=16, opt=32, max=48), Range(min=1, opt=2, max=5)
    spec = small_spec("onnxruntime", tmp_path / "plan", model=str(folders[0]), height=side, width=side)
    built = build(replace(spec, motion_adapter=str(folders[1]), frames=frames, proof_steps=1))
    assert built.plan.build["proof"]["psnr"] >= 60
    planned = calotype.load(tmp_path / "plan")
    assert (planned.plan.profile.frames, planned.plan.animates) == (frames, True)
    assert psnr(ours(planned, 0).images[0], ours(eager, 0).images[0]) >= MIN_DB["onnxruntime"]
    profile = replace(planned.plan.profile, batch=Range(min=1, opt=1, max=1))
    unet = planned.plan.components["unet"]
    shapes = shapes_of("unet", unet.inputs, profile)
    assert [shape[2] for shape in shapes["sample"]] == [1, 2, 5]
    decoder = planned.plan.components["vae_decoder"]
    assert [shape[0] for shape in shapes_of("vae_decoder", decoder.inputs, profile)["latent_sample"]] == [1, 2, 5]


def test_the_command_writes_a_clip(folders, tmp_path, capsys):
    model, modules = map(str, folders)
    path = tmp_path / "out.webp"
    call = ["--model", model, "--motion-adapter", modules, "--frames", "2", "--steps", "1", "--width", "32"]
    call += ["--height", "32", "--seed", "1", "--backend", "eager", "-o", str(path)]
    cli.app(["generate", "a ring", *call], standalone_mode=False)
    with Image.open(path) as clip:
        clip.load()
        assert (clip.n_frames, clip.size, clip.info["duration"]) == (2, (32, 32), 125)
    assert "seed 1" in capsys.readouterr().out
