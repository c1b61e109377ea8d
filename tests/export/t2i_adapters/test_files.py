"""T2I-Adapters as users have them, and the arguments of a call: what opens, and what is refused."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import calotype
from calotype.errors import InputError, SourceError
from calotype.export.sources.source import read_source
from calotype.export.sources.t2i_adapter.read import add_t2i_adapters
from tests.helpers.conditioning.t2i_adapters import adapter, save_adapter, save_original, save_sd, save_xl
from tests.helpers.tiny_models import save_tiny_model

pytestmark = pytest.mark.slow
SCENE = Image.new("RGB", (96, 64), "red")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(demo_folder, sdxl_folder, tmp_path_factory):
    """A model of Stable Diffusion 1 and one of XL, and an adapter of each kind."""
    work = tmp_path_factory.mktemp("files")
    kinds = {kind: save_adapter(work / kind, kind) for kind in ("full_adapter", "full_adapter_xl", "light_adapter")}
    return {"SD": save_sd(work / "sd", demo_folder), "XL": save_xl(work / "xl", sdxl_folder), **kinds}


@pytest.mark.parametrize("kind", ["full_adapter", "full_adapter_xl", "light_adapter"])
@pytest.mark.parametrize("original", [True, False])
def test_one_file_in_either_layout(folders, tmp_path, kind, original):
    path = tmp_path / "file.safetensors"
    if original:
        save_original(folders[kind], path)
    else:
        shutil.copy(folders[kind] / WEIGHTS, path)
    model = read_source(folders["XL" if kind == "full_adapter_xl" else "SD"])
    opened = add_t2i_adapters(model, [path], offline=True)
    config = json.loads((folders[kind] / "config.json").read_text())
    fields = ("adapter_type", "in_channels", "channels", "num_res_blocks", "downscale_factor")
    assert {name: opened.configs["t2i_adapter"][name] for name in fields} == {name: config[name] for name in fields}
    converted, expected = (load_file(f / WEIGHTS) for f in (opened.folders["t2i_adapter"], folders[kind]))
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())


def test_adapters_that_were_saved_with_the_model(folders, tmp_path):
    """diffusers saves the third of several as adapter_1_2, and reads it from adapter_2."""
    model = calotype.load(folders["SD"], t2i_adapter=folders["light_adapter"], backend="fake").plan
    nets = [adapter("light_adapter"), adapter("full_adapter"), adapter("light_adapter", 1)]
    for count in (1, 3):
        net = nets[0] if count == 1 else diffusers.MultiAdapter(nets)
        pipe = diffusers.StableDiffusionAdapterPipeline.from_pretrained(
            folders["SD"], adapter=net, safety_checker=None, dtype=torch.float32, low_cpu_mem_usage=False
        )
        pipe.save_pretrained(tmp_path / str(count))
        plan = calotype.load(tmp_path / str(count), backend="fake").plan
        names = [name for name in plan.components if name.startswith("t2i_adapter")]
        assert names == ["t2i_adapter", "t2i_adapter_1", "t2i_adapter_2"][:count]
        assert plan.components["unet"].inputs == model.components["unet"].inputs
    replaced = calotype.load(tmp_path / "3", t2i_adapter=folders["full_adapter"], backend="fake").plan
    assert "t2i_adapter_1" not in replaced.components


def test_what_does_not_fit_is_refused(folders, demo_folder, tmp_path):
    for model, kind in (("XL", "full_adapter"), ("XL", "light_adapter"), ("SD", "full_adapter_xl")):
        with pytest.raises(SourceError, match="same model family"):
            calotype.load(folders[model], t2i_adapter=folders[kind], backend="fake")
    tiny = save_tiny_model(tmp_path / "tiny", demo_folder)
    with pytest.raises(SourceError, match="t2i_adapter"):
        calotype.load(tiny, t2i_adapter=folders["full_adapter"], backend="fake")
    file = save_original(folders["full_adapter_xl"], tmp_path / "xl.safetensors")
    with pytest.raises(SourceError):
        calotype.load(folders["SD"], t2i_adapter=file, backend="fake")
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    for other in (tmp_path / "other.safetensors", folders["SD"], folders["SD"] / "unet", tmp_path / "none"):
        with pytest.raises(SourceError):
            calotype.load(folders["SD"], t2i_adapter=other, backend="fake")
    with pytest.raises(SourceError, match="--t2i-adapter"):
        calotype.load(folders["full_adapter"], backend="fake")


@pytest.mark.parametrize(
    "change",
    [
        {"channels": [32, 64, 32]},
        {"channels": "wide"},
        {"num_res_blocks": 3},
        {"in_channels": 1},
        {"in_channels": 12},
        {"downscale_factor": 6},
        {"downscale_factor": 10**9},
        {"adapter_type": "other"},
        {"_class_name": "ControlNetModel"},
    ],
)
def test_a_changed_config_is_refused(folders, tmp_path, change):
    net = shutil.copytree(folders["full_adapter"], tmp_path / "net")
    config = json.loads((net / "config.json").read_text())
    (net / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(SourceError):
        calotype.load(folders["SD"], t2i_adapter=net, backend="fake")


@pytest.fixture(scope="module")
def fakes(folders):
    nets = [folders["full_adapter"], folders["light_adapter"]]
    return {n: calotype.load(folders["SD"], t2i_adapter=nets[:n], backend="fake") for n in (1, 2)}


@pytest.mark.parametrize(
    ("count", "arguments", "named"),
    [
        (1, {"adapter_image": []}, "adapter_image"),
        (1, {"adapter_image": 5}, "adapter_image"),
        (1, {"adapter_image": "no such file.png"}, "adapter_image"),
        (1, {"adapter_image": np.full((8, 8, 3), np.nan, np.float32)}, "adapter_image"),
        (1, {"adapter_image": [SCENE, SCENE]}, "adapter_image"),
        (2, {"adapter_image": SCENE}, "adapter_image"),
        (2, {"adapter_image": [SCENE, None]}, "adapter_image"),
        (1, {"adapter_image": SCENE, "width": 90}, "width"),
        (1, {"adapter_image": SCENE, "adapter_conditioning_scale": float("nan")}, "adapter_conditioning_scale"),
        (1, {"adapter_image": SCENE, "adapter_conditioning_scale": None}, "adapter_conditioning_scale"),
        (2, {"adapter_image": [SCENE] * 2, "adapter_conditioning_scale": [1]}, "adapter_conditioning_scale"),
        (1, {"adapter_image": SCENE, "adapter_conditioning_factor": 1.1}, "adapter_conditioning_factor"),
        (1, {"adapter_image": SCENE, "adapter_conditioning_factor": "all"}, "adapter_conditioning_factor"),
        (1, {"adapter_conditioning_factor": [0.5]}, "adapter_conditioning_factor"),
    ],
)
def test_odd_input_is_refused(fakes, count, arguments, named):
    with pytest.raises(InputError) as raised:
        fakes[count].stream("x", steps=1, **arguments)
    assert raised.value.data["argument"] == named


def test_a_model_without_adapters_takes_no_adapter_image(fake):
    with pytest.raises(InputError, match="t2i_adapter="):
        fake.stream("x", adapter_image=SCENE)


def test_the_forms_of_an_adapter_image(fakes):
    arrays = np.zeros((2, 64, 96, 3), np.uint8)
    for count, image in (
        (1, SCENE.convert("L")),
        (1, [SCENE, arrays[0]]),
        (1, arrays),
        (1, torch.zeros(3, 64, 96)),
        (2, [SCENE, arrays]),
        (2, [[SCENE, SCENE], SCENE]),
    ):
        result = fakes[count](["x", "y"], num_images=2, adapter_image=image, steps=1, seed=1, output_type="np")
        assert result.images.shape == (4, 64, 96, 3)


def test_an_image_is_encoded_once(fakes):
    pipe, images = fakes[1], [Image.new("RGB", (96, 64), color) for color in ("green", "blue")]
    pipe("x", adapter_image=images[0], steps=1)
    net = pipe._components("t2i_adapter").runner
    before = net.calls
    pipe(["x", "y"], adapter_image=images, num_images=2, steps=3, seed=1)
    assert net.calls == before + 1  # of the second image, for all rows and steps


def test_the_second_pass_sees_the_image_at_its_size(fakes):
    assert fakes[1]("x", adapter_image=SCENE, hires=1.5, steps=2, seed=1).images[0].size == (128, 96)
