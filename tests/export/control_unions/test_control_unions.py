"""ControlNet-Unions with random weights on a tiny SDXL: the same images as diffusers, and odd arguments."""

import json
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel
from PIL import Image

import calotype
from calotype.backends.session import DenoisingSession, NetworkCall
from calotype.backends.slots import batch_key
from calotype.backends.torch.controls import attention_over_rows
from calotype.errors import InputError, SourceError
from calotype.export import BuildSpec, build, prepare
from calotype.export.quality.metrics import psnr
from calotype.export.tensorrt.builder import build_engine, shapes_of
from calotype.export.tensorrt.options import EngineOptions
from calotype.files.digest import digest_of
from calotype.plan.plan import MANIFEST, read_plan
from calotype.plan.profile import Range
from calotype.report.like import read_like
from tests.helpers.conditioning.control_unions import save_union
from tests.helpers.tiny_models import save_controlnet

pytestmark = pytest.mark.slow
PROMPTS = ["a large red circle on a blue background", "a green star"]
SCENES = [Image.fromarray(np.random.default_rng(s).integers(0, 256, (64, 96, 3), dtype=np.uint8)) for s in range(3)]
SETTINGS = {"guidance_scale": 5.0, "output_type": "np"}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def nets(sdxl_folder, tmp_path_factory):
    work = tmp_path_factory.mktemp("unions")
    return [save_union(sdxl_folder / "unet", work / str(seed), seed) for seed in range(2)]


@pytest.fixture(scope="module")
def reference(sdxl_folder, nets):
    """diffusers' pipelines with one network and with two."""
    loaded = [diffusers.ControlNetUnionModel.from_pretrained(net, low_cpu_mem_usage=False) for net in nets]
    pipes = []
    for net in (loaded[0], MultiControlNetUnionModel(loaded)):
        pipe = diffusers.StableDiffusionXLControlNetUnionPipeline.from_pretrained(
            sdxl_folder, controlnet=net, dtype=torch.float32, low_cpu_mem_usage=False
        )
        pipe.set_progress_bar_config(disable=True)
        pipes.append(pipe)
    return pipes


def generate(pipe, images, modes, prompts=PROMPTS[:1], steps=2, **options):
    generator = [torch.Generator().manual_seed(5 + i) for i in range(len(prompts))]
    settings = {"num_inference_steps": steps, **SETTINGS, **options}
    return pipe(prompts, control_image=[*images], control_mode=[*modes], generator=generator, **settings).images


def ours_on(pipe, images, modes, prompts=PROMPTS[:1], **options):
    return pipe(prompts, control_image=images, control_mode=modes, seed=5, **{"steps": 2, **SETTINGS, **options}).images


def test_one_image_and_several(sdxl_folder, nets, reference, figures):
    one = generate(reference[0], SCENES[:1], [3], controlnet_conditioning_scale=0.7)
    two = generate(reference[0], SCENES[:2], [1, 4], controlnet_conditioning_scale=[0.7, 1.3])
    for backend in ("eager", "onnxruntime", "openvino"):
        pipe = calotype.load(sdxl_folder, controlnet=nets[0], backend=backend)
        got = ours_on(pipe, SCENES[0], 3, controlnet_conditioning_scale=0.7)
        cell = "Stable Diffusion XL with a ControlNet-Union", "text to image", "euler"
        figures.hold(cell, backend, got, one)
        got = ours_on(pipe, SCENES[:2], [1, 4], controlnet_conditioning_scale=[0.7, 1.3])
        figures.hold(cell, backend, got, two)
        assert psnr(got, ours_on(pipe, SCENES[:2], [4, 1], controlnet_conditioning_scale=[0.7, 1.3])) < 40


@pytest.mark.parametrize("count", [1, 2])
def test_accelerated_pipelines_use_the_traces_of_load(reference, count):
    calls = [
        (SCENES[:1] * count, [3] * count, {"controlnet_conditioning_scale": [0.7] * count}),
        (SCENES[:2], [1, 4], {"controlnet_conditioning_scale": [0.7, 1.3]}),
        (SCENES[:2], [1, 4], {"controlnet_conditioning_scale": [0.7, 1.3], "guess_mode": True, "guidance_scale": 1.0}),
    ]
    pipe = reference[count - 1]
    expected = [generate(pipe, *images, **options) for *images, options in calls]
    with calotype.accelerated(pipe, backend="onnxruntime", verify=False):
        for (*images, options), image in zip(calls, expected, strict=True):
            assert psnr(generate(pipe, *images, **options), image) >= 60
        report = calotype.accelerate_report(pipe)
        assert not any(module.reasons for module in report.modules)
        assert report["controlnet" if count == 1 else "controlnet.1"].compiled_calls


