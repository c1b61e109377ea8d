"""LoRA files with random weights, in every layout, fused into tiny models: the same weights as diffusers."""

import json
import os
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from safetensors.torch import load_file, save_file
from torch import nn

import calotype
from calotype.backends.torch.modules import load_module
from calotype.errors import SourceError
from calotype.export.sources.lora import fuse, fuse_into
from calotype.export.sources.source import read_source
from calotype.export.sources.weight_files import check_safetensors
from calotype.lora.formats import layers_by_name, tensor_target
from calotype.lora.lora import parse_loras, weight_deltas_of
from calotype.weights.safetensors import TensorFile
from tests.helpers.tiny_models import save_lora


def reference_pipeline(folder, loras, components):
    """diffusers' pipeline with the same files, each fused with its weight."""
    kind = diffusers.StableDiffusionXLPipeline if "text_encoder_2" in components else diffusers.StableDiffusionPipeline
    settings = {} if "text_encoder_2" in components else {"safety_checker": None}
    pipe = kind.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **settings)
    for i, (path, _) in enumerate(loras):
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"a{i}")
    pipe.set_adapters([f"a{i}" for i in range(len(loras))], [weight for _, weight in loras])
    pipe.fuse_lora(components=components)
    pipe.unload_lora_weights()
    return pipe


@pytest.fixture
def in_this_process(monkeypatch):
    """Fuse in this process: a child process takes seconds to import torch."""

    def run(_, function, *__, **arguments):
        assert function == "calotype.export.sources.lora:fuse_into"
        return SimpleNamespace(value=fuse_into(**arguments), peak_bytes=0)

    monkeypatch.setattr("calotype.export.sources.lora.run_in_subprocess", run)
    monkeypatch.setattr("calotype.export.steps.stored_step.run_in_subprocess", run)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("layout", ["diffusers", "kohya", "older"])
@pytest.mark.parametrize(
    ("fixture", "components"),
    [("sd21_folder", ["unet", "text_encoder"]), ("sdxl_folder", ["unet", "text_encoder", "text_encoder_2"])],
)
def test_fused_weights_are_those_of_diffusers(request, tmp_path, layout, fixture, components):
    folder = request.getfixturevalue(fixture)
    loras = [(save_lora(folder, tmp_path / f"{s}.safetensors", components, layout, s), 0.8 - s) for s in range(2)]
    source = read_source(folder)
    fused = fuse(source, [f"{path}:{weight}" for path, weight in loras])
    reference = reference_pipeline(folder, loras, components)
    for name in components:
        plain, got = (load_module(name, s.folders[name]).model.state_dict() for s in (source, fused))
        expected = getattr(reference, name).state_dict()
        assert got.keys() == expected.keys()
        largest = max(float(t.abs().max()) for t in expected.values())
        assert max(float((got[n] - expected[n]).abs().max()) for n in expected) <= 1e-6 * largest, name
        assert sum(not torch.equal(plain[n], expected[n]) for n in expected) >= 10, name  # the LoRAs change weights


@pytest.mark.usefixtures("in_this_process")
def test_pefts_alphas_are_read_from_the_metadata(sd21_folder, tmp_path):
    """The metadata of diffusers' `save_lora_adapter` has a default alpha, and others by layer."""
    path = save_lora(sd21_folder, tmp_path / "x.safetensors")
    other = next(key for key in load_file(path) if "attn1.to_q" in key).removeprefix("unet.").partition(".lora_A")[0]
    layers = sorted({key.removeprefix("unet.").partition(".lora_")[0] for key in load_file(path)})
    settings = {"r": 3, "lora_alpha": 6, "alpha_pattern": {other: 1.5}, "target_modules": layers}
    metadata = {f"unet.{name}": value for name, value in settings.items()}
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps(metadata)})
    expected = reference_pipeline(sd21_folder, [(path, 1.0)], ["unet"]).unet.state_dict()
    source = read_source(sd21_folder)
    own, got = (load_module("unet", s.folders["unet"]).model.state_dict() for s in (source, fuse(source, [path])))
    assert max(float((got[n] - expected[n]).abs().max()) for n in expected) <= 1e-6
    key, bare = f"{other}.weight", tmp_path / "bare.safetensors"
    save_file(load_file(path), bare)
    plain = load_module("unet", fuse(source, [bare]).folders["unet"]).model.state_dict()
    torch.testing.assert_close(got[key] - own[key], (plain[key] - own[key]) / 2, atol=1e-6, rtol=1e-4)


