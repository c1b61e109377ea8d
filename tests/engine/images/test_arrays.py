"""Input images of every usual type become float32 [H, W, 3] in [0, 1]; other values raise."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calotype.errors import InputError
from calotype.images.arrays import as_list, load_image_array, read_image, resize_image

BYTES = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
UNIT = (BYTES / 255).astype(np.float32)


def read(image, *size):
    pixels = load_image_array("image", image)
    return resize_image(pixels, *(size or pixels.shape[:2]))


@pytest.mark.parametrize(
    "image",
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
def test_usual_types(image):
    np.testing.assert_allclose(read(image), UNIT, atol=1e-6)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.from_numpy(UNIT).movedim(-1, 0),
        torch.from_numpy(UNIT).movedim(-1, 0)[None],
        torch.from_numpy(BYTES).movedim(-1, 0),
        torch.from_numpy(BYTES),  # channels last, where nothing else is possible
        torch.nn.Parameter(torch.from_numpy(UNIT).movedim(-1, 0)),
    ],
    ids=["CHW", "BCHW", "bytes", "HWC", "parameter"],
)
def test_tensors(tensor):
    np.testing.assert_allclose(read(tensor), UNIT, atol=1e-6)
    (only,) = as_list(tensor)
    np.testing.assert_allclose(read(only), UNIT, atol=1e-6)


def test_a_batch_of_tensors_is_a_list():
    batch = torch.stack([torch.from_numpy(UNIT).movedim(-1, 0)] * 2).half()
    assert [image.shape for image in as_list(batch)] == [(5, 7, 3)] * 2
    assert read(torch.ones(1, 6, 8)).shape == (6, 8, 3)  # a mask
    assert len(as_list(torch.ones(2, 1, 6, 8))) == 2


def test_files(tmp_path):
    Image.fromarray(BYTES).save(tmp_path / "x.png")
    for path in (tmp_path / "x.png", str(tmp_path / "x.png")):
        np.testing.assert_array_equal(read(path), UNIT)


def test_gray_images_have_three_equal_channels():
    gray = BYTES[..., 0]
    for image in (gray, gray[..., None], Image.fromarray(gray), Image.fromarray(gray.astype(np.uint16) * 257)):
        np.testing.assert_allclose(read(image), UNIT[..., :1].repeat(3, axis=-1), atol=1e-6)


def test_booleans_are_black_and_white():
    edges = BYTES[..., 0] > 128
    np.testing.assert_array_equal(read(edges), edges[..., None].repeat(3, axis=-1).astype(np.float32))


def test_exif_rotation_is_applied():
    image = Image.fromarray(BYTES)
    image.getexif()[0x0112] = 6  # rotate by 90 degrees clockwise
    np.testing.assert_allclose(read(image), np.rot90(UNIT, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("value", "keyword"),
    [
        ("edges.png", "edges.png"),
        ("https://example.com/edges.png", "URL"),
        (Path("https://example.com/edges.png"), "URL"),
        (torch.zeros(3, 4, 4) - 1, "from -1"),
        (torch.zeros(5, 4, 9), "shape"),
        (torch.zeros(2, 3, 4, 4), "shape"),
        (None, "NoneType"),
        (np.zeros((4, 4, 5)), r"shape \[4, 4, 5\]"),
        (np.zeros((0, 4, 3)), r"shape \[0, 4, 3\]"),
        (np.zeros((2, 4, 4, 3)), "shape"),
        (np.full((4, 4, 3), np.nan), "from nan"),
        (np.full((4, 4, 3), 255.0), "Scale"),
        (np.full((9, 9), 3.2), r"3\.2"),  # a depth in meters
        (np.zeros((3, 9, 9)), "channels last"),
        (np.full((4, 4, 3), -1), "from -1"),
        (np.zeros((4, 4, 3), dtype=complex), "complex"),
    ],
)
def test_other_values_raise(value, keyword):
    with pytest.raises(InputError, match=f"control_image.*{keyword}"):
        load_image_array("control_image", value)


@pytest.mark.parametrize("size", [(8, 14), (3, 4), (5, 14)])
def test_resizing_equals_pil(size):
    expected = np.asarray(Image.fromarray(BYTES).resize(size[::-1], Image.Resampling.LANCZOS)) / 255
    np.testing.assert_allclose(read(BYTES, *size), expected, atol=1e-6)
    floats = read(UNIT, *size)
    assert floats.dtype == np.float32
    assert np.abs(floats - expected).mean() < 0.02  # PIL rounds and clips bytes between rows and columns
    assert 0 <= floats.min() <= floats.max() <= 1


def test_bytes_in_wider_integers_are_bytes():
    """numpy's default integers: the result of arithmetic on an image, or of `np.where(mask, 255, 0)`."""
    for kind in (np.int64, np.int32, np.uint32):
        np.testing.assert_array_equal(load_image_array("image", BYTES.astype(kind)), BYTES)
    with pytest.raises(InputError, match="from 0 to 1000"):
        load_image_array("image", np.array([[[0, 5, 1000]]]))


def png_of(width, height, path):
    """A small PNG whose header has a large size; nothing reads its rows."""
    Image.new("L", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("size", [(13_000, 13_000), (30_000, 30_000), (1 << 30, 1 << 30)])
def test_an_image_of_too_many_pixels_raises(tmp_path, size):
    """Pillow warns for the first and reports an attack for the others; warnings are errors in tests."""
    with pytest.raises(InputError, match="million"):
        read_image(png_of(*size, tmp_path / "x.png"))


def test_a_large_image_is_read_without_a_warning(tmp_path):
    Image.new("1", (10_000, 9_500)).save(tmp_path / "x.png")  # 95 million pixels, above where Pillow warns
    assert read_image(tmp_path / "x.png").size == (10_000, 9_500)
