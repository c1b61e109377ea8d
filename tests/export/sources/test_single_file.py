"""Checkpoints in the original layout: the same weights and images as diffusers from the same file."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import calotype
from calotype.errors import SourceError
from calotype.export.quality.metrics import psnr
from calotype.export.sources import single_file
from calotype.export.sources.configs import MODELS, REFINER
from calotype.export.sources.convert import convert_into, convert_tensors, network_of, prediction_of, shapes_of
from calotype.export.sources.source import find, read_source
from calotype.export.sources.weight_files import Header
from calotype.export.steps import stored_step
from calotype.export.steps.subprocess_task import Outcome, run_in_subprocess
from calotype.plan.family import family_of
from tests.helpers.original_layout import original_text, original_unet, original_vae

CROSS, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"vocab_size": 49408, "projection_dim": 16, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
TEXT |= {"max_position_embeddings": 77}
UNET = {
    **{"sample_size": 24, "block_out_channels": [32, 64], "layers_per_block": 1, "attention_head_dim": [2, 4]},
    **{"down_block_types": [CROSS, "DownBlock2D"], "up_block_types": ["UpBlock2D", UP], "cross_attention_dim": 32},
}
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True}
ADDED |= {"down_block_types": ["DownBlock2D", CROSS], "up_block_types": [UP, "UpBlock2D"]}
VAE = {
    **{"block_out_channels": [32, 32, 64], "layers_per_block": 1, "latent_channels": 4},
    **{"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3},
}
OPEN = ("CLIPTextModel", {**TEXT, "hidden_act": "gelu"})
SECOND = ("CLIPTextModelWithProjection", {**TEXT, "hidden_size": 48, "hidden_act": "gelu"})
FIRST = ("CLIPTextModel", {**TEXT, "hidden_act": "quick_gelu"})
TINY = {
    "sd15": {**MODELS["sd15"], "text_encoder": FIRST, "unet": ("UNet2DConditionModel", UNET)},
    "sd21": {
        **{**MODELS["sd21"], "text_encoder": OPEN},
        "unet": ("UNet2DConditionModel", {**UNET, "use_linear_projection": True}),
    },
    "sdxl": {
        **{**MODELS["sdxl"], "text_encoder": FIRST, "text_encoder_2": SECOND},
        "unet": (
            "UNet2DConditionModel",
            {**UNET, **ADDED, "cross_attention_dim": 80, "projection_class_embeddings_input_dim": 6 * 8 + 16},
        ),
    },
    "refiner": {
        **{**REFINER, "text_encoder_2": SECOND},
        "unet": (
            "UNet2DConditionModel",
            {**UNET, **ADDED, "cross_attention_dim": 48, "projection_class_embeddings_input_dim": 5 * 8 + 16},
        ),
    },
}
TINY = {name: {**parts, "vae": ("AutoencoderKL", VAE)} for name, parts in TINY.items()}
PREFIXES = {
    "sd15": {"text_encoder": "cond_stage_model.transformer."},
    "sd21": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "refiner": {"text_encoder_2": "conditioner.embedders.0.model."},
}


def in_original_layout(states, kind, described):
    """Convert the networks' `states` (by name) to the tensors of one file."""
    tensors = original_unet(states["unet"], described["unet"][1]["layers_per_block"])
    tensors |= original_vae(states["vae"], len(described["vae"][1]["block_out_channels"]))
    for part, prefix in PREFIXES[kind].items():
        tensors |= original_text(states[part], prefix)
    return tensors


def networks_of(described, seed=0):
    torch.manual_seed(seed)
    networks = {}
    for part in ("text_encoder", "text_encoder_2", "unet", "vae"):
        if part in described:
            name, config = described[part]
            if part.startswith("text"):
                networks[part] = getattr(transformers, name)(transformers.CLIPTextConfig(**config))
            else:
                networks[part] = getattr(diffusers, name).from_config(config)
    return networks


def with_nine_channels(described):
    name, config = described["unet"]
    pipeline = described["pipeline"].replace("Pipeline", "InpaintPipeline")
    return {**described, "pipeline": pipeline, "unet": (name, {**config, "in_channels": 9})}


