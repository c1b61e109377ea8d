"""LoRA files that are refused: damaged, too large, of another model, or with settings that have no meaning here."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from calotype.errors import SourceError
from calotype.export.sources.lora import fuse
from calotype.export.sources.source import read_source
from calotype.export.sources.weight_files import check_safetensors
from calotype.lora.lora import parse_loras, weight_deltas_of
from calotype.weights.safetensors import TensorFile
from tests.helpers.loras import delta_in, pair
from tests.helpers.tiny_models import save_lora


@pytest.mark.parametrize("part", ["lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "metadata"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_with_their_layer(tmp_path, part, number):
    tensors = {"lora_down.weight": torch.ones(2, 8, 1, 1), "lora_up.weight": torch.ones(6, 2, 1, 1)}
    tensors |= {"lora_mid.weight": torch.ones(2, 2, 3, 3)}
    metadata = {}
    if part == "metadata":
        metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": number})}
    else:
        tensors[part] = torch.full_like(tensors.get(part, torch.tensor(1.0)), number)
    with pytest.raises(SourceError, match="not finite") as raised:
        delta_in(tmp_path / "x.safetensors", pair(**tensors), (6, 8, 3, 3), metadata)
    assert raised.value.data == {"path": tmp_path / "x.safetensors", "field": "unet.conv_in"}


INVALID = {
    "no rank": (pair(rank=0), {}, r"lora_down\.weight.*\[0, 8\]"),
    "a kernel between, of a linear layer": (
        pair(**{"lora_mid.weight": torch.ones(2, 2)}),
        {},
        r"lora_down\.weight.*\[2, 8\]",
    ),
    "no alpha": (pair(alpha=torch.ones(0)), {}, r"alpha.*\[0\]"),
    "a word": (pair(), {"unet.lora_alpha": "x"}, "lora_adapter_metadata"),
    "a list": (pair(), {"unet.alpha_pattern": [1]}, "lora_adapter_metadata"),
    "a pattern without end": (pair(), {"unet.alpha_pattern": {"(.*)*(.*)*x": 1}}, "lora_adapter_metadata"),
    "70 axes": (
        pair(**{"lora_up.weight": torch.ones(6, 2, *[1] * 60)}),
        {},
        "x.safetensors",
    ),
    "no pattern": (pair(), {"unet.alpha_pattern": {"(": 1}}, "lora_adapter_metadata"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_files_are_refused(tmp_path, case):
    tensors, settings, keyword = INVALID[case]
    with pytest.raises(SourceError, match=keyword):
        delta_in(tmp_path / "x.safetensors", tensors, metadata={"lora_adapter_metadata": json.dumps(settings)})


@pytest.mark.parametrize("metadata", [b"null", b'["x"]', b'"x"', b'{"lora_adapter_metadata":{"unet.lora_alpha":2}}'])
def test_metadata_other_than_text_is_refused(tmp_path, metadata):
    """null means no metadata."""
    path = tmp_path / "x.safetensors"
    save_file(pair(), path, {"a": "b"})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'{"a":"b"}', metadata)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    if metadata == b"null":
        assert weight_deltas_of(parse_loras(path), {"unet": {"conv_in": (6, 8)}})
        assert check_safetensors(path).metadata == {}
        return
    with pytest.raises(SourceError, match=r"x\.safetensors"):
        weight_deltas_of(parse_loras(path), {"unet": {"conv_in": (6, 8)}})


def sparse(path, entries):
    """Write a sparse file with this header and the length that it declares."""
    header = json.dumps({name: {"dtype": "F32", **entry} for name, entry in entries.items()}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + max(entry["data_offsets"][1] for entry in entries.values()))


_WIDE = 64 << 28
TOO_LARGE = {
    "no place": {"unet.x.lora_A.weight": {"shape": [_WIDE], "data_offsets": [0, 4 * _WIDE]}},
    "a rank": {
        "unet.conv_in.lora_A.weight": {"shape": [1 << 28, 8], "data_offsets": [0, 1 << 33]},
        "unet.conv_in.lora_B.weight": {"shape": [6, 1 << 28], "data_offsets": [1 << 33, 14 << 30]},
    },
    "a hole": {"unet.conv_in.lora_A.weight": {"shape": [2, 8], "data_offsets": [64 << 30, (64 << 30) + 64]}},
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_a_file_that_does_not_fit_is_not_hashed(tmp_path, monkeypatch, case):
    monkeypatch.setattr("calotype.lora.lora.file_digest", lambda path: pytest.fail("hashed"))
    sparse(tmp_path / "x.safetensors", TOO_LARGE[case])
    with pytest.raises(SourceError, match=r"x\.safetensors"):
        weight_deltas_of(parse_loras(tmp_path / "x.safetensors"), {"unet": {"conv_in": (6, 8)}})


def test_a_file_that_does_not_fit_is_not_hashed_for_a_build(sd21_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("calotype.lora.lora.file_digest", lambda path: pytest.fail("hashed"))
    monkeypatch.setattr("calotype.export.sources.lora.run_in_subprocess", lambda *_, **__: pytest.fail("fused"))
    sparse(tmp_path / "x.safetensors", TOO_LARGE["no place"])
    with pytest.raises(SourceError, match=r"x\.safetensors"):
        fuse(read_source(sd21_folder), [tmp_path / "x.safetensors"])


def test_two_names_of_one_tensor_are_refused(tmp_path):
    twin = {"unet.conv_in.lora_A.weight": torch.zeros(2, 8)}
    with pytest.raises(SourceError, match=r"lora_A\.weight"):
        delta_in(tmp_path / "x.safetensors", pair() | twin)


def test_products_that_are_not_finite_are_refused(tmp_path):
    large = {f"lora_{part}.weight": torch.full(shape, 1e30) for part, shape in (("down", (2, 8)), ("up", (6, 2)))}
    with pytest.raises(SourceError, match="finite"):
        delta_in(tmp_path / "x.safetensors", pair(**large))


def layer_of(folder, *, rank=2, width=None, name="down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"):
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    out, into = weights["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"].shape
    a, b = torch.ones(rank, width or into), torch.ones(out, rank)
    return {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}


FLAT = "lora_unet_conv_in"


def flat(**tensors):
    return {f"{FLAT}.{part}": tensor for part, tensor in tensors.items()}


def norms_of(folder, part, count):
    stem = next(iter(layer_of(folder))).removesuffix(".lora_A.weight")
    return {f"{stem}.{part}": torch.ones(count)}


def loha_of(folder, *, rank=2, into=36):
    """A LoHa for conv_in, of which the weight is [32, 4, 3, 3]."""
    factors = {"a": torch.ones(32, rank), "b": torch.ones(rank, into)}
    return flat(**{f"hada_w{i}_{name}": factors[name].clone() for i in (1, 2) for name in factors})


MISFITS = {
    "a shape": (lambda f: layer_of(f, width=77), r"to_q\.lora_A\.weight.*\[2, 77\].*\[64, 64\]"),
    "a rank": (
        lambda f: layer_of(f) | dict([list(layer_of(f, rank=3).items())[1]]),
        "lora_A.weight",
    ),
    "a layer": (
        lambda f: layer_of(f) | layer_of(f, name="down_blocks.9.to_q"),
        "unet.down_blocks.9.to_q.lora_A",
    ),
    "no partner": (lambda f: dict([next(iter(layer_of(f).items()))]), "to_q.lora_A.weight"),
    "a prefix": (
        lambda f: layer_of(f) | {f"x.{k}": t for k, t in layer_of(f).items()},
        "x.unet",
    ),
    "no LoRA": (lambda f: {"conv_in.weight": torch.ones(2, 2)}, "conv_in.weight"),
    "kohya's": (lambda f: {"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, "lora_unet_x.lora_down"),
    "a second encoder": (
        lambda f: {"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(1)},
        "lora_te2_text_model",
    ),
    "norms of a DoRA": (lambda f: layer_of(f) | norms_of(f, "dora_scale", 3), "dora_scale"),
    "norms without a LoRA": (lambda f: norms_of(f, "lora_magnitude_vector", 64), "lora_magnitude_vector"),
    "a quarter of a LoHa": (lambda f: {"lora_unet_conv_in.hada_w1_a": torch.ones(2)}, "hada_w1_a"),
    "a LoHa with half a core": (lambda f: loha_of(f) | {f"{FLAT}.hada_t1": torch.ones(2, 2, 3, 3)}, "hada_"),
    "a LoHa with a LoRA": (
        lambda f: (
            loha_of(f) | {f"{FLAT}.lora_up.weight": torch.ones(2, 2), f"{FLAT}.lora_down.weight": torch.ones(2, 2)}
        ),
        "conv_in",
    ),
    "a shape of a LoHa": (lambda f: loha_of(f, into=35), "hada_w1"),
    "no rank of a LoHa": (lambda f: loha_of(f, rank=0), "hada_w1"),
    "sides of a LoKr": (lambda f: flat(lokr_w1=torch.ones(4, 4), lokr_w2=torch.ones(5, 4, 3, 3)), "lokr_w2"),
    "a LoKr of numbers": (lambda f: flat(lokr_w1=torch.ones(()), lokr_w2=torch.ones(())), "lokr_w1"),
    "blocks of an OFT": (lambda f: flat(oft_blocks=torch.ones(3, 4, 4)), "oft_blocks"),
    "stages of a BOFT": (lambda f: flat(oft_blocks=torch.ones(9, 8, 4, 4)), "oft_blocks"),
    "a rescaling without a rotation": (lambda f: flat(rescale=torch.ones(32, 1, 1, 1)), "rescale"),
    "factors of an IA3": (lambda f: flat(weight=torch.ones(32), on_input=torch.tensor(1)), r"\.weight has 32"),
    "half an IA3": (lambda f: flat(weight=torch.ones(32)), "conv_in.weight"),
    "a full difference": (lambda f: flat(diff=torch.ones(32, 4)), "diff"),
    "a GLoRA": (
        lambda f: flat(**{f"{name}.weight": torch.ones(4, 4) for name in ("a1", "a2", "b1", "b2")}),
        r"b1\.weight",
    ),
    "a T-LoRA": (lambda f: flat(lambda_layer=torch.ones(1, 4)), "T-LoRA"),
    "normalization": (lambda f: {"lora_unet_conv_norm_out.w_norm": torch.ones(32)}, "normalization"),
    "biases": (lambda f: layer_of(f) | {"unet.x.lora_B.bias": torch.ones(2)}, "biases"),
    "nothing": (lambda f: {}, "x.safetensors"),
    "SDXL": (
        lambda f: layer_of(f, width=2048, name="down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"),
        "Stable Diffusion XL",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_files_that_do_not_fit_are_refused(eager, sd21_folder, tmp_path, case):
    tensors_for, keyword = MISFITS[case]
    save_file(tensors_for(sd21_folder), tmp_path / "x.safetensors")
    for weight in (1, 0):  # a file with weight 0 has to fit as well
        with pytest.raises(SourceError, match=keyword):
            eager.set_lora((tmp_path / "x.safetensors", weight))
    assert eager.loras == ()


@pytest.mark.usefixtures("fuse_in_this_process")
def test_a_lora_of_another_family_is_refused(eager, sdxl_folder, tmp_path):
    path = save_lora(sdxl_folder, tmp_path / "x.safetensors", ["text_encoder_2"], "kohya")
    with pytest.raises(SourceError, match="lora_te2"):
        eager.set_lora(path)
    with pytest.raises(SourceError, match="lora_te2"):
        fuse(read_source(eager.plan.model), [path])


def test_unsupported_peft_settings_are_refused(eager, sd21_folder, tmp_path):
    path = save_lora(sd21_folder, tmp_path / "x.safetensors")
    tensors = load_file(path)
    for name in ("unet.lora_bias", "lora_bias"):
        save_file(tensors, path, {"lora_adapter_metadata": json.dumps({name: True})})
        with pytest.raises(SourceError, match="lora_bias"):
            eager.set_lora(path)
    for text in ("[", "[" * 5000):
        save_file(tensors, path, {"lora_adapter_metadata": text})
        with pytest.raises(SourceError, match="JSON"):
            eager.set_lora(path)


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
def test_tensors_are_read_as_float32(tmp_path, kind):
    tensors = {"a": torch.randn(3, 5).to(getattr(torch, kind)), "b": torch.randn(2, 1, 4).to(getattr(torch, kind))}
    save_file(tensors | {"empty": torch.zeros(0, 2)}, tmp_path / "x.safetensors", {"key": "value"})
    file = TensorFile(tmp_path / "x.safetensors")
    assert file.metadata == {"key": "value"}
    assert set(file) == {"a", "b", "empty"}
    for name, tensor in tensors.items():
        assert file.shape(name) == tuple(tensor.shape)
        np.testing.assert_array_equal(file[name], tensor.float().numpy())


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3, 5), "ids": torch.ones(3, dtype=torch.int64)}, path)
    with pytest.raises(SourceError, match="I64"):
        _ = TensorFile(path)["ids"]
    data = path.read_bytes()
    for cut in (b"", data[:5], data[:40], data[:-3], data + b"x", data.replace(b"[3,5]", b"[3,6]"), os.urandom(99)):
        path.write_bytes(cut)
        with pytest.raises(SourceError, match=r"x\.safetensors"):
            TensorFile(path)
