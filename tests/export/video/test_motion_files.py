"""Motion modules as users have them, and the arguments of a call: what opens, and what is refused."""

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
from calotype.export.sources.motion_adapter.read import add_motion_adapter
from calotype.export.sources.source import read_source
from calotype.plan.family import family_of
from calotype.report.like import read_like
from calotype.request.video.memory import check_clip_memory
from calotype.serve.catalog import ModelCatalog
from tests.helpers.tiny_models import save_motion, save_tiny_model

pytestmark = pytest.mark.slow
WEIGHTS = "diffusion_pytorch_model.safetensors"
IMAGE = Image.new("RGB", (32, 32), "orange")
SMALL = {"width": 64, "height": 64, "steps": 1, "frames": 3}
ORIGINAL = {".attn1.": ".attention_blocks.0.", ".attn2.": ".attention_blocks.1.", ".norm1.": ".norms.0."}
ORIGINAL |= {".norm2.": ".norms.1.", ".norm3.": ".ff_norm.", "_modules.0.": "_modules.0.temporal_transformer."}
ORIGINAL |= {"_modules.1.": "_modules.1.temporal_transformer."}


@pytest.fixture(scope="module")
def folders(demo_folder, tmp_path_factory):
    """A model of Stable Diffusion 1, and motion modules."""
    work = tmp_path_factory.mktemp("motion")
    return save_tiny_model(work / "model", demo_folder), save_motion(work / "modules")


@pytest.fixture(scope="module")
def joined(folders):
    """The tensors of the U-Net with the modules."""
    model, modules = folders
    return load_file(add_motion_adapter(read_source(model), modules, offline=True).folders["unet"] / WEIGHTS)


@pytest.fixture(scope="module")
def pipe(folders):
    return calotype.load(folders[0], motion_adapter=folders[1], backend="fake")


def original(tensors) -> dict:
    """Return modules in the original layout: other names, and a table of positions for each attention."""
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in ORIGINAL.items():
            name = name.replace(ours, theirs)
        if name.endswith("pos_embed.pe"):
            for i in range(2):
                renamed[name.replace("pos_embed", f"attention_blocks.{i}.pos_encoder")] = tensor.clone()
        else:
            renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("form", ["diffusers.safetensors", "original.safetensors", "original.ckpt", "trained.ckpt"])
def test_one_file_in_either_layout(form, folders, joined, tmp_path):
    model, modules = folders
    tensors = load_file(modules / WEIGHTS)
    if not form.startswith("diffusers"):
        tensors = original(tensors)
    if form.startswith("trained"):
        tensors = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}
    (save_file if form.endswith("safetensors") else torch.save)(tensors, tmp_path / form)
    source = add_motion_adapter(read_source(model), tmp_path / form, offline=True)
    opened = load_file(source.folders["unet"] / WEIGHTS)
    assert opened.keys() == joined.keys()
    assert all(torch.equal(opened[name], tensor) for name, tensor in joined.items())
    assert family_of(source.configs).profile.frames.max == 8


def test_folders_that_diffusers_saved(folders, joined, tmp_path):
    """diffusers saves the joined U-Net, and the modules once more; a folder may have the modules alone."""
    model, modules = folders
    adapter = diffusers.MotionAdapter.from_pretrained(modules, low_cpu_mem_usage=False)
    pipe = diffusers.AnimateDiffPipeline.from_pretrained(model, motion_adapter=adapter, low_cpu_mem_usage=False)
    pipe.save_pretrained(tmp_path / "saved")
    source = add_motion_adapter(read_source(tmp_path / "saved"), None, offline=True)
    opened = load_file(source.folders["unet"] / WEIGHTS)
    assert opened.keys() == joined.keys()
    assert all(torch.equal(opened[name], tensor) for name, tensor in joined.items())
    with pytest.raises(SourceError) as raised:
        add_motion_adapter(source, modules, offline=True)
    assert raised.value.data["field"] == "motion_adapter"
    apart = shutil.copytree(model, tmp_path / "apart")
    shutil.copytree(modules, apart / "motion_adapter")
    index = json.loads((apart / "model_index.json").read_text()) | {"motion_adapter": ["diffusers", "MotionAdapter"]}
    (apart / "model_index.json").write_text(json.dumps(index))
    assert calotype.load(apart, backend="fake").plan.animates
    assert not calotype.load(model, backend="fake").plan.makes_clips


