"""Training data: scenes as arrays, computed once and cached in files, and captions with one wrong word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.export.judge import scenes

HELD_OUT = 10_000_000  # training never uses seeds from here on


def training_scenes(count: int, first: int = 0) -> list[scenes.Scene]:
    """Return scenes whose captions training may use."""
    return [scenes.draw_scene(s, held_out=False) for s in range(first, first + count)]


def images_of(drawn: list[scenes.Scene], render: Callable[[scenes.Scene], Any] = scenes.render) -> Tensor:
    """Return rendered scenes in [-1, 1].  # [N, 3, 128, 128]"""
    return torch.from_numpy(np.stack([render(s) for s in drawn])).permute(0, 3, 1, 2).float() / 127.5 - 1


def cached(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array in the file, computed and written if the file does not exist."""
    if not path.exists():
        fresh = path.with_suffix(".part.npy")
        np.save(fresh, compute())
        fresh.replace(path)
    return np.asarray(np.load(path))


def wrong_captions(scene: scenes.Scene) -> Iterator[tuple[str, str]]:
    """Yield every caption that one changed word makes false, with the kind of the word."""
    things = scene.things
    used = {scene.background, *(t.color for t in things)}
    for i, thing in enumerate(things):
        colors = [c for c in scenes.COLORS if c not in (thing.color, scene.background)]
        changed = [("color", replace(thing, color=c)) for c in colors]
        changed += [("shape", replace(thing, shape=s)) for s in scenes.SHAPES if s != thing.shape]
        if thing.size is not None:
            changed.append(("size", replace(thing, size="small" if thing.size == "large" else "large")))
        for kind, other in changed:
            yield kind, scenes.caption(replace(scene, things=(*things[:i], other, *things[i + 1 :])))
    for color in scenes.COLORS:
        if color not in used:
            yield "background", scenes.caption(replace(scene, background=color))
    if scene.relation is not None:
        other_way = "above" if scene.relation == "left of" else "left of"
        yield "relation", scenes.caption(scene).replace(scene.relation, other_way)
