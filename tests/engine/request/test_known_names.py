"""Unknown arguments and attributes raise; they are never ignored."""

import inspect

import pytest

import calotype
from calotype.backends.openvino.rewrites import PIECES
from calotype.errors import CalotypeError, InputError, NoAttributeError
from calotype.system.switches import DISABLE_VARIABLE, disabled_optimizations


@pytest.mark.parametrize("name", ["scheduler", "unet", "vae", "safety_checker", "loras", "enable_tiling", "sheduler"])
def test_an_unknown_attribute_cannot_be_set(fake, name):
    with pytest.raises(NoAttributeError, match=name) as refused:
        setattr(fake, name, None)
    assert isinstance(refused.value, AttributeError)
    assert isinstance(refused.value, CalotypeError)
    assert refused.value.name == name


def test_the_error_names_the_replacement(fake):
    for name, ours in (("load_lora_weights", "set_lora"), ("to", "backend="), ("scheduler", "scheduler=")):
        with pytest.raises(NoAttributeError, match=ours):
            getattr(fake, name)
    with pytest.raises(NoAttributeError, match="stream"):
        _ = fake.streem


def test_known_attributes_can_be_read_and_set(fake):
    assert not hasattr(fake, "to")
    assert getattr(fake, "unet", 3) == 3
    assert hasattr(fake, "loras")
    fake.plan = fake.plan
    fake._own = 1
    assert fake._own == 1


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("torch_dtype", "precision"),
        ("device", "backend="),
        ("variant", "fp16"),
        ("use_safetensors", "safetensors"),
        ("local_files_only", "offline="),
        ("controlnets", "controlnet"),
        ("loras", "lora"),
        ("bakend", "backend"),
        ("xyz", "textual_inversion"),
    ],
)
def test_an_unknown_argument_of_load_raises(name, ours):
    with pytest.raises(InputError, match=f"{name}.*{ours}"):
        calotype.load("demo", **{name: "x"})


def test_an_unknown_argument_of_a_method_raises(fake):
    for method, name, ours in ((fake.set_lora, "loras", "lora"), (fake.encode, "tiles", "tile")):
        with pytest.raises(InputError, match=f"{name}.*{ours}"):
            method(**{name: 1})
    with pytest.raises(InputError, match="output_type"):
        fake.decode(None, output="np")


def test_signatures_are_kept():
    assert {"model", "backend", "lora", "offline"} <= set(inspect.signature(calotype.load).parameters)
    assert list(inspect.signature(calotype.Pipeline.set_lora).parameters) == ["self", "lora"]


def test_an_unknown_optimization_cannot_be_disabled(monkeypatch):
    monkeypatch.setenv(DISABLE_VARIABLE, f" {PIECES[0]}, {PIECES[-1]},")
    assert disabled_optimizations() == {PIECES[0], PIECES[-1]}
    monkeypatch.setenv(DISABLE_VARIABLE, f"{PIECES[0]},shared_guidanc")
    with pytest.raises(InputError, match="shared_guidance"):
        disabled_optimizations()
