"""Pictures that come in, of every usual kind, become float32 [H, W, 3] in [0, 1]; others are told."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from calotype.errors import InputError
from calotype.images.arrays import load_image_array, read_image, resize_image

BYTES = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
UNIT = (BYTES / 255).astype(np.float32)


def read(given, *size):
    pixels = load_image_array("image", given)
    return resize_image(pixels, *(size or pixels.shape[:2]))


@pytest.mark.parametrize(
    "given",
    [
        BYTES,
        UNIT,
        UNIT.astype(np.float64),
        BYTES.astype(np.uint16) * 257,
        Image.fromarray(BYTES),
        Image.fromarray(np.concatenate([BYTES, np.full((5, 7, 1), 9, np.uint8)], axis=-1)),  # transparency
    ],
    ids=["bytes", "float", "double", "sixteen bits", "PIL", "RGBA"],
)
def test_usual_kinds(given):
    np.testing.assert_allclose(read(given), UNIT, atol=1e-6)


def test_grey_is_three_times_the_same():
    grey = BYTES[..., 0]
    for given in (grey, grey[..., None], Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)):
        np.testing.assert_allclose(read(given), UNIT[..., :1].repeat(3, axis=-1), atol=1e-6)


def test_truth_values_are_black_and_white():
    edges = BYTES[..., 0] > 128
    np.testing.assert_array_equal(read(edges), edges[..., None].repeat(3, axis=-1).astype(np.float32))


def test_a_picture_that_was_taken_sideways_is_turned():
    image = Image.fromarray(BYTES)
    image.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
    np.testing.assert_allclose(read(image), np.rot90(UNIT, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("edges.png", "got str"),
        (None, "NoneType"),
        (np.zeros((4, 4, 5)), r"shape \[4, 4, 5\]"),
        (np.zeros((0, 4, 3)), r"shape \[0, 4, 3\]"),
        (np.zeros((2, 4, 4, 3)), "shape"),
        (np.full((4, 4, 3), np.nan), "from nan"),
        (np.full((4, 4, 3), 255.0), r"to 255\.0; bring them to 0 to 1 first"),
        (np.full((9, 9), 3.2), r"from 3\.2 to 3\.2; bring them to 0 to 1 first"),  # a depth in metres
        (np.zeros((3, 9, 9)), r"shape \[3, 9, 9\]; put its channels last"),
        (np.full((4, 4, 3), -1), "from -1"),
        (np.zeros((4, 4, 3), dtype=complex), "complex"),
    ],
)
def test_other_things_are_told(given, told):
    with pytest.raises(InputError, match=f"control_image takes.*{told}"):
        load_image_array("control_image", given)


@pytest.mark.parametrize("size", [(8, 14), (3, 4), (5, 14)])
def test_resizing_is_pils(size):
    wanted = np.asarray(Image.fromarray(BYTES).resize(size[::-1], Image.Resampling.LANCZOS)) / 255
    np.testing.assert_allclose(read(BYTES, *size), wanted, atol=1e-6)
    floats = read(UNIT, *size)
    assert floats.dtype == np.float32
    assert np.abs(floats - wanted).mean() < 0.02  # PIL rounds bytes, and cuts them off, between rows and columns
    assert 0 <= floats.min() <= floats.max() <= 1


def test_bytes_in_wider_integers_are_bytes():
    """numpy's own integers: what arithmetic on a picture, or `np.where(mask, 255, 0)`, gives."""
    for kind in (np.int64, np.int32, np.uint32):
        np.testing.assert_array_equal(load_image_array("image", BYTES.astype(kind)), BYTES)
    with pytest.raises(InputError, match="from 0 to 1000"):
        load_image_array("image", np.array([[[0, 5, 1000]]]))


def png_of(width, height, path):
    """A PNG that says a size, in a few bytes: its rows are never read."""
    Image.new("L", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("size", [(13_000, 13_000), (30_000, 30_000), (1 << 30, 1 << 30)])
def test_a_picture_of_too_many_pixels_is_refused_in_one_sentence(tmp_path, size):
    """Pillow warns of the first and calls the others an attack; warnings are errors here."""
    with pytest.raises(InputError, match="million"):
        read_image(png_of(*size, tmp_path / "x.png"))


def test_a_large_picture_is_read_without_a_warning(tmp_path):
    Image.new("1", (10_000, 9_500)).save(tmp_path / "x.png")  # 95 million pixels, above where Pillow warns
    assert read_image(tmp_path / "x.png").size == (10_000, 9_500)
