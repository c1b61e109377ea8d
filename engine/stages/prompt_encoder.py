"""Prompts as inputs of the U-Net: run their tokens through the text encoders.

The plan's `Prompting` names the encoders and the outputs to use. Does not know steps or backends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..lora.lora import Lora
from ..plan.plan import Plan, Prompting, skipping
from ..request.resolved import ResolvedRequest
from ..system.lru_cache import LruCache

Floats = NDArray[np.float32]
Encoder = Callable[..., Mapping[str, Floats]]  # takes input_ids, returns its outputs by name

_MAX_PROMPTS = 64  # encoded prompts in the cache: 0.2 MB for each chunk of Stable Diffusion 1, 0.6 MB of XL


class PromptEncoder:
    """The text encoders of a plan, with a cache of encoded prompts. Threads may share it."""

    def __init__(self, plan: Plan, encoder: Callable[[str], Encoder]) -> None:
        """`encoder` returns a text encoder by its component's name."""
        self._plan, self._encoder = plan, encoder
        self._cache: LruCache[tuple[Floats, Floats | None]] = LruCache(_MAX_PROMPTS)

    def clear(self) -> None:
        """Drop the encoded prompts."""
        self._cache.clear()

    @property
    def kept_bytes(self) -> int:
        """The bytes of the encoded prompts in the cache."""
        return sum(array.nbytes for each in self._cache.values() for array in each if array is not None)

    def __call__(self, request: ResolvedRequest, loras: Sequence[Lora] = ()) -> dict[str, Floats]:
        """Run the text encoders on each different prompt that the cache lacks.

        Args:
            request: the request, with the tokens of N prompts.
            loras: the active LoRAs: they change the encoders' weights.

        Returns:
            `encoder_hidden_states` [N, chunks * T, W], and `text_embeds` [N, P] if the model uses pooled text; for a
            vision encoder the vector of each image as one token, and zeros without it. Nothing for an unconditional
            model.

        Raises:
            BackendError: a backend failed; NotFiniteError: an encoder returned numbers that are not finite.
        """
        if request.vision is not None:
            return {"encoder_hidden_states": self._vectors(request.vision, request.guided)}
        if not request.tokens:
            return {}
        weights = tuple((lora.digest, lora.weight) for lora in loras)
        skips, mask = clip_skips(request), has_text(request)
        # A missing negative prompt needs no run: zeros replace the states of the last prompt.
        rows = [i if mask[i] else len(mask) - 1 for i in range(len(mask))]
        # One by one: a backend that compiles for exact sizes then compiles for one size only.
        ready = [request.precomputed.row(i, len(request.seeds), guided=request.guided) for i in rows]
        encoded = [each or self._encoded(request, i, skips[i], weights) for i, each in zip(rows, ready, strict=True)]
        states, pooled = [each for each, _ in encoded], [each for _, each in encoded if each is not None]
        arrays = {"encoder_hidden_states": np.where(mask[:, None, None], np.stack(states), 0)}
        return arrays | ({"text_embeds": np.where(mask[:, None], np.stack(pooled), 0)} if pooled else {})

    def _vectors(self, images: Floats, guided: bool) -> Floats:
        """Return the vectors of the images, each different one encoded once.  # [B, 3, S, S] -> [N, 1, P]"""
        vectors = {image.tobytes(): np.empty(0, np.float32) for image in images}
        for image in images:
            if not vectors[key := image.tobytes()].size:
                vectors[key] = self._encoder("image_encoder")(pixel_values=image[None])["image_embeds"]
        seen = np.stack([vectors[image.tobytes()] for image in images])
        return np.concatenate([np.zeros_like(seen), seen]) if guided else seen

    def _encoded(
        self, request: ResolvedRequest, i: int, skip: int | None, weights: tuple[tuple[str, float], ...]
    ) -> tuple[Floats, Floats | None]:
        """Return the states [chunks * T, W] and the pooled state [P] of prompt i."""
        prompt = {name: (t.ids[i], t.weights[i : i + 1]) for name, t in request.tokens.items()}
        key = skip, weights, *((name, ids.tobytes(), each.tobytes()) for name, (ids, each) in prompt.items())
        if (cached := self._cache.get(key)) is not None:
            return cached
        outputs = {}
        for name, (ids, _) in prompt.items():  # [chunks, T] -> [1, chunks, ...]
            outputs[name] = {output: array[None] for output, array in self._encoder(name)(input_ids=ids).items()}
        uneven = {name: each for name, (_, each) in prompt.items() if (each != 1).any()}
        states, pooled = text_states(self._plan.prompting, outputs, uneven, skip)
        encoded = states[0].astype(np.float32), None if pooled is None else pooled[0].copy()
        self._cache.put(key, encoded)
        return encoded


def has_text(request: ResolvedRequest) -> Floats:
    """Return 0 for a missing negative prompt, which zeros replace, else 1.  # [N]"""
    negatives = request.negative_prompts if request.guided else ()
    prompted = len(request.prompts) * request.text_rows
    return np.array([*(text is not None for text in negatives), *[True] * prompted], dtype=np.float32)


def clip_skips(request: ResolvedRequest) -> tuple[int | None, ...]:
    """Return for each of N prompts the number of last layers to skip.

    Only the prompt skips layers, as in diffusers; in AUTOMATIC1111's web UI the negative prompt does so too.
    """
    prompted = len(request.prompts) * request.text_rows
    return *[None] * (len(request.prompts) if request.guided else 0), *[request.clip_skip] * prompted


class ArrayLibrary(NamedTuple):
    """What numpy and torch spell differently."""

    concatenate: Callable[[list[Any], int], Any]  # (arrays, axis)
    float64: Any


NUMPY = ArrayLibrary(np.concatenate, np.float64)


def text_states(
    prompting: Prompting,
    outputs: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Any],
    clip_skip: int | None,
    library: ArrayLibrary = NUMPY,
) -> tuple[Any, Any]:
    """Join the states of all text encoders, and select the pooled state.

    Args:
        prompting: the encoders and outputs that the model uses.
        outputs: the outputs of each encoder by name.  # [N, chunks, ...]
        weights: the weight of each token; an encoder that is absent has none other than 1.  # [N, chunks, T]
        clip_skip: the number of last layers to skip.
        library: the array library.

    Returns:
        The states [N, chunks * T, W], and the pooled state [N, P] or None.
    """
    states = [
        _weigh(outputs[name][skipping(output, clip_skip)], weights.get(name), library.float64)
        for name, output in prompting.states
    ]
    if prompting.pooled is None:
        return library.concatenate(states, -1), None
    name, output = prompting.pooled
    return library.concatenate(states, -1), outputs[name][output][:, 0]


def _weigh(states: Any, weights: Any, float64: Any) -> Any:
    """Scale each token's state by its weight and keep each prompt's mean; join the chunks.

    AUTOMATIC1111's web UI does the same, and so does diffusers' community pipeline lpw_stable_diffusion.
    # [N, chunks, T, W], [N, chunks, T] -> [N, chunks * T, W]
    """
    count, chunks, length, width = states.shape
    if weights is not None:
        weighted = states * weights[..., None]
        before, after = (x.mean((1, 2, 3), dtype=float64).reshape(-1, 1, 1, 1) for x in (states, weighted))
        states = weighted * (before / after)  # exactly the states of a prompt whose weights are all 1
    return states.reshape(count, chunks * length, width)
