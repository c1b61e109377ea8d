"""The arguments of a call that say what the image shows: prompts, in words or as embeddings, and SDXL's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .argument import argument


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
    clip_skip: int | None = argument(
        "Number of last text encoder layers to skip.",
        "1 or more; None skips none. As in diffusers, it applies to the prompt only, not to the negative prompt.",
        default=None,
        option=int,
        key="clip_skip",
        read=int,
    )
