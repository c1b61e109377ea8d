"""An invalid manifest is refused when a plan is read. The error has the field and the command that builds it again."""

import copy
import json
import os

import pytest

import calotype
from calotype.errors import SourceError
from calotype.errors.schema import SchemaError
from calotype.plan.manifest import check_manifest
from calotype.plan.plan import read_plan


def at(data, path):
    """Return the object that holds the last name of a path, and that name."""
    *names, last = path.split("/")
    for name in names:
        data = data[int(name) if isinstance(data, list) else name]
    return data, int(last) if isinstance(data, list) else last


MISSING = [
    *("version", "family", "profile", "components", "scheduler", "tokenizers", "prompting", "files", "build"),
    *("components/unet", "components/vae_decoder", "components/vae_encoder", "components/text_encoder"),
    *("tokenizers/text_encoder", "prompting/states/0", "components/unet/inputs", "components/unet/artifacts/0/form"),
    *("build/needs", "build/needs/onnxruntime", "build/machine", "build/backend", "build/proof/pictures", "build/spec"),
    *("components/unet/inputs/0/dims", "loads/0/pixels", "components/unet/inputs/0", "components/unet/inputs/2"),
]


@pytest.mark.parametrize("path", MISSING)
def test_a_missing_field_is_refused(path, editable):
    holder, name = at(editable.data, path)
    del holder[name]
    refused(editable, None)


def refused(editable, field):
    folder = editable.seal()
    with pytest.raises(SourceError) as caught:
        read_plan(folder)
    message = str(caught.value)
    assert "plan.json" in message or "version" in message
    assert "calotype build" in message
    assert field is None or field in message
    assert caught.value.path.parent == folder
    with pytest.raises(SourceError):
        calotype.load(folder, backend="fake")


UNET = "components/unet"
WRONG = [
    *[("scaling_factor", value) for value in ("x", None, 0, -1, True, float("nan"), float("inf"), 1e300, 10**400)],
    *[("profile/multiple", value) for value in (0, -16, 24, 10**9, "16", 16.0, True)],
    *[("profile/factor", value) for value in (0, 3, 10**6)],
    *[("profile/tokens", value) for value in (0, 78, 10**9)],
    *[("profile/height", value) for value in ("3:2:1", "", "0:1:2", "1:2:3", "16:128:99999999", 128, ["16"])],
    *[("latents_mean", value) for value in ([0], [0] * 4, ["x"] * 4, None)],
    *[("loads", value) for value in (None, [{}], [1], [{"pixels": 0, "width": 1, "squared": True, "guided": True}])],
    *[("scheduler", value) for value in (None, [], "euler", {"num_train_timesteps": 10**9}, {"solver_order": 10**9})],
    *[("scheduler", value) for value in ({"_class_name": 3}, {"a": {"b": 1}}, {"a b": 1})],
    *[("family", value) for value in ("", "sd9", None, [], "pixels", "latents")],
    *[("fingerprint", value) for value in (None, 3, "", "\x1b[2J")],
    *[("prompting/states", value) for value in ([], [["text_encoder"]], [["unet", "out_sample"]], [[1, 2]], None)],
    *[("prompting/states", [["text_encoder", name]]) for name in ("nothing", "pooler_output", "skipped_states.1")],
    *[("prompting/pooled", value) for value in (["text_encoder", "nothing"], ["nothing", "x"], "xy", [])],
    ("prompting/pooled", ["text_encoder", "pooler_output"]),  # the U-Net has no input for it
    ("prompting/zero_negative", "no"),
    *[("tokenizers", value) for value in ({}, {"unet": "tokenizer"}, {"text_encoder": 3}, [])],
    *[(f"{UNET}/inputs", value) for value in ([], None, {}, [{}])],
    *[(f"{UNET}/inputs/0/dtype", value) for value in ("object", "float64", None, "int64")],
    *[(f"{UNET}/inputs/0/dims", value) for value in ([], ["batch"], ["batch", 4, "x", "y"], ["batch", 4, 8, 8], [-1])],
    (f"{UNET}/inputs/0/dims", ["batch", 5, "latent_height", "latent_width"]),
    (f"{UNET}/inputs/2/dims", ["batch", "tokens", 127]),
    *[(f"{UNET}/inputs/0/name", value) for value in ("timestep", "samples", "a\nb", "")],
    *[(f"{UNET}/outputs/0/dims", value) for value in (["batch", 10**9, 1, 1], ["batch", 4])],
    *[(f"{UNET}/artifacts", value) for value in ([], None, [3])],
    *[(f"{UNET}/artifacts/0/check", value) for value in (None, [], {"others": []}, {"others": {"openvino": 1}})],
    *[(f"{UNET}/artifacts/0/check/{name}", []) for name in ("max_relative_error", "backend", "real_inputs")],
    *[(f"{UNET}/refused", value) for value in (None, {"onnx": 3})],
    ("components/controlnet", {}),
    ("components/text_encoder/inputs/0/dims", ["batch", 10**6]),
    ("components/text_encoder/outputs/2/dims", ["batch", 77, 129]),
    ("components/vae_decoder/inputs/0/dims", ["batch", 3, "latent_height", "latent_width"]),
    ("components/vae_encoder/outputs/0/dims", ["batch", 7, "latent_height", "latent_width"]),
    *[("build", value) for value in (None, [], {"backend": "onnxruntime"})],
    *[("build/needs", value) for value in ({}, [], {"onnxruntime": 3}, {"onnxruntime": "1'; curl x | sh; '"})],
    *[("build/machine", value) for value in (None, {}, {"gpu": 3})],
    *[("build/backend", value) for value in (None, 3, ["openvino"], "x; y")],
    *[("build/table", value) for value in (None, [{}], [3])],
    ("build/spec/model", 3),
    ("build/spec/lora", {}),
    ("samplers", 3),
    *[("files", value) for value in (None, [], {"a": 3}, {"a": [1, "x"]}, {"a": [-1, "0" * 64]})],
    ("more", 1),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=[f"{path}={value!r:.40}" for path, value in WRONG])
