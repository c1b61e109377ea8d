"""Image prompts as inputs of the U-Net: the keys and values that IP-Adapters make of images, with scales and masks.

An image is encoded once, and kept for later calls: no backend computes its keys and values at a step. Does not know
steps, samplers or backends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..images.resample import resize_bicubic
from ..plan.image_prompts.layers import BIAS, MASK, SCALE, STATES
from ..plan.networks import ip_adapters_of
from ..plan.plan import Plan
from ..request.image_prompts.prompts import ImagePrompt
from ..request.resolved import ResolvedRequest
from ..system.lru_cache import LruCache

Floats = NDArray[np.float32]
Network = Callable[..., Mapping[str, Floats]]

_KEPT_BYTES = 64 << 20  # an image of a plain adapter takes 0.4 MB for Stable Diffusion 1, and 2.7 MB for XL
_USUAL_TOKENS = 16  # to which every group is filled up, if an adapter has as many
_ABSENT = np.float32(-1e4)  # of a token that a group lacks: its share is 0, also in half precision


class Group(NamedTuple):
    """Tokens with a softmax of their own: those of an adapter, or with masks those of one image."""

    without: Floats  # keys and values of the unconditional part  # [tokens, W]
    states: Floats  # [tokens, W]
    scale: Floats  # [layers]
    mask: Floats | None  # [H, W]


class ImagePrompter:
    """The IP-Adapters of a plan, with a cache of encoded images. Threads may share it."""

    def __init__(self, plan: Plan, network: Callable[[str], Network]) -> None:
        """`network` returns a component by its name."""
        self._plan, self._network = plan, network
        self._names = ip_adapters_of(plan.components)
        self._inputs = [b for b in plan.components["unet"].inputs if b.name in (STATES, BIAS, SCALE)]
        self._masks = [b for b in plan.components["unet"].inputs if b.name.startswith(MASK)]
        each = [int(plan.components[name].outputs[0].dims[1]) for name in self._names]
        self._usual_tokens = min(_USUAL_TOKENS, max(each, default=1))
        self._cache: LruCache[Floats] = LruCache(_KEPT_BYTES, lambda array: array.nbytes)

    def clear(self) -> None:
        """Drop the encoded images."""
        self._cache.clear()

    @property
    def kept_bytes(self) -> int:
        """The bytes of the encoded images that are kept."""
        return sum(array.nbytes for array in self._cache.values())

    def __call__(self, request: ResolvedRequest) -> dict[str, Floats]:
        """Return the U-Net's inputs for image prompts; nothing for a U-Net without them.

        A call without images has as many groups and tokens as one with an image for each adapter, at scale 0: a backend
        that compiles for exact sizes compiles once, and a server runs such calls together.

        Returns:
            `image_states` [N, G, T, W], `image_bias` [N, G, T], `image_scale` [N, G, layers], and `image_mask`
            [N, G, h, w] with one for each smaller level. N has the rows without the images first.

        Raises:
            BackendError: a backend failed; NotFiniteError: a network returned numbers that are not finite.
        """
        if not self._inputs:
            return {}
        prompts = request.image_prompts
        pairs = zip(self._names, prompts, strict=True) if prompts else ()
        groups = [group for name, prompt in pairs for group in self._groups(name, prompt)]
        groups = [group for group in groups if group.scale.any()]
        groups += [self._nothing()] * (len(self._names) - len(groups))
        tokens = max(self._usual_tokens, *(len(group.states) for group in groups))
        count, rows = len(request.seeds), request.rows

        def packed(group: Group) -> tuple[Floats, Floats]:
            return tuple(_padded(each, tokens) for each in (group.without, group.states))  # type: ignore[return-value]

        halves = [np.stack(half) for half in zip(*map(packed, groups), strict=True)]  # each [G, T, W]
        unprompted = request.unprompted_rows
        parts = [halves[0]] * (count * unprompted) + [halves[1]] * (count * (rows - unprompted))
        bias = np.stack([np.where(np.arange(tokens) < len(g.states), np.float32(0), _ABSENT) for g in groups])
        arrays = {STATES: np.stack(parts)}
        for name, array in {
            BIAS: bias,
            SCALE: np.stack([g.scale for g in groups]),
            **self._maps(request, groups),
        }.items():
            arrays[name] = np.repeat(array[None], count * rows, axis=0).astype(np.float32)
        return arrays

    def _groups(self, name: str, prompt: ImagePrompt) -> Iterator[Group]:
        pairs = [self._states(name, prompt, i) for i in range(prompt.count)]
        if prompt.masks is None:
            if pairs:
                without, states = (np.concatenate(each) for each in zip(*pairs, strict=True))
                yield Group(without, states, prompt.scales[0, 0], None)
            return
        for (without, states), scale, mask in zip(pairs, prompt.scales[0], prompt.masks[0], strict=True):
            yield Group(without, states, scale, mask)

    def _states(self, name: str, prompt: ImagePrompt, i: int) -> tuple[Floats, Floats]:
        """Return the keys and values of image i without and with it.  # [tokens, W] each"""
        if prompt.embeds is not None and prompt.negative_embeds is not None:
            return tuple(self._of_embeds(name, each[0, i]) for each in (prompt.negative_embeds, prompt.embeds))  # type: ignore[return-value]
        assert prompt.pixels is not None  # `ImagePrompt` has the one or the other
        pixels, takes_states = prompt.pixels[0, i], len(self._plan.components[name].inputs[0].dims) == 3
        output = "hidden_states" if takes_states else "image_embeds"
        embeds = self._encoded(pixels, output)
        without = self._encoded(np.zeros_like(pixels), output) if takes_states else np.zeros_like(embeds)
        return self._of_embeds(name, without), self._of_embeds(name, embeds)

    def _encoded(self, pixels: Floats, output: str) -> Floats:
        def encode() -> Floats:
            embeds: Floats = self._network("image_encoder")(pixel_values=pixels[None])[output][0].astype(np.float32)
            return embeds

        return self._cache((output, pixels.tobytes()), encode)

    def _of_embeds(self, name: str, embeds: Floats) -> Floats:
        def states() -> Floats:
            packed: Floats = self._network(name)(image_embeds=embeds[None])[STATES][0].astype(np.float32)
            return packed

        return self._cache((name, embeds.tobytes()), states)

    def _nothing(self) -> Group:
        width, layers = (int(b.dims[-1]) for b in self._inputs if b.name in (STATES, SCALE))
        none = np.zeros((1, width), np.float32)
        return Group(none, none, np.zeros(layers, np.float32), None)

    def _maps(self, request: ResolvedRequest, groups: list[Group]) -> dict[str, Floats]:
        """Return the masks at the size of each level.  # [G, h, w]"""
        sizes = self._plan.profile.sizes(batch=1, height=request.height, width=request.width)
        maps = {}
        for binding in self._masks:
            height, width = (sizes[str(dim)] for dim in binding.dims[2:])
            ones = np.ones((height, width), np.float32)
            maps[binding.name] = np.stack(
                [ones if g.mask is None else resize_bicubic(g.mask, height, width) for g in groups]
            )
        return maps


def _padded(states: Floats, tokens: int) -> Floats:
    return np.concatenate([states, np.zeros((tokens - len(states), states.shape[1]), np.float32)])
