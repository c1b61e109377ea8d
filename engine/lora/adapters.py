"""From the tensors of one layer in a LoRA file to the update of its weight: LoRA and LyCORIS' other adapters.

The set of a layer's tensors says which adapter it is. Shapes are checked by the header alone, before a tensor is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from ..errors import SourceError
from ..weights.adapters import (
    DecomposedTerm,
    FullTerm,
    GeneralizedTerm,
    HadamardTerm,
    KroneckerTerm,
    RotationTerm,
    ScaleTerm,
    rebuild,
)
from ..weights.delta import AdditiveTerm, Floats, LowRankTerm, Term
from ..weights.safetensors import TensorFile

MAX_RANK = 1024  # or the largest side of the layer, if that is larger
_DECOMPOSED = ("dora_scale", "magnitude")
# The parts of each adapter: those that it needs, and those that it may have.
_KINDS: tuple[tuple[frozenset[str], frozenset[str]], ...] = tuple(
    (frozenset(needed.split()), frozenset(f"{needed} {more}".split()))
    for needed, more in (
        ("down up", "mid alpha dora_scale magnitude"),
        ("hada_w1_a hada_w1_b hada_w2_a hada_w2_b", "hada_t1 hada_t2 alpha dora_scale"),
        ("lokr_w1 lokr_w2", "alpha dora_scale"),
        ("lokr_w1 lokr_w2_a lokr_w2_b", "lokr_t2 alpha dora_scale"),
        ("lokr_w1_a lokr_w1_b lokr_w2", "alpha dora_scale"),
        ("lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b", "lokr_t2 alpha dora_scale"),
        ("oft_blocks", "rescale alpha"),
        ("weight on_input", ""),
        ("diff", "alpha"),
        ("a1.weight a2.weight b1.weight b2.weight", "alpha"),
    )
)
Parts: TypeAlias = Mapping[str, str]  # part -> key
Shape: TypeAlias = tuple[int, ...]


def is_complete(parts: Parts) -> bool:
    """Tell whether the parts are those of one adapter."""
    present = set(parts)
    cores = len({"hada_t1", "hada_t2"} & present) != 1
    return cores and any(needed <= present <= allowed for needed, allowed in _KINDS)


def mismatch(parts: Parts, file: TensorFile, shape: Shape) -> str | None:
    """Return the key of a tensor whose shape does not fit the weight's shape, or None."""
    shapes = {part: file.shape(key) for part, key in parts.items()}
    largest = max(MAX_RANK, *shape)
    for check in (_check_low_rank, _check_factors, _check_rotation, _check_scale, _check_full):
        if (wrong := check(shapes, shape, largest)) is not None:
            return parts[wrong]
    return None


def _check_low_rank(shapes: Mapping[str, Shape], shape: Shape, largest: int) -> str | None:
    if "down" not in shapes:
        return None
    up, down = shapes["up"], shapes["down"]
    if len(up) < 2 or len(down) < 2 or math.prod(up[2:]) != 1 or not down[0] or max(down[0], up[1]) > largest:
        return "down"
    if "mid" not in shapes:
        inner = len(down) == 2 or len(shape) == 2 or down[2:] == shape[2:]
        matches = inner and up[:2] == (shape[0], down[0]) and math.prod(down[1:]) == math.prod(shape[1:])
    else:
        middle = (up[1], down[0], *shape[2:])
        matches = (up[0], down[1]) == shape[:2] and math.prod(down[2:]) == 1 and shapes["mid"] == middle
        matches = matches and len(shape) == 4
    return None if matches else "down"


