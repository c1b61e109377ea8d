"""transformers and diffusers open a folder of weights only if they open no file outside of it."""

import json
import os

import pytest

from calotype.backends.torch.modules import load_module
from calotype.errors import SourceError
from calotype.export.sources.weight_files import weight_files
from calotype.weights.folder import check_weights_folder


@pytest.fixture
def sharded(model_copy):
    """The text encoder with its weights in one shard."""
    folder = model_copy / "text_encoder"
    os.rename(folder / "model.safetensors", folder / "model-1.safetensors")
    write_index(folder, "model-1.safetensors")
    return folder


def write_index(folder, name):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))


def test_shards_of_the_same_folder_are_read(sharded):
    check_weights_folder(sharded)
    assert weight_files(sharded, "model") == [sharded / "model-1.safetensors"]


@pytest.mark.parametrize("name", ["../{}", "{root}/{}", "x/../../{}", "..\\{}", "model-1.bin", "", 3, None, ["a"]])
def test_shards_elsewhere_are_refused(name, sharded):
    os.rename(sharded / "model-1.safetensors", sharded.parent / "model-1.safetensors")
    shard = name.format("model-1.safetensors", root=sharded.parent) if isinstance(name, str) else name
    write_index(sharded, shard)
    for read in (lambda: weight_files(sharded, "model"), lambda: load_module("text_encoder", sharded)):
        with pytest.raises(SourceError, match="shard"):
            read()


HUB_CODE = [{"attn_implementation": "who/kernels"}, {"text_config": {"_attn_implementation": "a/b:c"}}]


@pytest.mark.parametrize("change", HUB_CODE)
def test_code_of_the_hub_is_refused(change, model_copy):
    config = model_copy / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(SourceError, match="_implementation"):
        load_module("text_encoder", config.parent)


def test_an_adapter_that_leads_to_another_model_is_refused(model_copy):
    folder = model_copy / "text_encoder"
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "who/ever"}))
    with pytest.raises(SourceError, match="adapter"):
        load_module("text_encoder", folder)
