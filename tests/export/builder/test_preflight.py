"""Room for a build: refused with the figures and the smaller build that would fit, before any work."""

import pytest

from calotype.errors import BuildError
from calotype.export.builder.preflight import Room, check_room, picture_size
from calotype.export.builder.spec import spec_from
from calotype.plan.profile import Profile, Range
from calotype.system.memory import Load

SIDE = Range(min=64, opt=1024, max=2048)
PROFILE = Profile(batch=Range(min=1, opt=1, max=4), height=SIDE, width=SIDE, multiple=64)
WEIGHTS = {"unet": 2_600_000_000, "vae_decoder": 80_000_000}
LOADS = (Load(pixels=8, width=10, squared=True, guided=True),)
GIB = 2**30


def spec(**said):
    return spec_from({"model": "m", "output": "plan", **said})


def test_a_build_that_fits_says_what_it_needs():
    need = check_room(spec(), PROFILE, WEIGHTS, LOADS, room=Room(memory=64 * GIB, disk=200 * GIB))
    assert 15 * GIB < need.memory < 20 * GIB
    assert 20 * GIB < need.disk < 30 * GIB
    assert check_room(spec(), PROFILE, WEIGHTS, LOADS, room=Room(memory=None, disk=None)) == need


@pytest.mark.parametrize(
    ("said", "room", "told"),
    [
        ({}, Room(memory=8 * GIB, disk=200 * GIB), "8.0 GiB of memory, 200.0 GiB of disk are free; no smaller build"),
        ({}, Room(memory=64 * GIB, disk=1 * GIB), "no smaller build of this model fits here"),
        ({"precision": "fp16"}, Room(memory=30 * GIB, disk=99 * GIB), "with --height 64:512:512 --width 64:512:512 it"),
        ({"precision": "int8", "fallback": True}, Room(memory=999 * GIB, disk=25 * GIB), "with no --fallback it would"),
        ({"precision": "auto"}, Room(memory=999 * GIB, disk=25 * GIB), "with --precision int8 it would fit"),
    ],
)
def test_a_build_that_does_not_fit_is_refused(said, room, told):
    with pytest.raises(BuildError) as refused:
        check_room(spec(**said), PROFILE, WEIGHTS, LOADS, room=room)
    assert "this build needs about" in str(refused.value)
    assert told in str(refused.value)


def test_a_float32_build_is_proved_on_small_pictures():
    assert picture_size(spec(), PROFILE) == (256, 256)
    assert picture_size(spec(precision="int8"), PROFILE) == (1024, 1024)
    high = Profile(batch=PROFILE.batch, height=Range(min=512, opt=768, max=1024), width=SIDE, multiple=64)
    assert picture_size(spec(), high) == (512, 256)
