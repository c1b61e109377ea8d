"""Edges for a ControlNet: OpenCV's own, of pictures of every usual kind."""

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
    wanted = cv2.Canny(PIXELS, 80, 160)
    assert wanted.any()
    np.testing.assert_array_equal(np.asarray(edges), wanted[..., None].repeat(3, axis=-1))


def test_thresholds_are_those_of_the_field_where_none_are_said():
    np.testing.assert_array_equal(np.asarray(calotype.preprocess.canny(PIXELS))[..., 0], cv2.Canny(PIXELS, 100, 200))


@pytest.mark.parametrize(
    "given",
    [
        PIXELS / 255,
        PIXELS[:, ::-1][:, ::-1],  # a view whose rows are not contiguous
        np.dstack([PIXELS, PIXELS[..., :1]]),
        Image.fromarray(PIXELS).convert("RGBA"),
    ],
    ids=["floats", "a view", "bytes with alpha", "RGBA"],
)
def test_pictures_of_other_kinds_have_the_same_edges(given):
    wanted = np.asarray(calotype.preprocess.canny(PIXELS))
    np.testing.assert_array_equal(np.asarray(calotype.preprocess.canny(given)), wanted)


def test_a_wide_grey_picture_keeps_its_size():
    grey = Image.fromarray(PIXELS[:50, :, 0])
    assert calotype.preprocess.canny(grey).size == (128, 50)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"image": "photo.png"}, "image takes a PIL image.*got str"),
        ({"low": 300}, "low 300 must not be above high 200"),
        ({"low": -1}, "low must be a number from 0 to 2040, got -1"),
        ({"high": float("nan")}, "high must be a number from 0 to 2040, got nan"),
        ({"high": 5000}, "high must be a number from 0 to 2040"),
    ],
)
def test_wrong_arguments_are_told(given, told):
    with pytest.raises(InputError, match=told):
        calotype.preprocess.canny(**{"image": PIXELS, **given})


def test_without_opencv_the_line_that_installs_it(monkeypatch):
    real = builtins.__import__

    def refusing(name, *more):
        if name == "cv2":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(BackendError, match=r"pip install 'calotype\[control\]'"):
        calotype.preprocess.canny(PIXELS)
