"""LoRA files with random weights, in every layout, fused into tiny models: the same weights as diffusers."""

import json

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
from calotype.export.sources.lora import fuse
from calotype.export.sources.source import read_source
from calotype.lora.formats import layers_by_name, tensor_target
from calotype.lora.lora import parse_loras, weight_deltas_of
from tests.helpers.loras import delta_in, pair
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


@pytest.mark.usefixtures("fuse_in_this_process")
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


@pytest.mark.usefixtures("fuse_in_this_process")
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


@pytest.mark.usefixtures("fuse_in_this_process")
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


@pytest.mark.usefixtures("fuse_in_this_process")
def test_a_replaced_unet_gets_the_files(sd21_folder, tmp_path):
    torch.manual_seed(8)
    other = load_module("unet", sd21_folder / "unet").model
    for weight in other.parameters():
        nn.init.normal_(weight)
    other.save_pretrained(tmp_path / "unet")
    path = save_lora(sd21_folder, tmp_path / "a.safetensors")
    source = read_source(sd21_folder, unet=tmp_path / "unet")
    got = load_module("unet", fuse(source, [path]).folders["unet"]).model.state_dict()
    expected = {name: weight.clone() for name, weight in other.state_dict().items()}
    changed = {name for name, weight in expected.items() if not torch.equal(got[name], weight)}
    assert 10 <= len(changed) < len(expected) / 2


@pytest.mark.usefixtures("fuse_in_this_process")
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