def test_stability_ais_names_are_those_that_diffusers_maps():
    """Check every block of SDXL's U-Net, without weights."""
    from calotype.lora.formats import _stability

    config = {"layers_per_block": 2, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048}
    kinds = {"down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2)}
    kinds |= {"up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"), "use_linear_projection": True}
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**config, **kinds, transformer_layers_per_block=(1, 2, 10))
    layers = [n for n, m in unet.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    names = layers_by_name(layers, "unet")
    blocks = [layer for layer in layers if "block" in layer.split(".")[0]]
    flat = {layer: _stability(layer, 2, layers).replace(".", "_") for layer in blocks}
    keys = {f"lora_unet_{name}.lora_down.weight": layer for layer, name in flat.items()}
    assert {key: names[tensor_target(key).layer] for key in keys} == keys
    theirs = _maybe_map_sgm_blocks_to_diffusers(dict(keys), unet.config)
    assert len(blocks) > 700
    renames = {
        "input_blocks": "down_blocks",
        "middle_block": "mid_block",
        "output_blocks": "up_blocks",
        "in_layers_2": "conv1",
        "emb_layers_1": "time_emb_proj",
        "out_layers_3": "conv2",
        "skip_connection": "conv_shortcut",
        "_op": "_conv",
    }
    for key, layer in theirs.items():  # diffusers' second step, `_convert_unet_lora_key`
        name = key.removeprefix("lora_unet_").removesuffix(".lora_down.weight")
        for old, new in renames.items():
            name = name.replace(old, new)
        assert name == layer.replace(".", "_")


def test_a_middle_kernel_equals_three_convolutions_in_a_row(tmp_path):
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 8, 1, 1, generator=draw), torch.randn(6, 4, 1, 1, generator=draw)
    middle = torch.randn(4, 4, 3, 3, generator=draw)
    tensors = {"lora_down": down, "lora_up": up, "lora_mid": middle}
    path = tmp_path / "x.safetensors"
    save_file(
        {f"lora_unet_conv_in.{part}.weight": tensor for part, tensor in tensors.items()}
        | {"lora_unet_conv_in.alpha": torch.tensor(2.0)},
        path,
    )
    deltas = weight_deltas_of(parse_loras((path, 0.5)), {"unet": {"conv_in": (6, 8, 3, 3)}})
    added = torch.from_numpy(deltas["unet"].patches["conv_in.weight"](np.zeros((6, 8, 3, 3), np.float32)))
    x = torch.randn(2, 8, 5, 5, generator=draw)
    expected = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(x, down), middle, padding=1), up)
    torch.testing.assert_close(nn.functional.conv2d(x, added, padding=1), expected * 0.5 * 2 / 4, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("key", "component", "layer", "part"),
    [
        ("unet.a.b.lora_A.default.weight", "unet", "a.b", "down"),
        ("base_model.model.a.b.lora_B.weight", "unet", "a.b", "up"),
        ("a.attn1.processor.to_q_lora.down.weight", "unet", "a.attn1.to_q", "down"),
        ("unet.a.attn1.processor.to_out_lora.up.weight", "unet", "a.attn1.to_out.0", "up"),
        ("text_encoder.text_model.a.self_attn.to_out_lora.up.weight", "text_encoder", "a.self_attn.out_proj", "up"),
        ("lora_te_text_model_a_fc1.alpha", "text_encoder", "a_fc1", "alpha"),
        ("lora_te2_text_model_a_fc1.lora_mid.weight", "text_encoder_2", "a_fc1", "mid"),
    ],
)
def test_names_of_older_layouts(key, component, layer, part):
    target = tensor_target(key)
    assert (target.component, target.layer, target.part) == (component, layer, part)


def pair(layer="conv_in", *, rank=2, out=6, into=8, **others):
    """Return the tensors of one layer in a kohya file."""
    tensors = {"lora_down.weight": torch.ones(rank, into), "lora_up.weight": torch.ones(out, rank)} | others
    return {f"lora_unet_{layer}.{part}": tensor for part, tensor in tensors.items()}


def delta_in(path, tensors, shape=(6, 8), metadata=None, weight=1.0):
    save_file(tensors, path, metadata)
    return weight_deltas_of(parse_loras((path, weight)), {"unet": {"conv_in": shape}})["unet"].patches["conv_in.weight"]


