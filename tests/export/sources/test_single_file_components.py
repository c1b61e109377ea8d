"""Autoencoders and ControlNets in one file: the weights that were put in, and the pictures of diffusers with them."""

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
from calotype.export.sources import convert as converting
from calotype.export.sources import single_file as originals
from calotype.export.sources.configs import MODELS
from calotype.export.sources.convert import known_fields, network_of, part_converted, shapes_of
from calotype.export.sources.single_file_components import autoencoder_in, controlnet_in
from calotype.export.sources.source import find, read_source
from calotype.export.sources.weight_files import Header
from calotype.export.steps.subprocess_task import Outcome, run_in_subprocess

# diffusers gives tensors of torch to functions of numpy, about which numpy 2 has its doubts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

SCALE = 0.25  # of the model's own autoencoder: neither Stable Diffusion's nor SDXL's, nor diffusers' default
EDGES = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
PROMPT, SAID = "a large red circle on a blue background", {"guidance_scale": 5.0, "height": 64, "width": 96}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    def run(_, function, **said):
        return Outcome(value=getattr(converting, function.partition(":")[2])(**said), peak_bytes=0)

    monkeypatch.setattr(originals, "run_in_subprocess", run)


@pytest.fixture(scope="module")
def base(demo_folder, tmp_path_factory):
    """The demonstration model with an autoencoder that attends, and its config with the scaling factor `SCALE`."""
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


