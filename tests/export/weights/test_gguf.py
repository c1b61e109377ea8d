"""Weights in GGUF: the dequantized tensors of the package gguf, number for number."""

import struct
import sys

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

import calotype
from calotype.errors import SourceError
from calotype.export.sources import single_file
from calotype.export.sources.gguf_file import GgufFile
from calotype.export.sources.source import find, read_source
from tests.export.sources.test_single_file import TINY, networks_of
from tests.helpers.original_layout import original_text, original_unet, original_vae

TYPES = gguf.GGMLQuantizationType
PACKED = ("F16", "F32", "BF16", "Q8_0", "Q4_0", "Q4_K")


def packed(array, kind, draw):
    """Return the bytes of an array in this type. gguf does not write Q4_K: its blocks are random."""
    if kind != "Q4_K":
        return quantize(array, TYPES[kind])
    blocks = draw.integers(0, 256, (len(array), array.shape[-1] // 256, 144), dtype=np.uint8)
    blocks[..., :4] = np.full((*blocks.shape[:-1], 2), 1e-3, np.float16).view(np.uint8)
    return blocks.reshape(len(array), -1)


def write_gguf(path, tensors, kind, *, rearranged=False):
    """Write tensors in the type, or in F16 where it does not fit. Return what gguf dequantizes.

    `rearranged` stores rows of 256 values, as ComfyUI-GGUF does.
    """
    writer, draw, expected = gguf.GGUFWriter(path, "sd1"), np.random.default_rng(0), {}
    block = gguf.GGML_QUANT_SIZES[TYPES[kind]][0]
    for name, tensor in tensors.items():
        array = tensor.detach().float().numpy()
        rows = array
        if rearranged and array.ndim > 1 and array.size % 256 == 0:
            rows = array.reshape(-1, 256)
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(array.shape))
        own = kind if rows.ndim > 1 and rows.shape[-1] % block == 0 else "F16"
        data = packed(np.ascontiguousarray(rows), own, draw)
        writer.add_tensor(name, data, raw_dtype=TYPES[own])
        expected[name] = torch.from_numpy(np.array(dequantize(data, TYPES[own]))).float().reshape(array.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture(autouse=True)
def smaller(monkeypatch, tmp_path, convert_in_this_process):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(single_file, "MODELS", {name: parts for name, parts in TINY.items() if name != "refiner"})


PREFIXES = {"text_encoder": "cond_stage_model.transformer.", "text_encoder_2": "cond_stage_model.1.transformer."}


def of_stable_diffusion_cpp(kind):
    """Return the tensors of a tiny model under the names of stable-diffusion.cpp."""
    states = {part: network.state_dict() for part, network in networks_of(TINY[kind]).items()}
    tensors = original_unet(states["unet"], 1) | original_vae(states["vae"], 3)
    for part in states.keys() & PREFIXES.keys():
        tensors |= original_text(states[part], PREFIXES[part])
    projection = f"{PREFIXES['text_encoder_2']}text_model.text_projection"
    if f"{projection}.weight" in tensors:
        tensors[projection] = tensors.pop(f"{projection}.weight").T.contiguous()
    return tensors


def weights_in(folder):
    return {
        f"{file.parent.name}.{name}": tensor.float()
        for file in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize(("kind", "type_"), [("sd15", each) for each in PACKED] + [("sdxl", "Q8_0"), ("sd21", "Q4_0")])
def test_a_checkpoint_of_stable_diffusion_cpp_has_its_dequantized_weights(tmp_path, monkeypatch, kind, type_):
    if kind == "sd21":
        monkeypatch.setattr(single_file, "_OPEN_WIDTH", TINY["sd21"]["text_encoder"][1]["hidden_size"])
    tensors = of_stable_diffusion_cpp(kind)
    expected = write_gguf(tmp_path / "x.gguf", tensors, type_)
    got = dict(GgufFile(tmp_path / "x.gguf").tensors())
    assert len(got) == len(tensors)
    folder = find(tmp_path / "x.gguf")
    assert read_source(tmp_path / "x.gguf").configs["model_index"]["_class_name"] == TINY[kind]["pipeline"]
    if kind == "sdxl":
        renamed = {}
        for name, tensor in expected.items():
            bare = name.removeprefix("cond_stage_model.")
            renamed[name if bare == name else f"conditioner.embedders.{bare if bare[0] == '1' else f'0.{bare}'}"] = (
                tensor
            )
        expected = renamed
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, tmp_path / "y.safetensors")
    same = weights_in(find(tmp_path / "y.safetensors"))
    converted = weights_in(folder)
    assert converted.keys() == same.keys()
    assert all(torch.equal(converted[name], same[name]) for name in same)
    network = networks_of(TINY[kind])["unet"].state_dict()
    name = "down_blocks.0.resnets.0.conv1.weight"
    if type_ != "Q4_K":
        torch.testing.assert_close(converted[f"unet.{name}"], network[name], atol=0.05, rtol=0)


@pytest.mark.parametrize("names", ["original", "prefixed", "diffusers"])
@pytest.mark.parametrize("type_", ["F16", "Q8_0", "Q4_0", "Q4_K"])
def test_a_unet_of_comfyui_gguf_replaces_the_models_own(demo_folder, tmp_path, type_, names):
    own = load_file(next((demo_folder / "unet").glob("*.safetensors")))
    layers = 2 if any("down_blocks.0.resnets.1." in name for name in own) else 1
    prefix = "model.diffusion_model." if names == "prefixed" else ""
    tensors = own if names == "diffusers" else original_unet(own, layers, prefix)
    expected = write_gguf(tmp_path / "x.gguf", tensors, type_, rearranged=True)
    source = read_source(demo_folder, unet=tmp_path / "x.gguf")
    got = load_file(next(source.folders["unet"].glob("*.safetensors")))
    back = dict(zip(tensors, own, strict=True)) if names != "diffusers" else {name: name for name in own}
    assert got.keys() == own.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[back[name]].float(), tensor), name
    assert source.folders["vae"] == read_source(demo_folder).folders["vae"]
    differs = source.fingerprint != read_source(demo_folder).fingerprint
    assert differs == (type_ != "F16")  # the model's own weights are in float16


def test_a_unet_in_8_bits_gives_nearly_the_same_image(demo_folder, tmp_path):
    own = load_file(next((demo_folder / "unet").glob("*.safetensors")))
    write_gguf(tmp_path / "x.gguf", own, "Q8_0", rearranged=True)
    options = {"steps": 4, "seed": 3, "output_type": "np"}
    got = calotype.load("demo", unet=tmp_path / "x.gguf", backend="eager")("a red ring", **options).images
    expected = calotype.load("demo", backend="eager")("a red ring", **options).images
    assert 0 < np.abs(got - expected).mean() < 0.02


def hostile(tmp_path):
    """Yield a name, the bytes of a file, and a keyword of the error."""
    write_gguf(tmp_path / "fits.gguf", {"conv_in.weight": torch.ones(32, 256)}, "Q8_0")
    data = (tmp_path / "fits.gguf").read_bytes()
    head = b"GGUF" + struct.pack("<I", 3)
    text = struct.pack("<Q", 1) + b"x"
    one = head + struct.pack("<QQ", 1, 0) + text
    yield "empty", b"", "GGUF"
    yield "another file", b"PK\3\4" * 20, "GGUF"
    yield "cut in the header", data[:40], "early"
    yield "cut in the data", data[:-1], "outside"
    yield "version", b"GGUF" + struct.pack("<I", 77) + data[8:], "version"
    yield "many tensors", head + struct.pack("<QQ", 1 << 60, 0), "declares"
    yield "many values", head + struct.pack("<QQ", 0, 1 << 60), "declares"
    yield "a long name", head + struct.pack("<QQQ", 1, 0, 1 << 62), "name"
    yield "a long array", head + struct.pack("<QQ", 0, 1) + text + struct.pack("<IIQ", 9, 0, 1 << 62), "early"
    yield "nested arrays", head + struct.pack("<QQ", 0, 1) + text + struct.pack("<IIQ", 9, 9, 1), "type 9"
    yield "an unknown value", head + struct.pack("<QQ", 0, 1) + text + struct.pack("<I", 99), "type 99"
    yield "many axes", one + struct.pack("<I", 1 << 30), "axes"
    yield "a huge shape", one + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0), "outside"
    yield "an unknown type", one + struct.pack("<IQIQ", 1, 32, 16, 0) + bytes(99), "type 16"
    yield "a row that is no block", one + struct.pack("<IQIQ", 1, 31, 8, 0) + bytes(99), "blocks"
    yield "no text", head + struct.pack("<QQQ", 1, 0, 2) + b"\xff\xfe", "damaged"


