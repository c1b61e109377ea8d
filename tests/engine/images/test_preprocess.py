"""Edges for a ControlNet equal OpenCV's, for images of every usual type."""

import builtins

import cv2
import numpy as np
import pytest
from PIL import Image

import calotype
from calotype.errors import BackendError, InputError
from calotype.export.judge import scenes

PIXELS = scenes.render(scenes.draw_scene(1))


def test_edges_are_opencvs_white_on_black():
    edges = calotype.preprocess.canny(Image.fromarray(PIXELS), 80, 160)
    assert (edges.mode, edges.size) == ("RGB", (128, 128))
    expected = cv2.Canny(PIXELS, 80, 160)
    assert expected.any()
    np.testing.assert_array_equal(np.asarray(edges), expected[..., None].repeat(3, axis=-1))


def test_default_thresholds():
    np.testing.assert_array_equal(np.asarray(calotype.preprocess.canny(PIXELS))[..., 0], cv2.Canny(PIXELS, 100, 200))


@pytest.mark.parametrize(
    "image",
    [
        PIXELS / 255,
        PIXELS[:, ::-1][:, ::-1],  # a view whose rows are not contiguous
        np.dstack([PIXELS, PIXELS[..., :1]]),
        Image.fromarray(PIXELS).convert("RGBA"),
    ],
    ids=["floats", "a view", "bytes with alpha", "RGBA"],
)
def test_images_of_other_types_have_the_same_edges(image):
    expected = np.asarray(calotype.preprocess.canny(PIXELS))
    np.testing.assert_array_equal(np.asarray(calotype.preprocess.canny(image)), expected)


def test_a_wide_gray_image_keeps_its_size():
    gray = Image.fromarray(PIXELS[:50, :, 0])
    assert calotype.preprocess.canny(gray).size == (128, 50)


@pytest.mark.parametrize(
    ("arguments", "keyword"),
    [
        ({"image": "photo.png"}, "photo.png"),
        ({"low": 300}, "low 300"),
        ({"low": -1}, "-1"),
        ({"high": float("nan")}, "nan"),
        ({"high": 5000}, "2040"),
    ],
)
def test_invalid_arguments_raise(arguments, keyword):
    with pytest.raises(InputError, match=keyword):
        calotype.preprocess.canny(**{"image": PIXELS, **arguments})


def test_without_opencv_the_error_has_the_pip_command(monkeypatch):
    real = builtins.__import__

    def refusing(name, *more):
        if name == "cv2":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(BackendError, match="control"):
        calotype.preprocess.canny(PIXELS)
