"""Style Aligned on tiny models with random weights: the same images as a reference after the paper."""

import json
from functools import cache
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import calotype
from calotype.cli import app
from calotype.errors import InputError, SourceError
from calotype.export import prepare
from calotype.export.quality.metrics import psnr
from calotype.files.digest import digest_of
from calotype.plan.image_prompts.style import STYLE
from calotype.plan.plan import MANIFEST, read_plan, write_plan
from calotype.serve import Engine, EngineSettings, JobRequest
from tests.helpers.conditioning.style_aligned import align, inversion
from tests.helpers.tiny_models import save_controlnet, save_lora, save_tiny_model

PROMPTS = ["a large red circle on a blue background", "a green star", "a yellow ring above a white cross"]
SCENE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((96, 64), 0)
SETTINGS = {"width": 96, "height": 64, "guidance_scale": 5.0, "output_type": "np"}
STYLE_OF = {"style_aligned": True, "style_image": SCENE, "style_prompt": "a small blue star"}
BACKENDS = ("eager", "onnxruntime", "openvino")
SD = "Stable Diffusion"
KINDS = {"SD": "StableDiffusion", "XL": "StableDiffusionXL"}


def strengthen(unet_folder, times=4.0):
    """Make the self-attention of a U-Net with random weights as strong as that of a trained one."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(unet_folder, low_cpu_mem_usage=False)
    for name, weight in unet.named_parameters():
        if ".attn1." in name and weight.ndim == 2:
            weight.data *= times if "to_out" in name else 2.0
    unet.save_pretrained(unet_folder)


@pytest.fixture(scope="module")
def model(demo_folder, sdxl_folder, tmp_path_factory):
    """Functions that return our pipeline, loaded once, and diffusers' with a shared self-attention."""
    work = tmp_path_factory.mktemp("style")
    folders = {"SD": save_tiny_model(work / "tiny", demo_folder), "XL": sdxl_folder}
    strengthen(folders["SD"] / "unet")

    @cache
    def ours(name, backend, **more):
        return calotype.load(folders[name], style_aligned=True, backend=backend, **more)

    def reference(name, kind="Pipeline", *, halves=2, **more):
        more |= {} if name == "XL" else {"safety_checker": None}
        cls = getattr(diffusers, KINDS[name] + kind)
        pipe = cls.from_pretrained(folders[name], dtype=torch.float32, low_cpu_mem_usage=False, **more)
        pipe.set_progress_bar_config(disable=True)
        if halves:
            align(pipe.unet, halves)
        return pipe

    return SimpleNamespace(ours=ours, reference=reference, folders=folders, work=work)


def generate(pipe, prompts=PROMPTS, **options):
    generator = [torch.Generator().manual_seed(5 + i) for i in range(len(prompts))]
    images = pipe(prompts, generator=generator, num_inference_steps=2, **SETTINGS | options).images
    assert images.std() > 0.01
    return images


def ours_on(pipe, prompts=PROMPTS, **options):
    return pipe(prompts, seed=5, **{"steps": 2, **SETTINGS, **options}).images


def title(name):
    return (f"{SD} XL", "euler") if name == "XL" else (f"{SD} 1", "dpm++2m-karras")


@pytest.mark.parametrize("name", ["SD", "XL"])
def test_all_take_the_style_of_the_first(model, figures, request, name):
    expected = generate(model.reference(name))
    plain = generate(model.reference(name, halves=0))
    every = request.config.getoption("--parity") or name == "SD"
    for backend in BACKENDS if every else BACKENDS[:1]:
        pipe = model.ours(name, backend)
        got = ours_on(pipe, style_aligned=True)
        cell, scheduler = title(name)
        figures.hold((f"{cell}, Style Aligned", "text to image", scheduler), backend, got, expected)
        assert psnr(got[:1], plain[:1]) >= 50  # the reference is as ever
    assert psnr(ours_on(pipe), plain) >= 50  # and so are other calls of the same U-Net
    assert psnr(got[1:], plain[1:]) < 45


