"""Other model families, tiny and with random weights: read, traced, checked, and the same images as diffusers."""

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

MIN_DB = {"eager": 60, "onnxruntime": 50}
SETTINGS = {"guidance_scale": 5.0, "width": 64, "height": 32, "output_type": "np"}
PROMPTS = ["a blue square", "a small red ring above a green star"]


def reference_pipeline(folder, kind=diffusers.StableDiffusionPipeline, **settings):
    pipe = kind.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(*numbers):
    return {"generator": [torch.Generator().manual_seed(n) for n in numbers]}


def check_images(expected, folder, prompts, backends=("eager",), **settings):
    """Compare images with those of diffusers."""
    assert expected.std() > 0.01  # a real image: flat gray would always match
    for backend in backends:
        result = calotype.load(folder, backend=backend)(prompts, seed=[11, 12][: len(expected)], **settings)
        assert psnr(result.images, expected) >= MIN_DB[backend], backend
    return result


def test_stable_diffusion_2(sd21_folder):
    reference = reference_pipeline(sd21_folder, safety_checker=None)
    expected = reference(PROMPTS, num_inference_steps=4, **seeds(11, 12), **SETTINGS).images
    check_images(expected, sd21_folder, PROMPTS, steps=4, **SETTINGS)
    assert prepare(sd21_folder, forms=()).family == "sd2"


def test_turbo_in_one_step_without_guidance(sd21_folder):
    """SD-Turbo: the classes of Stable Diffusion 2.1, and Euler's scheduler with trailing timesteps."""
    scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(
        sd21_folder, subfolder="scheduler", prediction_type="epsilon", timestep_spacing="trailing"
    )
    reference = reference_pipeline(sd21_folder, safety_checker=None)
    reference.scheduler = scheduler
    options = SETTINGS | {"guidance_scale": 0.0}
    expected = reference(PROMPTS[0], num_inference_steps=1, **seeds(11), **options).images
    result = check_images(expected, sd21_folder, PROMPTS[0], steps=1, scheduler=scheduler, **options)
    assert result.report.network_calls == 1


@pytest.mark.parametrize("negative", [None, "", "a red ring"])
def test_stable_diffusion_xl(sdxl_folder, negative):
    """None means zeros, as in its config; an empty text is encoded."""
    reference = reference_pipeline(sdxl_folder, diffusers.StableDiffusionXLPipeline)
    negatives = negative if negative is None else [negative] * 2
    expected = reference(PROMPTS, negative_prompt=negatives, num_inference_steps=4, **seeds(11, 12), **SETTINGS).images
    check_images(expected, sdxl_folder, PROMPTS, MIN_DB, negative_prompt=negative, steps=4, **SETTINGS)


def test_stable_diffusion_xl_without_guidance_at_its_own_size(sdxl_folder):
    reference = reference_pipeline(sdxl_folder, diffusers.StableDiffusionXLPipeline)
    options = {"guidance_scale": 1.0, "output_type": "np"}
    expected = reference(PROMPTS[0], num_inference_steps=3, **seeds(11), **options).images
    check_images(expected, sdxl_folder, PROMPTS[0], steps=3, **options)


def test_skipped_layers_and_rescaled_guidance_of_xl(sdxl_folder):
    reference = reference_pipeline(sdxl_folder, diffusers.StableDiffusionXLPipeline)
    options = SETTINGS | {"clip_skip": 1, "guidance_rescale": 0.7}
    expected = reference(PROMPTS, num_inference_steps=4, **seeds(11, 12), **options).images
    check_images(expected, sdxl_folder, PROMPTS, steps=4, **options)


def test_a_long_prompt_of_xl(sdxl_folder):
    """The pooled text comes from the first chunk."""
    reference = reference_pipeline(sdxl_folder, diffusers.StableDiffusionXLPipeline)
    long = ["red ring"] * 50  # 100 tokens
    chunks = [" ".join(long[:37]) + " red", "ring " + " ".join(long[38:])]
    all_states, pooled = [], []
    for chunk in chunks:
        states, _, text, _ = reference.encode_prompt(chunk, do_classifier_free_guidance=False)
        all_states.append(states)
        pooled.append(text)
    embeds = {"prompt_embeds": torch.cat(all_states, dim=1), "pooled_prompt_embeds": pooled[0]}
    options = SETTINGS | {"guidance_scale": 1.0}
    expected = reference(num_inference_steps=3, **embeds, **seeds(11), **options).images
    check_images(expected, sdxl_folder, " ".join(long), MIN_DB, steps=3, **options)


