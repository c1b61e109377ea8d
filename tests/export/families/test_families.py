"""Other families than the first, tiny and of random weights: read, traced, checked, and the pictures of diffusers."""

import json
import shutil

import diffusers
import numpy as np
import onnxruntime
import pytest
import torch

import calotype
from calotype.errors import SourceError
from calotype.export import BuildSpec, build, prepare
from calotype.export.quality.metrics import psnr

# diffusers gives tensors of torch to functions of numpy, about which numpy 2 has its doubts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

LEAST_DB = {"eager": 60, "onnxruntime": 50}
SETTINGS = {"guidance_scale": 5.0, "width": 96, "height": 64, "output_type": "np"}
PROMPTS = ["a blue square", "a small red ring above a green star"]


def elder_of(folder, kind=diffusers.StableDiffusionPipeline, **settings):
    pipe = kind.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(*numbers):
    return {"generator": [torch.Generator().manual_seed(n) for n in numbers]}


def held_to(wanted, folder, prompts, backends=("eager",), **settings):
    """The pictures against those of diffusers."""
    assert wanted.std() > 0.01  # a picture, not a flat grey on which all would agree
    for backend in backends:
        result = calotype.load(folder, backend=backend)(prompts, seed=[11, 12][: len(wanted)], **settings)
        assert psnr(result.images, wanted) >= LEAST_DB[backend], backend
    return result


def test_stable_diffusion_2(sd21_folder):
    elder = elder_of(sd21_folder, safety_checker=None)
    wanted = elder(PROMPTS, num_inference_steps=4, **seeds(11, 12), **SETTINGS).images
    held_to(wanted, sd21_folder, PROMPTS, steps=4, **SETTINGS)
    assert prepare(sd21_folder, forms=()).family == "sd2"


def test_turbo_is_few_steps_without_guidance(sd21_folder):
    """SD-Turbo: the classes of Stable Diffusion 2.1, Euler's scheduler with trailing timesteps."""
    scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(
        sd21_folder, subfolder="scheduler", prediction_type="epsilon", timestep_spacing="trailing"
    )
    elder = elder_of(sd21_folder, safety_checker=None)
    elder.scheduler = scheduler
    said = SETTINGS | {"guidance_scale": 0.0}
    wanted = elder(PROMPTS[0], num_inference_steps=1, **seeds(11), **said).images
    result = held_to(wanted, sd21_folder, PROMPTS[0], steps=1, scheduler=scheduler, **said)
    assert result.report.network_calls == 1


@pytest.mark.parametrize("negative", [None, "", "a red ring"])
def test_stable_diffusion_xl(sdxl_folder, negative):
    """None is zeros, as its config wants it; the empty text is text."""
    elder = elder_of(sdxl_folder, diffusers.StableDiffusionXLPipeline)
    told = negative if negative is None else [negative] * 2
    wanted = elder(PROMPTS, negative_prompt=told, num_inference_steps=4, **seeds(11, 12), **SETTINGS).images
    held_to(wanted, sdxl_folder, PROMPTS, LEAST_DB, negative_prompt=negative, steps=4, **SETTINGS)


def test_stable_diffusion_xl_without_guidance_at_its_own_size(sdxl_folder):
    elder = elder_of(sdxl_folder, diffusers.StableDiffusionXLPipeline)
    said = {"guidance_scale": 1.0, "output_type": "np"}
    wanted = elder(PROMPTS[0], num_inference_steps=3, **seeds(11), **said).images
    held_to(wanted, sdxl_folder, PROMPTS[0], steps=3, **said)


def test_skipped_layers_and_rescaled_guidance_of_xl(sdxl_folder):
    elder = elder_of(sdxl_folder, diffusers.StableDiffusionXLPipeline)
    said = SETTINGS | {"clip_skip": 1, "guidance_rescale": 0.7}
    wanted = elder(PROMPTS, num_inference_steps=4, **seeds(11, 12), **said).images
    held_to(wanted, sdxl_folder, PROMPTS, steps=4, **said)


def test_a_long_prompt_of_xl(sdxl_folder):
    """The pooled text is the first chunk's."""
    elder = elder_of(sdxl_folder, diffusers.StableDiffusionXLPipeline)
    long = ["red ring"] * 50  # 100 tokens
    chunks = [" ".join(long[:37]) + " red", "ring " + " ".join(long[38:])]
    whole, pooled = [], []
    for chunk in chunks:
        states, _, text, _ = elder.encode_prompt(chunk, do_classifier_free_guidance=False)
        whole.append(states)
        pooled.append(text)
    embeds = {"prompt_embeds": torch.cat(whole, dim=1), "pooled_prompt_embeds": pooled[0]}
    said = SETTINGS | {"guidance_scale": 1.0}
    wanted = elder(num_inference_steps=3, **embeds, **seeds(11), **said).images
    held_to(wanted, sdxl_folder, " ".join(long), LEAST_DB, steps=3, **said)