def test_the_error_for_a_wrong_value_names_its_field(path, value, saved_plan):
    data = copy.deepcopy(json.loads((saved_plan / "plan.json").read_text()))
    data.pop("digest")
    check_manifest(data)
    holder, name = at(data, path)
    holder[name] = value
    with pytest.raises(SchemaError) as caught:
        check_manifest(data)
    # The error for two fields that do not match names one of them.
    assert any(str(caught.value).removeprefix("a name in ").startswith(field) for field in [*data, "more"])
    assert str(caught.value).startswith(caught.value.field)
    assert len(str(caught.value)) < 1000


def test_a_wrong_value_is_refused_where_a_plan_is_read(editable):
    editable.data["profile"]["multiple"] = 0
    refused(editable, "profile.multiple")
    with pytest.raises(SourceError) as caught:
        read_plan(editable.seal())
    assert caught.value.data == {"path": editable.folder / "plan.json", "field": "profile.multiple"}


@pytest.mark.parametrize("wrong", ["deep", "huge", "pipe", "folder", "text", "list"])
def test_a_manifest_that_is_not_a_small_json_object_is_refused(wrong, editable):
    path = editable.folder / "plan.json"
    path.unlink()
    if wrong == "pipe":
        os.mkfifo(path)
    elif wrong == "folder":
        path.mkdir()
    else:
        text = {"deep": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "huge": "{}", "text": "{", "list": "[]"}[wrong]
        path.write_text(text)
    if wrong == "huge":
        os.truncate(path, 1 << 33)
    with pytest.raises(SourceError, match=r"plan\.json.*calotype build"):
        calotype.load(editable.folder)


def test_only_the_exporter_reads_an_unfinished_plan(editable):
    editable.data["files"] = {}
    editable.data["components"]["unet"]["artifacts"][0]["path"] = "/elsewhere/model.onnx"
    folder = editable.seal()
    assert str(read_plan(folder, sealed=False).components["unet"].artifacts[0].path) == "/elsewhere/model.onnx"
    refused(editable, "files")
