"""Types of stored weights: floats are read, and quantized weights are refused with their kind."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import calotype
from calotype.errors import SourceError
from calotype.export.sources.single_file import open_checkpoint
from calotype.export.sources.source import read_source
from calotype.export.sources.textual_inversion import read_embedding
from calotype.weights.types import check_types

INTEGERS = {torch.int8: "I8", torch.uint8: "U8", torch.int64: "I64"}


def rewrite(folder, change):
    (file,) = folder.glob("*.safetensors")
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_in_a_folder_are_refused(model_copy, part, kind):
    """A library would silently convert them to floats, and the model would generate noise."""
    rewrite(model_copy / part, lambda tensors: {n: (t * 30).to(kind) for n, t in tensors.items()})
    with pytest.raises(SourceError, match=f"{part}.*{INTEGERS[kind]}"):
        calotype.load(model_copy, backend="fake")


def test_one_integer_weight_is_enough(model_copy):
    rewrite(model_copy / "unet", lambda tensors: tensors | {"conv_in.weight": tensors["conv_in.weight"].to(torch.int8)})
    with pytest.raises(SourceError, match=r"conv_in\.weight"):
        read_source(model_copy)


def test_position_ids_may_be_integers(model_copy):
    ids = {"embeddings.position_ids": torch.arange(77)[None]}
    rewrite(model_copy / "text_encoder", lambda tensors: tensors | ids)
    read_source(model_copy)


def test_integers_of_a_vae_are_refused_in_a_folder_and_in_one_file(demo_folder, tmp_path):
    vae = shutil.copytree(demo_folder / "vae", tmp_path / "vae")
    rewrite(vae, lambda tensors: {n: (t * 30).to(torch.int8) for n, t in tensors.items()})
    file = shutil.copy(vae / "diffusion_pytorch_model.safetensors", tmp_path / "vae.safetensors")
    for path in (vae, file):
        with pytest.raises(SourceError, match="I8"):
            read_source(demo_folder, vae=path)


def test_integers_of_a_textual_inversion_are_refused(demo_folder, tmp_path):
    save_file({"<x>": torch.ones(1, 128, dtype=torch.int8)}, tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match="I8"):
        read_embedding(tmp_path / "x.safetensors", read_source(demo_folder))


def test_integers_of_a_checkpoint_are_refused_before_its_conversion(tmp_path):
    names = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x", "cond_stage_model.transformer.x")
    tensors = {name: torch.zeros(4, 4, 3, 3) for name in names}
    tensors[names[0]] = tensors[names[0]].to(torch.int8)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match="I8"):
        open_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_floats_of_any_size_keep_their_values(demo_folder, tmp_path, kind):
    images = []
    for name, change in (("stored", lambda t: t.to(kind)), ("widened", lambda t: t.to(kind).float())):
        folder = shutil.copytree(demo_folder, tmp_path / name)
        for part in ("unet", "text_encoder"):
            rewrite(folder / part, lambda tensors, change=change: {n: change(t) for n, t in tensors.items()})
        pipe = calotype.load(folder, backend="eager")
        images.append(pipe("a red ring", steps=1, seed=1, output_type="latent").images)
    assert (images[0] == images[1]).all()


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("down_blocks.0.resnets.0.conv1.SCB", "bitsandbytes"),
        ("x.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("x.weight.absmax", "bitsandbytes"),
        ("scaled_fp8", "scaled fp8"),
        ("x.scale_weight", "scaled fp8"),
        ("x.qweight", "GPTQ"),
    ],
)
def test_scales_identify_the_quantizer(tmp_path, name, tool):
    with pytest.raises(SourceError, match=tool):
        check_types(tmp_path, {"x.weight": "F8_E4M3", name: "F32"})


def test_a_quantized_config_is_refused(model_copy):
    config = model_copy / "unet" / "config.json"
    settings = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    with pytest.raises(SourceError, match="bitsandbytes") as raised:
        read_source(model_copy)
    assert raised.value.data == {"path": config, "field": "quantization_config"}