def test_an_xl_model_that_encodes_the_empty_prompt(sdxl_folder, tmp_path):
    folder = copied(sdxl_folder, tmp_path)
    edit(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    reference = reference_pipeline(folder, diffusers.StableDiffusionXLPipeline)
    expected = reference(PROMPTS[0], num_inference_steps=3, **seeds(11), **SETTINGS).images
    check_images(expected, folder, PROMPTS[0], steps=3, **SETTINGS)
    assert prepare(folder, forms=()).fingerprint != prepare(sdxl_folder, forms=()).fingerprint


def test_latents_with_means_and_deviations(sdxl_folder, tmp_path):
    folder = copied(sdxl_folder, tmp_path)
    edit(folder / "vae" / "config.json", latents_mean=[-1.5, 0.5, 0.0, 2.0], latents_std=[8.0, 5.0, 6.0, 4.0])
    reference = reference_pipeline(folder, diffusers.StableDiffusionXLPipeline)
    expected = reference(PROMPTS[0], num_inference_steps=3, **seeds(11), **SETTINGS).images
    got = calotype.load(folder, backend="eager")(PROMPTS[0], steps=3, seed=11, **SETTINGS).images
    assert psnr(got, expected) >= 60


def test_an_xl_export_has_optimums_names(sdxl_folder):
    components = prepare(sdxl_folder).components
    assert all(c.artifact("onnx").check["max_relative_error"] <= 1e-4 for c in components.values())
    named = {name: session_names(c.artifact("onnx").path) for name, c in components.items()}
    states = [f"hidden_states.{i}" for i in range(3)]
    more = ["hidden_states.3", *(f"skipped_states.{i}" for i in range(1, 4))]
    assert named["text_encoder"] == (["input_ids"], ["last_hidden_state", "pooler_output", *states, *more])
    assert named["text_encoder_2"] == (["input_ids"], ["text_embeds", "last_hidden_state", *states])
    expected = ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"]
    assert named["unet"] == (expected, ["out_sample"])


def session_names(path):
    session = onnxruntime.InferenceSession(path)
    return [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]


def test_a_saved_xl_plan_gives_the_same_images_with_metadata(sdxl_folder, tmp_path):
    build(BuildSpec(model=str(sdxl_folder), output=tmp_path / "plan"))
    settings = {"steps": 2, "seed": 3, "output_type": "latent", "width": 64, "height": 96}
    planned, direct = calotype.load(tmp_path / "plan"), calotype.load(sdxl_folder, backend="onnxruntime")
    np.testing.assert_array_equal(planned("a ring", **settings).images, direct("a ring", **settings).images)
    assert [p.name for p in planned.plan.tokenizers.values()] == ["tokenizer", "tokenizer_2"]
    settings["output_type"] = "pil"
    assert "negative_prompt" not in planned("a ring", **settings).images[0].info
    assert planned("a ring", negative_prompt="", **settings).images[0].info["negative_prompt"] == ""


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("path", "changes", "keyword"),
    [
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet/config.json", {"addition_embed_type": None}, r"unet/config\.json: addition_embed_type"),
        ("unet/config.json", {"addition_time_embed_dim": 9}, r"unet/config\.json: addition_embed_type"),
        ("unet/config.json", {"cross_attention_dim": 177}, r"unet/config\.json: cross_attention_dim"),
        ("unet/config.json", {"in_channels": 8}, r"unet/config\.json: in_channels"),
        ("text_encoder_2/config.json", {"projection_dim": 25}, r"text_encoder_2/config\.json: projection_dim"),
        ("vae/config.json", {"latents_mean": ["x"]}, r"vae/config\.json: latents_mean"),
        ("text_encoder/config.json", {"model_type": "t5"}, "t5"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(sdxl_folder, tmp_path, path, changes, keyword):
    folder = copied(sdxl_folder, tmp_path)
    edit(folder / path, **changes)
    with pytest.raises(SourceError, match=keyword):
        calotype.load(folder, backend="fake")


@pytest.mark.parametrize("path", ["text_encoder_2/config.json", "text_encoder_2/model.safetensors", "tokenizer_2"])
def test_a_missing_part_of_an_xl_model_is_named(sdxl_folder, tmp_path, path):
    folder = copied(sdxl_folder, tmp_path)
    shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    with pytest.raises(SourceError, match=path.split("/")[-1]):
        calotype.load(folder, backend="fake")