def _sides(shapes: Mapping[str, Shape], name: str, largest: int) -> tuple[int, int] | None:
    """Return the sides of a factor of LoHa or LoKr, flattened to a matrix; None if its tensors do not fit together."""
    if name in shapes:  # a full matrix of LoKr
        full = shapes[name]
        return (full[0], math.prod(full[1:])) if len(full) > 1 and min(full) else None
    first, second, core = shapes[f"{name}_a"], shapes[f"{name}_b"], shapes.get(f"{name[:5]}t{name[-1]}")
    if len(first) != 2 or len(second) < 2 or not 0 < second[0] <= largest:
        return None
    if core is None:
        return (first[0], math.prod(second[1:])) if first[1] == second[0] else None
    matches = first[0] == second[0] and core[:2] == (first[0], second[0]) and len(core) == 4 and len(second) == 2
    return (first[1], second[1] * math.prod(core[2:])) if matches else None


def _check_factors(shapes: Mapping[str, Shape], shape: Shape, largest: int) -> str | None:
    """Check LoHa and LoKr."""
    kind = next((kind for kind in ("hada", "lokr") if any(part.startswith(kind) for part in shapes)), None)
    if kind is None:
        return None
    matrix = (shape[0], math.prod(shape[1:]))
    both = [_sides(shapes, f"{kind}_w{i}", largest) for i in (1, 2)]
    for i, sides in enumerate(both, 1):
        wrong = next(part for part in shapes if part.startswith(f"{kind}_w{i}"))
        if sides is None or (kind == "hada" and sides != matrix):
            return wrong
        if (core := shapes.get(f"{kind}_t{i}")) and core[2:] != shape[2:]:
            return f"{kind}_t{i}"
    if kind == "lokr":
        (a, c), (b, d) = both  # type: ignore[misc]
        if (a * b, c * d) != matrix or d % math.prod(shape[2:]):
            return next(part for part in shapes if part.startswith("lokr_w2"))
    return None


def _check_rotation(shapes: Mapping[str, Shape], shape: Shape, largest: int) -> str | None:
    blocks = shapes.get("oft_blocks")
    if blocks is None:
        return None
    if len(blocks) not in (3, 4) or blocks[-1] != blocks[-2] or blocks[-3] * blocks[-2] != shape[0]:
        return "oft_blocks"
    if len(blocks) == 4 and (not blocks[0] or blocks[0] > 32 or blocks[-1] % 2 or blocks[1] % 2 ** (blocks[0] - 1)):
        return "oft_blocks"
    if "rescale" in shapes and (shapes["rescale"][:1] != shape[:1] or math.prod(shapes["rescale"]) != shape[0]):
        return "rescale"
    return None


def _check_scale(shapes: Mapping[str, Shape], shape: Shape, largest: int) -> str | None:
    """Check IA3, and the norms of DoRA."""
    if "on_input" in shapes and math.prod(shapes["weight"]) not in shape[:2]:
        return "weight"
    for part in _DECOMPOSED:
        norms = shapes.get(part)
        if norms is not None and (math.prod(norms) not in shape[:2] or len(norms) > 4):
            return part
    return None


def _check_full(shapes: Mapping[str, Shape], shape: Shape, largest: int) -> str | None:
    """Check full differences and GLoRA."""
    if "diff" in shapes and shapes["diff"] != shape:
        return "diff"
    if "a1.weight" in shapes:
        rank, inner = shapes["a2.weight"][:1], shapes["b2.weight"][:1]
        expected: dict[str, Shape] = {
            "a1.weight": shape[1:2] + rank,
            "a2.weight": rank + shape[1:2],
            "b1.weight": shape[:1] + inner,
        }
        for part, sides in expected.items():
            if len(sides) != 2 or not 0 < min(rank + inner) <= max(rank + inner) <= largest:
                return part
            if shapes[part][:2] != sides or math.prod(shapes[part][2:]) != 1:
                return part
        if math.prod(shapes["b2.weight"][1:]) != math.prod(shape[1:]):
            return "b2.weight"
    return None


Scale = Callable[[float | None, int], float]  # the alpha of the file and the rank -> the scale


