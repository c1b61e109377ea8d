"""The judge on scenes with known captions, clean and degraded, and on images with one known error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calotype.export.judge import scenes
from calotype.export.judge.judge import Verdict, judge, parse
from calotype.export.judge.sight import detect
from tests.helpers.judge_accuracy import GENERATED, confusion, degrade, measure

PAIR = scenes.Scene(
    background="white",
    things=(
        scenes.Thing(color="red", shape="circle", size="large", x=34, y=60, radius=26),
        scenes.Thing(color="green", shape="square", size="small", x=94, y=66, radius=16),
    ),
    relation="left of",
)
LONE = scenes.Scene(
    background="blue",
    things=(scenes.Thing(color="yellow", shape="star", size=None, x=64, y=60, radius=30),),
)


def verdict(scene: scenes.Scene, caption: str) -> Verdict:
    return judge(scenes.render(scene), caption)


# ---------------------------------------------------------------------------------------------------------- captions


def test_parse_reads_every_word():
    assert parse("a large red circle above an orange ring on a blue background") == scenes.Scene(
        background="blue",
        things=(
            scenes.Thing(size="large", color="red", shape="circle"),
            scenes.Thing(size=None, color="orange", shape="ring"),
        ),
        relation="above",
    )


def test_parse_undoes_caption():
    for seed in range(300):
        caption = scenes.caption(scenes.draw_scene(seed))
        assert scenes.caption(parse(caption)) == caption


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a cat",
        "a red circle",
        "a brown circle on a white background",
        "a tiny red circle on a white background",
        "a red small circle on a white background",
        "a red circle below a green square on a white background",
        "a red circle left of a green square above a blue ring on a white background",
        "a red circle on a white background, please",
        "A red circle on a white background",
        "a orange circle on a white background",  # "an"
        "a red circle on a red background",  # invisible
    ],
)
def test_parse_rejects_what_no_scene_has(caption):
    with pytest.raises(ValueError, match=f'"{caption}"'):
        parse(caption)


# ---------------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize(
    ("count", "blur", "minimum"), [(400, None, 0.99), (150, GENERATED, 0.97)], ids=["clean", "degraded"]
)
def test_true_captions_pass_and_changed_ones_do_not(count, blur, minimum):
    rates = measure(range(count), blur)
    assert rates.right >= minimum
    assert max(rates.fooled.values()) <= 0.01


def test_shapes_survive_a_heavier_blur():
    counts = confusion(range(80), (2.0, 2.5))
    assert sum(n for (drawn, seen), n in counts.items() if drawn == seen) >= 0.95 * counts.total()


# -------------------------------------------------------------------------------------------------- one thing is wrong


def test_a_right_image_has_no_reason():
    assert verdict(PAIR, scenes.caption(PAIR)) == Verdict(
        background=True, count=True, colors=True, shapes=True, sizes=True, relation=True
    )
    lone = verdict(LONE, scenes.caption(LONE))
    assert lone.right
    assert lone.sizes is None
    assert lone.relation is None


@pytest.mark.parametrize(
    ("caption", "wrong", "reason"),
    [
        ("{0} left of {1} on a black background", "background", "the background is white, not black"),
        ("a large red circle left of a small blue square on {2}", "colors", "the second thing is green, not blue"),
        ("a large red ring left of {1} on {2}", "shapes", "the first thing looks like a circle, not a ring"),
        ("{0} left of a large green square on {2}", "sizes", "the second thing is small, not large"),
        ("{0} above {1} on {2}", "relation", "the first thing is not above the second"),
        ("{1} left of {0} on {2}", "relation", "the first thing is not left of the second"),
    ],
)
def test_one_wrong_word_is_named(caption, wrong, reason):
    got = verdict(PAIR, caption.format("a large red circle", "a small green square", "a white background"))
    assert (got.right, got.reason) == (False, reason)
    fields = ("background", "count", "colors", "shapes", "sizes", "relation")
    assert [f for f in fields if getattr(got, f) is not True] == [wrong]


@pytest.mark.parametrize(
    ("kept", "extra", "reason"),
    [
        ([], [], "the image shows nothing, not two things"),
        ([0], [], "the image shows one thing, not two things"),
        ([0, 1], [("blue", "heart", 66, 106)], "the image shows three things, not two things"),
        ([0, 1], [("green", "square", 66, 106)], "the image shows three things, not two things"),
    ],
)
def test_a_wrong_number_of_things(kept, extra, reason):
    more = [scenes.Thing(color=c, shape=s, size=None, x=x, y=y, radius=15) for c, s, x, y in extra]
    got = verdict(replace(PAIR, things=(*(PAIR.things[i] for i in kept), *more)), scenes.caption(PAIR))
    assert (got.count, got.right, got.reason) == (False, False, reason)


def _merged(pixels):
    pixels[58:70, 40:90] = scenes.COLORS["red"]


def _cut_ring(pixels):
    pixels[55:69, 64:] = scenes.COLORS["white"]


def _two_tone(pixels):
    pixels[:, 64:][pixels[:, 64:, 1] < 100] = scenes.COLORS["purple"]


def _rimmed(pixels):
    core = scenes.Thing(color="red", shape="circle", size=None, x=64, y=64, radius=19)
    rim = scenes.coverage(replace(core, radius=26)) - scenes.coverage(core)
    pixels[rim > 0.5] = scenes.COLORS["black"]


@pytest.mark.parametrize(
    ("shape", "harm", "wrong"),
    [
        ("ring", _cut_ring, "shapes"),
        ("circle", _two_tone, "colors"),
        ("circle", _rimmed, "colors"),
    ],
)
def test_a_damaged_thing_is_not_accepted(shape, harm, wrong):
    thing = scenes.Thing(color="red", shape=shape, size=None, x=64, y=64, radius=26)
    scene = scenes.Scene(background="white", things=(thing,))
    pixels = scenes.render(scene)
    assert judge(pixels, scenes.caption(scene)).right
    harm(pixels)
    assert getattr(judge(pixels, scenes.caption(scene)), wrong) is False


def test_things_that_have_grown_together_are_not_two():
    pixels = scenes.render(PAIR)
    _merged(pixels)
    assert "one thing" in judge(pixels, scenes.caption(PAIR)).reason


def test_a_background_that_is_not_plain():
    pixels = scenes.render(LONE)
    pixels[:20] = scenes.COLORS["green"]
    assert judge(pixels, scenes.caption(LONE)).background is False


# ---------------------------------------------------------------------------------------------------------- detection


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_place_and_radius_are_measured(shape):
    thing = scenes.Thing(color="purple", shape=shape, size=None, x=60, y=70, radius=20)
    pixels = scenes.render(scenes.Scene(background="cyan", things=(thing,)))
    (seen,) = detect(degrade(pixels, 0)).things
    assert (seen.color, seen.shape) == ("purple", shape)
    assert abs(seen.radius - 20) < 1.5
    assert abs(seen.x - 60) < 1.5
    assert abs(seen.y - 70) < 4  # the middle of a triangle's or heart's mass is not that of its circle


def test_nearly_touching_tips_of_one_color_stay_apart():
    """A worst case of `draw_scene`: diamond over diamond, tips 3.5 pixels apart, black on white, where blur bridges."""
    things = tuple(
        scenes.Thing(color="black", shape="diamond", size="large", x=64, y=y, radius=29) for y in (33.3, 94.8)
    )
    scene = scenes.Scene(background="white", things=things, relation="above")
    for seed in range(5):
        assert judge(degrade(scenes.render(scene), seed), scenes.caption(scene)).right


@pytest.mark.parametrize("seed", range(6))
def test_any_image_gets_a_verdict(seed):
    """Noise from fine to coarse: an untrained model must be judged wrong, and must not crash the judge."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (128 // 2**seed, 128 // 2**seed, 3), dtype=np.uint8)
    pixels = coarse.repeat(2**seed, axis=0).repeat(2**seed, axis=1)
    assert not judge(pixels, scenes.caption(PAIR)).right


@pytest.mark.parametrize("pixels", [np.zeros((128, 128), np.uint8), np.zeros((128, 128, 3)), np.zeros((3, 8, 8))])
def test_arrays_that_are_not_images_are_rejected(pixels):
    with pytest.raises(ValueError, match="uint8"):
        judge(pixels, scenes.caption(PAIR))
