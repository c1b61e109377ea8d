"""Autoencoders and ControlNets in one file: the same weights, and the same images as diffusers."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import calotype
from calotype.errors import SourceError
from calotype.export.commands.cli import app
from calotype.export.quality.metrics import psnr
from calotype.export.sources.configs import MODELS
from calotype.export.sources.convert import convert_component_tensors, network_of, shapes_of
from calotype.export.sources.single_file_components import autoencoder_in, controlnet_in
from calotype.export.sources.source import find, read_source
from calotype.export.sources.weight_files import Header
from calotype.export.steps import stored_step
from calotype.export.steps.subprocess_task import run_in_subprocess
from tests.helpers.components_in_files import OTHERS, SCALE, autoencoder, written, zeros
from tests.helpers.original_layout import original_controlnet, original_vae
from tests.helpers.tiny_models import save_controlnet, tiny_unet

EDGES = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
pytestmark = pytest.mark.usefixtures("convert_in_this_process")
PROMPT, OPTIONS = "a large red circle on a blue background", {"guidance_scale": 5.0, "height": 64, "width": 96}


def names_of_2022(tensors):
    """Rename attention as diffusers did in 2022; many autoencoders of the hub still have these names."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, name in old.items():
        tensors = {n.replace(new, name): tensor for n, tensor in tensors.items()}
    return tensors


VAE_LAYOUTS = {
    "original": lambda t: original_vae(t, 4, "") | {"loss.logvar": torch.zeros(1)},
    "original, first_stage_model": lambda t: original_vae(t, 4),
    "original, vae": lambda t: original_vae(t, 4, "vae."),
    "of a checkpoint": lambda t: {
        **original_vae(t, 4),
        "model.diffusion_model.x": torch.zeros(1),
    },
    "diffusers": lambda t: t,
    "diffusers of 2022": names_of_2022,
}
CONTROL_LAYOUTS = {
    "original": lambda t: original_controlnet(t, 1),
    "original, bare": lambda t: original_controlnet(t, 1, ""),
    "diffusers": lambda t: t,
}


def check_weights(folder, network):
    got, expected = load_file(folder / "diffusion_pytorch_model.safetensors"), network.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", VAE_LAYOUTS)
def test_an_autoencoder_has_the_files_weights_and_the_models_scaling(base, demo_folder, kind, tmp_path):
    network = autoencoder(demo_folder, 1)
    file = written(VAE_LAYOUTS[kind](network.state_dict()), tmp_path / "vae.safetensors")
    source = read_source(base, vae=file)
    check_weights(source.folders["vae"], network)
    assert source.configs["vae"] == json.loads(network.to_json_string())
    assert source.configs["vae"]["scaling_factor"] == SCALE


@pytest.mark.parametrize("kind", ["original", "diffusers"])
def test_images_with_an_autoencoder_file_match_diffusers(base, demo_folder, kind, tmp_path):
    network = autoencoder(demo_folder, 2)
    file = written(VAE_LAYOUTS[kind](network.state_dict()), tmp_path / "vae.safetensors")
    reference = diffusers.StableDiffusionPipeline.from_pretrained(base, vae=network, safety_checker=None)
    got = check_images(reference, calotype.load(base, vae=file, backend="eager"))
    its_own = calotype.load(base, backend="eager")(PROMPT, steps=3, seed=5, output_type="np", **OPTIONS).images
    assert psnr(got, its_own) < 30


def check_images(reference, pipe, **inputs):
    reference.set_progress_bar_config(disable=True)
    theirs = {"image": inputs["control_image"]} if inputs else {}
    options = {"num_inference_steps": 3, "generator": [torch.Generator().manual_seed(5)], "output_type": "np"}
    expected = reference.to(torch.float32)(PROMPT, **theirs, **options, **OPTIONS).images
    got = pipe(PROMPT, steps=3, seed=5, output_type="np", **inputs, **OPTIONS).images
    assert expected.std() > 0.01
    assert psnr(got, expected) >= 60
    return got


def test_a_taesd_in_one_file(base, tmp_path):
    torch.manual_seed(3)
    network = diffusers.AutoencoderTiny()
    source = read_source(base, vae=written(network.state_dict(), tmp_path / "taesd.safetensors"))
    check_weights(source.folders["vae"], network)
    assert source.configs["vae"]["scaling_factor"] == 1.0
    reference = diffusers.StableDiffusionPipeline.from_pretrained(base, vae=network, safety_checker=None)
    check_images(reference, calotype.load(base, vae=tmp_path / "taesd.safetensors", backend="eager"))


