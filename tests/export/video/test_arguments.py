"""A video model's arguments, memory and files, with networks that only have the right shapes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import calotype
from calotype.errors import InputError, SourceError
from calotype.export import prepare
from calotype.images.video import Video
from calotype.report.like import read_like
from calotype.request.video.memory import check_clip_memory, decoder_loads
from calotype.serve.catalog import ModelCatalog
from calotype.system.memory import peak_bytes
from tests.helpers.tiny_models import save_video

IMAGE = Image.new("RGB", (40, 30), "orange")
SMALL = {"image": IMAGE, "width": 32, "height": 32, "steps": 1, "frames": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_video(tmp_path_factory.mktemp("video") / "model", levels=4)  # the fake decoder has the usual factor


@pytest.fixture(scope="module")
def pipe(folder):
    return calotype.load(folder, backend="fake")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"image": None}, "image"),
        ({"image": []}, "image"),
        ({"image": np.zeros((1, 4, 8, 8), np.float32)}, "image"),
        ({"image": np.full((8, 8, 3), np.nan, np.float32)}, "image"),
        ({"frames": 0}, "frames"),
        ({"frames": 129}, "frames"),
        ({"frames": 2.5}, "frames"),
        ({"frames": True}, "frames"),
        ({"num_frames": 4}, "num_frames"),
        ({"fps": 0}, "fps"),
        ({"motion_bucket_id": -1}, "motion_bucket_id"),
        ({"noise_aug_strength": float("nan")}, "noise_aug_strength"),
        ({"min_guidance_scale": -1}, "min_guidance_scale"),
        ({"max_guidance_scale": "3"}, "max_guidance_scale"),
        ({"decode_chunk_size": 0}, "decode_chunk_size"),
        ({"guidance_scale": 7.5}, "guidance_scale"),
        ({"guidance_method": "apg"}, "guidance_method"),
        ({"strength": 0.5}, "strength"),
        ({"mask_image": IMAGE}, "mask_image"),
        ({"hires": 2}, "hires"),
        ({"width": 33}, "width"),
        ({"negative_prompt": "blurry"}, "prompt"),
        ({"prompt": "a cat"}, "prompt"),
        ({"latents": np.zeros((1, 4, 4, 4), np.float32)}, "latents"),
        ({"latents": np.zeros((1, 5, 4, 4, 4), np.float32)}, "latents"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, name, pipe):
    with pytest.raises(InputError) as raised:
        pipe.stream(**SMALL | arguments)
    assert raised.value.data["argument"] == name


@pytest.mark.parametrize(
    "argument",
    ["frames", "fps", "motion_bucket_id", "noise_aug_strength", "min_guidance_scale", "decode_chunk_size"],
)
def test_arguments_of_clips_need_a_video_model(argument, fake):
    with pytest.raises(InputError) as raised:
        fake.stream("x", **{argument: 3})
    assert raised.value.data["argument"] == argument


def test_a_family_stays_data(folder):
    plan = prepare(folder, forms=())
    assert (plan.family, plan.image_input.kind, plan.profile.frames.opt) == ("video", "video", 4)
    assert (plan.profile.height.opt, plan.profile.width.opt) == (576, 1024)


def test_several_images_in_batches(pipe):
    result = pipe(image=[IMAGE, IMAGE], num_images=20, **{n: v for n, v in SMALL.items() if n != "image"})
    assert (len(result.videos), len(result.images), len(result.seeds)) == (40, 120, 40)
    assert any("clips ran" in note for note in result.report.notes)


def test_memory_offers_what_is_small_enough(pipe):
    clip = pipe._start(None, SMALL | {"frames": 8}).request.clip
    runs = {"clips": 1, "rows": 2, "height": 512, "width": 512, "scores": True}
    with pytest.raises(InputError) as raised:
        check_clip_memory(pipe.plan, clip, **runs, free=1)
    needed = raised.value.data["got"]
    with pytest.raises(InputError) as raised:
        check_clip_memory(pipe.plan, clip, **runs, free=needed // 2)
    assert "frames=4" in str(raised.value)
    assert "width=" in str(raised.value)
    check_clip_memory(pipe.plan, clip, **runs, free=None)
    check_clip_memory(pipe.plan, clip, **runs, free=needed)
    check_clip_memory(pipe.plan, clip, **runs | {"scores": False}, free=needed // 2)
    with pytest.raises(InputError) as raised:
        check_clip_memory(pipe.plan, replace(clip, decode_chunk_size=8), **runs | {"scores": False}, free=needed // 16)
    assert raised.value.data["argument"] == "decode_chunk_size"


@pytest.mark.parametrize(("room_for", "chunks"), [(8, [8]), (7, [4, 4]), (3, [3, 3, 2]), (0, [1] * 8)])
def test_chunks_of_the_decoder_follow_the_free_memory(room_for, chunks, pipe, monkeypatch):
    decoder, seen = pipe.component("vae_decoder"), []
    run = type(decoder.runner).__call__

    def recorded(runner, inputs):
        seen.extend(array.shape[1] for name, array in inputs.items() if name == "latent_sample")
        return run(runner, inputs)

    each = peak_bytes(decoder_loads(pipe.plan), batch=1, height=64, width=64, guided=False)
    monkeypatch.setattr(type(decoder.runner), "__call__", recorded)
    monkeypatch.setattr("calotype.stages.vae.available_bytes", lambda: int(max(room_for, 0.5) * each))
    notes = pipe(**SMALL | {"frames": 8, "width": 64, "height": 64}).report.notes
    assert seen == chunks
    assert any("chunks" in note for note in notes) == (len(chunks) > 1)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4", ".webm"])
def test_clips_are_written(suffix, pipe, tmp_path):
    if suffix in (".mp4", ".webm"):
        pytest.importorskip("av", reason="pip install 'calotype[video]'")
    video = moving_square()
    path = tmp_path / f"clip{suffix}"
    video.save(path, fps=10, quality=90)
    frames = frames_of(path)
    assert len(frames) == len(video)
    assert np.abs(np.stack(frames).astype(int) - video.array).mean() < 6
    assert "data:image/webp" in video._repr_html_()


def moving_square() -> Video:
    frames = []
    for i in range(5):
        frame = Image.new("RGB", (64, 48), "navy")
        frame.paste("gold", (8 * i, 12, 8 * i + 20, 32))
        frames.append(frame)
    return Video(frames=tuple(frames), fps=7)


def frames_of(path) -> list:
    """Return the frames of a file as arrays."""
    if path.suffix in (".mp4", ".webm"):
        import av

        with av.open(str(path)) as file:
            assert file.streams.video[0].codec_context.name == "libvpx-vp9" or "vp9" in file.streams.video[0].codec.name
            assert float(file.streams.video[0].average_rate) == 10
            return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with Image.open(path) as image:
        frames = []
        for i in range(image.n_frames):
            image.seek(i)
            image.load()
            assert image.info["duration"] == 100
            frames.append(np.asarray(image.convert("RGB")))
        return frames


@pytest.mark.parametrize(
    ("name", "options"),
    [("clip.avi", {}), ("clip", {}), ("no/clip.gif", {}), ("clip.gif", {"fps": 0}), ("clip.webp", {"quality": 101})],
)
def test_files_that_cannot_be_written(name, options, tmp_path):
    with pytest.raises(InputError):
        moving_square().save(tmp_path / name, **options)


def test_a_missing_encoder_is_named_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="video"):
        moving_square().save(tmp_path / "clip.mp4")


def test_the_settings_are_in_the_frames(pipe, tmp_path):
    result = pipe(**SMALL, seed=5, motion_bucket_id=40)
    result.videos[0].save(tmp_path / "clip.webp")
    info = result.images[-1].info
    assert (info["frames"], info["motion_bucket_id"], info["seed"]) == ("3", "40", "5")
    arguments = read_like(tmp_path / "clip.webp", {}, loras_named=False, model_named=True).arguments
    again = pipe(**{**arguments, "image": IMAGE})
    assert np.array_equal(again.videos[0].array, result.videos[0].array)


def test_a_server_refuses_a_video_model(pipe):
    with pytest.raises(InputError) as raised:
        ModelCatalog({"svd": pipe})
    assert raised.value.data["argument"] == "model"


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("unet", {"in_channels": 4}),
        ("unet", {"addition_time_embed_dim": 5}),
        ("unet", {"num_frames": 1000}),
        ("unet", {"cross_attention_dim": 32}),
        ("vae", {"_class_name": "AutoencoderKL"}),
    ],
)
def test_configs_that_do_not_match(part, change, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    config = copy / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(SourceError):
        prepare(copy, forms=())
