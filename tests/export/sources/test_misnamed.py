"""Paths passed as a model that are not one: the error describes them and names the argument that takes them."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import calotype
from calotype.errors import SourceError
from calotype.export.sources.source import read_source


def check_refused(model, *keywords):
    with pytest.raises(SourceError) as failed:
        calotype.load(model, backend="fake")
    assert [word for word in keywords if word not in str(failed.value)] == []


def test_a_network_inside_a_model_names_the_models_folder(demo_folder):
    for part, kind in (("unet", "UNet2DConditionModel"), ("text_encoder", "CLIPTextModel")):
        check_refused(demo_folder / part, kind, f"folder: {demo_folder}")


def test_for_a_single_network_no_argument_exists(demo_folder, tmp_path):
    shutil.copytree(demo_folder / "unet", tmp_path / "unet")
    check_refused(tmp_path / "unet", "UNet2DConditionModel", "No argument", "model_index.json")


def test_controlnets_and_autoencoders_are_named_with_their_argument(demo_folder):
    check_refused(demo_folder / "vae", "AutoencoderKL", "vae=")
    check_refused(demo_folder.parent / "demo_canny", "ControlNetModel", "controlnet=")


def test_the_argument_that_is_named_takes_the_folder(demo_folder):
    source = read_source(demo_folder, [demo_folder.parent / "demo_canny"], demo_folder / "vae")
    assert {"controlnet", "vae"} <= {*source.folders}


def test_a_lora_in_a_folder_is_named(demo_folder, tmp_path):
    shutil.copy(demo_folder / "outline.safetensors", tmp_path / "pytorch_lora_weights.safetensors")
    check_refused(tmp_path, "a LoRA", "lora=", "pytorch_lora_weights.safetensors")
    with pytest.raises(SourceError, match="lora="):
        read_source(demo_folder, [tmp_path])
    (tmp_path / "adapter_config.json").write_text("{}")
    check_refused(tmp_path, "peft", "lora=")


def test_learned_words_are_named(tmp_path):
    save_file({"<thing>": torch.zeros(2, 128)}, tmp_path / "learned_embeds.safetensors")
    for named in (tmp_path, tmp_path / "learned_embeds.safetensors"):
        check_refused(named, "a textual inversion", "textual_inversion=")


def test_a_network_in_one_file_is_named(demo_folder):
    check_refused(demo_folder / "unet" / "diffusion_pytorch_model.safetensors", "only a U-Net")
    check_refused(demo_folder / "text_encoder" / "model.safetensors", "only a text encoder")
    check_refused(demo_folder / "vae" / "diffusion_pytorch_model.safetensors", "an autoencoder", "vae=")


def test_exports_of_other_programs_are_named(demo_folder, tmp_path):
    unet = tmp_path / "unet"
    unet.mkdir()
    (unet / "model.onnx").write_bytes(b"")
    check_refused(unet / "model.onnx", "ONNX", "diffusers")
    check_refused(tmp_path, "ONNX", "diffusers")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "OnnxStableDiffusionPipeline"}))
    check_refused(tmp_path, "ONNX", "diffusers")
    copy = Path(shutil.copytree(demo_folder, tmp_path / "optimum"))  # as Optimum writes it, with diffusers' class
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / "model.onnx")
    check_refused(copy, "ONNX", "diffusers")


@pytest.mark.parametrize("config", ["{}", '{"_class_name": []}', '{"architectures": [3]}', '{"model_type": "clip"}'])
def test_odd_configs_are_errors(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    check_refused(tmp_path, str(tmp_path))


def test_a_model_without_its_index_names_the_missing_file(model_copy):
    (model_copy / "model_index.json").unlink()
    with pytest.raises(SourceError, match=re.escape("model_index.json")):
        read_source(model_copy)
