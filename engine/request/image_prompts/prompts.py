"""What a call passes to each IP-Adapter: images or their embeddings, masks, and scales.

Knows a plan's adapters by their tensors. `calotype.stages.image_prompts` makes keys and values of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import InputError
from ...images.arrays import as_list, load_image_array, load_mask_array, to_array
from ...images.resample import vision_crop
from ...plan.image_input import CLIP_MEAN, CLIP_STD
from ...plan.networks import ip_adapters_of
from ...plan.plan import Plan
from .scales import NAME as SCALE
from .scales import scales_of

Floats = NDArray[np.float32]
IMAGE, EMBEDS, MASK = "ip_adapter_image", "ip_adapter_image_embeds", "ip_adapter_mask"
_MAX_IMAGES = 64  # of one adapter


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePrompt:
    """The input of one adapter. All images of a batch share it, so the first axis of each array is 1.

    Attributes:
        pixels: the images as the encoder takes them.  # [1, n, 3, S, S]
        embeds: or their embeddings.  # [1, n, ...]
        negative_embeds: those of the unconditional half, under guidance.
        masks: where each image counts, of any size; None: everywhere, all images together.  # [1, n, H, W]
        scales: for each image with a mask, or once, in each cross-attention.  # [1, n or 1, layers]
    """

    pixels: Floats | None = None
    embeds: Floats | None = None
    negative_embeds: Floats | None = None
    masks: Floats | None = None
    scales: Floats

    @property
    def count(self) -> int:
        """The number of images."""
        array = self.pixels if self.embeds is None else self.embeds
        return 0 if array is None else array.shape[1]


def image_prompts_of(
    plan: Plan, *, images: Any, embeds: Any, masks: Any, scale: Any, guided: bool
) -> tuple[ImagePrompt, ...]:
    """Return the input of each adapter that has one; the scales are 0 for the others. Empty if no adapter has one.

    Raises:
        InputError: an argument is invalid, or the model has no adapter for it.
    """
    passed = {IMAGE: images, EMBEDS: embeds, MASK: masks}
    names = ip_adapters_of(plan.components)
    used = next((name for name, value in passed.items() if value is not None), None)
    if not names:
        if used is not None or not (isinstance(scale, (int, float)) and scale == 1):
            raise InputError(
                f"{used or SCALE} needs an IP-Adapter. Load one with load(..., ip_adapter=FILE).",
                argument=used or SCALE,
            )
        return ()
    if images is not None and embeds is not None:
        raise InputError(f"pass {IMAGE} or {EMBEDS}, not both.", argument=EMBEDS)
    inputs = _embedded(plan, names, embeds, guided) if embeds is not None else _seen(plan, names, images)
    all_masks = _masks(masks, [arrays[-1].shape[1] for arrays in inputs])
    counts = [None if mask is None else mask.shape[1] for mask in all_masks]
    assert plan.image_prompts is not None  # a plan with adapters has it
    scales = scales_of(scale, plan.image_prompts.layers, counts)
    if images is None and embeds is None:
        if masks is not None:
            raise InputError(f"{MASK} needs {IMAGE} or {EMBEDS}.", argument=MASK)
        return ()
    keys = ("negative_embeds", "embeds") if embeds is not None else ("pixels",)
    return tuple(
        ImagePrompt(**dict(zip(keys, arrays, strict=True)), masks=mask, scales=numbers[None])
        for arrays, mask, numbers in zip(inputs, all_masks, scales, strict=True)
    )


def _for_each(name: str, value: Any, adapters: int) -> list[Any]:
    """Return the value of each adapter. With one adapter, a list may be that adapter's."""
    is_list = isinstance(value, (list, tuple))
    if adapters == 1:
        nested = is_list and len(value) == 1
        return [value[0] if nested else list(value) if is_list else value]
    if not is_list or len(value) != adapters:
        got = len(value) if is_list else type(value).__name__
        raise InputError(
            f"{name} must be a list with one entry for each of {adapters} IP-Adapters, got {got}. An entry may be a "
            "list of several, or None.",
            argument=name,
            got=got,
        )
    return list(value)


