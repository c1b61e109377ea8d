"""Tensors described once: shapes, checks, and the tables of a family."""

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


def test_arrays_that_fit_give_the_sizes():
    assert check_arrays("unet", (SAMPLE, TIME), arrays()) == {"batch": 2, "h": 8, "w": 6}


@pytest.mark.parametrize("wrong", [{"channels": 3}, {"time": 3}, {"dtype": np.float64}])
def test_arrays_that_do_not_fit_are_told(wrong):
    with pytest.raises(InputError, match="unet: wanted"):
        check_arrays("unet", (SAMPLE, TIME), arrays(**wrong))


def test_missing_and_surplus_arrays_are_told():
    with pytest.raises(InputError, match="unet takes"):
        check_arrays("unet", (SAMPLE,), arrays())


PROFILE = Profile(
    batch=Range(low=1, usual=1, high=4),
    height=Range(low=64, usual=128, high=256),
    width=Range(low=64, usual=128, high=256),
    multiple=16,
)


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ({"height": 100}, "multiple of 16 pixels for this model, got 100; try 96 or 112"),
        ({"width": 512}, "width must be from 64 to 256"),
        ({"height": 16}, "height must be from 64"),
        ({"height": 5000}, "height must be from 64 to 256"),  # and no advice that would be refused in turn
        ({"batch": 5}, "1 to 4 pictures, got 5"),
    ],
)
def test_sizes_outside_a_profile_are_told(size, told):
    with pytest.raises(InputError, match=told):
        PROFILE.check(**{"batch": 1, "height": 128, "width": 128, **size})


def test_a_profile_survives_json_and_a_falling_range_is_refused():
    assert Profile.from_json(PROFILE.to_json()) == PROFILE
    with pytest.raises(InputError, match="must rise"):
        Range(low=3, usual=2, high=4)