def write_checkpoint(path, kind, *, channels=4, spread=0.0, more=None):
    """Write a tiny checkpoint. Return its networks and their description."""
    described = with_nine_channels(TINY[kind]) if channels == 9 else TINY[kind]
    networks = networks_of(described)
    with torch.no_grad():  # its spread tells v from epsilon in Stable Diffusion 2
        level = networks["unet"].up_blocks[-1 if kind in ("sd15", "sd21") else 0]
        bias = level.attentions[-1].transformer_blocks[0].norm1.bias
        bias.copy_(torch.linspace(-1, 1, len(bias)) * spread * 1.7)
    states = {part: network.state_dict() for part, network in networks.items()}
    tensors = in_original_layout(states, kind, described) | (more or {})
    save_file({n: t.contiguous() for n, t in tensors.items()}, path)
    return networks, described


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.safetensors"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def smaller(monkeypatch, home):
    """Smaller models in place of the published ones, converted in this process."""
    monkeypatch.setenv("CALOTYPE_HOME", str(home))
    monkeypatch.setattr(single_file, "MODELS", {name: parts for name, parts in TINY.items() if name != "refiner"})
    monkeypatch.setattr(single_file, "REFINER", TINY["refiner"])
    monkeypatch.setattr(
        stored_step,
        "run_in_subprocess",
        lambda *_, **arguments: Outcome(value=convert_into(**arguments), peak_bytes=0),
    )


def check_weights(folder, networks):
    for part, network in networks.items():
        (file,) = (folder / part).glob("*.safetensors")
        got = {name.removeprefix("text_model."): t for name, t in load_file(file).items()}
        expected = {name.removeprefix("text_model."): t for name, t in network.state_dict().items()}
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected), part


CASES = {
    "sd15": ("sd15", 4, 0.0, "sd1", "epsilon"),
    "sd15, inpainting": ("sd15", 9, 0.0, "sd1", "epsilon"),
    "sd21, v": ("sd21", 4, 0.12, "sd2", "v_prediction"),
    "sd21, epsilon": ("sd21", 4, 0.05, "sd2", "epsilon"),
    "sdxl": ("sdxl", 4, 0.0, "sdxl", "epsilon"),
    "sdxl, inpainting": ("sdxl", 9, 0.0, "sdxl", "epsilon"),
    "refiner": ("refiner", 4, 0.0, "sdxl", "epsilon"),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_checkpoints_own(path, case):
    kind, channels, spread, family, predicts = CASES[case]
    networks, described = write_checkpoint(path, kind, channels=channels, spread=spread)
    source = read_source(path)
    check_weights(source.folder, networks)
    read = family_of(source.configs)
    assert (read.name, read.inpaints) == (family, channels == 9)
    assert source.configs["model_index"]["_class_name"] == described["pipeline"]
    assert source.configs["scheduler"]["prediction_type"] == predicts
    # Stable Diffusion 2 models that predict noise were trained at 512 px, the others at 768 px.
    assert source.configs["unet"]["sample_size"] == (16 if case == "sd21, epsilon" else 24)


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_images_match_diffusers_from_the_same_file(path, kind):
    _, described = write_checkpoint(path, kind, spread=0.12)
    cls = getattr(diffusers, described["pipeline"])
    more = {} if kind == "sdxl" else {"safety_checker": None}
    reference = cls.from_single_file(path, config=str(find(path)), local_files_only=True, dtype=torch.float32, **more)
    reference.set_progress_bar_config(disable=True)
    options = {"guidance_scale": 5.0, "height": 64, "width": 64, "output_type": "np"}
    generator = [torch.Generator().manual_seed(5)]
    expected = reference("a photo of a cat", num_inference_steps=3, generator=generator, **options).images
    got = calotype.load(path, backend="eager")("a photo of a cat", steps=3, seed=5, **options).images
    assert expected.std() > 0.01
    assert psnr(got, expected) >= 60


def test_a_checkpoint_is_converted_once_with_a_message(path, capsys, monkeypatch):
    monkeypatch.setattr(stored_step, "run_in_subprocess", run_in_subprocess)
    write_checkpoint(path, "sd21", spread=0.2, more={"model_ema.decay": torch.ones(1), "betas": torch.ones(3)})
    folder = find(path)
    message = capsys.readouterr().err
    assert "checkpoint.safetensors is Stable Diffusion 2.x" in message
    assert "it predicts v: " in message
    monkeypatch.setattr(stored_step, "run_in_subprocess", None)
    assert find(path) == folder
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "more", "metadata", "expected"),
    [
        ("Stable Diffusion 2.x", {}, {"modelspec.prediction_type": "v"}, "v_prediction"),
        ("Stable Diffusion 2.x", {"v_pred": 1}, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ("Stable Diffusion XL", {"v_pred": 1}, {}, "v_prediction"),
        ("Stable Diffusion XL", {}, {}, "epsilon"),
        ("Stable Diffusion 2.x", {}, {}, "epsilon"),
    ],
)
def test_prediction_type(name, more, metadata, expected):
    assert prediction_of(name, more, metadata)[0] == expected


def test_edm_is_refused():
    with pytest.raises(SourceError, match="EDM's noise"):
        prediction_of("Stable Diffusion XL", {"edm_mean": 1}, {})


