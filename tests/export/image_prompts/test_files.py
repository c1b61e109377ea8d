"""Files of IP-Adapters: their kinds and layouts, encoders next to them, and what is refused."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import calotype
from calotype.errors import InputError, SourceError
from calotype.export import prepare
from tests.helpers.conditioning.ip_adapters import image_encoder, save_ip_adapter
from tests.helpers.tiny_models import save_tiny_model

KINDS = ("plain", "plus", "full", "face_id")


@pytest.fixture(scope="module")
def folder(demo_folder, tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", demo_folder)


@pytest.fixture(scope="module")
def files(folder, tmp_path_factory):
    """A file of each kind, in a folder with an image encoder, as the published repository has it."""
    work = tmp_path_factory.mktemp("adapters")
    image_encoder(work / "image_encoder")
    return {kind: save_ip_adapter(work / f"{kind}.safetensors", folder / "unet", kind) for kind in KINDS}


def changed(source, path, change):
    tensors = change(load_file(source))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_follows_from_the_tensors(folder, files, kind):
    plan = prepare(folder, ip_adapters=[files[kind]], forms=())
    assert plan.image_prompts.kinds == (kind,)
    assert plan.image_prompts.layers == ("down.1.0", "up.0.0", "up.0.1", "mid.0.0")
    assert ("image_encoder" in plan.components) == (kind != "face_id")
    (taken,), (states,) = plan.components["ip_adapter"].inputs, plan.components["ip_adapter"].outputs
    dims = {"plain": (48,), "plus": (17, 32), "full": (17, 32), "face_id": (512,)}[kind]
    assert taken.dims == ("batch", *dims)
    assert states.dims == ("batch", 17 if kind == "full" else 4, 2 * 4 * 64)


def test_the_layout_of_a_unet_that_diffusers_saved(folder, files, tmp_path):
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    both = []
    for kind in ("plus", "plain"):
        tensors = load_file(files[kind])
        parts = ("image_proj", "ip_adapter")
        both.append({p: {n.removeprefix(f"{p}."): t for n, t in tensors.items() if n.startswith(p)} for p in parts})
    unet._load_ip_adapter_weights(both, low_cpu_mem_usage=False)
    save_file({name: tensor.contiguous() for name, tensor in unet.state_dict().items()}, tmp_path / "unet.safetensors")
    encoder = files["plus"].parent / "image_encoder"
    plan = prepare(folder, ip_adapters=[tmp_path / "unet.safetensors"], image_encoder=encoder, forms=())
    original = prepare(folder, ip_adapters=[files["plus"], files["plain"]], forms=())
    assert plan.image_prompts.kinds == ("plus", "plain")
    for name in ("ip_adapter", "ip_adapter_1"):
        got, expected = (
            load_file(each.components[name].artifacts[0].path / "diffusion_pytorch_model.safetensors")
            for each in (plan, original)
        )
        assert got.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(got[key], tensor, rtol=0, atol=0)


def test_an_encoder_of_other_widths_is_not_taken(folder, files, tmp_path):
    file = shutil.copy(files["plus"], tmp_path)
    other = image_encoder(tmp_path / "image_encoder")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    pipe = calotype.load(folder, ip_adapter=file, backend="eager")
    assert "image_encoder" not in pipe.plan.components
    with pytest.raises(InputError, match="image_encoder"):
        pipe.stream("x", ip_adapter_image=np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(SourceError, match="hidden_size"):
        calotype.load(folder, ip_adapter=file, image_encoder=other, backend="eager")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: {n: v for n, v in t.items() if n != "ip_adapter.3.to_v_ip.weight"}, "values"),
        (lambda t: {n: v for n, v in t.items() if n != "ip_adapter.3.to_k_ip.weight"}, "3"),
        (lambda t: t | {"ip_adapter.9.to_k_ip.weight": t["ip_adapter.1.to_k_ip.weight"].clone()}, "values"),
        (lambda t: {n: v for n, v in t.items() if not n.startswith("ip_adapter")}, "to_k_ip"),
        (lambda t: {n: v for n, v in t.items() if n != "image_proj.norm.weight"}, "norm.weight"),
        (lambda t: {n: v[..., :64] if "ip_adapter" in n else v for n, v in t.items()}, "64"),
        (lambda t: t | {"ip_adapter.0.to_q_lora.down.weight": torch.zeros(1, 1)}, "LoRA"),
        (lambda t: {"conv.weight": torch.zeros(1, 1)}, "image_proj"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(folder, files, tmp_path, change, word):
    file = changed(files["plain"], tmp_path / "adapter.safetensors", change)
    with pytest.raises(SourceError, match=word):
        prepare(folder, ip_adapters=[file], forms=())


def test_other_paths_are_refused(folder, files, tmp_path):
    (tmp_path / "adapter.bin").write_bytes(b"\x80\x02")
    for path, word in (
        (tmp_path / "missing.safetensors", "no file"),
        (tmp_path, "pass the file"),
        (folder, "IP-Adapter"),
    ):
        with pytest.raises(SourceError, match=word):
            prepare(folder, ip_adapters=[path], forms=())
    with pytest.raises(SourceError, match="safetensors"):
        prepare(folder, ip_adapters=[tmp_path / "adapter.bin"], forms=())
    with pytest.raises(SourceError, match="config\\.json"):
        prepare(folder, ip_adapters=[files["plain"]], image_encoder=tmp_path, forms=())
    with pytest.raises(SourceError, match="ip_adapter"):
        prepare(folder, image_encoder=files["plain"].parent / "image_encoder", forms=())
