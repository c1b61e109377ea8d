"""Autoencoders and ControlNets in one file: the same weights, and the same images as diffusers."""

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import calotype
from calotype.errors import SourceError
from calotype.export.commands.cli import app
from calotype.export.quality.metrics import psnr
from calotype.export.sources import convert
from calotype.export.sources.configs import MODELS
from calotype.export.sources.convert import convert_component_tensors, network_of, shapes_of
from calotype.export.sources.single_file_components import autoencoder_in, controlnet_in
from calotype.export.sources.source import find, read_source
from calotype.export.sources.weight_files import Header
from calotype.export.steps import stored_step
from calotype.export.steps.subprocess_task import Outcome, run_in_subprocess
from tests.helpers.original_layout import original_controlnet, original_vae
from tests.helpers.tiny_models import save_controlnet, tiny_unet

SCALE = 0.25  # of the model's own autoencoder; differs from Stable Diffusion's, SDXL's and diffusers' default
EDGES = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
PROMPT, OPTIONS = "a large red circle on a blue background", {"guidance_scale": 5.0, "height": 64, "width": 96}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    def run(_, function, *__, **arguments):
        return Outcome(value=getattr(convert, function.partition(":")[2])(**arguments), peak_bytes=0)

    monkeypatch.setattr(stored_step, "run_in_subprocess", run)


@pytest.fixture(scope="module")
def base(demo_folder, tmp_path_factory):
    """The demonstration model with an autoencoder that has attention, and the scaling factor `SCALE`."""
    folder = Path(shutil.copytree(demo_folder, tmp_path_factory.mktemp("base") / "model"))
    shutil.rmtree(folder / "vae")
    autoencoder(demo_folder, 0).save_pretrained(folder / "vae")
    return folder


def autoencoder(demo_folder, seed):
    torch.manual_seed(seed)
    config = diffusers.AutoencoderKL.load_config(demo_folder / "vae")
    return diffusers.AutoencoderKL.from_config({**config, "mid_block_add_attention": True, "scaling_factor": SCALE})


def written(tensors, path, metadata=None):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


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
        (
            ("--controlnet", control),
            r"another family .first level 320, no text",
        ),
        (("--vae", vae), "holds half an autoencoder"),
    ):
        with pytest.raises(SourceError, match=keyword):
            raise run_command("build", "demo", *words, "-o", tmp_path / "plan").exception


def zeros(**shapes):
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


