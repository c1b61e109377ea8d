"""Hostile configs: endless or huge values are refused before anything of their size is built."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import calotype
from calotype.backends.torch.modules import load_module
from calotype.errors import SourceError
from calotype.export.sources.source import read_source
from calotype.plan.family import family_of

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
FILES = [
    "model_index.json",
    "unet/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/added_tokens.json",
    "unet/diffusion_pytorch_model.safetensors.index.json",
]


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder):
    for lone in ("tokenizer/tokenizer.json", "outline.safetensors"):
        (folder / lone).unlink(missing_ok=True)
    return calotype.load(folder, backend="fake")


@pytest.mark.parametrize("name", FILES)
def test_deeply_nested_json_is_refused_with_its_file(model_copy, name):
    if name.endswith("index.json") and name.startswith("unet"):
        (model_copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (model_copy / name).write_text(DEEP)
    with pytest.raises(SourceError, match=name):
        load(model_copy)


@pytest.mark.parametrize("name", [*FILES[:6], "tokenizer/merges.txt"])
def test_a_pipe_in_place_of_a_file_does_not_hang(model_copy, name):
    (model_copy / name).unlink()
    os.mkfifo(model_copy / name)
    with pytest.raises(SourceError, match="vocab|" + name.split("/")[-1]):
        load(model_copy)


def test_a_pipe_in_place_of_a_shard_does_not_hang(model_copy):
    unet = model_copy / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    os.mkfifo(unet / "x.safetensors")
    index = {"weight_map": {"conv_in.weight": "x.safetensors"}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="not a regular file"):
        read_source(model_copy)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
def test_huge_json_is_not_read(model_copy, name):
    with (model_copy / name).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(SourceError, match=name):
        read_source(model_copy)


HUGE = [
    ("text_encoder", {"num_hidden_layers": 10**7}),
    ("text_encoder", {"vocab_size": 10**9}),
    ("text_encoder", {"max_position_embeddings": 10**9}),
    ("text_encoder", {"intermediate_size": 10**9}),
    ("unet", {"layers_per_block": 10**9}),
    ("unet", {"transformer_layers_per_block": 10**9}),
    ("unet", {"block_out_channels": [10**9, 10**9]}),
    ("unet", {"block_out_channels": [64] * 10**5}),
    ("unet", {"sample_size": 2**40}),
    ("unet", {"downsample_padding": 10**5}),
    ("vae", {"layers_per_block": 10**9}),
    ("vae", {"latent_channels": 10**9}),
]


@pytest.mark.parametrize(("part", "changes"), HUGE, ids=lambda value: f"{value!s:.50}")
def test_a_config_larger_than_its_weights_is_refused_with_file_and_field(model_copy, part, changes):
    edit(model_copy / part / "config.json", **changes)
    (field,) = changes
    with pytest.raises(SourceError, match=field) as raised:
        family_of(read_source(model_copy).configs)
    assert raised.value.field == field
    assert str(raised.value.path).endswith(f"{part}/config.json")


@pytest.mark.parametrize(("part", "changes"), [HUGE[0], HUGE[4], HUGE[10]], ids=["text", "unet", "vae"])
def test_load_module_does_not_build_it_either(model_copy, part, changes):
    """Plans load weights without `read_source`."""
    edit(model_copy / part / "config.json", **changes)
    with pytest.raises(SourceError, match=r"config\.json"):
        load_module("vae_decoder" if part == "vae" else part, model_copy / part)


def test_a_huge_network_is_refused_before_memory_is_allocated(model_copy):
    edit(model_copy / "unet" / "config.json", conv_in_kernel=100_001)  # 10 TB
    with pytest.raises(SourceError, match="config"):
        load_module("unet", model_copy / "unet")


@pytest.mark.parametrize("field", ["num_train_timesteps", "solver_order", "steps_offset"])
def test_huge_schedules_are_refused(model_copy, field):
    edit(model_copy / "scheduler" / "scheduler_config.json", **{field: 10**12})
    with pytest.raises(SourceError) as raised:
        calotype.load(model_copy, backend="fake")
    assert raised.value.data == {"path": Path("scheduler/scheduler_config.json"), "field": field}


def test_the_command_ends_with_an_error_in_little_memory(model_copy):
    edit(model_copy / "text_encoder" / "config.json", num_hidden_layers=10**7)
    command = [sys.executable, "-P", "-m", "calotype", "generate", "x", "--model", str(model_copy), "--backend", "fake"]
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **limit)
    assert done.returncode == 1
    assert "num_hidden_layers" in done.stderr
    assert "Traceback" not in done.stderr
