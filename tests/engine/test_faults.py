"""Missing, damaged or unsafe models raise one plain error: no traceback of a library, no wrong image."""

import json
import pickle
import struct

import pytest
from safetensors.numpy import load_file, save_file

import calotype
from calotype.errors import CalotypeError, SamplerError, SourceError

UNET = "unet/diffusion_pytorch_model.safetensors"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble_header(path):
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def huge_header(path):
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


def pickled(path):
    path.write_bytes(pickle.dumps({"weights": [1.0]}))


def with_header(text):
    """Return a damage that replaces the header with this text."""

    def damage(path):
        path.write_bytes(struct.pack("<Q", len(text)) + text.encode())

    damage.__name__ = f"with_header {text[:20]}"
    return damage


HEADERS = ['{"a":3}', '{"a":{}}', '{"a":{"data_offsets":["x","y"]}}', "[" * 5000, "[]", "3"]


@pytest.mark.parametrize("damage", [truncate, garble_header, empty, huge_header, pickled, *map(with_header, HEADERS)])
@pytest.mark.parametrize("file", [UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_damaged_weights(model_copy, file, damage):
    damage(model_copy / file)
    with pytest.raises(SourceError, match="safetensors"):
        calotype.load(model_copy, backend="eager")


def test_a_pickle_in_place_of_safetensors(model_copy):
    (model_copy / UNET).unlink()
    (model_copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(SourceError, match="pickle"):
        calotype.load(model_copy)


@pytest.mark.parametrize(
    "path",
    [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        UNET,
    ],
)
def test_missing_files_are_named(model_copy, path):
    (model_copy / path).unlink()
    with pytest.raises(SourceError, match=path.split("/")[-1]):
        calotype.load(model_copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_configs_that_are_not_a_json_object(model_copy, text):
    (model_copy / "unet" / "config.json").write_text(text)
    with pytest.raises(SourceError, match=r"unet.config\.json"):
        calotype.load(model_copy)


@pytest.mark.parametrize(
    ("config", "field"), [("unet", "cross_attention_dim"), ("vae", "latent_channels"), ("text_encoder", "hidden_size")]
)
def test_configs_that_lack_a_field(model_copy, config, field):
    path = model_copy / config / "config.json"
    data = json.loads(path.read_text())
    del data[field]
    path.write_text(json.dumps(data))
    with pytest.raises(SourceError, match=field):
        calotype.load(model_copy)


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("unet/config.json", {"attention_head_dim": [2]}),
        ("unet/config.json", {"sample_size": float("inf")}),
        ("unet/config.json", {"sample_size": None}),
        ("unet/config.json", {"sample_size": 0}),
        ("unet/config.json", {"down_block_types": 3}),
        ("vae/config.json", {"block_out_channels": []}),
        ("vae/config.json", {"scaling_factor": "x"}),
        ("vae/config.json", {"scaling_factor": None}),
        ("vae/config.json", {"scaling_factor": 0}),
        ("text_encoder/config.json", {"num_hidden_layers": "many"}),
    ],
)
def test_invalid_configs(model_copy, path, changes):
    edit(model_copy / path, **changes)
    (field,) = changes
    with pytest.raises(SourceError, match=field) as raised:
        calotype.load(model_copy, backend="fake")
    assert raised.value.field == field
    assert str(raised.value.path).endswith(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "NoSuchScheduler"},
        {"_class_name": 3},
        {"beta_start": "much"},
        {"beta_schedule": "straight"},
        {"num_train_timesteps": -1},
        {"algorithm_type": "guess"},
    ],
)
def test_invalid_scheduler_configs(model_copy, changes):
    edit(model_copy / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises((SamplerError, SourceError)) as error:
        calotype.load(model_copy, backend="fake")("x", steps=2, seed=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("weight_map", [[], {}, {"a": 3}, None, {"a": "../../nothing.safetensors"}])
def test_invalid_shard_lists(model_copy, weight_map):
    (model_copy / UNET).rename(model_copy / "unet" / "elsewhere")
    (model_copy / f"{UNET}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(SourceError):
        calotype.load(model_copy, backend="fake")


def test_a_config_smaller_than_its_weights_raises(model_copy):
    edit(model_copy / "text_encoder" / "config.json", num_hidden_layers=2)
    with pytest.raises(SourceError, match="num_hidden_layers"):
        calotype.load(model_copy, backend="eager")


def test_missing_weights_are_not_filled_with_noise(model_copy):
    weights = load_file(model_copy / UNET)
    weights.pop(sorted(weights)[0])
    save_file(weights, model_copy / UNET)
    with pytest.raises(CalotypeError, match="config"):
        calotype.load(model_copy, backend="eager")


def test_weights_that_are_not_finite_raise(model_copy):
    weights = load_file(model_copy / UNET)
    for name in weights:
        weights[name] = weights[name] * float("nan")
    save_file(weights, model_copy / UNET)
    with pytest.raises(CalotypeError, match="not finite"):
        calotype.load(model_copy, backend="eager")("x", steps=1)


def test_a_tokenizer_without_files(model_copy):
    (model_copy / "tokenizer" / "merges.txt").unlink()
    (model_copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match="vocab"):
        calotype.load(model_copy)


def test_an_unsupported_pipeline_is_named(model_copy):
    index = json.loads((model_copy / "model_index.json").read_text())
    (model_copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline", "unet": None}))
    with pytest.raises(SourceError, match="FluxPipeline"):
        calotype.load(model_copy)


def test_a_missing_model(tmp_path):
    with pytest.raises(SourceError, match="model_index"):
        calotype.load(tmp_path)
    with pytest.raises(SourceError, match="nowhere"):
        calotype.load(tmp_path / "nowhere")
    (tmp_path / "file.safetensors").write_bytes(b"x")
    with pytest.raises(SourceError, match="safetensors"):
        calotype.load(tmp_path / "file.safetensors")


def test_a_hub_id_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match=r"hub|offline"):
        calotype.load("nobody/no-such-model")


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"version": 2}', '{"version": 1, "profile": {"batch": 3}}', '{"version": 1, "components": []}'],
)
def test_a_broken_plan(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(SourceError, match="plan"):
        calotype.load(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "~no-such-user/model", "a\0b", "../..//", "org/name/too/many", ""])
def test_impossible_file_names(name):
    with pytest.raises(SourceError):
        calotype.load(name)
