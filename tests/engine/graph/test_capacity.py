"""What is said to fit where something did not."""

from dataclasses import replace

import pytest

from calotype.errors import DeviceFullError
from calotype.graph.capacity import annotate_out_of_memory, suggest_fitting_size
from calotype.request.request import Request, resolve

GIB = 2**30


@pytest.mark.parametrize(
    ("batch", "side", "free", "told"),
    [
        (4, 512, None, "3 of 512x512 pixels at once would fit"),
        (4, 512, 150 << 20, "1 of 512x512 pixels at once would fit"),
        (1, 512, None, "one of 384x384 pixels would fit"),
        (2, 512, 40 << 20, "one of 320x320 pixels would fit"),
        (1, 512, 0, "a plan in a lower precision takes less: calotype build MODEL --precision fp16"),
    ],
)
def test_fewer_then_smaller_then_in_fewer_bits(batch, side, free, told, fake):
    assert suggest_fitting_size(fake.plan, batch=batch, height=side, width=side, guided=True, free_bytes=free) == told


@pytest.mark.parametrize(
    ("precision", "told"),
    [
        ("fp16", "a plan in int8 takes less: calotype build MODEL --backend tensorrt --precision int8"),
        ("int8+fp16", "no picture of this model fits beside what the GPU holds"),
    ],
)
def test_fewer_bits_than_the_plan_has(precision, told, fake):
    unet = fake.plan.components["unet"]
    lower = unet.with_artifacts(replace(unet.artifacts[0], precision=precision))
    plan = replace(fake.plan, components={**fake.plan.components, "unet": lower})
    assert suggest_fitting_size(plan, batch=1, height=512, width=512, guided=True, free_bytes=0) == told


def test_it_is_one_sentence_with_the_error(fake):
    job = resolve(Request(prompt=["x", "y"], width=256, height=256), fake.plan)
    with (
        pytest.raises(DeviceFullError, match=r"^the GPU is full; by an estimate 1 of 256x256 pixels at once .*fit\.$"),
        annotate_out_of_memory(fake.plan, job),
    ):
        raise DeviceFullError("the GPU is full.")
