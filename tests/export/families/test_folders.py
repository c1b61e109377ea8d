"""Folders that diffusers writes: each class of pipeline opens by its parts, and gives the image of diffusers."""

import json
import shutil

import diffusers
import pytest

import calotype
from calotype.benchmarks.scripts.open_folders import compare
from calotype.errors import SourceError
from calotype.export import prepare
from calotype.export.sources.hub import needed
from tests.helpers.pipelines.tiny import inputs_of, tiny_pipeline

SD, XL = "StableDiffusion", "StableDiffusionXL"
CLASSES = (
    *(f"{SD}{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
    *(f"{SD}ControlNet{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
    *(f"{SD}PAG{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
    *("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
    *(f"{XL}{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
    *(f"{XL}ControlNet{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
    *(f"{XL}PAG{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
    *(f"{kind}ControlNetPAGPipeline" for kind in (SD, XL)),
)


class CommunityPipeline(diffusers.StableDiffusionPipeline):
    """A class that nobody lists."""


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_of_any_class_gives_the_image_of_diffusers(demo_folder, tmp_path, name):
    kind = getattr(diffusers, name)
    assert compare(tiny_pipeline(kind, demo_folder, tmp_path), inputs_of(kind)) >= 60


def test_several_controlnets_of_a_folder_are_taken_along(demo_folder, tmp_path):
    kind = diffusers.StableDiffusionControlNetPipeline
    pipe = tiny_pipeline(kind, demo_folder, tmp_path, nets=2)
    assert compare(pipe, inputs_of(kind, nets=2)) >= 60
    pipe.save_pretrained(tmp_path / "model")
    assert {"controlnet", "controlnet_1"} <= set(prepare(tmp_path / "model", forms=()).components)
    passed = prepare(tmp_path / "model", controlnets=[tmp_path / "net0"], forms=())
    assert [name for name in passed.components if name.startswith("controlnet")] == ["controlnet"]


def test_a_class_of_the_community_opens(demo_folder, tmp_path):
    pipe = tiny_pipeline(CommunityPipeline, demo_folder, tmp_path)
    assert compare(pipe, inputs_of(CommunityPipeline)) >= 60


def test_parts_without_a_use_are_named(demo_folder, model_copy, capsys):
    edit_index(model_copy, prior=["diffusers", "PriorTransformer"], safety_checker=["a", "Checker"])
    calotype.load(model_copy, backend="fake")
    printed = capsys.readouterr().err
    assert "prior (PriorTransformer)" in printed
    assert "Checker" not in printed


def test_a_forgotten_part_is_read_and_a_null_one_is_not(sdxl_folder, tmp_path):
    """An index without an entry forgets it: null says that there is no such part."""
    folder = shutil.copytree(sdxl_folder, tmp_path / "model")
    edit_index(folder, text_encoder_2=..., tokenizer_2=...)
    assert prepare(folder, forms=()).family == "sdxl"
    edit_index(folder, text_encoder_2=[None, None])
    with pytest.raises(SourceError, match="text_encoder_2"):
        prepare(folder, forms=())


def edit_index(folder, **changes):
    file = folder / "model_index.json"
    index = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in index.items() if value is not ...}))


@pytest.mark.parametrize(
    ("index", "configs", "keyword"),
    [
        ({"unet": ..., "transformer": ["diffusers", "FluxTransformer2DModel"]}, {}, "FluxTransformer2DModel"),
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, {"unet": {"_class_name": "UNet3DConditionModel"}}, "UNet3D"),
        ({}, {"text_encoder": {"model_type": "t5"}}, "t5"),
        ({}, {"vae": {"_class_name": "AsymmetricAutoencoderKL"}}, "AsymmetricAutoencoderKL"),
        ({"text_encoder": None}, {}, "no text_encoder"),
        ({"vae": [None, None]}, {}, "no vae"),
        ({}, {"unet": {"attention_type": "gated"}}, "attention_type"),
        ({}, {"unet": {"_class_name": ["x"]}}, "unet"),
    ],
)
def test_other_models_are_refused_in_one_sentence(model_copy, index, configs, keyword):
    edit_index(model_copy, **index)
    if index.get("unet") is ...:
        shutil.rmtree(model_copy / "unet")
    for name, changes in configs.items():
        file = model_copy / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(SourceError, match=keyword) as raised:
        calotype.load(model_copy, backend="fake")
    assert "\n" not in str(raised.value)


def test_the_hub_fetches_controlnets():
    files = [f"{name}/{file}" for name in ("unet", "controlnet", "controlnet_1") for file in ("config.json", WEIGHTS)]
    assert {*files, "model_index.json"} == set(needed("a/b", ["model_index.json", *files, "adapter/config.json"]))


WEIGHTS = "diffusion_pytorch_model.safetensors"