def test_hostile_files_are_refused_in_one_sentence(tmp_path, demo_folder):
    path = tmp_path / "x.gguf"
    for name, data, keyword in hostile(tmp_path):
        path.write_bytes(data)
        for read in (lambda: find(path), lambda: read_source(demo_folder, unet=path)):
            with pytest.raises(SourceError, match=keyword) as raised:
                read()
            assert raised.value.data["path"] == path, name


def test_files_of_other_content_are_refused(tmp_path, demo_folder):
    path, own = tmp_path / "x.gguf", load_file(next((demo_folder / "unet").glob("*.safetensors")))
    write_gguf(path, own, "F16")
    with pytest.raises(SourceError, match="U-Net"):  # not a full checkpoint
        find(path)
    for change, keyword in (
        ({"conv_in.weight": torch.ones(32, 9, 3, 3)}, "9 input channels"),
        ({"conv_out.bias": torch.ones(5)}, "conv_out.bias"),
        ({"more.weight": torch.ones(5)}, "more"),
    ):
        write_gguf(path, own | change, "F16")
        with pytest.raises(SourceError, match=keyword):
            read_source(demo_folder, unet=path)
    write_gguf(path, {"double_blocks.0.weight": torch.ones(32, 32)}, "Q8_0")
    for read in (lambda: find(path), lambda: read_source(demo_folder, unet=path)):
        with pytest.raises(SourceError, match="diffusion transformer"):
            read()


def test_without_the_package_the_error_names_it(tmp_path, demo_folder, monkeypatch):
    own = load_file(next((demo_folder / "unet").glob("*.safetensors")))
    write_gguf(tmp_path / "x.gguf", own, "Q8_0", rearranged=True)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with pytest.raises(SourceError, match=r"calotype\[gguf\]"):
        read_source(demo_folder, unet=tmp_path / "x.gguf")
