"""What people really give: each is a picture that is not black, or an error of ours that says what to do."""

import numpy as np
import pytest
from PIL import Image

from calotype.errors import InputError, SamplerError

PROMPT = "a large red circle on a blue background"
BYTES = np.zeros((64, 96, 3), np.uint8)
BYTES[..., 2], BYTES[16:48, 30:66] = 200, (220, 30, 30)  # a red box on blue, wider than it is high
PICTURE = Image.fromarray(BYTES)


def rotated():
    image = Image.fromarray(np.rot90(BYTES))  # as a camera on its side keeps it
    image.getexif()[0x0112] = 6
    return image


def with_alpha():
    return Image.fromarray(np.dstack([BYTES, np.full((64, 96), 128, np.uint8)]))


KINDS = {
    "PIL": (PICTURE, True),
    "RGBA": (with_alpha(), True),
    "palette": (PICTURE.convert("P", palette=Image.Palette.ADAPTIVE), False),
    "CMYK": (PICTURE.convert("CMYK"), False),
    "EXIF-rotated": (rotated(), True),
    "bytes": (BYTES, True),
    "bytes with alpha": (np.dstack([BYTES, BYTES[..., :1]]), True),
    "floats": (BYTES / 255, True),
    "sixteen bits": (BYTES.astype(np.uint16) * 257, True),
    "half precision": ((BYTES / 255).astype(np.float16), False),
    "greyscale": (PICTURE.convert("L"), False),
    "greyscale, sixteen bits": (Image.fromarray(np.asarray(PICTURE.convert("L"), dtype=np.uint16) * 257), False),
    "black and white": (PICTURE.convert("1"), False),
}


def is_picture(image):
    pixels = np.asarray(image)
    return pixels.dtype == np.uint8 and pixels.std() > 5 and pixels.mean() > 5


@pytest.fixture(scope="module")
def plain(pipe):
    return pipe(PROMPT, image=PICTURE, steps=4, strength=0.5, seed=1, output_type="np").images


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_any_kind(pipe, plain, kind):
    given, same = KINDS[kind]
    made = pipe(PROMPT, image=given, steps=4, strength=0.5, seed=1, output_type="np").images
    assert made.shape == (1, 64, 96, 3)
    if same:
        np.testing.assert_allclose(made, plain, atol=1e-4)
    assert is_picture((made[0] * 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(100, 75), (97, 65), (17, 16), (9, 300)])
def test_sizes_that_are_no_multiples(pipe, size):
    made = pipe(PROMPT, image=PICTURE.resize(size), steps=2, seed=1)
    assert made.images[0].size == tuple(max(s // 16 * 16, 16) for s in size)
    assert any("was resized to" in note for note in made.report.notes)


@pytest.mark.parametrize("size", [(96, 64), (10, 10), (300, 20), (1, 1)])
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16"])
def test_masks_of_any_size_and_kind(fake, size, mode):
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2 + 1, size[1]))
    given = Image.fromarray(np.asarray(mask, dtype=np.uint16) * 257) if mode == "I;16" else mask.convert(mode)
    notes = fake(PROMPT, image=PICTURE, mask_image=given, steps=1, seed=1).report.notes
    assert (f"the mask of {size[0]} x {size[1]} pixels was resized to 96 x 64" in notes) == (size != (96, 64))
    assert not any("black everywhere" in note for note in notes)


@pytest.mark.parametrize("grey", [0, 127, 128, 255])
def test_grey_of_a_mask_is_one_or_the_other(fake, grey):
    notes = fake("x", image=PICTURE, mask_image=Image.new("L", (96, 64), grey), steps=1, seed=1).report.notes
    assert any("black everywhere" in note for note in notes) == (grey < 128)


@pytest.mark.parametrize("strength", [0.01, 0.25, 1, 1.0])
def test_strengths(pipe, strength):
    if strength * 20 < 1:
        with pytest.raises(InputError, match=r"leaves none to paint; give at least 0\.05, or more steps"):
            pipe(PROMPT, image=PICTURE, strength=strength)
    else:
        made = pipe(PROMPT, image=PICTURE, strength=strength, seed=1)
        assert is_picture(made.images[0])
        assert made.report.network_calls == 20 * strength


@pytest.mark.parametrize("scheduler", [None, "ddim", "euler", "euler-a", "unipc", "lcm"])
def test_one_step(pipe, scheduler):
    for more in ({}, {"image": PICTURE, "strength": 1.0}, {"image": PICTURE, "mask_image": PICTURE.convert("L")}):
        made = pipe(PROMPT, steps=1, seed=1, scheduler=scheduler, output_type="np", **more).images
        assert np.isfinite(made).all()
        assert made.std() > 0.01


def test_a_thousand_steps(fake):
    made = fake(PROMPT, steps=1000, seed=1, scheduler="ddim", width=64, height=64)
    assert (made.report.network_calls, made.images[0].size) == (1000, (64, 64))
    half = fake(PROMPT, image=PICTURE, strength=0.5, steps=1000, seed=1, scheduler="ddim")
    assert half.report.network_calls == 500
    with pytest.raises(InputError, match="steps must be a whole number from 1 to 1000, got 1001"):
        fake(PROMPT, steps=1001)
    with pytest.raises(SamplerError, match="cannot make a schedule"):
        fake(PROMPT, steps=1000, scheduler="lcm")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"num_images": 0}, "num_images must be a whole number from 1"),
        ({"prompt": []}, "prompt must be text, or a list of texts that is not empty"),
        ({"image": []}, "image must be a picture, or a list of pictures that is not empty"),
        ({"image": PICTURE, "mask_image": []}, "mask_image must be a picture"),
        ({"image": np.zeros((0, 0, 3), np.uint8)}, r"shape \[0, 0, 3\]"),
        ({"image": np.where(BYTES > 0, np.nan, 0.5)}, "from nan"),
        ({"image": np.full((64, 96, 3), np.inf)}, "from inf"),
        ({"image": BYTES.astype(np.float32)}, r"220\.0"),
        ({"image": PICTURE, "mask_image": np.full((64, 96), np.nan)}, "mask_image.*nan"),
        ({"image": "picture.png"}, "image: got str"),
        (
            {"image": PICTURE, "width": 100},
            "width must be a multiple of 16 pixels for this model, got 100; try",
        ),
        ({"image": Image.new("RGB", (4096, 64))}, "width must be from 16 to 2048 pixels, got 4096"),
        ({"image": PICTURE, "control_image": PICTURE}, "control_image needs a ControlNet; name one when loading"),
    ],
)
def test_what_is_no_picture_says_what_to_do(fake, arguments, told):
    with pytest.raises(InputError, match=told):
        fake(**{"prompt": PROMPT, "steps": 2, **arguments})
    assert fake.component("unet").runner.calls == 0


def test_prompts_of_any_length(pipe):
    for prompt in ("", " ", "\n", "red " * 10_000, "(" * 500, "🎉" * 200):
        made = pipe(prompt, steps=1, seed=1)
        assert np.asarray(made.images[0]).std() > 1
        assert any("left out" in note for note in made.report.notes) == (len(prompt) > 10_000)


def test_arguments_that_there_are_not(fake):
    for said, nearest in (("num_inference_steps", "steps"), ("guidance_scal", "guidance_scale")):
        with pytest.raises(InputError, match=rf"there is no argument '{said}'. The nearest: {nearest}\."):
            fake("a ring", **{said: 5})
