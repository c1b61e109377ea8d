"""T2I-Adapters with random weights on tiny U-Nets of Stable Diffusion 1 and XL: the same images as diffusers."""

import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import calotype
from calotype.backends.torch.modules import UNet
from calotype.cli import app
from calotype.drop_in.reading.calls import Unsupported
from calotype.drop_in.reading.denoisers import read_unet
from calotype.errors import InputError, SourceError
from calotype.export import BuildSpec, build, prepare
from calotype.export.quality.metrics import psnr
from calotype.export.tensorrt.builder import build_engine, shapes_of
from calotype.export.tensorrt.options import EngineOptions
from calotype.files.digest import digest_of
from calotype.plan.plan import MANIFEST, read_plan
from calotype.plan.profile import Range
from tests.helpers.conditioning.t2i_adapters import save_adapter, save_sd, save_xl
from tests.helpers.tiny_models import save_controlnet, save_lora

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning"),  # in diffusers
]
PROMPTS = ["a large red circle on a blue background", "a green star"]
SIZE = {"width": 96, "height": 64}
SCENES = [
    Image.fromarray(np.random.default_rng(s).integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize((96, 64), 0)
    for s in range(3)
]
SETTINGS = {"guidance_scale": 5.0, "output_type": "np"}
SD = "Stable Diffusion"
XL_KIND = "full_adapter_xl"


@pytest.fixture(scope="module")
def model(demo_folder, sdxl_folder, tmp_path_factory):
    """Functions that return our pipeline and diffusers' with adapters; each is loaded once."""
    work = tmp_path_factory.mktemp("t2i")
    folders = {"SD": save_sd(work / "sd", demo_folder), "XL": save_xl(work / "xl", sdxl_folder)}

    @cache
    def folder(kind, channels=3):
        return save_adapter(work / f"{kind}-{channels}", kind, channels, seed=channels)

    @cache
    def ours(name, adapters, backend, **more):
        return calotype.load(folders[name], t2i_adapter=[folder(*each) for each in adapters], backend=backend, **more)

    @cache
    def reference(name, adapters):
        kind = diffusers.StableDiffusionXLAdapterPipeline if name == "XL" else diffusers.StableDiffusionAdapterPipeline
        nets = [diffusers.T2IAdapter.from_pretrained(folder(*each)) for each in adapters]
        more = {} if name == "XL" else {"safety_checker": None}
        more |= {"adapter": nets[0] if len(nets) == 1 else diffusers.MultiAdapter(nets)}
        pipe = kind.from_pretrained(folders[name], dtype=torch.float32, low_cpu_mem_usage=False, **more)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return SimpleNamespace(ours=ours, reference=reference, folders=folders, work=work, folder=folder)


def generate(pipe, prompts, image, **options):
    generator = [torch.Generator().manual_seed(5 + i) for i in range(len(prompts))]
    options = {"num_inference_steps": 2, **SETTINGS, **options}
    images = pipe(prompts, image=image, generator=generator, **options).images
    assert images.std() > 0.01
    return images


def ours_on(pipe, prompts=PROMPTS[:1], **options):
    return pipe(prompts, seed=5, **{"steps": 2, **SETTINGS, **options}).images


@pytest.mark.parametrize(("name", "kind"), [("SD", "full_adapter"), ("SD", "light_adapter"), ("XL", XL_KIND)])
def test_one_adapter_for_two_prompts(model, figures, request, name, kind):
    expected = generate(model.reference(name, ((kind,),)), PROMPTS, SCENES[:2], adapter_conditioning_scale=0.7)
    every = request.config.getoption("--parity") or kind == "light_adapter"
    for backend in ("eager", "onnxruntime", "openvino") if every else ("eager",):
        pipe = model.ours(name, ((kind,),), backend)
        got = ours_on(pipe, PROMPTS, adapter_image=SCENES[:2], adapter_conditioning_scale=0.7)
        title, scheduler = (f"{SD} XL", "euler") if name == "XL" else (f"{SD} 1", "dpm++2m-karras")
        figures.hold((f"{title} with a T2I-Adapter, {kind}", "text to image", scheduler), backend, got, expected)
        assert psnr(ours_on(pipe, PROMPTS, **SIZE), expected) < 30  # the adapter changes the result


def test_accelerated_pipelines_use_the_traces_of_load(model):
    kind = "light_adapter"
    reference, options = model.reference("SD", ((kind,),)), {"adapter_conditioning_scale": 0.7}
    expected = generate(reference, PROMPTS[:1], SCENES[0], **options)
    with calotype.accelerated(reference, backend="onnxruntime", verify=False):
        assert psnr(generate(reference, PROMPTS[:1], SCENES[0], **options), expected) >= 60
        report = calotype.accelerate_report(reference)
        assert report["adapter"].compiled_calls
        assert not any(module.reasons for module in report.modules)
        with torch.no_grad():
            reference.adapter(torch.rand(1, 3, 40, 40))
        assert len(calotype.accelerate_report(reference)["adapter"].reasons) == 1


def test_several_adapters_each_with_its_weight(model):
    kinds = (("full_adapter",), ("light_adapter", 1))
    gray, scales = SCENES[1].convert("L"), [0.7, 0.4]
    options = {"adapter_conditioning_scale": scales}
    expected = generate(model.reference("SD", kinds), PROMPTS[:1], [SCENES[0], gray], **options)
    pipe = model.ours("SD", kinds, "eager")
    for second in (gray, SCENES[1]):  # an adapter of one channel takes an image in gray
        assert psnr(ours_on(pipe, adapter_image=[SCENES[0], second], **options), expected) >= 60
    with pytest.raises(SourceError, match="same model family"):
        model.ours("SD", ((XL_KIND,),), "fake")


@pytest.mark.parametrize("factor", [0.0, 0.4, 0.6])
def test_until_a_fraction_of_the_steps(model, factor):
    options = {"adapter_conditioning_factor": factor}
    expected = generate(model.reference("XL", ((XL_KIND,),)), PROMPTS[:1], SCENES[0], num_inference_steps=4, **options)
    pipe = model.ours("XL", ((XL_KIND,),), "eager")
    assert psnr(ours_on(pipe, adapter_image=SCENES[0], steps=4, **options), expected) >= 60
    if factor == 0:
        assert psnr(ours_on(pipe, **SIZE, steps=4), expected) >= 60


def steered(pipe, adapter, image):
    """Let another pipeline of diffusers pass the features of an adapter to its U-Net."""
    pixels = torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[None]
    states, forward = adapter(pixels), pipe.unet.forward

    def with_features(sample, *args, **more):
        features = [state.expand(len(sample), -1, -1, -1) for state in states]
        return forward(sample, *args, down_intrablock_additional_residuals=features, **more)

    pipe.unet.forward = with_features
    return pipe


def test_with_a_controlnet_a_lora_and_inpainting(model):
    net = save_controlnet(model.folders["SD"] / "unet", model.work / "net", 3)
    lora = save_lora(model.folders["SD"], model.work / "lora.safetensors")
    control = diffusers.ControlNetModel.from_pretrained(net, low_cpu_mem_usage=False)
    plain = diffusers.StableDiffusionControlNetInpaintPipeline.from_pretrained(
        model.folders["SD"], controlnet=control, safety_checker=None, dtype=torch.float32, low_cpu_mem_usage=False
    )
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(lora)
    reference = steered(plain, diffusers.T2IAdapter.from_pretrained(model.folder("full_adapter")), SCENES[0])
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (0, 0, 40, 64))
    options = {"mask_image": mask, "strength": 0.9, "controlnet_conditioning_scale": 0.6}
    with torch.no_grad():
        expected = generate(reference, PROMPTS[:1], SCENES[1], control_image=SCENES[2], **SIZE, **options)
    pipe = model.ours("SD", (("full_adapter",),), "eager", controlnet=net)
    pipe.set_lora(lora)
    options |= {"image": SCENES[1], "control_image": SCENES[2]}
    assert psnr(ours_on(pipe, adapter_image=SCENES[0], **options), expected) >= 60
    assert psnr(ours_on(pipe, **options), expected) < 40


