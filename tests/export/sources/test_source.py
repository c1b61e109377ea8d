"""Reading sources: refused files with the reason and the remedy, and models in unusual forms."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import calotype
from calotype.errors import SourceError
from calotype.export import prepare
from calotype.export.sources.source import find, read_source


@pytest.mark.parametrize("name", ["x.ckpt", "x.bin", "x.pt", "x.pth"])
def test_a_pickle_is_refused_and_never_opened(tmp_path, name):
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / name)
    call = r"\.from_single_file\('x\..*'\)\.save_pretrained\('x'\)"
    for named in (tmp_path / name, tmp_path):  # the file, and a folder with only this file
        with pytest.raises(SourceError, match=call):
            calotype.load(named)


def test_a_folder_whose_weights_are_pickles_is_refused(model_copy):
    (model_copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, model_copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(SourceError, match="save_pretrained"):
        calotype.load(model_copy)


def test_a_folder_around_a_checkpoint_names_the_file(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "dream.safetensors")
    with pytest.raises(SourceError, match=r"dream\.safetensors"):
        calotype.load(tmp_path)


def test_files_of_other_kinds_and_missing_files_are_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "x.safetensors").write_bytes(b"GGUF")
    for name, keyword in (
        ("x.gguf", "GGUF"),
        ("x.safetensors", "x.safetensors"),
        ("owner/x.safetensors", "owner/x.safetensors"),  # without a request to the hub
    ):
        with pytest.raises(SourceError, match=keyword):
            calotype.load(tmp_path / name if name.startswith("x") else name)


def test_all_headers_are_checked_before_the_first_file_is_hashed(model_copy, monkeypatch):
    monkeypatch.setattr("calotype.export.sources.source.file_digest", lambda path: pytest.fail("hashed"))
    (file,) = (model_copy / "vae").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SourceError, match="vae"):
        read_source(model_copy)


def test_shipped_models_are_named_by_text_or_path():
    assert find(Path("demo")) == find("demo")


def test_a_full_model_in_place_of_a_network_names_the_right_folder(demo_folder):
    for model in (demo_folder, "demo"):
        with pytest.raises(SourceError, match=str(demo_folder / "vae")) as raised:
            read_source("demo", vae=model)
        assert raised.value.path == demo_folder
        with pytest.raises(SourceError, match="no controlnet") as raised:
            read_source("demo", controlnets=[model])
        assert raised.value.path == demo_folder


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_padding_token_is_part_of_the_fingerprint(model_copy, name):
    file, before = model_copy / "tokenizer" / name, read_source(model_copy).fingerprint
    file.write_text(json.dumps({"pad_token": "!"}))
    assert read_source(model_copy).fingerprint != before


def test_weights_in_only_fp16_are_read(model_copy, demo_folder):
    """Some repositories hold only the fp16 variant."""
    for part in ("unet", "text_encoder"):
        (file,) = (model_copy / part).glob("*.safetensors")
        halves = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halves, file.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        file.unlink()
    source = read_source(model_copy)
    assert source.weights_count("unet") == read_source(demo_folder).weights_count("unet")
    options = {"steps": 2, "seed": 1, "output_type": "latent"}
    got, expected = (
        calotype.load(f, backend="eager")("a red ring", **options).images for f in (model_copy, demo_folder)
    )
    assert (got == expected).all()  # the demonstration model's weights are fp16 as well


def test_a_dreambooth_folder_is_a_model(demo_folder, tmp_path):
    """diffusers' training script leaves optimizer states, logs and training checkpoints in the folder."""
    folder = shutil.copytree(demo_folder, tmp_path / "dreambooth")
    (folder / "checkpoint-500" / "unet").mkdir(parents=True)
    (folder / "checkpoint-500" / "optimizer.bin").write_bytes(b"pickle")
    (folder / "logs").mkdir()
    assert prepare(folder, forms=()).fingerprint == prepare("demo", forms=()).fingerprint
