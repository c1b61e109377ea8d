"""Memory and disk for a build: an error with the figures and a smaller build that fits, before any work."""

import pytest

from calotype.errors import BuildError
from calotype.export.builder.preflight import Room, _smaller, check_room, image_size
from calotype.export.builder.spec import spec_from
from calotype.plan.profile import Profile, Range
from calotype.system.memory import Load

SIDE = Range(min=64, opt=1024, max=2048)
PROFILE = Profile(batch=Range(min=1, opt=1, max=4), height=SIDE, width=SIDE, multiple=64)
WEIGHTS = {"unet": 2_600_000_000, "vae_decoder": 80_000_000}
LOADS = (Load(pixels=8, width=10, squared=True, guided=True),)
GIB = 2**30


def spec(**values):
    return spec_from({"model": "m", "output": "plan", **values})


def test_a_build_that_fits_returns_what_it_needs():
    need = check_room(spec(), PROFILE, WEIGHTS, LOADS, room=Room(memory=64 * GIB, disk=200 * GIB))
    assert 15 * GIB < need.memory < 20 * GIB
    assert 20 * GIB < need.disk < 30 * GIB
    assert check_room(spec(), PROFILE, WEIGHTS, LOADS, room=Room(memory=None, disk=None)) == need


@pytest.mark.parametrize(
    ("values", "room", "keyword"),
    [
        ({}, Room(memory=8 * GIB, disk=200 * GIB), "8.0 GiB of memory, 200.0 GiB of disk"),
        ({}, Room(memory=64 * GIB, disk=1 * GIB), "No smaller build"),
        ({"precision": "fp16", "prove": "full"}, Room(memory=30 * GIB, disk=99 * GIB), "--prove small"),
        ({"precision": "int8", "fallback": True}, Room(memory=999 * GIB, disk=25 * GIB), "no --fallback"),
        ({"precision": "auto"}, Room(memory=999 * GIB, disk=25 * GIB), "--precision int8"),
    ],
)
def test_a_build_that_does_not_fit_is_rejected(values, room, keyword):
    with pytest.raises(BuildError) as error:
        check_room(spec(**values), PROFILE, WEIGHTS, LOADS, room=room)
    assert keyword in str(error.value)


def test_a_build_is_evaluated_on_small_images_unless_full_ones_are_requested():
    assert image_size(spec(), PROFILE) == (256, 256)
    assert image_size(spec(precision="int8"), PROFILE) == (256, 256)
    assert image_size(spec(precision="int8", prove="full"), PROFILE) == (1024, 1024)
    assert spec(precision="bf16").proof_counts < spec(precision="bf16", prove="full").proof_counts
    high = Profile(batch=PROFILE.batch, height=Range(min=512, opt=768, max=1024), width=SIDE, multiple=64)
    assert image_size(spec(), high) == (512, 256)


def test_smaller_images_and_then_a_smaller_plan_are_offered():
    full = [flag for flag, _, _ in _smaller(spec(precision="int8", prove="full"), PROFILE)]
    assert full[:2] == ["--prove small", "--height 64:512:512 --width 64:512:512"]
    assert not any("--height" in flag for flag, _, _ in _smaller(spec(precision="int8"), PROFILE))