@pytest.mark.parametrize("kind", CONTROL_LAYOUTS)
@pytest.mark.parametrize("model", ["demo_folder", "sd21_folder", "sdxl_folder"])
def test_a_controlnet_has_the_files_weights(request, model, kind, tmp_path):
    folder = request.getfixturevalue(model)
    network = diffusers.ControlNetModel.from_pretrained(save_controlnet(folder / "unet", tmp_path / "net", 4))
    file = written(CONTROL_LAYOUTS[kind](network.state_dict()), tmp_path / "control.safetensors")
    source = read_source(folder, controlnets=[file])
    check_weights(source.folders["controlnet"], network)
    expected, got = json.loads((tmp_path / "net" / "config.json").read_text()), source.configs["controlnet"]
    # A number or a list by level, arbitrary for levels without attention: the tensors above show the depths.
    depths = {"transformer_layers_per_block": None}
    assert got | depths == expected | depths


@pytest.mark.parametrize("model", ["demo_folder", "sdxl_folder"])
def test_images_with_a_controlnet_file_match_diffusers(request, model, tmp_path):
    folder = request.getfixturevalue(model)
    network = diffusers.ControlNetModel.from_pretrained(save_controlnet(folder / "unet", tmp_path / "net", 5))
    file = written(original_controlnet(network.state_dict(), 1), tmp_path / "control.safetensors")
    kind = diffusers.StableDiffusionXLControlNetPipeline
    more = {}
    if model == "demo_folder":
        kind, more = diffusers.StableDiffusionControlNetPipeline, {"safety_checker": None}
    reference = kind.from_pretrained(folder, controlnet=network, **more)
    check_images(reference, calotype.load(folder, controlnet=file, backend="eager"), control_image=EDGES)


def test_a_controlnet_of_an_inpainting_model_takes_only_latents(inpainting_folder, tmp_path):
    network = diffusers.ControlNetModel.from_unet(
        tiny_unet(cross_attention_dim=128), conditioning_embedding_out_channels=(8, 8, 8, 16)
    )
    file = written(original_controlnet(network.state_dict(), 1), tmp_path / "control.safetensors")
    assert read_source(inpainting_folder, controlnets=[file]).configs["controlnet"]["in_channels"] == 4


def test_a_file_in_a_folder_with_its_config_uses_that_config(base, demo_folder):
    assert read_source(base, vae=demo_folder / "vae" / "diffusion_pytorch_model.safetensors").folders["vae"] == (
        demo_folder / "vae"
    )


def header_of(tensors):
    return Header(shapes={name: list(tensor.shape) for name, tensor in tensors.items()}, types={}, metadata={})


def on_meta(class_name, config):
    network = network_of(class_name, config)
    return network, network.state_dict()


# The published files have 248 tensors (autoencoder) and 340 (lllyasviel's ControlNets for 1.5).
@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_full_size_autoencoders_fit(kind):
    class_name, config = MODELS[kind]["vae"]
    unet = MODELS[kind]["unet"][1]
    network, state = on_meta(class_name, config)
    for original, tensors in {True: original_vae(state, 4, ""), False: state}.items():
        assert len(tensors) == 248
        for own in (
            {},
            {"_class_name": "AutoencoderTiny", "scaling_factor": 1.0},
            {"_class_name": class_name, **config},
        ):
            network_file = autoencoder_in(Path("x.safetensors"), header_of(tensors), unet, own)
            assert (network_file.original, network_file.class_name) == (original, "AutoencoderKL")
            assert network_file.config["scaling_factor"] == (0.13025 if kind == "sdxl" else 0.18215)
            got = convert_component_tensors(network, tensors, original=original, prefix=network_file.prefix)
            assert shapes_of(got) == shapes_of(network.state_dict())
        of_other_levels = {"_class_name": class_name, **config, "block_out_channels": [32, 64], "scaling_factor": 0.5}
        network_file = autoencoder_in(Path("x.safetensors"), header_of(tensors), unet, of_other_levels)
        assert (network_file.config["scaling_factor"], network_file.config["block_out_channels"]) == (
            0.5,
            [128, 256, 512, 512],
        )


