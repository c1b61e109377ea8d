"""Unusual inputs: each gives an image that is not black, or an `InputError`."""

import numpy as np
import pytest
import torch
from PIL import Image

from calotype.errors import InputError, SamplerError

PROMPT = "a large red circle on a blue background"
BYTES = np.zeros((64, 96, 3), np.uint8)
BYTES[..., 2], BYTES[16:48, 30:66] = 200, (220, 30, 30)  # a red box on blue, wider than high
IMAGE = Image.fromarray(BYTES)


def rotated():
    image = Image.fromarray(np.rot90(BYTES))  # as a rotated camera stores it
    image.getexif()[0x0112] = 6
    return image


def with_alpha():
    return Image.fromarray(np.dstack([BYTES, np.full((64, 96), 128, np.uint8)]))


KINDS = {
    "PIL": (IMAGE, True),
    "RGBA": (with_alpha(), True),
    "palette": (IMAGE.convert("P", palette=Image.Palette.ADAPTIVE), False),
    "CMYK": (IMAGE.convert("CMYK"), False),
    "EXIF-rotated": (rotated(), True),
    "bytes": (BYTES, True),
    "bytes with alpha": (np.dstack([BYTES, BYTES[..., :1]]), True),
    "floats": (BYTES / 255, True),
    "sixteen bits": (BYTES.astype(np.uint16) * 257, True),
    "tensor": (torch.from_numpy(BYTES / 255).permute(2, 0, 1)[None], True),
    "half precision": ((BYTES / 255).astype(np.float16), False),
    "grayscale": (IMAGE.convert("L"), False),
    "grayscale, sixteen bits": (Image.fromarray(np.asarray(IMAGE.convert("L"), dtype=np.uint16) * 257), False),
    "black and white": (IMAGE.convert("1"), False),
}


def is_not_black(image):
    pixels = np.asarray(image)
    return pixels.dtype == np.uint8 and pixels.std() > 5 and pixels.mean() > 5


@pytest.fixture(scope="module")
def plain(pipe):
    return pipe(PROMPT, image=IMAGE, steps=4, strength=0.5, seed=1, output_type="np").images


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_kind(pipe, plain, kind):
    image, same = KINDS[kind]
    result = pipe(PROMPT, image=image, steps=4, strength=0.5, seed=1, output_type="np").images
    assert result.shape == (1, 64, 96, 3)
    if same:
        np.testing.assert_allclose(result, plain, atol=1e-4)
    assert is_not_black((result[0] * 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(100, 75), (97, 65), (17, 16), (9, 300)])
def test_sizes_that_are_not_multiples(pipe, size):
    result = pipe(PROMPT, image=IMAGE.resize(size), steps=2, seed=1)
    assert result.images[0].size == tuple(max(s // 16 * 16, 16) for s in size)
    assert any("was resized to" in note for note in result.report.notes)


@pytest.mark.parametrize("size", [(96, 64), (10, 10), (300, 20), (1, 1)])
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16"])
def test_masks_of_any_size_and_kind(fake, size, mode):
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2 + 1, size[1]))
    image = Image.fromarray(np.asarray(mask, dtype=np.uint16) * 257) if mode == "I;16" else mask.convert(mode)
    notes = fake(PROMPT, image=IMAGE, mask_image=image, steps=1, seed=1).report.notes
    assert (f"the mask of {size[0]} x {size[1]} pixels was resized to 96 x 64" in notes) == (size != (96, 64))
    assert not any("black everywhere" in note for note in notes)


@pytest.mark.parametrize("gray", [0, 127, 128, 255])
def test_a_mask_has_a_threshold(fake, gray):
    notes = fake("x", image=IMAGE, mask_image=Image.new("L", (96, 64), gray), steps=1, seed=1).report.notes
    assert any("black everywhere" in note for note in notes) == (gray < 128)


@pytest.mark.parametrize("strength", [0.01, 0.25, 1, 1.0])
def test_strengths(pipe, strength):
    if strength * 20 < 1:
        with pytest.raises(InputError, match="strength"):
            pipe(PROMPT, image=IMAGE, strength=strength)
    else:
        result = pipe(PROMPT, image=IMAGE, strength=strength, seed=1)
        assert is_not_black(result.images[0])
        assert result.report.network_calls == 20 * strength


@pytest.mark.parametrize("scheduler", [None, "ddim", "euler", "euler-a", "unipc", "lcm"])
def test_one_step(pipe, scheduler):
    for more in ({}, {"image": IMAGE, "strength": 1.0}, {"image": IMAGE, "mask_image": IMAGE.convert("L")}):
        result = pipe(PROMPT, steps=1, seed=1, scheduler=scheduler, output_type="np", **more).images
        assert np.isfinite(result).all()
        assert result.std() > 0.01


def test_a_thousand_steps(fake):
    result = fake(PROMPT, steps=1000, seed=1, scheduler="ddim", width=64, height=64)
    assert (result.report.network_calls, result.images[0].size) == (1000, (64, 64))
    half = fake(PROMPT, image=IMAGE, strength=0.5, steps=1000, seed=1, scheduler="ddim")
    assert half.report.network_calls == 500
    with pytest.raises(InputError, match="steps"):
        fake(PROMPT, steps=1001)
    with pytest.raises(SamplerError, match="schedule"):
        fake(PROMPT, steps=1000, scheduler="lcm")


@pytest.mark.parametrize(
    ("arguments", "keyword"),
    [
        ({"num_images": 0}, "num_images"),
        ({"prompt": []}, "prompt must be text"),
        ({"image": []}, "image must be"),
        ({"image": IMAGE, "mask_image": []}, "mask_image must be"),
        ({"image": np.zeros((0, 0, 3), np.uint8)}, r"\[0, 0, 3\]"),
        ({"image": np.where(BYTES > 0, np.nan, 0.5)}, "nan"),
        ({"image": np.full((64, 96, 3), np.inf)}, "image"),
        ({"image": BYTES.astype(np.float32)}, "float32"),
        ({"image": IMAGE, "mask_image": np.full((64, 96), np.nan)}, "mask_image"),
        ({"image": "image.png"}, "image.png"),
        ({"image": IMAGE, "width": 100}, "multiple of 16"),
        ({"image": Image.new("RGB", (4096, 64))}, "width must be from"),
        ({"image": IMAGE, "control_image": IMAGE}, "ControlNet"),
    ],
)
def test_invalid_inputs_raise_before_the_work(fake, arguments, keyword):
    with pytest.raises(InputError, match=keyword):
        fake(**{"prompt": PROMPT, "steps": 2, **arguments})
    assert fake.component("unet").runner.calls == 0


def test_prompts_of_any_length(pipe):
    for prompt in ("", " ", "\n", "red " * 10_000, "(" * 500, "🎉" * 200):
        result = pipe(prompt, steps=1, seed=1)
        assert np.asarray(result.images[0]).std() > 1
        assert any("left out" in note for note in result.report.notes) == (len(prompt) > 10_000)


def test_unknown_arguments_name_the_nearest(fake):
    for name, nearest in (("guidance_scal", "guidance_scale"), ("stepz", "steps")):
        with pytest.raises(InputError, match=rf"{name}.*{nearest}"):
            fake("a ring", **{name: 5})
