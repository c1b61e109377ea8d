"""Bindings and profiles: shapes, checks and ranges."""

import numpy as np
import pytest

from calotype.errors import InputError
from calotype.plan.bindings import Binding, check_arrays
from calotype.plan.profile import Profile, Range

SAMPLE = Binding(name="sample", dtype="float32", dims=("batch", 4, "h", "w"))
TIME = Binding(name="timestep", dtype="float32", dims=("batch",))


def arrays(batch=2, channels=4, time=2, dtype=np.float32):
    return {"sample": np.zeros((batch, channels, 8, 6), dtype), "timestep": np.zeros(time, np.float32)}


def test_shapes():
    assert SAMPLE.shape({"batch": 2, "h": 8, "w": 6}) == (2, 4, 8, 6)
    assert Binding.from_json(SAMPLE.to_json()) == SAMPLE


def test_check_arrays_returns_the_sizes():
    assert check_arrays("unet", (SAMPLE, TIME), arrays()) == {"batch": 2, "h": 8, "w": 6}


@pytest.mark.parametrize("wrong", [{"channels": 3}, {"time": 3}, {"dtype": np.float64}])
def test_arrays_that_do_not_fit_are_refused(wrong):
    with pytest.raises(InputError, match="unet: expected"):
        check_arrays("unet", (SAMPLE, TIME), arrays(**wrong))


def test_missing_and_surplus_arrays_are_refused():
    with pytest.raises(InputError, match="unet expects"):
        check_arrays("unet", (SAMPLE,), arrays())


PROFILE = Profile(
    batch=Range(min=1, opt=1, max=4),
    height=Range(min=64, opt=128, max=256),
    width=Range(min=64, opt=128, max=256),
    multiple=16,
)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 100}, "try 96 or 112"),
        ({"width": 512}, "from 64 to 256"),
        ({"height": 16}, "height"),
        ({"height": 5000}, "from 64 to 256"),  # the message suggests no size that is refused as well
        ({"batch": 5}, "1 to 4 images"),
    ],
)
def test_sizes_outside_a_profile_are_refused(size, message):
    with pytest.raises(InputError, match=message):
        PROFILE.check(**{"batch": 1, "height": 128, "width": 128, **size})


def test_a_profile_survives_json_and_a_decreasing_range_is_refused():
    assert Profile.from_json(PROFILE.to_json()) == PROFILE
    with pytest.raises(InputError, match="invalid range"):
        Range(min=3, opt=2, max=4)
