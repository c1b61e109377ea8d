"""More images than the profile allows run in several batches; each image stays that of its seed."""

from dataclasses import replace

import numpy as np
import pytest

import calotype
from calotype.errors import Cancelled, InputError
from calotype.plan.profile import Range
from calotype.request.resolved import MAX_IMAGES


@pytest.fixture
def small(fake):
    """A pipeline that runs at most three images at once."""
    plan = fake.plan
    profile = replace(plan.profile, batch=Range(min=1, opt=1, max=3))
    return calotype.Pipeline(replace(plan, profile=profile), fake._components)


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (3, [3]), (4, [2, 2]), (7, [3, 2, 2]), (9, [3, 3, 3]), (10, [3, 3, 2, 2])]
)
def test_batches_are_few_and_even(small, count, sizes):
    assert small.plan.profile.batches(count) == sizes


@pytest.mark.parametrize("output_type", ["latent", "np"])
@pytest.mark.parametrize("scheduler", ["euler", "euler-a"])
def test_images_equal_those_of_a_larger_batch(small, fake, scheduler, output_type):
    pixels = np.random.default_rng(0).random((4, 64, 64, 3), dtype=np.float32)
    settings = {"num_images": 2, "seed": 5, "steps": 4, "strength": 0.6, "negative_prompt": ["", "b", "", "d"]}
    settings |= {"image": pixels, "mask_image": pixels > 0.5, "scheduler": scheduler, "output_type": output_type}
    got, expected = (pipe(["a", "b", "c", "d"], **settings) for pipe in (small, fake))
    np.testing.assert_allclose(got.images, expected.images, atol=1e-5)
    assert got.seeds == expected.seeds == tuple(range(5, 13))
    assert got.report.network_calls == 3 * expected.report.network_calls
    assert "8 images ran in 3 batches of at most 3" in got.report.notes


def test_the_settings_of_each_image_are_its_own(small):
    result = small(["a", "b"], num_images=2, seed=[4, 3, 2, 1], steps=1)
    texts = [(image.info["prompt"], image.info["seed"]) for image in result.images]
    assert texts == [("a", "4"), ("a", "3"), ("b", "2"), ("b", "1")]


def test_a_stream_counts_on_and_ends_with_all_images(small):
    events, shown = [], []
    for event in small.stream("x", num_images=7, steps=2, seed=1):
        events.append(event)
        shown.append(len(event.preview()))
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    assert {event.total for event in events} == {6}
    assert shown == [3, 3, 2, 2, 2, 2]
    assert [event.result is not None for event in events] == [False] * 5 + [True]
    assert len(events[-1].result.images) == 7


def test_a_cancelled_call_says_how_far_it_came(small):
    stream = small.stream("x", num_images=7, steps=2, seed=1)
    for _ in range(3):
        next(stream)
    small.cancel()
    with pytest.raises(Cancelled) as caught:
        next(stream)
    assert (caught.value.step, caught.value.total) == (3, 6)


def test_more_than_thirty_two_images(fake):
    result = fake("x", num_images=40, seed=1, steps=1, output_type="latent")
    assert result.images.shape == (40, 4, 16, 16)
    np.testing.assert_allclose(result.images[37:38], fake("x", seed=38, steps=1, output_type="latent").images)


def test_the_images_of_a_call_have_a_limit(fake):
    with pytest.raises(InputError) as caught:
        fake(["a", "b"], num_images=MAX_IMAGES // 2 + 1)
    assert caught.value.argument == "num_images"


def test_a_profile_without_small_batches_takes_multiples(fake):
    profile = replace(fake.plan.profile, batch=Range(min=4, opt=4, max=4))
    pipe = calotype.Pipeline(replace(fake.plan, profile=profile), fake._components)
    assert len(pipe("x", num_images=8, steps=1, output_type="latent").images) == 8
    with pytest.raises(InputError) as caught:
        pipe("x", num_images=10, steps=1)
    assert caught.value.argument == "num_images"


def test_both_passes_of_hires_run_for_each_batch(small, fake):
    settings = {"num_images": 4, "seed": 5, "steps": 2, "width": 64, "height": 64, "hires": 1.5, "output_type": "np"}
    got, expected = (pipe("a", **settings) for pipe in (small, fake))
    assert got.images.shape == (4, 96, 96, 3)
    np.testing.assert_allclose(got.images, expected.images, atol=1e-5)
    assert got.report.network_calls == 2 * expected.report.network_calls
