"""Folders and files that are not models, given as one: the error says what they hold and which argument takes them."""

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


def refused(model, *said):
    with pytest.raises(SourceError) as told:
        calotype.load(model, backend="fake")
    assert [word for word in said if word not in str(told.value)] == []


def test_a_network_beside_its_model_names_the_models_folder(demo_folder):
    for part, kind in (("unet", "UNet2DConditionModel"), ("text_encoder", "CLIPTextModel")):
        refused(demo_folder / part, kind, f"name the model's folder: {demo_folder}")


def test_a_network_alone_says_that_no_argument_takes_it(demo_folder, tmp_path):
    shutil.copytree(demo_folder / "unet", tmp_path / "unet")
    refused(tmp_path / "unet", "UNet2DConditionModel", "no argument takes it", "model_index.json")


def test_what_goes_beside_a_model_is_named_with_its_argument(demo_folder):
    refused(demo_folder / "vae", "AutoencoderKL", "vae=")
    refused(demo_folder.parent / "demo_canny", "ControlNetModel", "controlnet=")


def test_the_argument_that_is_named_takes_the_folder(demo_folder):
    source = read_source(demo_folder, [demo_folder.parent / "demo_canny"], demo_folder / "vae")
    assert {"controlnet", "vae"} <= {*source.folders}


def test_a_lora_in_a_folder_is_named(demo_folder, tmp_path):
    shutil.copy(demo_folder / "outline.safetensors", tmp_path / "pytorch_lora_weights.safetensors")
    refused(tmp_path, "a LoRA", "lora=", "pytorch_lora_weights.safetensors")
    with pytest.raises(SourceError, match="lora="):
        read_source(demo_folder, [tmp_path])
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "peft", "lora=")


def test_learned_words_are_named(tmp_path):
    save_file({"<thing>": torch.zeros(2, 128)}, tmp_path / "learned_embeds.safetensors")
    for named in (tmp_path, tmp_path / "learned_embeds.safetensors"):
        refused(named, "a textual inversion", "textual_inversion=")


def test_a_network_in_one_file_is_named(demo_folder):
    refused(demo_folder / "unet" / "diffusion_pytorch_model.safetensors", "a U-Net alone")
    refused(demo_folder / "text_encoder" / "model.safetensors", "a text encoder alone")
    refused(demo_folder / "vae" / "diffusion_pytorch_model.safetensors", "an autoencoder", "vae=")


def test_exports_of_other_programs_are_named(demo_folder, tmp_path):
    unet = tmp_path / "unet"
    unet.mkdir()
    (unet / "model.onnx").write_bytes(b"")
    refused(unet / "model.onnx", "ONNX", "diffusers")
    refused(tmp_path, "ONNX", "diffusers")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "OnnxStableDiffusionPipeline"}))
    refused(tmp_path, "ONNX", "diffusers")
    copy = Path(shutil.copytree(demo_folder, tmp_path / "optimum"))  # as Optimum leaves one: diffusers' class
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / "model.onnx")
    refused(copy, "ONNX", "diffusers")


@pytest.mark.parametrize("config", ["{}", '{"_class_name": []}', '{"architectures": [3]}', '{"model_type": "clip"}'])
def test_odd_configs_are_no_surprise(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    refused(tmp_path, str(tmp_path))


def test_a_model_without_its_index_says_which_file_is_missing(model_copy):
    (model_copy / "model_index.json").unlink()
    with pytest.raises(SourceError, match=re.escape("model_index.json")):
        read_source(model_copy)
