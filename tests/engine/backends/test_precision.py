"""A requested precision: read and checked before any work, apart from the precision of files, and in the settings."""

from dataclasses import replace

import pytest

import calotype
from calotype.backends import choose
from calotype.backends.precision import plan_in
from calotype.errors import BackendError, BuildError, InputError
from calotype.images.png import settings_of
from calotype.plan.plan import Artifact
from calotype.report.like import read_like
from calotype.weights.precisions import parse_precision
from tests.helpers.backends import change_backend

SMALL = {"steps": 1, "height": 64, "width": 64, "seed": 1}


def precisions_of(pipe) -> dict[str, str]:
    return {each.component.name: each.runner.precision for each in pipe._components.opened}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bf16", {"unet": "bf16", "vae_decoder": "bf16"}),
        ({"unet": "fp16"}, {"unet": "fp16", "vae_decoder": "auto"}),
        ("unet=bf16, vae_decoder=fp32", {"unet": "bf16", "vae_decoder": "fp32"}),
        ({}, {"unet": "auto", "vae_decoder": "auto"}),
    ],
)
def test_a_precision_is_one_for_all_or_one_for_each(value, expected):
    parsed = parse_precision(value)
    assert {name: parsed.of(name) for name in expected} == expected


BAD = [None, "", 16, "bf17", "float16", ["bf16"], {"unet": None}, {3: "bf16"}, "unet=", "=bf16", "unet=bf16,unet=fp32"]


@pytest.mark.parametrize("value", BAD, ids=repr)
def test_another_value_is_refused_before_the_model_is_read(value):
    with pytest.raises(InputError) as raised:
        calotype.load("no/such/model", precision=value)
    assert raised.value.argument == "precision"


def test_an_unknown_component_is_named_with_the_nearest():
    with pytest.raises(InputError, match="unet") as raised:
        calotype.load("demo", backend="fake", precision={"unett": "bf16"})
    assert raised.value.argument == "precision"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_requested_precision_runs_without_a_build(precision):
    pipe = calotype.load("demo", backend="fake", precision=precision)
    assert set(precisions_of(pipe).values()) == {precision}
    assert pipe.component("vae_encoder").runner.precision == precision


def test_a_component_may_have_its_own():
    pipe = calotype.load("demo", backend="fake", precision={"unet": "bf16"})
    assert precisions_of(pipe) == {"text_encoder": "fp32", "unet": "bf16", "vae_decoder": "fp32"}
    assert pipe("x", **SMALL).report.components[1].precision == "bf16"


@pytest.mark.parametrize("backend", ["eager", "onnxruntime", ["onnxruntime", "eager"]])
def test_a_backend_without_the_precision_raises_before_a_trace(backend):
    with pytest.raises(BackendError, match="fp32"):
        calotype.load("demo", backend=backend, precision="bf16")


def test_hardware_without_the_precision_raises(monkeypatch):
    change_backend(monkeypatch, "openvino", unsupported=lambda precision: "no bfloat16 here")
    with pytest.raises(BackendError, match="no bfloat16 here"):
        calotype.load("demo", backend="openvino", precision="bf16")


def test_a_list_takes_the_backend_that_computes_in_it(monkeypatch):
    pipe = calotype.load("demo", backend=["eager", "fake"], precision="bf16")
    unet = pipe.component("unet")
    assert (unet.runner.backend, unet.runner.precision) == ("fake", "bf16")
    assert "not eager" in unet.why


def test_the_settings_of_an_image_name_the_precision(tmp_path):
    path = tmp_path / "a.png"
    mixed = calotype.load("demo", backend="fake", precision={"unet": "bf16"})
    for pipe, expected in (
        (calotype.load("demo", backend="fake", precision="fp16"), "fp16"),
        (mixed, "text_encoder=fp32,unet=bf16,vae_decoder=fp32"),
    ):
        pipe("x", **SMALL).images[0].save(path)
        assert settings_of(path)["precision"] == expected
        like = read_like(path, (), loras_named=False, model_named=False)
        again = calotype.load("demo", backend="fake", precision=like.precision)
        assert precisions_of(again) == precisions_of(pipe)


def plan_of(fake, **artifacts):
    """Return a plan for openvino with ONNX artifacts in these precisions."""
    components = {
        name: component.with_artifacts(
            *(
                Artifact(form="onnx", path=component.artifacts[0].path, precision=precision, check={})
                for precision in artifacts.get(name, ("fp32",))
            )
        )
        for name, component in fake.plan.components.items()
    }
    build = {"backend": "openvino", "spec": {"model": "demo", "backend": "openvino"}}
    return replace(fake.plan, components=components, build=build)


@pytest.mark.parametrize(
    ("own", "wanted", "expected"),
    [
        (("fp32",), "auto", ["fp32"]),
        (("int8+bf16",), "auto", ["int8+bf16"]),
        (("fp32",), "bf16", ["bf16"]),  # computed from the same file
        (("bf16",), "fp32", ["fp32"]),
        (("int8", "fp32"), "fp32", ["fp32"]),
        (("int8+bf16",), "int8", ["int8+bf16"]),
    ],
)
def test_a_plan_runs_in_what_its_files_hold(own, wanted, expected, fake, tmp_path, monkeypatch):
    change_backend(monkeypatch, "openvino", unsupported=lambda precision: None)
    plan = plan_in(plan_of(fake, unet=own), parse_precision({"unet": wanted}), choose("openvino"), tmp_path)
    assert [each.precision for each in plan.components["unet"].artifacts] == expected


@pytest.mark.parametrize(("own", "wanted"), [("int8", "fp32"), ("fp16", "bf16"), ("fp32", "int8"), ("fp32", "fp16")])
def test_a_plan_without_the_precision_names_the_build(own, wanted, fake, tmp_path, monkeypatch):
    change_backend(monkeypatch, "openvino", unsupported=lambda precision: None)
    plan = plan_of(fake, unet=(own,))
    with pytest.raises(BuildError, match=f"--precision {wanted}") as raised:
        plan_in(plan, parse_precision({"unet": wanted}), choose("openvino"), tmp_path)
    assert raised.value.component == "unet"


def test_a_plan_in_a_precision_that_this_machine_lacks_raises(saved_plan, monkeypatch):
    change_backend(monkeypatch, "openvino", unsupported=lambda precision: "no bfloat16 here")
    with pytest.raises(BackendError, match="no bfloat16 here"):
        calotype.load(saved_plan, precision="bf16")


def test_int8_of_a_mixed_plan_leaves_the_others(fake, tmp_path):
    plan = plan_in(plan_of(fake, unet=("int8",)), parse_precision("int8"), choose("openvino"), tmp_path)
    assert plan.components["text_encoder"].artifacts[0].precision == "fp32"
