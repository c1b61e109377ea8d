"""LoRA files of random weights, in both layouts, fused into tiny models: the networks that diffusers fuses."""

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import calotype
from calotype.errors import InputError, SourceError
from calotype.export import prepare
from calotype.export.lora import fuse, lora_from
from calotype.export.source import read_source
from calotype.modules import load_module

RANK = 3
# Of diffusers, where it holds two adapters at once.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")


def pairs(weight_names, shapes, seed):
    """A down and an up matrix for each, of the size of what they are added to."""
    generator = torch.Generator().manual_seed(seed)
    for name in weight_names:
        out, into = shapes[name][:2]
        kernel = shapes[name][2:]  # of a convolution
        down = torch.randn(RANK, into, *kernel, generator=generator) / into**0.5
        up = torch.randn(out, RANK, *(1 for _ in kernel), generator=generator) * 0.3
        yield name.removesuffix(".weight"), down, up


def shapes_in(folder):
    return {name: tuple(t.shape) for name, t in load_file(next(folder.glob("*.safetensors"))).items()}


def targets(shapes):
    """Attention and more of the U-Net; of a text encoder what kohya trains, all of it: diffusers knows it by that."""
    kinds = ("to_q", "to_out.0", "ff.net.0.proj", "conv1", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    return [n for n in shapes if n.removesuffix(".weight").endswith(kinds) and n.endswith(".weight")]


def in_diffusers_layout(model, components, path, seed=0):
    tensors = {}
    for component in components:
        shapes = shapes_in(model / component)
        for name, down, up in pairs(targets(shapes), shapes, seed):
            tensors |= {f"{component}.{name}.lora_A.weight": down, f"{component}.{name}.lora_B.weight": up}
    save_file(tensors, path)
    return path


def in_kohyas_layout(model, components, path, seed=0):
    """With an alpha, which scales what it is said of by alpha / rank."""
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    tensors = {}
    for component in components:
        shapes = shapes_in(model / component)
        for name, down, up in pairs(targets(shapes), shapes, seed):
            # kohya's are the names of older transformers, whose text models lay one level deeper.
            deeper = "text_model." if component == "text_encoder" and not name.startswith("text_model.") else ""
            stem = f"{prefixes[component]}_{(deeper + name).replace('.', '_')}"
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


LAYOUTS = {"diffusers": in_diffusers_layout, "kohya": in_kohyas_layout}


def elder_of(folder, loras, components):
    """diffusers with the same files, each fused with its scale."""
    kind = diffusers.StableDiffusionXLPipeline if "text_encoder_2" in components else diffusers.StableDiffusionPipeline
    settings = {} if "text_encoder_2" in components else {"safety_checker": None}
    pipe = kind.from_pretrained(folder, dtype=torch.float32, low_cpu_mem_usage=False, **settings)
    for i, (path, _) in enumerate(loras):
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"a{i}")
    pipe.set_adapters([f"a{i}" for i in range(len(loras))], [scale for _, scale in loras])
    pipe.fuse_lora(components=components)
    return pipe


def outputs_of(network, component, config):
    generator = torch.Generator().manual_seed(9)
    with torch.inference_mode():
        if component != "unet":
            return network(torch.randint(0, 600, (2, 77), generator=generator)).last_hidden_state
        added = None
        if config.get("addition_embed_type"):
            added = {"text_embeds": torch.randn(2, 24, generator=generator), "time_ids": torch.ones(2, 6)}
        text = torch.randn(2, 77, config["cross_attention_dim"], generator=generator)
        sample = torch.randn(2, 4, 8, 8, generator=generator)
        return network(sample, torch.tensor([7.0, 500.0]), text, added_cond_kwargs=added).sample


def differences(source, fused, elder, components):
    """For each network: fused against diffusers', and against the network without LoRA."""
    for name in components:
        got, plain = (
            outputs_of(load_module(name, s.folders[name]).model, name, s.configs[name]) for s in (fused, source)
        )
        wanted = outputs_of(getattr(elder, name), name, source.configs[name])
        scale = float(wanted.abs().max())
        yield name, float((got - wanted).abs().max()) / scale, float((plain - wanted).abs().max()) / scale


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("fixture", "components"),
    [("sd21_folder", ["unet", "text_encoder"]), ("sdxl_folder", ["unet", "text_encoder", "text_encoder_2"])],
)
def test_fused_networks_are_those_of_diffusers(request, tmp_path, layout, fixture, components):
    folder = request.getfixturevalue(fixture)
    loras = [(LAYOUTS[layout](folder, components, tmp_path / f"{s}.safetensors", s), 0.8 - s) for s in range(2)]
    source = read_source(folder)
    fused = fuse(source, [f"{path}:{scale}" for path, scale in loras])
    for name, difference, effect in differences(source, fused, elder_of(folder, loras, components), components):
        assert difference <= 1e-5, name
        assert effect > 1e-2, name  # it changes something