def test_a_batch_sees_itself_as_in_diffusers(sdxl_folder, nets, reference):
    """The attention of the network runs over the batch; diffusers takes one image for all of its images."""
    generator = [torch.Generator().manual_seed(5 + i) for i in range(2)]
    options = {"num_images_per_prompt": 2, "num_inference_steps": 2, **SETTINGS}
    expected = reference[0](PROMPTS[0], control_image=[SCENES[0]], control_mode=[2], generator=generator, **options)
    pipe = calotype.load(sdxl_folder, controlnet=nets[0], backend="eager")
    got = ours_on(pipe, SCENES[0], 2, num_images=2)
    assert psnr(got, expected.images) >= 60


def test_attention_between_the_rows_is_that_of_diffusers():
    torch.manual_seed(0)
    attention, tokens = torch.nn.MultiheadAttention(32, 4), torch.randn(5, 3, 32)
    with torch.no_grad():
        expected = attention(tokens, tokens, tokens, need_weights=False)[0]
        torch.testing.assert_close(attention_over_rows(attention, tokens), expected)


def test_between_fractions_of_the_steps(sdxl_folder, nets, reference):
    """In the last of the four steps no image counts, and the network runs at scale 0."""
    options = {"control_guidance_start": [0.0, 0.3], "control_guidance_end": [0.5, 0.75]}
    expected = generate(reference[0], SCENES[:2], [0, 5], steps=4, **options)
    pipe = calotype.load(sdxl_folder, controlnet=nets[0], backend="eager")
    assert psnr(ours_on(pipe, SCENES[:2], [0, 5], steps=4, **options), expected) >= 60


def test_two_networks(sdxl_folder, nets, reference):
    options = {"controlnet_conditioning_scale": [0.4, 0.9]}
    expected = generate(reference[1], SCENES[:2], [2, 3], **options)
    pipe = calotype.load(sdxl_folder, controlnet=nets, backend="eager")
    assert psnr(ours_on(pipe, SCENES[:2], [2, 3], **options), expected) >= 60


def test_rows_of_two_calls_never_run_together(sdxl_folder, nets):
    pipe = calotype.load(sdxl_folder, controlnet=nets[0], backend="fake")
    keys = []
    component = pipe._components("controlnet")
    for _ in range(2):
        session = DenoisingSession(component, {"control_type": np.zeros((1, 6))}, np.zeros(1), guided=False)
        keys.append(batch_key(NetworkCall(session, 0, np.zeros((1, 4, 8, 8), np.float32), {})))
    assert keys[0] != keys[1]


@pytest.fixture(scope="module")
def built(sdxl_folder, nets, tmp_path_factory):
    output = tmp_path_factory.mktemp("built") / "plan"
    spec = BuildSpec(model=str(sdxl_folder), output=output, controlnet=(str(nets[0]),), proof_steps=2)
    return build(spec).plan, output


def test_a_plan(sdxl_folder, nets, built):
    plan, folder = built
    check = plan.components["controlnet"].artifacts[0].check
    assert check["max_relative_error"] <= 1e-4
    direct = calotype.load(sdxl_folder, controlnet=nets[0], backend="onnxruntime")
    options = {"output_type": "latent"}
    got = ours_on(calotype.load(folder), SCENES[:2], [1, 4], **options)
    np.testing.assert_array_equal(got, ours_on(direct, SCENES[:2], [1, 4], **options))
    data = json.loads((folder / MANIFEST).read_text())
    inputs = data["components"]["controlnet"]["inputs"]
    next(b for b in inputs if b["name"] == "control_task")["dims"] = ["batch", "image_groups", 7]
    data.pop("digest")
    (folder / "changed").mkdir()
    (folder / "changed" / MANIFEST).write_text(json.dumps({**data, "digest": digest_of(data)}))
    with pytest.raises(SourceError, match=r"plan\.json"):
        read_plan(folder / "changed", sealed=False)