OTHERS = {
    "a LoRA": {"lora_unet_x.lora_down.weight": (1,)},
    "a LoRA of diffusers": {"unet.mid_block.x.lora_A.weight": (1,)},
    "a learned word": {"emb_params": (1, 768)},
    "a U-Net": {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
    "a model": {f"{part}.x": (1,) for part in ("model.diffusion_model", "first_stage_model", "cond_stage_model")},
    "half": {"decoder.layers.0.weight": (64, 4, 3, 3)},
    "union": {"task_embedding": (6, 320), "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)},
    "difference": {"difference": (1,), "control_model.input_hint_block.0.weight": (16, 3, 3, 3)},
    "Control-LoRA": {"lora_controlnet": (0,), "input_hint_block.0.weight": (16, 3, 3, 3)},
    "of video": {"decoder.conv_in.weight": (512, 4, 3, 3), "encoder.x": (1,)},
    "nothing": {},
    "one number": {"decoder.conv_in.weight": (), "encoder.down.0.block.0.conv1.weight": ()},
}
CONTENTS = {
    (
        "vae",
        "a LoRA",
    ): r"holds a LoRA .*lora=.*under lora_unet_x",
    ("vae", "a LoRA of diffusers"): "holds a LoRA .*lora=",
    ("vae", "a learned word"): "holds a textual inversion",
    ("vae", "a U-Net"): "holds only a U-Net",
    ("vae", "half"): "holds half an autoencoder",
    ("vae", "union"): "holds a multi-task ControlNet",
    ("vae", "of video"): "holds an autoencoder of another kind",
    ("vae", "nothing"): "holds 0 tensors",
    ("vae", "one number"): "holds an autoencoder of another kind",
    ("controlnet", "a LoRA"): "holds a LoRA .*lora=",
    ("controlnet", "a U-Net"): "holds only a U-Net",
    ("controlnet", "a model"): "holds a full model .*model=",
    ("controlnet", "half"): "holds half an autoencoder",
    (
        "controlnet",
        "union",
    ): "holds a multi-task ControlNet",
    ("controlnet", "difference"): "holds a ControlNet's difference to a model",
    ("controlnet", "Control-LoRA"): "holds a Control-LoRA",
    ("controlnet", "of video"): "holds an autoencoder .*vae=",
}


@pytest.mark.parametrize(("name", "other"), CONTENTS)
def test_other_files_are_refused_with_their_contents(tmp_path, name, other):
    file = written(zeros(**OTHERS[other]), tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match=CONTENTS[name, other]):
        calotype.load("demo", **{name: file})


@pytest.mark.parametrize(
    ("name", "reference", "kinds"),
    [
        ("vae", "AutoencoderKL", "an autoencoder is a folder"),
        ("controlnet", "ControlNetModel", "a ControlNet is a folder"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, name, reference, kinds):
    for suffix in ("ckpt", "bin", "pt", "pth"):
        torch.save({"x": torch.zeros(1)}, tmp_path / f"x.{suffix}")
        with pytest.raises(SourceError, match=rf"is a pickle, .*{reference}\.from_single_file\('x.{suffix}'\)"):
            calotype.load("demo", **{name: tmp_path / f"x.{suffix}"})
    with pytest.raises(SourceError, match=rf"gone.safetensors; {kinds}"):
        calotype.load("demo", **{name: tmp_path / "gone.safetensors"})
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=f"x.gguf is .*GGUF; {kinds}"):
        calotype.load("demo", **{name: tmp_path / "x.gguf"})
    file = written({"decoder.conv_in.weight": torch.zeros(64)}, tmp_path / "x.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(SourceError, match=r"x.safetensors"):
        calotype.load("demo", **{name: file})
    (tmp_path / "folder").mkdir()
    written({"decoder.conv_in.weight": torch.zeros(64)}, tmp_path / "folder" / "y.safetensors")
    with pytest.raises(SourceError, match=r"y\.safetensors"):
        calotype.load("demo", **{name: tmp_path / "folder"})


def test_autoencoders_of_other_models_are_refused(base, demo_folder, tmp_path):
    config = {**diffusers.AutoencoderKL.load_config(demo_folder / "vae")}
    wider = diffusers.AutoencoderKL.from_config({**config, "latent_channels": 16})
    file = written(wider.state_dict(), tmp_path / "16.safetensors")
    with pytest.raises(SourceError, match="16 latent channels"):
        calotype.load(base, vae=file)
    file = written(diffusers.AutoencoderTiny(latent_channels=16).state_dict(), tmp_path / "tiny.safetensors")
    with pytest.raises(SourceError, match="16 latent channels"):
        calotype.load(base, vae=file)
    shorter = diffusers.AutoencoderKL.from_config(
        {**config, "block_out_channels": [16, 32], "down_block_types": ["DownEncoderBlock2D"] * 2}
        | {"up_block_types": ["UpDecoderBlock2D"] * 2}
    )
    file = written(original_vae(shorter.state_dict(), 2, ""), tmp_path / "short.safetensors")
    with pytest.raises(SourceError, match=r"\[16, 32\]"):
        calotype.load(base, vae=file)
    deeper = diffusers.AutoencoderKL.from_config({**config, "layers_per_block": 2})
    file = written(original_vae(deeper.state_dict(), 4, ""), tmp_path / "deep.safetensors")
    with pytest.raises(SourceError, match=r"does not fit: .* such as"):
        calotype.load(base, vae=file)


def test_controlnets_of_other_models_are_refused(demo_folder, sdxl_folder, tmp_path):
    with torch.device("meta"):
        tensors = diffusers.ControlNetModel.from_config(
            {**MODELS["sdxl"]["unet"][1], "block_out_channels": [320, 32, 32]}
        ).state_dict()
    endings = ("conv_in.weight", "add_embedding.linear_1.weight", "attn2.to_k.weight")
    needed = {n: t for n, t in tensors.items() if n.endswith(endings) or "cond_embedding" in n}
    file = written({n: torch.zeros(t.shape) for n, t in needed.items()}, tmp_path / "xl.safetensors")
    keyword = "Stable Diffusion XL .first level 320, text of width 2048"
    with pytest.raises(SourceError, match=keyword):
        calotype.load("demo", controlnet=file)
    network = diffusers.ControlNetModel.from_pretrained(save_controlnet(demo_folder / "unet", tmp_path / "net", 8))
    original = original_controlnet(network.state_dict(), 1)
    file = written(original, tmp_path / "demos.safetensors")
    with pytest.raises(SourceError, match=r"another family .first level 64, text of width 128"):
        calotype.load(sdxl_folder, controlnet=file)
    with pytest.raises(SourceError, match="pool"):
        calotype.load("demo", controlnet=written(original, tmp_path / "control_v11e_sd15_shuffle.safetensors"))
    file = written({n: t for n, t in original.items() if "zero_convs.1" not in n}, tmp_path / "less.safetensors")
    with pytest.raises(SourceError, match="does not fit: 2 tensors"):
        calotype.load("demo", controlnet=file)
    file = written({**original, "control_model.more": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(SourceError, match="unsupported kind: 1 tensors"):
        calotype.load("demo", controlnet=file)


def test_a_model_with_an_invalid_config_is_refused(model_copy, tmp_path):
    config = model_copy / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": 64}))
    net = written(load_file(find("demo-canny") / "diffusion_pytorch_model.safetensors"), tmp_path / "canny.safetensors")
    with pytest.raises(SourceError, match=r"canny.safetensors"):
        calotype.load(model_copy, controlnet=net)


def test_the_shipped_controlnet_loads_from_its_weight_file(tmp_path):
    folder = find("demo-canny")
    net = written(load_file(folder / "diffusion_pytorch_model.safetensors"), tmp_path / "canny.safetensors")
    options = {"control_image": EDGES, "steps": 2, "seed": 1, "output_type": "latent"}
    got, expected = (
        calotype.load("demo", controlnet=n, backend="eager")(PROMPT, **options).images for n in (net, folder)
    )
    np.testing.assert_array_equal(got, expected)
