"""Settings of generated images in PNG files."""

import copy
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from calotype.errors import InputError
from calotype.images.png import image_from_pixels, settings_of, to_uint8


def test_text_survives_the_png(tmp_path):
    settings = {"calotype": "0", "prompt": 'ünï "你好"\n🎉', "negative_prompt": "", "seed": "7"}
    image_from_pixels(np.zeros((8, 8, 3), np.uint8), settings).save(tmp_path / "p.png")
    assert settings_of(tmp_path / "p.png") == settings


def test_copies_and_pickles_keep_their_settings(tmp_path):
    settings = {"calotype": "0", "seed": "7"}
    image = image_from_pixels(np.zeros((8, 8, 3), np.uint8), settings)
    for i, again in enumerate((copy.deepcopy(image), pickle.loads(pickle.dumps(image)))):
        again.save(tmp_path / f"{i}.png")
        assert settings_of(tmp_path / f"{i}.png") == settings


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_text_survives_exif(suffix, tmp_path):
    settings = {"calotype": "0", "prompt": 'ünï "你好"\n🎉', "parameters": "ünï 🎉\nSteps: 1"}
    image_from_pixels(np.zeros((8, 8, 3), np.uint8), settings).save(tmp_path / f"p.{suffix}", quality=90)
    assert settings_of(tmp_path / f"p.{suffix}") == settings


def test_a_file_object_gets_the_settings(tmp_path):
    with open(tmp_path / "p.jpg", "wb") as file:
        image_from_pixels(np.zeros((8, 8, 3), np.uint8), {"calotype": "0"}).save(file)
    assert settings_of(tmp_path / "p.jpg") == {"calotype": "0"}


def test_settings_that_a_jpeg_cannot_hold_are_left_out_with_a_warning(tmp_path):
    image = image_from_pixels(np.zeros((8, 8, 3), np.uint8), {"calotype": "0", "prompt": "x" * 70_000})
    with pytest.warns(UserWarning, match="JPEG"):
        image.save(tmp_path / "p.jpg")
    image.save(tmp_path / "p.webp")
    assert len(settings_of(tmp_path / "p.webp")["prompt"]) == 70_000
    with pytest.raises(InputError, match="settings"):
        settings_of(tmp_path / "p.jpg")


@pytest.mark.parametrize("length", [2 << 20, 80 << 20])
def test_texts_of_megabytes_are_refused(length, tmp_path):
    image_from_pixels(np.zeros((8, 8, 3), np.uint8), {"calotype": "x" * length}).save(tmp_path / "p.png")
    with pytest.raises(InputError, match="Cannot read"):
        settings_of(tmp_path / "p.png")


def test_files_without_settings_raise(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    header = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    )
    for name, keyword in (
        ("huge.png", "Cannot read"),
        ("plain.png", "settings"),
        ("broken.png", "Cannot read"),
        ("none.png", "Cannot read"),
    ):
        with pytest.raises(InputError, match=keyword):
            settings_of(tmp_path / name)


def test_pixels_are_clamped_and_rounded():
    pixels = np.array([-2, -1, 0, 1, 2], np.float32).reshape(1, 1, 1, 5).repeat(3, axis=1)
    assert to_uint8(pixels)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