def test_a_batch_is_its_images_alone(model):
    pipe = model.ours("SD", (("light_adapter",),), "openvino")
    options = {"steps": 2, "adapter_image": SCENES[0], **SETTINGS}
    together = pipe(PROMPTS, seed=[5, 6, 9, 10], num_images=2, **options).images
    alone = pipe(PROMPTS[1], seed=9, **options).images
    assert psnr(together[2:3], alone) >= 60


@pytest.fixture(scope="module")
def built(model, tmp_path_factory):
    output = tmp_path_factory.mktemp("built") / "plan"
    adapter = str(model.folder("light_adapter"))
    spec = BuildSpec(model=str(model.folders["SD"]), output=output, t2i_adapter=(adapter,), proof_steps=2)
    return build(spec).plan, output


def test_a_plan_generates_what_the_model_generates(model, built):
    plan, folder = built
    for name in ("t2i_adapter", "unet"):
        check = plan.components[name].artifacts[0].check
        assert check["max_relative_error"] <= 1e-4
        assert check["real_inputs"]["calls"] >= 1
    direct = model.ours("SD", (("light_adapter",),), "onnxruntime")
    planned = calotype.load(folder)
    options = {"adapter_image": SCENES[0], "output_type": "latent"}
    np.testing.assert_array_equal(ours_on(planned, **options), ours_on(direct, **options))
    with pytest.raises(InputError, match="contains its own t2i_adapter"):
        calotype.load(folder, t2i_adapter=model.folder("light_adapter"))


