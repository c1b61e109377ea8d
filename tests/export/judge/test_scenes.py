"""Scenes: a function of the seed, and never two things that touch."""

import numpy as np
import pytest

from calotype.export.judge import scenes


def test_the_same_seed_gives_the_same_scene_and_pixels():
    for seed in (0, 5, 10**9):
        assert scenes.draw_scene(seed) == scenes.draw_scene(seed)
    first, again = (scenes.render(scenes.draw_scene(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_things_are_complete_apart_and_differ_from_the_background():
    for seed in range(400):
        scene = scenes.draw_scene(seed)
        covers = [scenes.coverage(t) for t in scene.things]
        for thing, cover in zip(scene.things, covers, strict=True):
            assert thing.color != scene.background
            border = np.concatenate([cover[0], cover[-1], cover[:, 0], cover[:, -1]])
            assert border.max() == 0
        if len(covers) == 2:
            assert (covers[0] * covers[1]).max() == 0


def test_every_word_is_used():
    words = {w for seed in range(600) for w in scenes.caption(scenes.draw_scene(seed)).split()}
    assert set(scenes.COLORS) | set(scenes.SHAPES) | {"small", "large", "above", "left"} <= words


def test_captions():
    thing = scenes.Thing(color="orange", shape="ring", size=None, x=40, y=60, radius=20)
    other = scenes.Thing(color="red", shape="square", size="small", x=90, y=60, radius=16)
    scene = scenes.Scene(background="white", things=(thing, other), relation="left of")
    assert scenes.caption(scene) == "an orange ring left of a small red square on a white background"


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_edges_are_antialiased(shape):
    cover = scenes.coverage(scenes.Thing(color="red", shape=shape, size=None, x=64.3, y=63.6, radius=30.2))
    assert ((cover > 0) & (cover < 1)).sum() > 40
    assert 0.12 * np.pi * 30**2 < cover.sum() < np.pi * 30**2
