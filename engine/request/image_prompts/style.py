"""The style that all images of a call share (Style Aligned: Hertz et al. 2023, arXiv 2312.02133), checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ...errors.validation import check_bool
from ...images.arrays import Pixels, as_list, load_image_array
from ...plan.image_prompts.style import takes_style
from ...plan.plan import Plan
from ...text.tokenizer import Tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Style:
    """The reference of a call: `image` with its text, or the call's first image if it is None.

    `tokens` are those of `prompt`, after those of the negative prompt under guidance.  # [1 or 2, chunks, T]
    """

    image: Pixels | None  # [H, W, 3]
    prompt: str = ""
    tokens: Mapping[str, Tokens]


def style_of(plan: Plan, *, aligned: Any, image: Any, prompt: Any, count: int, has_states: bool) -> Style | None:
    """Return the style that `count` images of a call share, without tokens; None if they share none.

    Args:
        plan: the model's plan.
        aligned: `style_aligned`.
        image: `style_image`.
        prompt: `style_prompt`.
        count: the number of images.
        has_states: whether the caller gives the states of the text encoders.

    Raises:
        InputError: an argument is wrong, or the model cannot align styles.
    """
    if not check_bool("style_aligned", aligned):
        for name, value in {"style_image": image, "style_prompt": prompt}.items():
            if value is not None:
                raise InputError(f"{name} needs style_aligned=True.", argument=name)
        return None
    if not takes_style(plan.components["unet"].inputs):
        raise InputError(
            "style_aligned needs a U-Net that was opened for it. Load a model with load(MODEL, style_aligned=True); "
            "build a plan with calotype build --style-aligned.",
            argument="style_aligned",
        )
    if prompt is not None and not isinstance(prompt, str):
        raise InputError(f"style_prompt must be text, got {prompt!r:.80}.", argument="style_prompt", got=prompt)
    if prompt is not None and image is None:
        raise InputError("style_prompt describes style_image. Pass the image too.", argument="style_prompt")
    pixels = None if image is None else _image(plan, image, has_states)
    most = plan.profile.batch.max - (image is not None)
    if count > most or (count < 2 and image is None):
        fewest = 1 if image is not None else 2
        remedy = "" if count > most else " Pass several prompts, num_images, or style_image."
        raise InputError(
            f"style_aligned takes {fewest} to {most} images in one batch, got {count}.{remedy}",
            argument="style_aligned",
            got=count,
            expected=f"{fewest} to {most} images",
        )
    return Style(image=pixels, prompt=prompt or "", tokens={})


def _image(plan: Plan, image: Any, has_states: bool) -> Pixels:
    images = as_list(image)
    if len(images) != 1:
        message = f"style_image must be one image, got {len(images)}."
        raise InputError(message, argument="style_image", got=len(images), expected="one image")
    if has_states:
        message = "style_image needs prompts as text, got prompt_embeds. Pass prompt."
        raise InputError(message, argument="style_image")
    if plan.image_input is not None and not plan.inpaints:
        raise InputError(
            "style_image needs a model of text to image, or of inpainting; this one takes another image as its input. "
            "Omit style_image: the first image of the call is the reference.",
            argument="style_image",
        )
    return load_image_array("style_image", images[0])