def of_2022(tensors):
    """As diffusers named attention then, and as many of the hub's autoencoders still have it."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, name in old.items():
        tensors = {n.replace(new, name): tensor for n, tensor in tensors.items()}
    return tensors


VAE_LAYOUTS = {
    "original": lambda layout, t: layout.original_vae(t, 4, "") | {"loss.logvar": torch.zeros(1)},
    "original, first_stage_model": lambda layout, t: layout.original_vae(t, 4),
    "original, vae": lambda layout, t: layout.original_vae(t, 4, "vae."),
    "of a checkpoint": lambda layout, t: {**layout.original_vae(t, 4), "model.diffusion_model.x": torch.zeros(1)},
    "diffusers": lambda _, t: t,
    "diffusers of 2022": lambda _, t: of_2022(t),
}
CONTROL_LAYOUTS = {
    "original": lambda layout, t: layout.original_controlnet(t, 1),
    "original, bare": lambda layout, t: layout.original_controlnet(t, 1, ""),
    "diffusers": lambda _, t: t,
}


def same(folder, network):
    got, wanted = load_file(folder / "diffusion_pytorch_model.safetensors"), network.state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("kind", VAE_LAYOUTS)
def test_an_autoencoders_weights_are_the_files_and_its_scaling_the_models(base, demo_folder, layout, kind, tmp_path):
    network = autoencoder(demo_folder, 1)
    file = written(VAE_LAYOUTS[kind](layout, network.state_dict()), tmp_path / "vae.safetensors")
    source = read_source(base, vae=file)
    same(source.folders["vae"], network)
    assert source.configs["vae"] == json.loads(network.to_json_string())
    assert source.configs["vae"]["scaling_factor"] == SCALE


@pytest.mark.parametrize("kind", ["original", "diffusers"])
def test_pictures_with_an_autoencoders_file_are_diffusers(base, demo_folder, layout, kind, tmp_path):
    network = autoencoder(demo_folder, 2)
    file = written(VAE_LAYOUTS[kind](layout, network.state_dict()), tmp_path / "vae.safetensors")
    elder = diffusers.StableDiffusionPipeline.from_pretrained(base, vae=network, safety_checker=None)
    got = held_to(elder, calotype.load(base, vae=file, backend="eager"))
    its_own = calotype.load(base, backend="eager")(PROMPT, steps=3, seed=5, output_type="np", **SAID).images
    assert psnr(got, its_own) < 30


def held_to(elder, pipe, **pictures):
    elder.set_progress_bar_config(disable=True)
    theirs = {"image": pictures["control_image"]} if pictures else {}
    said = {"num_inference_steps": 3, "generator": [torch.Generator().manual_seed(5)], "output_type": "np"}
    wanted = elder.to(torch.float32)(PROMPT, **theirs, **said, **SAID).images
    got = pipe(PROMPT, steps=3, seed=5, output_type="np", **pictures, **SAID).images
    assert wanted.std() > 0.01
    assert psnr(got, wanted) >= 60
    return got


def test_a_taesd_in_one_file(base, tmp_path):
    torch.manual_seed(3)
    network = diffusers.AutoencoderTiny()
    source = read_source(base, vae=written(network.state_dict(), tmp_path / "taesd.safetensors"))
    same(source.folders["vae"], network)
    assert source.configs["vae"]["scaling_factor"] == 1.0
    elder = diffusers.StableDiffusionPipeline.from_pretrained(base, vae=network, safety_checker=None)
    held_to(elder, calotype.load(base, vae=tmp_path / "taesd.safetensors", backend="eager"))


@pytest.mark.parametrize("kind", CONTROL_LAYOUTS)
@pytest.mark.parametrize("model", ["demo_folder", "sd21_folder", "sdxl_folder"])
def test_a_controlnets_weights_are_the_files_own(request, made, layout, model, kind, tmp_path):
    folder = request.getfixturevalue(model)
    network = diffusers.ControlNetModel.from_pretrained(made(folder / "unet", tmp_path / "net", 4))
    file = written(CONTROL_LAYOUTS[kind](layout, network.state_dict()), tmp_path / "control.safetensors")
    source = read_source(folder, controlnets=[file])
    same(source.folders["controlnet"], network)
    wanted, got = json.loads((tmp_path / "net" / "config.json").read_text()), source.configs["controlnet"]
    # One number or one a level, and of a level without attention any: the tensors above tell what counts.
    depths = {"transformer_layers_per_block": None}
    assert got | depths == wanted | depths


@pytest.mark.parametrize("model", ["demo_folder", "sdxl_folder"])
def test_pictures_with_a_controlnets_file_are_diffusers(request, made, layout, model, tmp_path):
    folder = request.getfixturevalue(model)
    network = diffusers.ControlNetModel.from_pretrained(made(folder / "unet", tmp_path / "net", 5))
    file = written(layout.original_controlnet(network.state_dict(), 1), tmp_path / "control.safetensors")
    kind = diffusers.StableDiffusionXLControlNetPipeline
    more = {}
    if model == "demo_folder":
        kind, more = diffusers.StableDiffusionControlNetPipeline, {"safety_checker": None}
    elder = kind.from_pretrained(folder, controlnet=network, **more)
    held_to(elder, calotype.load(folder, controlnet=file, backend="eager"), control_image=EDGES)


def test_a_controlnet_beside_an_inpainting_model_takes_latents_alone(inpainting_folder, tiny, layout, tmp_path):
    network = diffusers.ControlNetModel.from_unet(
        tiny(cross_attention_dim=128), conditioning_embedding_out_channels=(8, 8, 8, 16)
    )
    file = written(layout.original_controlnet(network.state_dict(), 1), tmp_path / "control.safetensors")
    assert read_source(inpainting_folder, controlnets=[file]).configs["controlnet"]["in_channels"] == 4


def test_a_file_beside_its_config_has_that_config(base, demo_folder):
    assert read_source(base, vae=demo_folder / "vae" / "diffusion_pytorch_model.safetensors").folders["vae"] == (
        demo_folder / "vae"
    )


def header_of(tensors):
    return Header(shapes={name: list(tensor.shape) for name, tensor in tensors.items()}, types={}, metadata={})


def on_meta(class_name, config):
    network = network_of(class_name, config)
    return network, network.state_dict()


# 248 and 340 are how many tensors the makers' files have: of the autoencoder, and of lllyasviel's ControlNets for 1.5.
@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_full_size_autoencoders_fit(layout, kind):
    class_name, config = MODELS[kind]["vae"]
    unet = MODELS[kind]["unet"][1]
    network, state = on_meta(class_name, config)
    for original, tensors in {True: layout.original_vae(state, 4, ""), False: state}.items():
        assert len(tensors) == 248
        for own in (
            {},
            {"_class_name": "AutoencoderTiny", "scaling_factor": 1.0},
            {"_class_name": class_name, **config},
        ):
            found = autoencoder_in(Path("x.safetensors"), header_of(tensors), unet, own)
            assert (found.original, found.class_name) == (original, "AutoencoderKL")
            assert found.config["scaling_factor"] == (0.13025 if kind == "sdxl" else 0.18215)
            got = part_converted(network, tensors, original=original, prefix=found.prefix)
            assert shapes_of(got) == shapes_of(network.state_dict())
        of_other_levels = {"_class_name": class_name, **config, "block_out_channels": [32, 64], "scaling_factor": 0.5}
        found = autoencoder_in(Path("x.safetensors"), header_of(tensors), unet, of_other_levels)
        assert (found.config["scaling_factor"], found.config["block_out_channels"]) == (0.5, [128, 256, 512, 512])


# SDXL's smaller ones as diffusers publishes them: attention at fewer levels and of fewer transformers, or none at all.
SMALLER = {
    "mid": {"transformer_layers_per_block": [0, 0, 1]},
    "small": {"down_block_types": ["DownBlock2D"] * 3, "mid_block_type": "UNetMidBlock2D"},
    "half": {"transformer_layers_per_block": [1, 1, 5]},
}


@pytest.mark.parametrize(
    ("kind", "smaller"), [*((k, "") for k in ("sd15", "sd21", "sdxl")), *(("sdxl", s) for s in SMALLER)]
)
def test_full_size_controlnets_fit(layout, kind, smaller):
    unet = MODELS[kind]["unet"][1]
    config = {**known_fields("ControlNetModel", unet), **SMALLER.get(smaller, {})}
    network, state = on_meta("ControlNetModel", config)
    files = {False: state} if smaller else {False: state, True: layout.original_controlnet(state, 2)}
    for original, tensors in files.items():
        assert kind != "sd15" or len(tensors) == 340
        found = controlnet_in(
            Path("x.safetensors"), header_of(tensors), {"_class_name": "UNet2DConditionModel", **unet}
        )
        assert found.original == original
        read = network_of("ControlNetModel", known_fields("ControlNetModel", found.config))
        got = part_converted(read, tensors, original=original, prefix=found.prefix)
        assert shapes_of(got) == shapes_of(read.state_dict()) == shapes_of(network.state_dict())


def test_it_is_rewritten_once_and_that_is_said(base, demo_folder, layout, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(originals, "run_in_subprocess", run_in_subprocess)
    tensors = autoencoder(demo_folder, 6).state_dict()
    file = written(VAE_LAYOUTS["of a checkpoint"](layout, tensors), tmp_path / "dream.safetensors")
    folder = read_source(base, vae=file).folders["vae"]
    told = "dream.safetensors is a checkpoint whose autoencoder is taken, in the original layout"
    assert f"{told} (its latents times {SCALE}); rewriting it (once)" in capsys.readouterr().err
    monkeypatch.setattr(originals, "run_in_subprocess", None)
    assert read_source(base, vae=file).folders["vae"] == folder
    assert capsys.readouterr().err == ""


def told_by(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def test_generate_takes_both(base, demo_folder, made, layout, tmp_path):
    network = diffusers.ControlNetModel.from_pretrained(made(demo_folder / "unet", tmp_path / "net", 7))
    control = written(layout.original_controlnet(network.state_dict(), 1), tmp_path / "control.safetensors")
    vae = written(layout.original_vae(autoencoder(demo_folder, 7).state_dict(), 4, ""), tmp_path / "vae.safetensors")
    EDGES.save(tmp_path / "edges.png")
    beside = ["--vae", vae, "--controlnet", control, "--control-image", tmp_path / "edges.png", "--backend", "eager"]
    said = ["--steps", 2, "--seed", 3, "-o", tmp_path / "out.png"]
    result = told_by("generate", PROMPT, "--model", base, *beside, *said)
    assert result.exit_code == 0, result.output
    pipe = calotype.load(base, vae=vae, controlnet=control, backend="eager")
    wanted = pipe(PROMPT, control_image=EDGES, steps=2, seed=3).images[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.asarray(wanted))


def test_build_reads_both_before_any_work(layout, tmp_path):
    """And so says what is wrong with them; what is built of good ones is what a folder's is."""
    other = {"conv_in.weight": (320, 4, 3, 3), "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}
    control = written(zeros(**other), tmp_path / "control.safetensors")
    vae = written(zeros(**OTHERS["half"]), tmp_path / "vae.safetensors")
    for words, told in (
        (
            ("--controlnet", control),
            r"a ControlNet for another family \(levels from 320, no text\), and the model's U-Net",
        ),
        (("--vae", vae), "holds half an autoencoder"),
    ):
        with pytest.raises(SourceError, match=told):
            raise told_by("build", "demo", *words, "-o", tmp_path / "plan").exception


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
TOLD = {
    (
        "vae",
        "a LoRA",
    ): r"holds a LoRA \(name it as lora=\) \(1 tensors, under lora_unet_x\); an autoencoder in one file has",
    ("vae", "a LoRA of diffusers"): r"holds a LoRA \(name it as lora=\)",
    ("vae", "a learned word"): "holds a textual inversion",
    ("vae", "a U-Net"): "holds a U-Net alone",
    ("vae", "half"): "holds half an autoencoder",
    ("vae", "union"): "holds a ControlNet for many tasks at once",
    ("vae", "of video"): "holds an autoencoder of another kind",
    ("vae", "nothing"): "holds 0 tensors, under no names; an autoencoder in one file has",
    ("vae", "one number"): "holds an autoencoder of another kind",
    ("controlnet", "a LoRA"): r"holds a LoRA \(name it as lora=\)",
    ("controlnet", "a U-Net"): "holds a U-Net alone",
    ("controlnet", "a model"): r"holds a whole model \(name it as model=\)",
    ("controlnet", "half"): "holds half an autoencoder",
    (
        "controlnet",
        "union",
    ): "holds a ControlNet for many tasks at once .* a ControlNet in one file has a U-Net's first half",
    ("controlnet", "difference"): "holds a ControlNet's difference to a model",
    ("controlnet", "Control-LoRA"): "holds a Control-LoRA",
    ("controlnet", "of video"): r"holds an autoencoder \(name it as vae=\)",
}


@pytest.mark.parametrize(("name", "other"), TOLD)
def test_other_files_are_told_with_what_is_in_them(tmp_path, name, other):
    file = written(zeros(**OTHERS[other]), tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match=TOLD[name, other]):
        calotype.load("demo", **{name: file})


@pytest.mark.parametrize(
    ("name", "elder", "kinds"),
    [
        ("vae", "AutoencoderKL", "an autoencoder is a folder"),
        ("controlnet", "ControlNetModel", "a ControlNet is a folder"),
    ],
)
def test_files_that_cannot_be_read_are_told(tmp_path, name, elder, kinds):
    for suffix in ("ckpt", "bin", "pt", "pth"):
        torch.save({"x": torch.zeros(1)}, tmp_path / f"x.{suffix}")
        with pytest.raises(SourceError, match=rf"is a pickle, .*{elder}\.from_single_file\('x.{suffix}'\)"):
            calotype.load("demo", **{name: tmp_path / f"x.{suffix}"})
    with pytest.raises(SourceError, match=rf"there is no file .*gone.safetensors; {kinds}.*a \.safetensors file"):
        calotype.load("demo", **{name: tmp_path / "gone.safetensors"})
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=f"x.gguf is .*GGUF; {kinds}"):
        calotype.load("demo", **{name: tmp_path / "x.gguf"})
    file = written({"decoder.conv_in.weight": torch.zeros(64)}, tmp_path / "x.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(SourceError, match="again"):
        calotype.load("demo", **{name: file})
    with pytest.raises(SourceError, match=rf"a {name} in one file is named itself: .*x.safetensors"):
        calotype.load("demo", **{name: tmp_path})


def test_autoencoders_of_other_models_are_told(base, demo_folder, layout, tmp_path):
    config = {**diffusers.AutoencoderKL.load_config(demo_folder / "vae")}
    wider = diffusers.AutoencoderKL.from_config({**config, "latent_channels": 16})
    file = written(wider.state_dict(), tmp_path / "16.safetensors")
    with pytest.raises(
        SourceError, match="an autoencoder of 16 latent channels, and the model's U-Net has 4; take one"
    ):
        calotype.load(base, vae=file)
    file = written(diffusers.AutoencoderTiny(latent_channels=16).state_dict(), tmp_path / "tiny.safetensors")
    with pytest.raises(SourceError, match="an autoencoder of 16 latent channels"):
        calotype.load(base, vae=file)
    shorter = diffusers.AutoencoderKL.from_config(
        {**config, "block_out_channels": [16, 32], "down_block_types": ["DownEncoderBlock2D"] * 2}
        | {"up_block_types": ["UpDecoderBlock2D"] * 2}
    )
    file = written(layout.original_vae(shorter.state_dict(), 2, ""), tmp_path / "short.safetensors")
    with pytest.raises(SourceError, match=r"levels \[16, 32\] wide; read are those of \[128, 256, 512, 512\], and of"):
        calotype.load(base, vae=file)
    deeper = diffusers.AutoencoderKL.from_config({**config, "layers_per_block": 2})
    file = written(layout.original_vae(deeper.state_dict(), 4, ""), tmp_path / "deep.safetensors")
    with pytest.raises(
        SourceError, match=r"is an autoencoder, but beside this model it does not fit: .* such as .*; take"
    ):
        calotype.load(base, vae=file)


def test_controlnets_of_other_models_are_told(demo_folder, sdxl_folder, made, layout, tmp_path):
    with torch.device("meta"):
        tensors = diffusers.ControlNetModel.from_config(
            known_fields("ControlNetModel", {**MODELS["sdxl"]["unet"][1], "block_out_channels": [320, 32, 32]})
        ).state_dict()
    telling = ("conv_in.weight", "add_embedding.linear_1.weight", "attn2.to_k.weight")
    kept = {n: t for n, t in tensors.items() if n.endswith(telling) or "cond_embedding" in n}
    file = written({n: torch.zeros(t.shape) for n, t in kept.items()}, tmp_path / "xl.safetensors")
    told = r"a ControlNet for Stable Diffusion XL \(levels from 320, text 2048 wide\), and the model's U-Net has "
    with pytest.raises(
        SourceError, match=told + r"levels of \[64, 128\] and text 128 wide; take one of the model's own"
    ):
        calotype.load("demo", controlnet=file)
    network = diffusers.ControlNetModel.from_pretrained(made(demo_folder / "unet", tmp_path / "net", 8))
    original = layout.original_controlnet(network.state_dict(), 1)
    file = written(original, tmp_path / "demos.safetensors")
    with pytest.raises(SourceError, match=r"a ControlNet for another family \(levels from 64, text 128 wide\)"):
        calotype.load(sdxl_folder, controlnet=file)
    with pytest.raises(SourceError, match="pool"):
        calotype.load("demo", controlnet=written(original, tmp_path / "control_v11e_sd15_shuffle.safetensors"))
    file = written({n: t for n, t in original.items() if "zero_convs.1" not in n}, tmp_path / "less.safetensors")
    with pytest.raises(
        SourceError, match=r"is a ControlNet, but beside this model it does not fit: 2 tensors are missing"
    ):
        calotype.load("demo", controlnet=file)
    file = written({**original, "control_model.more": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(SourceError, match=r"more.safetensors is a ControlNet of a kind that is not read: 1 tensors"):
        calotype.load("demo", controlnet=file)


def test_a_model_whose_config_is_nonsense_is_told(model_copy, tmp_path):
    config = model_copy / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": 64}))
    net = written(load_file(find("demo-canny") / "diffusion_pytorch_model.safetensors"), tmp_path / "canny.safetensors")
    with pytest.raises(SourceError, match=r"the configs of the model beside .*canny.safetensors do not make sense"):
        calotype.load(model_copy, controlnet=net)


def test_the_shipped_controlnet_reads_from_its_file_alone(tmp_path):
    folder = find("demo-canny")
    net = written(load_file(folder / "diffusion_pytorch_model.safetensors"), tmp_path / "canny.safetensors")
    said = {"control_image": EDGES, "steps": 2, "seed": 1, "output_type": "latent"}
    got, wanted = (calotype.load("demo", controlnet=n, backend="eager")(PROMPT, **said).images for n in (net, folder))
    np.testing.assert_array_equal(got, wanted)