def test_tensorrt_rtx_builds_it_for_several_images(sdxl_folder, nets):
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    plan = prepare(sdxl_folder, controlnets=nets[:1])
    side = Range(min=32, opt=32, max=64)
    profile = replace(plan.profile, batch=Range(min=1, opt=1, max=2), height=side, width=side)
    component = plan.components["controlnet"]
    shapes = shapes_of("controlnet", component.inputs, profile)
    assert [shape[1] for shape in shapes["controlnet_cond"]] == [1, 1, 6]
    graph = component.artifact("onnx").path
    assert build_engine(trt, graph, [shapes], EngineOptions(targets=(89,))).engine


def test_a_published_config_names_another_class_and_a_file_none(sdxl_folder, tmp_path):
    usual = save_union(sdxl_folder / "unet", tmp_path / "usual", 7, heads=8)  # as the published ones have
    net = shutil.copytree(usual, tmp_path / "net")
    config = json.loads((net / "config.json").read_text())
    config.pop("num_control_type")
    (net / "config.json").write_text(json.dumps({**config, "_class_name": "ControlNetModel"}))
    shutil.copy(usual / WEIGHTS, tmp_path / "union.safetensors")
    usual, renamed, file = (
        calotype.load(sdxl_folder, controlnet=each, backend="eager")
        for each in (usual, net, tmp_path / "union.safetensors")
    )
    expected = ours_on(usual, SCENES[0], 3, steps=1)
    for pipe in (renamed, file):
        np.testing.assert_array_equal(ours_on(pipe, SCENES[0], 3, steps=1), expected)


@pytest.fixture(scope="module")
def fakes(sdxl_folder, nets, tmp_path_factory):
    """A pipeline with a usual ControlNet, with a union, and with both."""
    usual = save_controlnet(sdxl_folder / "unet", tmp_path_factory.mktemp("usual") / "net", 3)
    kinds = {"usual": usual, "union": nets[0], "both": [usual, nets[0]]}
    return {name: calotype.load(sdxl_folder, controlnet=net, backend="fake") for name, net in kinds.items()}


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("usual", {"control_image": SCENES[0], "control_mode": 0}, "control_mode"),
        ("union", {"control_image": SCENES[0]}, "control_mode"),
        ("union", {"control_image": SCENES[0], "control_mode": 6}, "control_mode"),
        ("union", {"control_image": SCENES[0], "control_mode": -1}, "control_mode"),
        ("union", {"control_image": SCENES[0], "control_mode": 1.5}, "control_mode"),
        ("union", {"control_image": SCENES[0], "control_mode": "canny"}, "control_mode"),
        ("union", {"control_image": SCENES[:2], "control_mode": [1, 1]}, "control_mode"),
        ("union", {"control_image": SCENES[0], "control_mode": []}, "control_mode"),
        ("union", {"control_image": SCENES[0], "control_mode": [1, 2]}, "control_image"),
        (
            "union",
            {"control_image": SCENES[:2], "control_mode": [1, 2], "controlnet_conditioning_scale": [1.0]},
            "controlnet_conditioning_scale",
        ),
        ("both", {"control_image": SCENES[:2], "control_mode": 1}, "control_mode"),
        ("both", {"control_image": SCENES[:2], "control_mode": [1, None]}, "control_mode"),
    ],
)
def test_odd_input_is_refused(fakes, name, arguments, named):
    with pytest.raises(InputError) as raised:
        fakes[name].stream("x", steps=1, **arguments)
    assert raised.value.data["argument"] == named


def test_modes_and_their_metadata(fakes, tmp_path):
    for name, images, modes, stored in (
        ("union", SCENES[0], 3, [3]),
        ("union", SCENES[:2], [3, 0], [3, 0]),
        ("union", [SCENES[:2], SCENES[2]], [3, 0], [3, 0]),
        ("both", SCENES, [None, [0, 1]], [None, [0, 1]]),
        ("both", SCENES[:2], [None, 5], [None, [5]]),
    ):
        result = fakes[name](["x", "y"], control_image=images, control_mode=modes, steps=1, seed=1, hires=1.5)
        result.images[0].save(tmp_path / "a.png")
        like = read_like(tmp_path / "a.png", ("control_image",), loras_named=False, model_named=True)
        assert like.arguments["control_mode"] == stored
