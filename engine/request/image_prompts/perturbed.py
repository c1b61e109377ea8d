"""Perturbed attention guidance of a call (PAG: Ahn et al. 2024, arXiv 2403.17377), checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ...errors.validation import check_float
from ...plan.image_prompts.layers import SKIP
from ...plan.image_prompts.perturbed import skips_of
from ...plan.plan import Plan

SCALE, ADAPTIVE, LAYERS = "pag_scale", "pag_adaptive_scale", "pag_applied_layers"
_TIMESTEPS = 1000
_WITHOUT = ("region_prompts", "style_image", "callback_on_step_end")


@dataclass(frozen=True, kw_only=True)
class PerturbedGuidance:
    """The guidance away from an output without self-attention in some blocks.

    Attributes:
        scale: its strength.
        adaptive_scale: how much the strength falls with each timestep.
        layers: the blocks as the call names them.
        skips: the U-Net's inputs of these blocks.
    """

    scale: float
    adaptive_scale: float
    layers: tuple[str, ...]
    skips: tuple[str, ...]

    def scale_at(self, timestep: float) -> float:
        """Return the strength at a timestep."""
        return max(self.scale - self.adaptive_scale * (_TIMESTEPS - timestep), 0.0)


def perturbed_of(request: Any, plan: Plan) -> PerturbedGuidance | None:
    """Check perturbed attention guidance; None if it is off.

    Args:
        request: the request, whose fields are `PerturbedArguments` and those that do not go with these.
        plan: the model's plan.

    Raises:
        InputError: an argument is wrong, the U-Net was not opened for it, or another argument does not go with it.
    """
    scale, adaptive = check_float(SCALE, request.pag_scale, 100), check_float(ADAPTIVE, request.pag_adaptive_scale, 1)
    layers = _texts(request.pag_applied_layers)
    if scale == 0:
        return None
    inputs = skips_of(plan.components["unet"].inputs)
    if not inputs:
        raise InputError(
            f"{SCALE} needs a U-Net that was opened for it. Load a model with load(MODEL, pag=True); build a plan with "
            "calotype build --pag.",
            argument=SCALE,
            got=scale,
        )
    if plan.takes("edit", "video", "latents"):
        raise InputError(f"{SCALE} needs a text-to-image model. Omit it.", argument=SCALE, got=scale)
    others = [name for name in _WITHOUT if getattr(request, name) is not None]
    others += ["guidance_method"] if request.guidance_method != "cfg" else []
    if others:
        raise InputError(f"{SCALE} cannot be combined with {others[0]}.", argument=SCALE, got=scale)
    blocks = {_block(name): name for name in inputs}
    skips = {blocks[block]: None for layer in layers for block in _matching(layer, blocks)}
    return PerturbedGuidance(scale=scale, adaptive_scale=adaptive, layers=layers, skips=tuple(skips))


def _block(name: str) -> str:
    """Return the block of an input, as diffusers names it: mid_block, down_blocks.1, up_blocks.0."""
    kind, index = name.removeprefix(f"{SKIP}_").split("_")
    return "mid_block" if kind == "mid" else f"{kind}_blocks.{index}"


def _matching(layer: str, blocks: Mapping[str, str]) -> list[str]:
    """Return the blocks that a layer's text names. Raises `InputError` if it names none."""
    text = layer.replace(".block_", "_blocks.")  # diffusers' documentation has both spellings
    matching = [
        block for block in blocks if block == text or (text in ("down", "mid", "up") and block.startswith(text))
    ]
    if not matching:
        expected = f"mid, down, up, or one of {', '.join(blocks)}"
        message = f"{LAYERS} must be {expected}, whose self-attention is skipped; got {layer!r:.80}."
        raise InputError(message, argument=LAYERS, got=layer, expected=expected)
    return matching


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
        message = f"{LAYERS} must be a text or a list of texts, got {value!r:.80}."
        raise InputError(message, argument=LAYERS, got=value)
    return tuple(texts)