# SDXL's smaller ControlNets of diffusers: less or no attention.
SMALLER = {
    "mid": {"transformer_layers_per_block": [0, 0, 1]},
    "small": {"down_block_types": ["DownBlock2D"] * 3, "mid_block_type": "UNetMidBlock2D"},
    "half": {"transformer_layers_per_block": [1, 1, 5]},
}


@pytest.mark.parametrize(
    ("kind", "smaller"), [*((k, "") for k in ("sd15", "sd21", "sdxl")), *(("sdxl", s) for s in SMALLER)]
)
def test_full_size_controlnets_fit(kind, smaller):
    unet = MODELS[kind]["unet"][1]
    config = {**unet, **SMALLER.get(smaller, {})}
    network, state = on_meta("ControlNetModel", config)
    files = {False: state} if smaller else {False: state, True: original_controlnet(state, 2)}
    for original, tensors in files.items():
        assert kind != "sd15" or len(tensors) == 340
        network_file = controlnet_in(
            Path("x.safetensors"), header_of(tensors), {"_class_name": "UNet2DConditionModel", **unet}
        )
        assert network_file.original == original
        read = network_of("ControlNetModel", network_file.config)
        got = convert_component_tensors(read, tensors, original=original, prefix=network_file.prefix)
        assert shapes_of(got) == shapes_of(read.state_dict()) == shapes_of(network.state_dict())


def test_a_file_is_converted_once_with_a_message(base, demo_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stored_step, "run_in_subprocess", run_in_subprocess)
    tensors = autoencoder(demo_folder, 6).state_dict()
    file = written(VAE_LAYOUTS["of a checkpoint"](tensors), tmp_path / "dream.safetensors")
    folder = read_source(base, vae=file).folders["vae"]
    message = capsys.readouterr().err
    assert "dream.safetensors is a checkpoint" in message
    assert f"scaling factor {SCALE}" in message
    monkeypatch.setattr(stored_step, "run_in_subprocess", None)
    assert read_source(base, vae=file).folders["vae"] == folder
    assert capsys.readouterr().err == ""


def run_command(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def test_generate_takes_both(base, demo_folder, tmp_path):
    network = diffusers.ControlNetModel.from_pretrained(save_controlnet(demo_folder / "unet", tmp_path / "net", 7))
    control = written(original_controlnet(network.state_dict(), 1), tmp_path / "control.safetensors")
    vae = written(original_vae(autoencoder(demo_folder, 7).state_dict(), 4, ""), tmp_path / "vae.safetensors")
    EDGES.save(tmp_path / "edges.png")
    networks = ["--vae", vae, "--controlnet", control, "--control-image", tmp_path / "edges.png", "--backend", "eager"]
    options = ["--steps", 2, "--seed", 3, "-o", tmp_path / "out.png"]
    result = run_command("generate", PROMPT, "--model", base, *networks, *options)
    assert result.exit_code == 0, result.output
    pipe = calotype.load(base, vae=vae, controlnet=control, backend="eager")
    expected = pipe(PROMPT, control_image=EDGES, steps=2, seed=3).images[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.asarray(expected))


def test_build_reads_both_before_any_work(tmp_path):
    """A wrong file is refused before any build step."""
    other = {"conv_in.weight": (320, 4, 3, 3), "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}
    control = written(zeros(**other), tmp_path / "control.safetensors")
    vae = written(zeros(**OTHERS["half"]), tmp_path / "vae.safetensors")
    for words, keyword in (
        (("--controlnet", control), "level 320, no text"),
        (("--vae", vae), "holds half an autoencoder"),
    ):
        with pytest.raises(SourceError, match=keyword):
            raise run_command("build", "demo", *words, "-o", tmp_path / "plan").exception


def test_the_shipped_controlnet_loads_from_its_weight_file(tmp_path):
    folder = find("demo-canny")
    net = written(load_file(folder / "diffusion_pytorch_model.safetensors"), tmp_path / "canny.safetensors")
    options = {"control_image": EDGES, "steps": 2, "seed": 1, "output_type": "latent"}
    got, expected = (
        calotype.load("demo", controlnet=n, backend="eager")(PROMPT, **options).images for n in (net, folder)
    )
    np.testing.assert_array_equal(got, expected)
