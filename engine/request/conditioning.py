"""What conditions the U-Net besides prompts in words: states of text encoders that the caller gives, and SDXL's sizes.

Does not know the encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..errors.validation import check_float, check_int
from ..images.arrays import to_array
from ..plan.plan import Plan
from .request import Request

Floats = NDArray[np.float32]
Pair = tuple[int, int]
_MAX_SIDE = 2**16


@dataclass(frozen=True, kw_only=True, eq=False)
class PrecomputedStates:
    """The states of text encoders that the caller gives, of each prompt or None.  # [n, tokens, W] and [n, P]"""

    states: Floats | None = None
    pooled: Floats | None = None
    negative_states: Floats | None = None
    negative_pooled: Floats | None = None

    def __bool__(self) -> bool:
        return self.states is not None or self.negative_states is not None

    def repeated(self, each: int, count: int) -> PrecomputedStates:
        """Return the states of `count` images, `each` for one prompt."""
        if not self:
            return self
        arrays: dict[str, Any] = {n: a if a is None else a.repeat(each, axis=0) for n, a in vars(self).items()}
        single = {n: a for n, a in arrays.items() if a is not None and len(a) < count}  # one for all prompts
        return PrecomputedStates(**arrays | {n: a.repeat(count // len(a), axis=0) for n, a in single.items()})

    def row(self, i: int, count: int, *, guided: bool) -> tuple[Floats, Floats | None] | None:
        """Return the states and the pooled state of row i of N, or None if text gives them."""
        negative, place = guided and i < count, i % count
        states, pooled = (self.negative_states, self.negative_pooled) if negative else (self.states, self.pooled)
        return None if states is None else (states[place], None if pooled is None else pooled[place])

    def chunks(self, length: int, negatives: Sequence[str | None], *, guided: bool) -> int | None:
        """Return the chunks of `length` tokens that texts get that come with these states; None without states.

        Raises:
            InputError: the states are no full chunks.
        """
        if not self:
            return None
        used = [a for a in (self.states, self.negative_states if guided else None) if a is not None]
        if not used:
            return None
        tokens = int(used[0].shape[1])
        texts = self.states is None or (guided and self.negative_states is None and None not in negatives)
        if texts and tokens % length:
            other = "negative_prompt_embeds" if self.negative_states is None else "prompt_embeds"
            message = f"the given states have {tokens} tokens, and text has chunks of {length}. Pass {other} as well."
            raise InputError(message, argument=other, got=tokens)
        return max(tokens // length, 1)


NO_STATES = PrecomputedStates()


def precomputed_states(request: Request, plan: Plan) -> PrecomputedStates:
    """Check the states in a request. Raises `InputError`."""
    inputs = {b.name: b for b in plan.components["unet"].inputs}
    passed = {
        name: getattr(request, name)
        for name in ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
    }
    if all(value is None for value in passed.values()):
        return NO_STATES
    if not plan.prompting.states:
        name = next(name for name, value in passed.items() if value is not None)
        raise InputError(f"{name} needs a model with text, and this one has none. Omit it.", argument=name)
    for side in ("", "negative_"):
        _check_side(request, side, pooled=plan.prompting.pooled is not None)
    arrays = {
        name: None
        if value is None
        else _array(name, value, inputs["text_embeds" if "pooled" in name else "encoder_hidden_states"].dims)
        for name, value in passed.items()
    }
    states, pooled, negative, negative_pooled = arrays.values()
    if states is not None and negative is not None and states.shape[1] != negative.shape[1]:
        message = f"negative_prompt_embeds has {negative.shape[1]} tokens, and prompt_embeds {states.shape[1]}."
        raise InputError(message, argument="negative_prompt_embeds", got=negative.shape[1])
    return PrecomputedStates(states=states, pooled=pooled, negative_states=negative, negative_pooled=negative_pooled)


def check_counts(states: PrecomputedStates, prompts: int) -> None:
    """Raise `InputError` unless the negative and pooled states fit the number of prompts."""
    names = {"pooled_prompt_embeds": states.pooled, "negative_prompt_embeds": states.negative_states}
    for name, array in (names | {"negative_pooled_prompt_embeds": states.negative_pooled}).items():
        if array is not None and len(array) not in (1, prompts):
            message = f"{name} must have one row, or one for each of {prompts} prompts; got {len(array)}."
            raise InputError(message, argument=name, got=len(array))


def _check_side(request: Request, side: str, *, pooled: bool) -> None:
    states, of_pool, text = (f"{side}{name}" for name in ("prompt_embeds", "pooled_prompt_embeds", "prompt"))
    has_states, has_pooled = (getattr(request, name) is not None for name in (states, of_pool))
    for words in (text, f"{text}_2"):
        if has_states and getattr(request, words) is not None:
            raise InputError(f"{words} and {states} say the same. Pass only one of them.", argument=states)
    if has_states and pooled and not has_pooled:
        raise InputError(f"this model also needs {of_pool}: the pooled state, [N, width].", argument=of_pool)
    if has_pooled and not (has_states and pooled):
        reason = f"needs {states}" if pooled else "needs an SDXL model"
        raise InputError(f"{of_pool} {reason}.", argument=of_pool)


def _array(name: str, value: Any, dims: Sequence[int | str]) -> Floats:
    """Return the states [N, ...] of an argument, whose further sizes `dims` says. Raises `InputError`."""
    array = to_array(value)
    is_array = isinstance(array, np.ndarray) and array.dtype.kind in "iuf" and array.ndim == len(dims) and array.size
    matches = is_array and all(d in (got, "tokens") for d, got in zip(dims[1:], array.shape[1:], strict=True))
    if not matches:
        got = f"shape {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        expected = f"numbers [{', '.join(map(str, ('N', *dims[1:])))}]"
        raise InputError(f"{name} must be {expected}, got {got}.", argument=name, got=got, expected=expected)
    if not np.isfinite(array).all():
        raise InputError(f"{name} contains numbers that are not finite.", argument=name)
    return np.asarray(array, dtype=np.float32)


SCORES = ("aesthetic_score", "negative_aesthetic_score")


@dataclass(frozen=True, kw_only=True)
class SizeConditioning:
    """SDXL's micro-conditioning: original size, crop corner and target size (arXiv 2307.01952).

    The attributes are the arguments of these names; None stands for the output size, or for that of the prompt.
    """

    original_size: Pair | None
    target_size: Pair | None
    crops_coords_top_left: Pair
    negative_original_size: Pair | None
    negative_target_size: Pair | None
    negative_crops_coords_top_left: Pair | None
    aesthetic_score: float
    negative_aesthetic_score: float

    def time_ids(self, height: int, width: int, *, is_refiner: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the numbers of the prompt and of the negative prompt, for an output of this size.

        The refiner takes an aesthetic score in place of the target size. As in diffusers, the negative corner is (0, 0)
        if there is a negative size.
        """
        original, target = self.original_size or (height, width), self.target_size or (height, width)
        has_size = self.negative_original_size is not None or self.negative_target_size is not None
        corner = self.negative_crops_coords_top_left or ((0, 0) if has_size else self.crops_coords_top_left)
        ends: tuple[tuple[float, ...], ...] = (target, self.negative_target_size or target)
        if is_refiner:
            ends = (self.aesthetic_score,), (self.negative_aesthetic_score,)
        positive = (*original, *self.crops_coords_top_left, *ends[0])
        return positive, (*(self.negative_original_size or original), *corner, *ends[1])


def sizes_of(request: Request, plan: Plan) -> SizeConditioning | None:
    """Return the sizes of a request; None for a model without them. Raises `InputError`."""
    dims = next((b.dims for b in plan.components["unet"].inputs if b.name == "time_ids"), None)
    is_refiner = dims is not None and dims[1] == 5
    defaults = {field.name: field.default for field in fields(request)}
    names = [field.name for field in fields(SizeConditioning)]
    for name in names:
        value = getattr(request, name)
        takes = is_refiner if name in SCORES else dims is not None and not (is_refiner and "target" in name)
        if not takes and value is not None and value != defaults[name]:
            needed = "the SDXL refiner" if name in SCORES else "an SDXL base model" if "target" in name else "SDXL"
            raise InputError(f"{name} needs {needed}, and this model takes none.", argument=name, got=value)
    values: dict[str, Any] = {name: _pair(name, getattr(request, name)) for name in names if name not in SCORES}
    values |= {name: check_float(name, getattr(request, name), 10) for name in SCORES}
    return None if dims is None else SizeConditioning(**values)


def _pair(name: str, value: Any) -> Pair | None:
    if value is None and name != "crops_coords_top_left":
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        expected = "two whole numbers, the height and the width, such as (1024, 1024)"
        raise InputError(f"{name} must be {expected}; got {value!r:.80}.", argument=name, got=value, expected=expected)
    return check_int(name, value[0], 0, _MAX_SIDE), check_int(name, value[1], 0, _MAX_SIDE)
