"""ControlNets with random weights on the demonstration model and a tiny SDXL: the same images as diffusers."""

import json
import shutil

import diffusers
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import calotype
from calotype.errors import InputError, SourceError
from calotype.export import BuildSpec, build, prepare
from calotype.export.quality.metrics import psnr
from calotype.export.sources.source import read_source
from calotype.plan.family import family_of
from calotype.report.like import read_like
from tests.helpers.tiny_models import save_controlnet

PROMPTS = ["a large red circle on a blue background", "a green star on a white background"]
SETTINGS = {"guidance_scale": 5.0, "output_type": "np"}
NEGATIVE = "a blue ring"
EDGES = [Image.fromarray(np.random.default_rng(s).integers(0, 256, (64, 96, 3), dtype=np.uint8)) for s in range(2)]


@pytest.fixture(scope="module")
def nets(demo_folder, tmp_path_factory):
    return [
        save_controlnet(demo_folder / "unet", tmp_path_factory.mktemp("nets") / str(seed), seed) for seed in range(2)
    ]


def reference_pipeline(kind, folder, nets):
    loaded = [diffusers.ControlNetModel.from_pretrained(n, low_cpu_mem_usage=False) for n in nets]
    settings = {} if "XL" in kind.__name__ else {"safety_checker": None}
    control = loaded if len(loaded) > 1 else loaded[0]
    pipe = kind.from_pretrained(folder, controlnet=control, dtype=torch.float32, low_cpu_mem_usage=False, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(*numbers):
    return {"generator": [torch.Generator().manual_seed(n) for n in numbers]}


def test_one_controlnet(demo_folder, nets):
    reference = reference_pipeline(diffusers.StableDiffusionControlNetPipeline, demo_folder, nets[:1])
    settings = SETTINGS | {"controlnet_conditioning_scale": 0.7}
    options = {"negative_prompt": [NEGATIVE] * 2, "image": EDGES, "num_inference_steps": 4}
    expected = reference(PROMPTS, **options, **seeds(3, 4), **settings).images
    assert expected.shape == (2, 64, 96, 3)  # the control image's size
    arguments = {"negative_prompt": NEGATIVE, "steps": 4, "seed": 3}
    for backend, min_db in (("eager", 60), ("onnxruntime", 50)):
        pipe = calotype.load(demo_folder, controlnet=nets[0], backend=backend)
        assert psnr(pipe(PROMPTS, control_image=EDGES, **arguments, **settings).images, expected) >= min_db, backend
        uncontrolled = pipe(PROMPTS, width=96, height=64, **arguments, **SETTINGS)
        assert psnr(uncontrolled.images, expected) < 25  # the ControlNet changes the image


def test_two_controlnets_each_with_its_scale(demo_folder, nets):
    reference = reference_pipeline(diffusers.StableDiffusionControlNetPipeline, demo_folder, nets)
    settings = SETTINGS | {"controlnet_conditioning_scale": [0.3, 1.0], "width": 80, "height": 112}
    expected = reference(PROMPTS[0], image=EDGES, num_inference_steps=3, **seeds(3), **settings).images
    pipe = calotype.load(demo_folder, controlnet=nets, backend="eager")
    assert psnr(pipe(PROMPTS[0], control_image=EDGES, steps=3, seed=3, **settings).images, expected) >= 60
    one = pipe(PROMPTS[0], control_image=EDGES, steps=3, seed=3, **settings | {"controlnet_conditioning_scale": 1.0})
    assert psnr(one.images, expected) < 40


@pytest.mark.parametrize("span", [(0.0, 0.5), (0.3, 1.0), (0.4, 0.6), (0.45, 0.55)])
def test_between_fractions_of_the_steps(demo_folder, nets, span):
    reference = reference_pipeline(diffusers.StableDiffusionControlNetPipeline, demo_folder, nets)
    settings = SETTINGS | {"control_guidance_start": [span[0], 0.0], "control_guidance_end": [span[1], 0.7]}
    expected = reference(PROMPTS[0], image=EDGES, num_inference_steps=5, **seeds(3), **settings).images
    pipe = calotype.load(demo_folder, controlnet=nets, backend="eager")
    assert psnr(pipe(PROMPTS[0], control_image=EDGES, steps=5, seed=3, **settings).images, expected) >= 60


def test_a_controlnet_of_stable_diffusion_xl(sdxl_folder, tmp_path):
    net = save_controlnet(sdxl_folder / "unet", tmp_path / "net", 5)
    reference = reference_pipeline(diffusers.StableDiffusionXLControlNetPipeline, sdxl_folder, [net])
    expected = reference(PROMPTS[0], image=EDGES[0], num_inference_steps=3, **seeds(3), **SETTINGS).images
    pipe = calotype.load(sdxl_folder, controlnet=net, backend="eager")
    assert psnr(pipe(PROMPTS[0], control_image=EDGES[0], steps=3, seed=3, **SETTINGS).images, expected) >= 60


def test_without_a_control_image_the_controlnet_has_no_effect(demo_folder, nets, pipes):
    pipe = calotype.load(demo_folder, controlnet=nets[:1], backend="eager")
    settings = {"steps": 3, "seed": 3, "output_type": "latent", "width": 64, "height": 64}
    expected = pipes["eager"](PROMPTS, **settings).images
    np.testing.assert_array_equal(pipe(PROMPTS, **settings).images, expected)
    unchanged = pipe(PROMPTS, control_image=EDGES[0], controlnet_conditioning_scale=0, **settings)
    np.testing.assert_array_equal(unchanged.images, expected)
    assert "controlnet" not in {c.name for c in unchanged.report.components}  # not loaded when unused


def test_the_export_has_diffusers_names_and_the_unet_takes_its_outputs(demo_folder, nets, tmp_path):
    plan = build(BuildSpec(model="demo", output=tmp_path / "plan", controlnet=(str(nets[0]),))).plan
    for name in ("controlnet", "unet"):
        component = plan.components[name]
        assert component.artifacts[0].check["max_relative_error"] <= 1e-4
        session = onnxruntime.InferenceSession(tmp_path / "plan" / name / "model.onnx")
        assert [i.name for i in session.get_inputs()] == [b.name for b in component.inputs]
        assert [o.name for o in session.get_outputs()] == [b.name for b in component.outputs]
    outputs = [b.dims for b in plan.components["controlnet"].outputs]
    assert outputs == [b.dims for b in plan.components["unet"].inputs][-len(outputs) :]
    options = {"control_image": EDGES[0], "steps": 2, "seed": 1, "output_type": "latent"}
    planned = calotype.load(tmp_path / "plan")
    direct = calotype.load(demo_folder, controlnet=nets[0], backend="onnxruntime")
    np.testing.assert_array_equal(planned(PROMPTS[0], **options).images, direct(PROMPTS[0], **options).images)
    with pytest.raises(InputError, match="contains its own controlnet"):
        calotype.load(tmp_path / "plan", controlnet=nets[0])


def test_controlnet_weights_are_part_of_the_fingerprint(demo_folder, nets):
    plans = [prepare(demo_folder, controlnets=n, forms=()) for n in ((), nets[:1], nets[1:], nets)]
    assert len({p.fingerprint for p in plans}) == 4
    assert [n for n in plans[3].components if n.startswith("controlnet")] == ["controlnet", "controlnet_1"]


@pytest.fixture(scope="module")
def fakes(demo_folder, nets):
    return [calotype.load(demo_folder, controlnet=nets[:count], backend="fake") for count in range(3)]


@pytest.mark.parametrize(
    ("count", "arguments", "keyword"),
    [
        (0, {"control_image": EDGES[0]}, "needs a ControlNet"),
        (1, {"control_image": "edges.png"}, "control_image"),
        (1, {"control_image": EDGES}, "1 prompts; got 2"),
        (2, {"control_image": EDGES[0]}, "each of 2 ControlNets"),
        (1, {"control_image": EDGES[0], "width": 90}, "multiple of 16"),
        (1, {"control_image": EDGES[0], "controlnet_conditioning_scale": float("nan")}, "from 0 to 10"),
        (2, {"control_image": EDGES, "controlnet_conditioning_scale": [1.0]}, "one for each of 2"),
        (1, {"control_image": EDGES[0], "control_guidance_start": 1.0}, "before control_guidance_end"),
        (2, {"control_image": EDGES, "control_guidance_end": [1.0]}, "one for each of 2"),
        (1, {"control_image": EDGES[0], "control_guidance_end": 1.5}, "control_guidance_end"),
    ],
)
def test_wrong_arguments_are_refused(fakes, count, arguments, keyword):
    with pytest.raises(InputError, match=keyword):
        fakes[count].stream("x", **arguments)


def test_arguments_that_fit(fakes):
    arrays = np.stack([np.asarray(e) for e in EDGES])
    for count, control in (
        (1, EDGES[0]),
        (1, arrays[0]),
        (1, list(EDGES)),
        (1, arrays),
        (2, EDGES),
        (2, [EDGES, arrays]),
    ):
        images = fakes[count](["x", "y"], num_images=2, control_image=control, steps=1, seed=1, output_type="np").images
        assert images.shape == (4, 64, 96, 3)


def test_metadata_records_the_controlnet(fakes, tmp_path):

    fakes[1]("x", control_image=EDGES[0], steps=1, seed=1).images[0].save(tmp_path / "a.png")
    with pytest.raises(InputError, match="--control-image"):
        read_like(tmp_path / "a.png", (), loras_named=False, model_named=True)
    like = read_like(tmp_path / "a.png", ("control_image",), loras_named=False, model_named=True)
    assert like.arguments["controlnet_conditioning_scale"] == [1.0]
    assert (like.arguments["control_guidance_start"], like.arguments["control_guidance_end"]) == ([0.0], [1.0])


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "keyword"),
    [
        ({"cross_attention_dim": 768}, "does not match"),
        ({"block_out_channels": [64, 64]}, "does not match"),
        ({"layers_per_block": 2}, "does not match"),
        ({"global_pool_conditions": True}, "global_pool_conditions"),
        ({"conditioning_channels": 1}, "RGB images"),
        ({"conditioning_embedding_out_channels": [16, 32]}, "RGB images"),
        ({"block_out_channels": None}, r"controlnet/config\.json: block_out_channels"),
    ],
)
def test_controlnets_that_do_not_fit_are_refused(demo_folder, nets, tmp_path, changes, keyword):
    configs = read_source(demo_folder, [nets[0]]).configs
    with pytest.raises(SourceError, match=keyword):
        family_of({**configs, "controlnet": {**configs["controlnet"], **changes}})
    net = shutil.copytree(nets[0], tmp_path / "net")
    edit(net / "config.json", **changes)
    with pytest.raises(SourceError):
        calotype.load(demo_folder, controlnet=net, backend="fake")


def test_a_folder_of_another_class_is_refused(demo_folder, nets, tmp_path):
    net = shutil.copytree(nets[0], tmp_path / "net")
    edit(net / "config.json", _class_name="T2IAdapter")
    with pytest.raises(SourceError, match="holds a T2IAdapter"):
        calotype.load(demo_folder, controlnet=net, backend="fake")


def test_a_controlnet_of_another_family_is_refused(sdxl_folder, demo_folder, nets, tmp_path):
    xl_net = save_controlnet(sdxl_folder / "unet", tmp_path / "xl", 0)
    for folder, net in ((sdxl_folder, nets[0]), (demo_folder, xl_net)):
        with pytest.raises(SourceError, match="controlnet"):
            calotype.load(folder, controlnet=net, backend="fake")


def test_missing_files_are_refused(demo_folder, nets, tmp_path):
    with pytest.raises(SourceError, match="there is no folder"):
        calotype.load(demo_folder, controlnet=tmp_path / "nowhere")
    net = shutil.copytree(nets[0], tmp_path / "net")
    weights = net / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SourceError, match="again"):
        calotype.load(demo_folder, controlnet=net)
    weights.unlink()
    with pytest.raises(SourceError, match="is missing"):
        calotype.load(demo_folder, controlnet=net)
