"""The hint of what fits into a full device."""

from dataclasses import replace

import pytest

from calotype.errors import DeviceFullError
from calotype.graph.capacity import suggest_fitting_size, with_fitting_size
from calotype.request.prompts import tokenizers_of
from calotype.request.resolved import resolve

GIB = 2**30


@pytest.mark.parametrize(
    ("batch", "side", "free", "hint"),
    [
        (4, 512, None, "3 of 512x512"),
        (4, 512, 150 << 20, "1 of 512x512"),
        (1, 512, None, "one of 384x384"),
        (2, 512, 40 << 20, "one of 320x320"),
        (1, 512, 0, "--precision fp16"),
    ],
)
def test_fewer_then_smaller_then_in_fewer_bits(batch, side, free, hint, fake):
    assert hint in suggest_fitting_size(fake.plan, batch=batch, height=side, width=side, guided=True, free_bytes=free)


@pytest.mark.parametrize(("precision", "hint"), [("fp16", "--precision int8"), ("int8+fp16", "no image")])
def test_a_lower_precision_than_the_plan(precision, hint, fake):
    unet = fake.plan.components["unet"]
    lower = unet.with_artifacts(replace(unet.artifacts[0], precision=precision))
    plan = replace(fake.plan, components={**fake.plan.components, "unet": lower})
    assert hint in suggest_fitting_size(plan, batch=1, height=512, width=512, guided=True, free_bytes=0)


def test_the_hint_is_added_to_the_error(fake):
    request = resolve(["x", "y"], {"width": 256, "height": 256}, fake.plan, tokenizers_of(fake.plan))
    error = with_fitting_size(DeviceFullError("the GPU is full."), fake.plan, request)
    assert "1 of 256x256" in str(error)