@pytest.mark.parametrize("kind", ["int64", "int32", "float32"])
def test_alpha_may_be_an_integer_as_diffusers_converter_writes_it(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    delta = delta_in(path, pair(alpha=torch.tensor(6, dtype=getattr(torch, kind))))
    assert delta.terms[0].scale == 3
    integers = {"lora_up.weight": torch.ones(6, 2, dtype=torch.int64)}
    with pytest.raises(SourceError, match="I64"):
        delta_in(path, pair(**integers))


@pytest.mark.parametrize(
    ("key", "alpha"),
    [("conv_in", 4), ("conv_.n", 4), ("conv_(in|out)", 4), ("in", 2), ("x.conv_in", 2), ("^conv_in", 4)],
)
def test_alpha_patterns_match_as_in_peft(tmp_path, key, alpha):
    from peft.utils.other import get_pattern_key

    settings = {"unet.lora_alpha": 2, "unet.alpha_pattern": {key: 4, "conv": 6, ".*": 2}}
    assert {key: 4}.get(get_pattern_key([key, "conv", ".*"], "conv_in"), 2) == alpha
    delta = delta_in(tmp_path / "x.safetensors", pair(), metadata={"lora_adapter_metadata": json.dumps(settings)})
    assert delta.terms[0].scale == alpha / 2


def test_a_pattern_matches_the_end_of_a_name(tmp_path):
    """Names of text encoders may have the prefix of older versions of transformers."""
    from calotype.lora.peft_metadata import PeftMetadata

    metadata = {
        "unet.alpha_pattern": {"to_q": 8},
        "text_encoder.alpha_pattern": {"^text_model.encoder.layers": 9},
    }
    settings = PeftMetadata(tmp_path, metadata)
    layers = [("unet", "mid_block.attn1.to_q"), ("unet", "auto_q"), ("text_encoder", "encoder.layers")]
    assert [settings.alpha(*each) for each in layers] == [8, None, 9]


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
    with pytest.raises(SourceError, match=r"not finite.*unet\.conv_in"):
        delta_in(tmp_path / "x.safetensors", pair(**tensors), (6, 8, 3, 3), metadata)


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


@pytest.mark.usefixtures("in_this_process")
def test_fused_files_change_only_the_fingerprint_and_the_unet(sd21_folder, tmp_path, monkeypatch):
    path = save_lora(sd21_folder, tmp_path / "a:b.safetensors")
    source = read_source(sd21_folder)
    cases = ([], [path], [f"{path}:1.0"], [f"{path}:0.5"], [path, path], [f"{path}:0"])
    fused = [fuse(source, loras) for loras in cases]
    prints = [each.fingerprint for each in fused]
    assert prints[0] == prints[5]
    assert prints[1] == prints[2]
    assert len(set(prints)) == 4
    for each in ("folders", "digests"):
        before, after = getattr(source, each), getattr(fused[1], each)
        assert {name for name in before if before[name] != after[name]} == {"unet"}
    monkeypatch.setattr("calotype.export.sources.lora.run_in_subprocess", lambda *_, **__: pytest.fail("fused again"))
    assert fuse(source, [path]) == fused[1]
    assert fuse(source, []) is source


@pytest.mark.usefixtures("in_this_process")
def test_files_of_weight_0_must_fit_a_build_as_well(sd21_folder, sdxl_folder, tmp_path):
    fits, other = save_lora(sd21_folder, tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    save_lora(sdxl_folder, other, ["text_encoder_2"], "kohya")
    source = read_source(sd21_folder)
    for files in ([f"{other}:0"], [fits, f"{other}:0"]):
        with pytest.raises(SourceError, match=r"b\.safetensors.*lora_te2"):
            fuse(source, files)
    assert fuse(source, [fits, f"{fits}:0"]) == fuse(source, [fits])


@pytest.mark.parametrize(
    ("name", "keyword"),
    [
        ("nowhere.safetensors", "nowhere"),
        ("nowhere.safetensors:0.5", "nowhere"),
        ("{}:much", "much"),
        ("{}:nan", "-10"),
        ("{}:99", "-10"),
        ("{}.bin", "safetensors"),
        (("{}", None), "FILE"),
        (3, "FILE"),
        ("~nosuchuser/x.safetensors", "~nosuchuser/x.safetensors"),
        ("x" * 300 + ".safetensors:0.5", "too long"),
    ],
)
def test_invalid_names_of_files_are_refused(tmp_path, name, keyword):
    path = tmp_path / "x.safetensors"
    save_file({"unet.a.lora_A.weight": torch.zeros(3, 4)}, path)
    (tmp_path / "x.safetensors.bin").write_bytes(b"x")
    with pytest.raises(SourceError, match=keyword):
        parse_loras([name.format(path) if isinstance(name, str) else name])


def test_values_of_other_types_are_refused(eager):
    for value in (5, 0.5, True):
        with pytest.raises(SourceError, match=f"{value}"):
            eager.set_lora(value)


def test_forms_of_files_and_weights(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"unet.a.lora_A.weight": torch.zeros(3, 4)}, path)
    assert parse_loras(None) == parse_loras([]) == ()
    files = [path, str(path), f"{path}:0.5", (path, 0.5), (str(path), np.float32(0.5))]
    assert [lora.weight for lora in parse_loras(files)] == [1.0, 1.0, 0.5, 0.5, 0.5]
    assert parse_loras((path, 0.5)) == parse_loras([(path, 0.5)]) == parse_loras(f"{path}:0.5")


def weights_of(named):
    return [lora.weight for lora in parse_loras(named)]


def test_a_mapping_is_of_files_to_weights(tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path in (a, b):
        save_file(pair(), path)
    assert weights_of({a: 0.5, str(b): np.float32(0.25)}) == [0.5, 0.25]
    assert weights_of([{a: 0.5}, b, {b: -1}]) == [0.5, 1.0, -1.0]
    assert weights_of({}) == []
    assert weights_of((a, b)) == [1.0, 1.0]
    assert weights_of((a, b, a)) == [1.0, 1.0, 1.0]
    assert weights_of(named for named in (a, (b, 0.5))) == [1.0, 0.5]
    assert weights_of({a: 0.5, b: 2}.items()) == [0.5, 2.0]
    for weight in (None, "much", True, [1], 10**400, 11):
        with pytest.raises(SourceError, match="weight"):
            parse_loras({a: weight})
    for named in ({1: 0.5}, str(a).encode(), {a}, frozenset([a]), [[a]], (a, b"1")):
        with pytest.raises(SourceError, match="LoRA"):
            parse_loras(named)


def test_load_takes_what_set_lora_takes(eager, sd21_folder, tmp_path):
    path = save_lora(sd21_folder, tmp_path / "x.safetensors")
    for named in ({path: 0.5}, (each for each in [(path, 0.5)]), f"{tmp_path}:0.5"):
        assert calotype.load(sd21_folder, backend="eager", lora=named).loras == ((str(path), 0.5),)
    eager.set_lora({path: 0.5})
    assert eager.loras == ((str(path), 0.5),)
    eager.set_lora(None)


def test_a_folder_is_the_lora_in_it(tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    save_file(pair(), folder / "x.safetensors")
    (folder / "README.md").write_text("x")
    assert [lora.path.name for lora in parse_loras(folder)] == ["x.safetensors"]
    assert weights_of(f"{folder}:0.8") == weights_of({folder: 0.8}) == [0.8]
    save_file(pair(), folder / "y.safetensors")
    with pytest.raises(SourceError, match=r"'x\.safetensors', 'y\.safetensors'"):
        parse_loras(folder)
    save_file(pair(), folder / "pytorch_lora_weights.safetensors")
    assert [lora.path.name for lora in parse_loras(f"{folder}:0.5")] == ["pytorch_lora_weights.safetensors"]


def test_folders_that_are_not_a_lora_are_refused(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="safetensors"):
        parse_loras(tmp_path)
    save_file(pair(), tmp_path / "adapter_model.safetensors")
    monkeypatch.chdir(tmp_path)
    for named in ("", ":0.5"):  # not the current folder, which has one
        with pytest.raises(SourceError, match="LoRA"):
            parse_loras(named)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match="peft"):
        parse_loras(tmp_path)


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
    "DoRA": (lambda f: layer_of(f) | {"unet.x.dora_scale": torch.ones(2)}, r"DoRA .*unet\.x\.dora_scale"),
    "LoHa": (lambda f: {"lora_unet_x.hada_w1_a": torch.ones(2)}, "LoHa"),
    "biases": (lambda f: layer_of(f) | {"unet.x.lora_B.bias": torch.ones(2)}, "biases"),
    "nothing": (lambda f: {}, "x.safetensors"),
    "SDXL": (
        lambda f: layer_of(f, width=2048, name="down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"),
        "Stable Diffusion XL",
    ),
}


@pytest.fixture(scope="module")
def eager(sd21_folder):
    return calotype.load(sd21_folder, backend="eager")


@pytest.mark.parametrize("case", MISFITS)
def test_files_that_do_not_fit_are_refused(eager, sd21_folder, tmp_path, case):
    tensors_for, keyword = MISFITS[case]
    save_file(tensors_for(sd21_folder), tmp_path / "x.safetensors")
    for weight in (1, 0):  # a file with weight 0 has to fit as well
        with pytest.raises(SourceError, match=keyword):
            eager.set_lora((tmp_path / "x.safetensors", weight))
    assert eager.loras == ()


@pytest.mark.usefixtures("in_this_process")
def test_a_lora_of_another_family_is_refused(eager, sdxl_folder, tmp_path):
    path = save_lora(sdxl_folder, tmp_path / "x.safetensors", ["text_encoder_2"], "kohya")
    with pytest.raises(SourceError, match="lora_te2"):
        eager.set_lora(path)
    with pytest.raises(SourceError, match="lora_te2"):
        fuse(read_source(eager.plan.model), [path])


def test_unsupported_peft_settings_are_refused(eager, sd21_folder, tmp_path):
    path = save_lora(sd21_folder, tmp_path / "x.safetensors")
    tensors = load_file(path)
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps({"unet.use_rslora": True})})
    with pytest.raises(SourceError, match="use_rslora"):
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