def given(pipe, name, prompts):
    """Run diffusers' pipeline with the inverted latents of the image as the first row at each step."""
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.scheduler.set_timesteps(4)
    pixels = torch.from_numpy(np.array(SCENE)).permute(2, 0, 1)[None].float() / 127.5 - 1
    words = STYLE_OF["style_prompt"]
    conditions = {}
    if name == "XL":
        states, _, pooled, _ = pipe.encode_prompt(words, do_classifier_free_guidance=False)
        ids = torch.tensor([[64.0, 96, 0, 0, 64, 96]])
        conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
    else:
        states, _ = pipe.encode_prompt(words, "cpu", 1, do_classifier_free_guidance=False)
    inverted = inversion(pipe, pixels, 4, encoder_hidden_states=states, **conditions)
    align(pipe.unet, 2)

    def keep(_, i, __, tensors):
        if i + 1 < 4:
            tensors["latents"][0] = inverted[i + 1][0]
        return tensors

    size = inverted[0].shape[1:]
    noise = [torch.randn(size, generator=torch.Generator().manual_seed(5 + i)) for i in range(len(prompts))]
    latents = torch.stack([inverted[0][0], *noise])
    options = {"num_inference_steps": 4, "callback_on_step_end": keep, **SETTINGS}
    return pipe([words, *prompts], latents=latents, **options).images[1:]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["SD", "XL"])
def test_all_take_the_style_of_an_image(model, figures, request, name):
    every = request.config.getoption("--parity")
    if name == "XL" and not every:
        pytest.skip("only the table of figures has it")
    expected = given(model.reference(name, halves=0), name, PROMPTS[:2])
    schedule = diffusers.DDIMScheduler.from_config(
        json.loads((model.folders[name] / "scheduler/scheduler_config.json").read_text()), timestep_spacing="trailing"
    )
    options = {"scheduler": schedule, "steps": 4}
    for backend in BACKENDS if every else BACKENDS[:2]:
        pipe = model.ours(name, backend)
        got = ours_on(pipe, PROMPTS[:2], **options, **STYLE_OF)
        cell = f"{title(name)[0]}, Style Aligned with an image"
        figures.hold((cell, "text to image", "ddim"), backend, got, expected)
    pipe = model.ours(name, "eager")
    assert psnr(ours_on(pipe, PROMPTS[0], **options, **STYLE_OF), got[:1]) >= 50
    assert psnr(ours_on(pipe, PROMPTS[:2], **options), got) < 40


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_with_a_controlnet_a_lora_negative_prompts_and_inpainting(model, guidance):
    net = save_controlnet(model.folders["SD"] / "unet", model.work / "net", 3)
    lora = save_lora(model.folders["SD"], model.work / "lora.safetensors")
    control = diffusers.ControlNetModel.from_pretrained(net, low_cpu_mem_usage=False)
    kind = "ControlNetInpaintPipeline"
    reference = model.reference("SD", kind, halves=0, controlnet=control)
    reference.load_lora_weights(lora)
    align(reference.unet, 2 if guidance > 1 else 1)
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (0, 0, 40, 64))
    options = {"mask_image": mask, "strength": 0.9, "controlnet_conditioning_scale": 0.6, "guidance_scale": guidance}
    options |= {"negative_prompt": ["red", "", "a black background"]} if guidance > 1 else {}
    images = [SCENE, SCENE.rotate(90, expand=False), SCENE.rotate(180)]
    expected = generate(reference, image=images, control_image=images[::-1], **options)
    pipe = model.ours("SD", "eager", controlnet=net)
    pipe.set_lora(lora)
    options |= {"image": images, "control_image": images[::-1]}
    got = ours_on(pipe, style_aligned=True, **options)
    assert psnr(got, expected) >= 60
    assert psnr(ours_on(pipe, **options), expected) < 50
    options |= {"image": SCENE, "control_image": SCENE, "negative_prompt": None}
    one = ours_on(pipe, PROMPTS[0], num_images=2, **options, **STYLE_OF)
    assert np.isfinite(one).all()
    pipe.set_lora(None)


def test_a_style_with_a_second_pass_and_a_guidance_interval(model):
    pipe = model.ours("SD", "onnxruntime")
    options = {"guidance_interval": (0.0, 0.6), "steps": 3, "hires": 2, "hires_steps": 2, **STYLE_OF}
    got = ours_on(pipe, PROMPTS[:2], **options)
    assert got.shape == (2, 128, 192, 3)
    assert psnr(ours_on(model.ours("SD", "eager"), PROMPTS[0], **options), got[:1]) >= 50