@pytest.mark.parametrize(
    ("case", "keyword"),
    [
        ("no file", "there is no file"),
        ("a model", "full model"),
        ("a U-Net", "UNet2DConditionModel"),
        ("other tensors", "expected motion modules"),
        ("a truncated file", "safetensors"),
        ("a pickle of code", "weights only"),
        ("a pickle of others", "none of motion modules"),
        ("no config", "pass the file"),
        ("another width", "does not fit"),
        ("other levels", "does not fit"),
        ("a missing tensor", "does not fit"),
        ("a false config", "does not fit"),
    ],
)
def test_other_files_are_refused(case, keyword, folders, tmp_path):
    model, modules = folders
    path = tmp_path / "file.safetensors"
    tensors = load_file(modules / WEIGHTS)
    if case == "a model":
        path = model
    elif case == "a U-Net":
        path = model / "unet"
    elif case == "other tensors":
        save_file({"x": torch.zeros(2)}, path)
    elif case == "a truncated file":
        path.write_bytes((modules / WEIGHTS).read_bytes()[:-4])
    elif case.startswith("a pickle"):
        path = tmp_path / "file.ckpt"
        torch.save(np.random.default_rng if case.endswith("code") else {"x": torch.zeros(2)}, path)
    elif case == "no config":
        path = shutil.copytree(modules, tmp_path / "modules", ignore=shutil.ignore_patterns("config.json"))
    elif case == "another width":
        path = tmp_path / "wide"
        diffusers.MotionAdapter(block_out_channels=(32, 32), motion_layers_per_block=1).save_pretrained(path)
    elif case == "other levels":
        path = tmp_path / "deep"
        diffusers.MotionAdapter(block_out_channels=(32, 64, 64), motion_layers_per_block=1).save_pretrained(path)
    elif case == "a missing tensor":
        save_file({name: t for name, t in tensors.items() if "mid_block" not in name or "norm1" not in name}, path)
    elif case == "a false config":
        path = shutil.copytree(modules, tmp_path / "modules")
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"motion_max_seq_length": 16}))
    with pytest.raises(SourceError) as raised:
        add_motion_adapter(read_source(model), path, offline=True)
    assert keyword in str(raised.value)


def test_models_without_one_text_encoder_take_no_motion_modules(folders, sdxl_folder):
    with pytest.raises(SourceError):
        calotype.load(sdxl_folder, motion_adapter=folders[1], backend="fake")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"image": IMAGE}, "image"),
        ({"strength": 0.5}, "strength"),
        ({"hires": 2}, "hires"),
        ({"frames": 0}, "frames"),
        ({"frames": 9}, "frames"),
        ({"frames": float("nan")}, "frames"),
        ({"num_frames": 2}, "num_frames"),
        ({"fps": "8"}, "fps"),
        ({"motion_bucket_id": 3}, "motion_bucket_id"),
        ({"max_guidance_scale": 3}, "max_guidance_scale"),
        ({"decode_chunk_size": 0}, "decode_chunk_size"),
        ({"latents": np.zeros((1, 3, 4, 8, 8), np.float32)}, "latents"),
        ({"latents": np.zeros((1, 4, 3, 8, 8), np.float32) * np.nan}, "latents"),
        ({"video": [IMAGE] * 9, "frames": None}, "video"),
        ({"video": [IMAGE]}, "video"),
        ({"video": []}, "video"),
        ({"video": "none.webp"}, "video"),
        ({"video": 3}, "video"),
        ({"video": [IMAGE] * 3, "frames": float("nan")}, "frames"),
        ({"video": [IMAGE] * 3, "strength": 1.5}, "strength"),
        ({"video": [IMAGE] * 3, "strength": 0.0}, "strength"),
        ({"width": 33}, "width"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, name, pipe):
    with pytest.raises(InputError) as raised:
        pipe.stream(**{"prompt": "a ring"} | SMALL | arguments)
    assert raised.value.data["argument"] == name


@pytest.mark.parametrize("form", ["webp", "gif", "Video", "array", "tensor"])
def test_an_input_clip_in_many_forms(form, pipe, tmp_path):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue", "black")]
    array = np.stack([np.asarray(frame) for frame in frames])
    clip = {"array": array, "tensor": torch.from_numpy(array).permute(0, 3, 1, 2)}.get(form)
    if clip is None:
        clip = calotype.Video(frames=tuple(frames), fps=5)
    if form in ("webp", "gif"):
        clip.save(tmp_path / f"clip.{form}", quality=None if form == "gif" else 100)
        clip = tmp_path / f"clip.{form}"
    request = pipe._start("a ring", {"video": clip, "frames": 3, "steps": 2}).request
    assert (request.video.shape, request.clip.frames, request.steps) == ((1, 3, 3, 64, 64), 3, 2)
    assert np.abs(request.video[0] - array[:3].transpose(0, 3, 1, 2) / 255).mean() < 0.02
    path = tmp_path / "out.png"
    pipe("a ring", video=frames, steps=2, seed=1).images[0].save(path)
    with pytest.raises(InputError) as raised:
        read_like(path, {}, loras_named=False, model_named=True)
    assert raised.value.data["argument"] == "video"


def test_the_plan_the_memory_and_the_settings(pipe, tmp_path):
    assert (pipe.plan.family, pipe.plan.profile.frames.opt, pipe.plan.latents.dims[2]) == ("sd1", 8, "frames")
    clip = pipe._start("a ring", SMALL).request.clip
    with pytest.raises(InputError) as raised:
        check_clip_memory(pipe.plan, clip, clips=1, rows=2, height=512, width=512, free=1, scores=True)
    assert raised.value.data["argument"] == "frames"
    result = pipe(["a ring", "a square"], num_images=20, **SMALL)
    assert (len(result.videos), len(result.images)) == (40, 120)
    info = result.images[-1].info
    assert (info["frames"], info["fps"], info["guidance_scale"]) == ("3", "8", "5.0")
    with pytest.raises(InputError) as raised:
        ModelCatalog({"clips": pipe})
    assert raised.value.data["argument"] == "model"