def test_the_picture_and_the_fingerprint_are_others(sd21_folder, tmp_path):
    path = in_diffusers_layout(sd21_folder, ["unet"], tmp_path / "a:b.safetensors")
    settings = {"steps": 2, "seed": 1, "output_type": "latent", "width": 64, "height": 64}
    plain = calotype.load(sd21_folder, backend="eager")
    with_lora = calotype.load(sd21_folder, lora=path, backend="eager")
    assert np.abs(plain("x", **settings).images - with_lora("x", **settings).images).max() > 0.01
    fingerprints = [
        prepare(sd21_folder, loras=loras, forms=()).fingerprint
        for loras in ([], [path], [f"{path}:1.0"], [f"{path}:0.5"], [path, path])
    ]
    assert fingerprints[1] == fingerprints[2] == with_lora.plan.fingerprint
    assert len(set(fingerprints)) == 4


def test_what_it_does_not_change_stays_where_it_is(sd21_folder, tmp_path, monkeypatch):
    path = in_kohyas_layout(sd21_folder, ["unet"], tmp_path / "x.safetensors")
    source = read_source(sd21_folder)
    fused = fuse(source, [path])
    for each in ("folders", "digests"):
        before, after = getattr(source, each), getattr(fused, each)
        assert {name for name in before if before[name] != after[name]} == {"unet"}
    monkeypatch.setattr("calotype.export.lora.in_child", lambda *_, **__: pytest.fail("fused again"))
    assert fuse(source, [path]) == fused
    assert fuse(source, []) is source


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("nowhere.safetensors", "there is no LoRA file nowhere"),
        ("nowhere.safetensors:0.5", "there is no LoRA file nowhere"),
        ("{}:much", "from -10 to 10.*got 'much'"),
        ("{}:nan", "from -10 to 10"),
        ("{}:99", "from -10 to 10"),
        ("{}.bin", "is no .safetensors file"),
        ("{}.cut.safetensors", "fetch it again"),
    ],
)
def test_files_that_cannot_be_read_are_told(tmp_path, said, told):
    path = tmp_path / "x.safetensors"
    save_file({"unet.a.lora_A.weight": torch.zeros(3, 4)}, path)
    (tmp_path / "x.safetensors.bin").write_bytes(b"x")
    (tmp_path / "x.safetensors.cut.safetensors").write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SourceError, match=told):
        lora_from(said.format(path))


def attention(folder, *, rank=2, wide=None, name="down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"):
    out, into = shapes_in(folder / "unet")["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    a, b = torch.ones(rank, wide or into), torch.ones(out, rank)
    return {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda f: attention(f, wide=77), "does not fit the model, or is no LoRA: .*mismatch"),
        (lambda f: attention(f) | attention(f, name="down_blocks.9.to_q"), "such as unet.down_blocks.9.to_q"),
        (lambda f: dict(list(attention(f).items())[:1]), "to_q.lora_A.weight has no partner"),
        (lambda f: attention(f) | {f"x.{k}": t for k, t in attention(f).items()}, "such as x.unet"),
        (lambda f: {"conv_in.weight": torch.ones(2, 2)}, "such as conv_in.weight"),
        (lambda f: {"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, "lora_unet_x.lora_down.weight has no partner"),
        (lambda f: attention(f) | {"unet.x.dora_scale": torch.ones(2)}, "DoRA"),
    ],
)
def test_files_that_do_not_fit_are_told(sd21_folder, tmp_path, made, told):
    save_file(made(sd21_folder), tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match=told):
        calotype.load(sd21_folder, lora=tmp_path / "x.safetensors", backend="eager")


def test_one_of_another_family_is_told(sd21_folder, sdxl_folder, tmp_path):
    path = in_kohyas_layout(sdxl_folder, ["text_encoder_2"], tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match="does not fit the model"):
        calotype.load(sd21_folder, lora=path, backend="eager")


def test_without_peft_the_line_that_installs_it_is_told(sd21_folder, tmp_path, monkeypatch):
    path = in_diffusers_layout(sd21_folder, ["unet"], tmp_path / "x.safetensors")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SourceError, match="pip install peft"):
        fuse(read_source(sd21_folder), [path])


def test_a_plan_takes_no_lora(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="is a plan, which has ControlNets and LoRAs inside"):
        calotype.load(tmp_path, lora="x.safetensors")
