"""Motion modules with a ControlNet and an IP-Adapter: the frames of diffusers' pipeline.

The backends but eager run with --parity, because they need traces of their own.
"""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModelWithProjection

import calotype
from calotype.errors import InputError, SourceError
from calotype.export.quality.metrics import psnr
from tests.helpers.conditioning.ip_adapters import image_encoder, processor, save_ip_adapter
from tests.helpers.conditioning.t2i_adapters import save_adapter
from tests.helpers.tiny_models import save_controlnet, save_motion, save_tiny_model

pytestmark = pytest.mark.slow
MODEL = "Stable Diffusion 1 with motion modules"
OPTIONS = {"num_frames": 3, "num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "np"}
OPTIONS |= {"controlnet_conditioning_scale": 0.7, "control_guidance_end": 0.7}


def blocks(seed: int) -> Image.Image:
    colors = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(colors.repeat(8, axis=0).repeat(8, axis=1))


CLIP = [blocks(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def folders(demo_folder, tmp_path_factory):
    """The arguments of `load`: a model, motion modules, a ControlNet, and an IP-Adapter with its encoder."""
    work = tmp_path_factory.mktemp("motion")
    model = save_tiny_model(work / "model", demo_folder)
    return {
        "model": model,
        "motion_adapter": save_motion(work / "modules"),
        "controlnet": save_controlnet(model / "unet", work / "net", 40),
        "ip_adapter": save_ip_adapter(work / "plain.safetensors", model / "unet", "plain"),
        "image_encoder": image_encoder(work / "encoder"),
    }


@pytest.fixture(scope="module")
def theirs(folders):
    plain = {"low_cpu_mem_usage": False}
    adapter = diffusers.MotionAdapter.from_pretrained(folders["motion_adapter"], **plain)
    pipe = diffusers.AnimateDiffControlNetPipeline.from_pretrained(
        folders["model"],
        motion_adapter=adapter,
        controlnet=diffusers.ControlNetModel.from_pretrained(folders["controlnet"], **plain),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(folders["image_encoder"]),
        feature_extractor=processor(),
        dtype=torch.float32,
        **plain,
    )
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def expected(folders, theirs):
    """diffusers' frames with the ControlNet, and with the IP-Adapter as well."""

    def frames(**more):
        return theirs("a ring", generator=torch.manual_seed(7), conditioning_frames=CLIP, **OPTIONS, **more).frames

    of_net = frames(height=32, width=48)
    file = folders["ip_adapter"]
    theirs.load_ip_adapter(
        str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None, low_cpu_mem_usage=False
    )
    theirs.set_ip_adapter_scale(0.6)
    return of_net, frames(height=32, width=48, ip_adapter_image=blocks(9))


@pytest.mark.parametrize("backend", ["eager", "onnxruntime", "openvino"])
def test_frames_are_those_of_diffusers(backend, folders, expected, figures, request):
    if backend != "eager" and not request.config.getoption("--parity"):
        pytest.skip("eager has the same arrays, and test_motion.py runs motion modules on every backend")
    pipe = calotype.load(backend=backend, **folders)
    options = {"seed": 7, "scheduler": "euler", "conditioning_frames": CLIP, **OPTIONS}
    got = pipe("a ring", **options).images
    both = pipe("a ring", **options, ip_adapter_image=blocks(9), ip_adapter_scale=0.6).images
    tasks = ("a ControlNet", "a ControlNet and an IP-Adapter")
    for task, ours, other in zip(tasks, (got, both), expected, strict=True):
        for frame, their_frame in zip(ours[0], other[0], strict=True):
            figures.hold((MODEL, f"text to video with {task}", "euler"), backend, frame[None], their_frame[None])
    assert psnr(got[0], both[0]) < 40
    plain = {name: value for name, value in options.items() if not name.startswith("con")}
    without = pipe("a ring", **plain, height=32, width=48)
    assert psnr(without.images[0], got[0]) < 40


def test_several_clips_with_one_control_image_for_all_frames(folders):
    pipe = calotype.load(backend="eager", **folders)
    options = {"frames": 2, "steps": 1, "output_type": "np", "control_image": CLIP[0], "scheduler": "euler"}
    several = pipe(["a ring", "a square"], seed=3, **options).images
    alone = pipe("a square", seed=4, **options | {"control_image": [CLIP[0]] * 2}).images
    assert psnr(several[1], alone[0]) >= 60
    with pytest.raises(InputError) as raised:
        pipe.stream("a ring", frames=3, control_image=CLIP[:2])
    assert raised.value.data["argument"] == "control_image"


def test_a_t2i_adapter_is_refused(folders, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", "full_adapter")
    with pytest.raises(SourceError):
        calotype.load(folders["model"], motion_adapter=folders["motion_adapter"], t2i_adapter=adapter, backend="fake")
