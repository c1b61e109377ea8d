"""A digest of the values of weights: of files in any float type, and of the same tensors elsewhere."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from calotype.weights.content import content_digest, content_digest_of_files
from calotype.weights.safetensors import TensorFile

WEIGHTS = {"text_model.a": torch.arange(6).reshape(2, 3) / 8, "b": torch.tensor(-0.5), "c": torch.empty(0, 3)}


def digest_of_file(tensors, path) -> str:
    save_file(tensors, path)
    return content_digest_of_files([TensorFile(path)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_types_order_and_integers_do_not_matter(dtype, tmp_path):
    stored = {name: WEIGHTS[name].to(dtype) for name in reversed(WEIGHTS)} | {"position_ids": torch.arange(3)}
    arrays = {name.removeprefix("text_model."): np.float32(tensor.numpy()) for name, tensor in WEIGHTS.items()}
    assert digest_of_file(stored, tmp_path / "file") == content_digest(arrays, arrays.__getitem__)


@pytest.mark.parametrize("change", [{"b": torch.tensor(-0.25)}, {"d": torch.zeros(1)}, {"c": torch.empty(0, 4)}])
def test_values_names_and_shapes_matter(change, tmp_path):
    changed = digest_of_file(WEIGHTS | change, tmp_path / "changed")
    assert changed != digest_of_file(WEIGHTS, tmp_path / "file")


def test_files_of_one_network_are_one(tmp_path):
    for name, tensor in WEIGHTS.items():
        save_file({name: tensor}, tmp_path / name)
    shards = content_digest_of_files(TensorFile(tmp_path / name) for name in WEIGHTS)
    assert shards == digest_of_file(WEIGHTS, tmp_path / "file")
