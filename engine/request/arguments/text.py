"""The arguments of a call that say what the image shows: prompts, in words or as embeddings, and SDXL's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .argument import ArrayLike, argument, numbers_from


@dataclass(frozen=True, kw_only=True)
class TextArguments:
    """Prompts. Each field has its text."""

    prompt: str | Sequence[str] | None = argument(
        "Text that describes the image.",
        "One prompt, or a list. The empty prompt is allowed. `(words:1.3)` weighs the words 1.3 times; a weight is "
        "from 0 to 10. A long prompt goes through the text encoder in chunks of its length (75 tokens). At most "
        "100,000 characters. An unconditional model takes none.",
        default=None,
        key="prompt",
        required=True,
    )
    negative_prompt: str | Sequence[str] | None = argument(
        "Text that describes what to avoid.",
        "One for all prompts or one for each; needs guidance_scale > 1.",
        default=None,
        option=str,
        key="negative_prompt",
    )
    prompt_2: str | Sequence[str] | None = argument(
        "Text for the second text encoder of SDXL.",
        "One for all prompts or one for each. Without it, or if it is empty, both encoders get `prompt`.",
        default=None,
        option=str,
        shown_default="that of PROMPT",
        key="prompt_2",
    )
    negative_prompt_2: str | Sequence[str] | None = argument(
        "Text to avoid, for the second text encoder of SDXL.",
        "As `prompt_2`; without it, both encoders get `negative_prompt`.",
        default=None,
        option=str,
        shown_default="that of --negative-prompt",
        key="negative_prompt_2",
    )
    prompt_embeds: ArrayLike = argument(
        "The text encoders' states, in place of `prompt`.",
        "Numbers [N, tokens, width], as an array or a torch tensor, one for each prompt. SDXL also takes "
        "`pooled_prompt_embeds`.",
        default=None,
    )
    negative_prompt_embeds: ArrayLike = argument(
        "The text encoders' states, in place of `negative_prompt`.",
        "As `prompt_embeds`, and of the same shape: one for all prompts or one for each.",
        default=None,
    )
    pooled_prompt_embeds: ArrayLike = argument(
        "The pooled state [N, width] that belongs to `prompt_embeds`, of SDXL.", default=None
    )
    negative_pooled_prompt_embeds: ArrayLike = argument(
        "The pooled state [N, width] that belongs to `negative_prompt_embeds`, of SDXL.", default=None
    )
    clip_skip: int | None = argument(
        "Number of last text encoder layers to skip.",
        "1 or more; None skips none. As in diffusers, it applies to the prompt only, not to the negative prompt.",
        default=None,
        option=int,
        key="clip_skip",
        read=int,
    )
    original_size: Sequence[int] | None = argument(
        "Height and width of the photo that SDXL imagines, before it was scaled.",
        "SDXL's micro-conditioning (arXiv 2307.01952). A small size gives a blurred image.",
        default=None,
        option=tuple[int, int],
        shown_default="the output size",
        key="original_size",
        read=numbers_from,
    )
    target_size: Sequence[int] | None = argument(
        "Height and width to which SDXL imagines the photo scaled.",
        default=None,
        option=tuple[int, int],
        shown_default="the output size",
        key="target_size",
        read=numbers_from,
    )
    crops_coords_top_left: Sequence[int] = argument(
        "Top and left edge, in pixels, at which SDXL imagines the photo cropped.",
        default=(0, 0),
        option=tuple[int, int],
        key="crops_coords_top_left",
        read=numbers_from,
    )
    negative_original_size: Sequence[int] | None = argument(
        "As original_size, for the negative prompt.",
        default=None,
        option=tuple[int, int],
        shown_default="that of the prompt",
        key="negative_original_size",
        read=numbers_from,
    )
    negative_target_size: Sequence[int] | None = argument(
        "As target_size, for the negative prompt.",
        default=None,
        option=tuple[int, int],
        shown_default="that of the prompt",
        key="negative_target_size",
        read=numbers_from,
    )
    negative_crops_coords_top_left: Sequence[int] | None = argument(
        "As crops_coords_top_left, for the negative prompt.",
        "As in diffusers, the default is (0, 0) if there is a negative size.",
        default=None,
        option=tuple[int, int],
        shown_default="that of the prompt",
        key="negative_crops_coords_top_left",
        read=numbers_from,
    )
    aesthetic_score: float = argument(
        "The score of the image that the SDXL refiner aims at, 0 to 10.",
        default=6.0,
        option=float,
        key="aesthetic_score",
        read=float,
    )
    negative_aesthetic_score: float = argument(
        "The score of the image that the SDXL refiner avoids, 0 to 10.",
        default=2.5,
        option=float,
        key="negative_aesthetic_score",
        read=float,
    )
