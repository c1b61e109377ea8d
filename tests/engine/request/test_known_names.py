"""Names of arguments and attributes that there are not: each is refused, and never taken in silence."""

import inspect

import pytest

import calotype
from calotype.backends.openvino.rewrites import DISABLE_VARIABLE, PIECES, disabled_optimizations
from calotype.errors import CalotypeError, InputError, NoAttributeError


@pytest.mark.parametrize("name", ["scheduler", "unet", "vae", "safety_checker", "loras", "enable_tiling", "sheduler"])
def test_an_attribute_that_nothing_reads_cannot_be_set(fake, name):
    with pytest.raises(NoAttributeError, match=name) as refused:
        setattr(fake, name, None)
    assert isinstance(refused.value, AttributeError)
    assert isinstance(refused.value, CalotypeError)


def test_the_message_names_what_does_the_same_here(fake):
    for name, ours in (("load_lora_weights", "set_lora"), ("to", "backend="), ("scheduler", "scheduler=")):
        with pytest.raises(NoAttributeError, match=ours):
            getattr(fake, name)
    with pytest.raises(NoAttributeError, match="stream"):
        _ = fake.streem


def test_attributes_that_there_are_can_be_read_and_set(fake):
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
def test_an_argument_that_load_does_not_have(name, ours):
    with pytest.raises(InputError, match=f"{name}.*{ours}"):
        calotype.load("demo", **{name: "x"})


def test_arguments_that_methods_do_not_have(fake):
    for method, name, ours in ((fake.set_lora, "loras", "lora"), (fake.encode, "tiles", "tile")):
        with pytest.raises(InputError, match=f"{name}.*{ours}"):
            method(**{name: 1})
    with pytest.raises(InputError, match="output_type"):
        fake.decode(None, output="np")


def test_signatures_stay_in_sight():
    assert {"model", "backend", "lora", "offline"} <= set(inspect.signature(calotype.load).parameters)
    assert list(inspect.signature(calotype.Pipeline.set_lora).parameters) == ["self", "lora"]


def test_pieces_that_there_are_not_are_not_left_out(monkeypatch):
    monkeypatch.setenv(DISABLE_VARIABLE, f" {PIECES[0]}, {PIECES[-1]},")
    assert disabled_optimizations() == {PIECES[0], PIECES[-1]}
    monkeypatch.setenv(DISABLE_VARIABLE, f"{PIECES[0]},kept_input")
    with pytest.raises(InputError, match="nearest: kept_inputs"):
        disabled_optimizations()