def term_of(parts: Parts, file: TensorFile, shape: Shape, weight: float, scale_of: Scale) -> Term:
    """Return the update of a weight of this shape by the adapter with these parts, times `weight`."""
    alpha = file.number(parts["alpha"]) if "alpha" in parts else None
    if "oft_blocks" in parts:
        rescale = file[parts["rescale"]].reshape(-1, *[1] * (len(shape) - 1)) if "rescale" in parts else None
        constraint = (alpha or 0.0) * shape[0]
        return RotationTerm(blocks=file[parts["oft_blocks"]], rescale=rescale, constraint=constraint, multiplier=weight)
    if "on_input" in parts:
        axis, factors = int(bool(file.number(parts["on_input"]))), file[parts["weight"]]
        if factors.size != shape[axis]:
            message = (
                f"{file.path}: {parts['weight']} has {factors.size} factors; its weight has {shape[axis]} channels."
            )
            raise SourceError(message, path=file.path, field=parts["weight"])
        return ScaleTerm(factors=_along(factors, axis, shape), multiplier=weight)
    if "a1.weight" in parts:
        a1, a2, b1, b2 = (_matrix(file[parts[f"{name}.weight"]]) for name in ("a1", "a2", "b1", "b2"))
        return GeneralizedTerm(a1=a1, a2=a2, b1=b1, b2=b2, scale=weight * scale_of(alpha, len(a2)))
    norms = next((part for part in _DECOMPOSED if part in parts), None)
    if norms is None:
        return _additive(parts, file, weight, alpha, scale_of)
    magnitude = file[parts[norms]]
    # LyCORIS writes [1, in, ...] for norms per input channel; peft always has them per output.
    axis = int(norms == "dora_scale" and magnitude.shape[:1] == (1,) and shape[0] != 1)
    if magnitude.size != shape[axis]:
        axis = 1 - axis
    return DecomposedTerm(
        inner=_additive(parts, file, 1.0 if norms == "dora_scale" else weight, alpha, scale_of),
        magnitude=_along(magnitude, axis, shape),
        multiplier=weight if norms == "dora_scale" else None,
    )


def _additive(parts: Parts, file: TensorFile, weight: float, alpha: float | None, scale_of: Scale) -> AdditiveTerm:
    def factor(name: str) -> tuple[Floats | None, Floats, Floats]:
        core = f"{name[:5]}t{name[-1]}"
        tensors = file[parts[f"{name}_a"]], file[parts[f"{name}_b"]]
        return (file[parts[core]] if core in parts else None, *tensors)

    if "down" in parts:
        up, down = file[parts["up"]], file[parts["down"]]
        middle = file[parts["mid"]] if "mid" in parts else None
        scale = weight * scale_of(alpha, len(down))
        return LowRankTerm(up=_matrix(up), down=_matrix(down), middle=middle, scale=scale)
    if "diff" in parts:
        return FullTerm(difference=file[parts["diff"]], scale=weight)
    if "hada_w1_a" in parts:
        first, second = factor("hada_w1"), factor("hada_w2")
        return HadamardTerm(first=first, second=second, scale=weight * scale_of(alpha, len(first[2])))
    rank = next((file.shape(parts[part])[0] for part in ("lokr_w1_b", "lokr_w2_b") if part in parts), None)
    matrices = [_matrix(file[parts[n]]) if n in parts else rebuild(*factor(n)) for n in ("lokr_w1", "lokr_w2")]
    # Without a low-rank factor there is no rank, and LyCORIS trains with a scale of 1, whatever the alpha.
    scale = weight * (1.0 if rank is None else scale_of(alpha, rank))
    return KroneckerTerm(first=matrices[0], second=matrices[1], scale=scale)


def _matrix(array: Floats) -> Floats:
    return array.reshape(len(array), -1)


def _along(values: Floats, axis: int, shape: Shape) -> Floats:
    """Return a vector in the shape that multiplies the axis of a weight."""
    return np.reshape(values, [-1 if i == axis else 1 for i in range(len(shape))])