def test_a_server_runs_the_images_of_a_style_together_and_apart_from_others(model):
    pipe = model.ours("SD", "onnxruntime")
    requests = [
        (PROMPTS, {"style_aligned": True, "seed": 5}),
        ("a red ring", {"seed": 1}),
        (PROMPTS[:2], {"seed": 9, **STYLE_OF}),
        ("a white heart", {"seed": 2}),
    ]
    engine, more = Engine(pipe, EngineSettings(max_slots=4)), {"steps": 2, **SETTINGS}
    jobs = [engine.submit(JobRequest(prompt=p, arguments={**more, **arguments})) for p, arguments in requests]
    for (prompt, arguments), job in zip(requests, jobs, strict=True):
        assert psnr(job.result(300).images, pipe(prompt, **more, **arguments).images) >= 60
    engine.close()


def test_a_plan_keeps_the_input_and_a_changed_one_is_refused(model, tmp_path):
    plan = prepare(model.folders["SD"], style_aligned=True, forms=("diffusers",))
    write_plan(plan, tmp_path)
    kept = read_plan(tmp_path, sealed=False).components["unet"].inputs
    assert kept == plan.components["unet"].inputs
    assert STYLE in {b.name for b in kept}
    data = json.loads((tmp_path / MANIFEST).read_text())
    data.pop("digest")
    data["components"]["unet"]["inputs"][-1]["dims"] = ["batch", 2]
    (tmp_path / MANIFEST).write_text(json.dumps({**data, "digest": digest_of(data)}))
    with pytest.raises(SourceError, match=STYLE):
        read_plan(tmp_path, sealed=False)


@pytest.mark.parametrize(
    ("prompts", "arguments", "named"),
    [
        ("one prompt", {"style_aligned": True}, "style_aligned"),
        (PROMPTS, {"style_aligned": 1}, "style_aligned"),
        (PROMPTS, {"style_aligned": None}, "style_aligned"),
        (PROMPTS, {"style_aligned": True, "num_images": 11}, "style_aligned"),
        (PROMPTS[0], {**STYLE_OF, "num_images": 32}, "style_aligned"),
        (PROMPTS, {"style_image": SCENE}, "style_image"),
        (PROMPTS, {"style_prompt": "ink"}, "style_prompt"),
        (PROMPTS, {"style_aligned": True, "style_prompt": "ink"}, "style_prompt"),
        (PROMPTS, {**STYLE_OF, "style_prompt": 3}, "style_prompt"),
        (PROMPTS, {**STYLE_OF, "style_image": [SCENE, SCENE]}, "style_image"),
        (PROMPTS, {**STYLE_OF, "style_image": "no such file.png"}, "style_image"),
        (PROMPTS, {**STYLE_OF, "style_image": np.full((8, 8, 3), np.nan)}, "style_image"),
        (PROMPTS, {**STYLE_OF, "style_image": 5}, "style_image"),
    ],
)
def test_odd_input_names_the_argument(model, prompts, arguments, named):
    with pytest.raises(InputError) as refused:
        model.ours("SD", "fake")(prompts, steps=1, **arguments)
    assert refused.value.argument == named


def test_a_model_that_was_loaded_without_it_says_how(fake, saved_plan):
    with pytest.raises(InputError, match="load"):
        fake(PROMPTS, style_aligned=True)
    with pytest.raises(InputError) as refused:
        calotype.load(saved_plan, style_aligned=True)
    assert refused.value.argument == "style_aligned"
    with pytest.raises(InputError):
        calotype.load("demo", style_aligned="yes", backend="fake")


def test_the_command_line_makes_a_row_of_a_file_of_prompts(model, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    SCENE.save(tmp_path / "style.png")
    words = ["generate", "--prompts", str(tmp_path / "prompts.txt"), "--model", str(model.folders["SD"])]
    words += ["--steps", "2", "--seed", "5", "--width", "96", "--height", "64", "--backend", "onnxruntime"]
    words += ["--guidance-scale", "5", "-o", str(tmp_path / "row.png"), "--style-aligned"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    got = np.stack([np.asarray(Image.open(tmp_path / f"row-{i}.png")) for i in range(3)])
    expected = ours_on(model.ours("SD", "onnxruntime"), style_aligned=True)
    assert psnr(got / 255, expected) >= 45  # bytes are rounded
    refused = CliRunner().invoke(app, ["generate", "x", *words[3:-1], "--style-image", str(tmp_path / "style.png")])
    assert refused.exception.argument == "style_image"
    (tmp_path / "prompts.txt").write_text('{"prompt": "a", "steps": 2}')
    assert isinstance(CliRunner().invoke(app, words).exception, InputError)
