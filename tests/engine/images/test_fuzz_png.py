"""PNGs with any text: `--like` reads the settings, or raises a `CalotypeError`."""

import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import calotype
from calotype.errors import CalotypeError
from calotype.report.like import Like, read_like
from tests.helpers.cores import cpu_limit

OPTIONS = settings(
    max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
NAMES = [
    *("calotype", "prompt", "negative_prompt", "seed", "steps", "guidance_scale", "guidance_rescale", "scheduler"),
    *("guidance_interval", "cache_interval", "clip_skip", "width", "height", "strength", "masked", "loras", "model"),
    *("denoising_start", "control_scales", "control_starts", "control_ends", "model_fingerprint", "backend"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)
CHARACTERS = st.characters(exclude_categories=["Cs"])
VALUES = (
    st.text(CHARACTERS, max_size=40)
    | st.integers().map(str)
    | st.floats().map(repr)
    | JSON.map(json.dumps)
    | st.sampled_from(["[" * 100_000, "9" * 5000, "1e999", "-0", "nan", "demo", "eager", "(" * 9999, "/dev/zero", "~"])
)
CHANGES = st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=3)
CUTS = st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=12)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def own() -> dict[str, str]:
    """The settings of an image of the demonstration model."""
    image = calotype.load("demo", backend="fake")(
        "a red ring", steps=1, seed=3, clip_skip=1, guidance_interval=(0.1, 0.9)
    ).images[0]
    return {name: value for name, value in image.info.items() if isinstance(value, str)}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "a.png"


def png(texts) -> bytes:
    chunks, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, value in texts.items():
        chunks.add_itxt(name, value)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def read(path):
    """The settings, or None for an error."""
    try:
        like = read_like(path, ("image", "mask_image", "control_image"), loras_named=False, model_named=False)
    except CalotypeError:
        return None
    assert isinstance(like, Like)
    return like


def test_unchanged_settings_are_read(own, path):
    path.write_bytes(png(own))
    like = read(path)
    assert like is not None
    assert like.arguments["guidance_interval"] == [0.1, 0.9]


@OPTIONS
@given(changes=CHANGES, drop=st.sets(st.sampled_from(NAMES), max_size=1))
def test_any_settings_are_read_or_raise(own, path, changes, drop):
    path.write_bytes(png({name: value for name, value in (own | changes).items() if name not in drop}))
    with cpu_limit():
        like = read(path)
    assert like is None or like.model == "demo"


@OPTIONS
@given(cuts=CUTS, end=st.integers(0, 10**6))
def test_any_bytes_are_read_or_raise(own, path, cuts, end):
    data = bytearray(png(own))
    for at, content in cuts:
        place = at % len(data)
        data[place : place + len(content)] = content
    path.write_bytes(data[: end % (2 * len(data))])
    with cpu_limit():
        read(path)