def test_an_xl_model_may_want_its_empty_prompt_encoded(sdxl_folder, tmp_path):
    folder = copied(sdxl_folder, tmp_path)
    edit(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    elder = elder_of(folder, diffusers.StableDiffusionXLPipeline)
    wanted = elder(PROMPTS[0], num_inference_steps=3, **seeds(11), **SETTINGS).images
    held_to(wanted, folder, PROMPTS[0], steps=3, **SETTINGS)
    assert prepare(folder, forms=()).fingerprint != prepare(sdxl_folder, forms=()).fingerprint


def test_latents_with_means_of_their_own(sdxl_folder, tmp_path):
    folder = copied(sdxl_folder, tmp_path)
    edit(folder / "vae" / "config.json", latents_mean=[-1.5, 0.5, 0.0, 2.0], latents_std=[8.0, 5.0, 6.0, 4.0])
    elder = elder_of(folder, diffusers.StableDiffusionXLPipeline)
    wanted = elder(PROMPTS[0], num_inference_steps=3, **seeds(11), **SETTINGS).images
    got = calotype.load(folder, backend="eager")(PROMPTS[0], steps=3, seed=11, **SETTINGS).images
    assert psnr(got, wanted) >= 60


def test_an_xl_export_has_the_names_that_optimum_reads(sdxl_folder):
    components = prepare(sdxl_folder).components
    assert all(c.artifact("onnx").check["max_relative_error"] <= 1e-4 for c in components.values())
    named = {name: session_names(c.artifact("onnx").path) for name, c in components.items()}
    states = [f"hidden_states.{i}" for i in range(3)]
    more = ["hidden_states.3", *(f"skipped_states.{i}" for i in range(1, 4))]
    assert named["text_encoder"] == (["input_ids"], ["last_hidden_state", "pooler_output", *states, *more])
    assert named["text_encoder_2"] == (["input_ids"], ["text_embeds", "last_hidden_state", *states])
    wanted = ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"]
    assert named["unet"] == (wanted, ["out_sample"])


def session_names(path):
    session = onnxruntime.InferenceSession(path)
    return [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]


def test_a_saved_xl_plan_opens_elsewhere_and_its_pictures_say_how_they_were_made(sdxl_folder, tmp_path):
    build(BuildSpec(model=str(sdxl_folder), output=tmp_path / "plan"))
    settings = {"steps": 2, "seed": 3, "output_type": "latent", "width": 64, "height": 96}
    opened, made = calotype.load(tmp_path / "plan"), calotype.load(sdxl_folder, backend="onnxruntime")
    np.testing.assert_array_equal(opened("a ring", **settings).images, made("a ring", **settings).images)
    assert [p.name for p in opened.plan.tokenizers.values()] == ["tokenizer", "tokenizer_2"]
    settings["output_type"] = "pil"
    assert "negative_prompt" not in opened("a ring", **settings).images[0].info
    assert opened("a ring", negative_prompt="", **settings).images[0].info["negative_prompt"] == ""


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("path", "changes", "told"),
    [
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet/config.json", {"addition_embed_type": None}, r"unet/config\.json: addition_embed_type"),
        ("unet/config.json", {"addition_time_embed_dim": 9}, r"unet/config\.json: addition_embed_type"),
        ("unet/config.json", {"cross_attention_dim": 177}, r"unet/config\.json: cross_attention_dim"),
        ("unet/config.json", {"in_channels": 8}, r"unet/config\.json: in_channels"),
        ("text_encoder_2/config.json", {"projection_dim": 25}, r"text_encoder_2/config\.json: projection_dim"),
        ("vae/config.json", {"latents_mean": ["x"]}, r"vae/config\.json: latents_mean"),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "this version reads"),
        ("model_index.json", {"_class_name": ["StableDiffusionXLPipeline"]}, "this version reads"),
    ],
)
def test_parts_that_do_not_belong_together_are_told(sdxl_folder, tmp_path, path, changes, told):
    folder = copied(sdxl_folder, tmp_path)
    edit(folder / path, **changes)
    with pytest.raises(SourceError, match=told):
        calotype.load(folder, backend="fake")


@pytest.mark.parametrize("path", ["text_encoder_2/config.json", "text_encoder_2/model.safetensors", "tokenizer_2"])
def test_what_an_xl_model_lacks_is_named(sdxl_folder, tmp_path, path):
    folder = copied(sdxl_folder, tmp_path)
    shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    with pytest.raises(SourceError, match=path.split("/")[-1]):
        calotype.load(folder, backend="fake")