def _seen(plan: Plan, names: Sequence[str], images: Any) -> list[tuple[Floats]]:
    """Return the pixels of each adapter's images.  # [1, n, 3, S, S]; n is 0 without images"""
    entries = [None] * len(names) if images is None else _for_each(IMAGE, images, len(names))
    if all(entry is None for entry in entries):
        return [(np.empty((1, 0, 3, 1, 1), np.float32),) for _ in names]
    encoder = plan.components.get("image_encoder")
    assert plan.image_prompts is not None  # a plan with adapters has it
    seen = []
    for name, kind, entry in zip(names, plan.image_prompts.kinds, entries, strict=True):
        if entry is not None and kind == "face_id":
            message = f"{name} takes embeddings of faces (FaceID). Pass them as {EMBEDS}=."
            raise InputError(message, argument=IMAGE)
        if entry is not None and encoder is None:
            raise InputError(
                f"{IMAGE} needs the image encoder of the IP-Adapter, which was not loaded. Load the model with "
                f"image_encoder=FOLDER, or pass {EMBEDS}=.",
                argument=IMAGE,
            )
        several = [] if entry is None else as_list(entry)
        if entry is not None and not 1 <= len(several) <= _MAX_IMAGES:
            message = f"{IMAGE} takes 1 to {_MAX_IMAGES} images for an adapter, got {len(several)}."
            raise InputError(message, argument=IMAGE, got=len(several))
        side = 1 if encoder is None else int(encoder.inputs[0].dims[-1])
        arrays = [load_image_array(IMAGE, each) for each in several]
        crops = [vision_crop(array, side, side, CLIP_MEAN, CLIP_STD) for array in arrays]
        seen.append((np.stack(crops)[None] if crops else np.empty((1, 0, 3, side, side), np.float32),))
    return seen


def _embedded(plan: Plan, names: Sequence[str], embeds: Any, guided: bool) -> list[tuple[Floats, Floats]]:
    """Return the embeddings of each adapter, without and with the images.  # [1, n, ...] each"""
    entries = embeds if isinstance(embeds, (list, tuple)) else [embeds]
    if len(entries) != len(names):
        message = f"{EMBEDS} must be a list with one array for each of {len(names)} IP-Adapters, got {len(entries)}."
        raise InputError(message, argument=EMBEDS, got=len(entries))
    pairs = []
    for name, entry in zip(names, entries, strict=True):
        dims = tuple(int(dim) for dim in plan.components[name].inputs[0].dims[1:])
        if entry is None:
            empty = np.empty((1, 0, *dims), np.float32)
            pairs.append((empty, empty))
            continue
        array = to_array(entry)
        halves = 2 if guided else 1
        valid = isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.ndim == 2 + len(dims)
        valid = valid and array.shape[0] in (2, halves) and array.shape[2:] == dims and array.shape[1] >= 1
        if not valid or not np.isfinite(array).all():
            shape = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(entry).__name__
            half = ", the unconditional half first" if guided else ""
            raise InputError(
                f"{EMBEDS} of {name} must be finite floats [{halves}, images, {', '.join(map(str, dims))}]{half}; got "
                f"{shape}.",
                argument=EMBEDS,
                got=shape,
            )
        array = array.astype(np.float32)
        pairs.append((array[:1], array[-1:]))
    return pairs


def _masks(masks: Any, counts: Sequence[int]) -> list[Floats | None]:
    """Return the masks of each adapter.  # [1, n, H, W]"""
    if masks is None:
        return [None] * len(counts)
    ready = []
    for entry, count in zip(_for_each(MASK, masks, len(counts)), counts, strict=True):
        planes = [] if entry is None else _planes(entry)
        if entry is not None and count and len(planes) != count:
            raise InputError(
                f"pass a mask for each of the {count} images of an IP-Adapter, or None; got {len(planes)}.",
                argument=MASK,
                got=len(planes),
            )
        if len({plane.shape for plane in planes}) > 1:
            raise InputError(f"the masks of one IP-Adapter in {MASK} must have one size.", argument=MASK)
        ready.append(np.stack(planes)[None] if planes and count else None)
    return ready


def _planes(entry: Any) -> list[Floats]:
    """Return the masks in an entry: one, or several in a list or an array.  # [H, W] each"""
    entry = to_array(entry)
    if isinstance(entry, np.ndarray) and entry.ndim in (3, 4) and entry.shape[-1] not in (3, 4):
        if entry.ndim == 4 and 1 in entry.shape[:2]:  # diffusers has them as [1, n, H, W]
            entry = entry.reshape(-1, *entry.shape[2:])
        return [_plane(each) for each in entry]
    return [plane for each in entry for plane in _planes(each)] if isinstance(entry, (list, tuple)) else [_plane(entry)]


def _plane(value: Any) -> Floats:
    """Return one mask: bytes and images become 0 or 1, as in diffusers; floats stay.  # [H, W]"""
    kept = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    if not isinstance(value, (str, Path, Image.Image, np.ndarray)):
        raise InputError(f"{MASK} must be masks, got {type(value).__name__}.", argument=MASK)
    try:
        pixels = load_mask_array(value)[..., 0]
    except InputError as wrong:
        raise InputError(str(wrong).replace("mask_image", MASK), argument=MASK) from None
    if pixels.dtype == np.uint8:
        pixels = pixels.astype(np.float32) / np.float32(255)
    return np.asarray(pixels if kept else pixels >= 0.5, dtype=np.float32)
