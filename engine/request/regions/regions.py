"""Regional prompts: texts with masks that say where each of them describes the image.

Knows a call's arguments and images. Does not know networks or steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import InputError
from ...errors.validation import check_float
from ...images.arrays import as_list, load_mask_array, resize_image
from ...plan.plan import Plan
from ..arguments.regions import RegionArguments

Floats = NDArray[np.float32]
PROMPTS, MASKS, STRENGTH = "region_prompts", "region_masks", "region_strength"
_WITHOUT = ("prompt_embeds", "negative_prompt_embeds", "padding_mask_crop", "callback_on_step_end", "style_image")
_MAX_REGIONS = 16  # each adds a row of the U-Net for every image


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """The regions of a call, which all of its images share.

    Attributes:
        prompts: the text of each.
        strength: how much of a region its own prompt describes.
        shares: how much each counts at a pixel, 0 to 1; the sum is at most 1, and the prompt has the rest.
            # [1, regions, H, W]
    """

    prompts: tuple[str, ...]
    strength: float
    shares: Floats

    def shares_at(self, height: int, width: int) -> Floats:
        """Return the shares of latents of any size: the mean of their pixels.  # [regions, height, width]"""
        planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BOX) for plane in self.shares[0]]
        return np.stack([np.asarray(plane, np.float32) for plane in planes])


def regions_of(request: Any, plan: Plan, *, height: int, width: int) -> Regions | None:
    """Check the regional prompts of a request for an image of `height` x `width`; None without them.

    The request's fields are `RegionArguments` and those that do not go with these.

    Raises:
        InputError: prompts and masks do not agree in number, one is not a text or an image, or the model or another
            argument does not go with them.
    """
    strength = check_float(STRENGTH, request.region_strength, 1)
    if request.region_prompts is None and request.region_masks is None:
        if strength != RegionArguments.region_strength:
            raise InputError(f"{STRENGTH} needs {PROMPTS} and {MASKS}.", argument=STRENGTH, got=strength)
        return None
    for name, other in ((PROMPTS, MASKS), (MASKS, PROMPTS)):
        if getattr(request, name) is None:
            raise InputError(f"{other} needs {name}: a text and a mask for each region.", argument=name)
    prompts = _prompts(request.region_prompts)
    masks = [load_mask_array(each, MASKS) for each in _entries(request.region_masks)]
    if len(prompts) != len(masks):
        message = f"pass a mask for each of {len(prompts)} regions; got {len(masks)}."
        raise InputError(message, argument=MASKS, got=len(masks), expected=str(len(prompts)))
    if len(prompts) > _MAX_REGIONS:
        message = f"a call takes at most {_MAX_REGIONS} regions, got {len(prompts)}."
        raise InputError(message, argument=PROMPTS, got=len(prompts), expected=f"at most {_MAX_REGIONS}")
    _check_companions(request, plan)
    planes = np.stack([resize_image(mask, height, width)[..., 0] for mask in masks]).clip(0, 1)
    shares = planes * np.float32(strength)
    return Regions(prompts=prompts, strength=strength, shares=(shares / np.maximum(shares.sum(axis=0), 1))[None])


def _check_companions(request: Any, plan: Plan) -> None:
    """Raise `InputError` for a model or an argument that does not go with regional prompts."""
    if not plan.prompting.states:
        raise InputError(f"{PROMPTS} needs a model with text, and this one has none. Omit it.", argument=PROMPTS)
    if plan.makes_clips or plan.takes("edit", "latents"):
        raise InputError(f"{PROMPTS} needs a text-to-image model.", argument=PROMPTS)
    for name in _WITHOUT:
        if getattr(request, name) is not None:
            raise InputError(f"{PROMPTS} cannot be combined with {name}.", argument=PROMPTS)


def _prompts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
        message = f"{PROMPTS} must be a text, or a list with one for each region; got {value!r:.80}."
        raise InputError(message, argument=PROMPTS, got=value)
    return tuple(text.encode("utf-8", "replace").decode("utf-8") for text in texts)


def _entries(value: Any) -> list[Any]:
    entries = as_list(value)
    if not entries:
        raise InputError(f"{MASKS} must be a mask, or a list with one for each region.", argument=MASKS, got=value)
    return entries