def test_a_marker_of_zero_terminal_snr_reaches_the_scheduler(path):
    write_checkpoint(path, "sdxl", more={"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)})
    scheduler = read_source(path).configs["scheduler"]
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["rescale_betas_zero_snr"] is True


FULL = {**MODELS, "refiner": REFINER}
# Numbers of tensors of the U-Net, the autoencoder and the text encoders in the published files. Text encoders have
# a few more (buffers and a scale), which are not read.
COUNTS = {"sd15": (686, 248, 196), "sd21": (686, 248, 293), "sdxl": (1680, 248, 585), "refiner": (1220, 248, 389)}
UNREAD = {
    "sd15": ("cond_stage_model.transformer.text_model.embeddings.position_ids", "betas", "model_ema.decay"),
    "sd21": ("cond_stage_model.model.logit_scale", "alphas_cumprod"),
    "sdxl": ("conditioner.embedders.1.model.logit_scale", "denoiser.sigmas"),
    "refiner": ("conditioner.embedders.0.model.logit_scale", "denoiser.sigmas"),
}


@pytest.mark.parametrize(("kind", "channels"), [(k, c) for k in COUNTS for c in (4, 9) if k != "refiner" or c == 4])
def test_full_size_checkpoints_fit(kind, channels, monkeypatch):
    """Check every name and shape of the published files, with tensors on the meta device."""
    monkeypatch.undo()
    described = with_nine_channels(FULL[kind]) if channels == 9 else FULL[kind]
    with torch.device("meta"):
        states = {part: network.state_dict() for part, network in networks_of(described).items()}
    tensors = in_original_layout(states, kind, described)
    if kind == "sd21":  # OpenCLIP's last layer and its projection, which are not read
        last = {n: t for n, t in tensors.items() if ".resblocks.22." in n}
        tensors |= {n.replace(".22.", ".23."): t for n, t in last.items()}
        tensors["cond_stage_model.model.text_projection"] = torch.empty(1024, 1024, device="meta")
    starts = ("model.diffusion_model.", "first_stage_model.", ("cond_stage_model.", "conditioner."))
    assert tuple(sum(name.startswith(start) for name in tensors) for start in starts) == COUNTS[kind]
    tensors |= {name: torch.empty(1, device="meta") for name in UNREAD[kind]}
    header = Header(shapes={name: list(tensor.shape) for name, tensor in tensors.items()}, types={}, metadata={})
    checkpoint = single_file.identify_checkpoint(Path("x.safetensors"), header)
    assert checkpoint.described["pipeline"] == described["pipeline"]
    for part in (*checkpoint.texts, "unet", "vae"):
        class_name, config = checkpoint.described[part]
        got = convert_tensors(part, tensors, config, checkpoint.texts)
        assert shapes_of(got) == shapes_of(network_of(class_name, config).state_dict())


UNKNOWN = {
    "a LoRA": ({"lora_unet_x.lora_down.weight": 1}, "under lora_unet_x"),
    "an embedding": ({"emb_params": 1}, "a textual inversion"),
    "diffusers' LoRA": ({"unet.mid_block.x.lora_A.weight": 1}, "a LoRA"),
    "a ControlNet": ({"control_model.x": 1}, "controlnet="),
    "an autoencoder": ({"encoder.x": 1, "decoder.x": 1}, "vae="),
    "Flux": ({"model.diffusion_model.double_blocks.0.x": 1}, "a diffusion transformer"),
    "only a U-Net": ({"model.diffusion_model.x": 1}, "only a U-Net"),
    "anything": ({"layer.weight": 1}, "under layer"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_other_files_are_refused_with_their_contents(tmp_path, case):
    names, keyword = UNKNOWN[case]
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match=keyword):
        calotype.load(tmp_path / "x.safetensors")


def test_other_sizes_and_channels_are_refused(path, monkeypatch):
    write_checkpoint(path, "sd15")
    monkeypatch.setitem(single_file.MODELS, "sd15", MODELS["sd15"])
    with pytest.raises(SourceError, match="text_encoder"):
        find(path)
    more = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 7, 3, 3)}
    write_checkpoint(path, "sd15", more=more)
    with pytest.raises(SourceError, match="7 input channels"):
        find(path)


def test_the_vocabulary_matches_clip(path):
    write_checkpoint(path, "sdxl")
    folder = find(path)
    words = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    assert len(words) == 49408
    texts = ["a photo of a cat", "Ein Café, 3 naïve señores & 東京", "it's an 80's-style photograph"]
    for name, pad in (("tokenizer", 49407), ("tokenizer_2", 0)):
        reference = transformers.CLIPTokenizer.from_pretrained(folder / name)
        expected = reference(texts, padding="max_length", max_length=77).input_ids
        got = calotype.text.tokenizer.ClipTokenizer(folder / name, 77)(texts).ids[:, 0]
        np.testing.assert_array_equal(got, expected)
        # The ids of OpenAI's CLIP.
        assert got[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, pad]