@pytest.mark.parametrize(
    "change",
    [
        lambda components: components.pop("t2i_adapter"),
        lambda components: components["unet"]["inputs"][-1].update(dims=["batch", 32, "latent_height", "latent_width"]),
        lambda components: components["t2i_adapter"]["outputs"][0].update(dims=["batch", 7, "height", "width"]),
        lambda components: components["t2i_adapter"]["inputs"][0].update(dims=["batch", 2, "height", "width"]),
    ],
)
def test_a_changed_manifest_is_refused(built, tmp_path, change):
    data = json.loads((built[1] / MANIFEST).read_text())
    data.pop("digest")
    change(data["components"])
    (tmp_path / MANIFEST).write_text(json.dumps({**data, "digest": digest_of(data)}))
    with pytest.raises(SourceError, match=r"plan\.json"):
        read_plan(tmp_path, sealed=False)


def test_tensorrt_rtx_builds_it(model):
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    plan = prepare(model.folders["SD"], t2i_adapters=[model.folder("light_adapter")])
    side = Range(min=32, opt=32, max=64)
    profile = replace(plan.profile, batch=Range(min=1, opt=1, max=2), height=side, width=side)
    for name in ("unet", "t2i_adapter"):
        component = plan.components[name]
        graph = component.artifact("onnx").path
        shapes = shapes_of(name, component.inputs, profile)
        assert build_engine(trt, graph, [shapes], EngineOptions(targets=(89,))).engine


def test_the_command_line(built, tmp_path):
    SCENES[0].save(tmp_path / "scene.png")
    words = ["generate", "a ring", "--model", str(built[1]), "--steps", "1", "--seed", "1"]
    words += ["--adapter-image", str(tmp_path / "scene.png"), "--adapter-conditioning-scale", "0.5"]
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out.png")])
    assert done.exit_code == 0, done.output
    again = ["generate", "--like", str(tmp_path / "out.png"), "--model", str(built[1]), "-o", str(tmp_path / "b.png")]
    refused = CliRunner().invoke(app, again)
    assert refused.exit_code != 0
    assert CliRunner().invoke(app, [*again, *words[-4:-2]]).exit_code == 0
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("out.png", "b.png"))
    assert first.shape == (64, 96, 3)  # the size of the image
    np.testing.assert_array_equal(first, second)


def test_an_adapter_without_an_image_is_an_error(model):
    words = ["generate", "x", "--model", str(model.folders["SD"]), "--backend", "fake"]
    refused = CliRunner().invoke(app, [*words, "--t2i-adapter", str(model.folder("light_adapter"))])
    assert isinstance(refused.exception, InputError)
    assert refused.exception.argument == "adapter_image"


def test_an_accelerated_unet_takes_the_features(model):
    unet = model.reference("XL", ((XL_KIND,),)).unet
    draw = torch.Generator().manual_seed(0)
    sizes = [(32, 4, 6), (64, 4, 6), (64, 2, 3), (64, 2, 3)]
    states = [torch.randn(2, *size, generator=draw) for size in sizes]
    text, pooled = torch.randn(2, 77, 176, generator=draw), torch.randn(2, 24, generator=draw)
    arguments = {"timestep": torch.tensor(7), "encoder_hidden_states": text, "return_dict": False}
    arguments |= {"sample": torch.randn(2, 4, 8, 12, generator=draw)}
    arguments |= {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.ones(2, 6)}}
    call = read_unet(unet, arguments | {"down_intrablock_additional_residuals": states})
    component = calotype.load(model.folders["XL"], t2i_adapter=model.folder(XL_KIND), backend="fake").plan.components
    assert set(call.inputs) == set(component["unet"].inputs)
    with torch.no_grad():
        expected = unet(**arguments, down_intrablock_additional_residuals=[*states])[0]
        (got,) = UNet(unet)(**{name: torch.from_numpy(array) for name, array in call.arrays.items()})
    torch.testing.assert_close(got, expected)
    for odd in ([], states[:1] * 2, [*states, states[0]]):
        with pytest.raises(Unsupported):
            read_unet(unet, arguments | {"down_intrablock_additional_residuals": odd})
