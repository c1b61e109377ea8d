"""Input images and masks as AUTOMATIC1111 prepares them: resize modes, masks, and what fills a masked area."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from ....errors import InputError
from ....images.mask_crop import scaled_into, scaled_over
from ....images.png import GeneratedImage, image_from_pixels
from ..service import Service

Size = tuple[int, int]  # width, height
CROP, FILL = 1, 2  # resize modes; 0 stretches, and 3 enlarges latents
_MIDDLE = 128
_COARSEST, _FINEST = 32, 1


def resized(image: Image.Image, size: Size, mode: int) -> Image.Image:
    """Return an image or a mask at the size of the output.

    Args:
        image: The image.
        size: Width and height.
        mode: 0 stretches it, `CROP` cuts what is too much, `FILL` repeats the edges where something is missing.
    """
    if mode not in (CROP, FILL):
        return image.resize(size, Image.Resampling.LANCZOS)
    scaled = (scaled_over if mode == CROP else scaled_into)(image, *size)
    return scaled.convert(image.mode)


def mask_from(image: Image.Image, *, invert: bool, blur: float) -> Image.Image:
    """Return a mask that is white where the model repaints.

    Args:
        image: The client's mask: white where it repaints, or transparent where it does not.
        invert: Repaint what the client's mask keeps.
        blur: The radius of the Gaussian blur of its edge, in pixels.
    """
    gray = image.convert("L")
    if image.mode in ("RGBA", "LA", "PA"):
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):
            gray = alpha
    mask = gray.point([255 * (value >= _MIDDLE) for value in range(256)])
    mask = ImageOps.invert(mask) if invert else mask
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur > 0 else mask


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Return an image whose masked area has the colors around it, the smoother the farther they are."""
    hole = mask.resize(image.size) if mask.size != image.size else mask
    known = image.convert("RGB").copy()
    known.putalpha(ImageOps.invert(hole))
    premultiplied = known.convert("RGBa")
    result = Image.new("RGBA", image.size)
    cell = _COARSEST
    while cell >= _FINEST:
        small = premultiplied.resize((max(1, image.width // cell), max(1, image.height // cell)), Image.Resampling.BOX)
        layer = small.resize(image.size, Image.Resampling.BILINEAR).convert("RGBA")
        result.alpha_composite(layer)
        cell //= 2
    mean = premultiplied.resize((1, 1), Image.Resampling.BOX).convert("RGBA").convert("RGB").resize(image.size)
    mean.paste(result.convert("RGB"), mask=result.getchannel("A"))
    return mean


def keep_unmasked(generated: GeneratedImage, image: Image.Image, mask: Image.Image) -> GeneratedImage:
    """Return an image with the pixels of the input image where the mask is black; a gray edge mixes both."""
    mixed = Image.composite(generated, image.convert("RGB"), mask)
    return image_from_pixels(np.asarray(mixed), {str(name): str(text) for name, text in generated.info.items()})


def check_size(service: Service, size: Size) -> None:
    """Raise `InputError` for a size beyond the limits of the service, before an image of that size is created."""
    limit = service.settings.max_side
    if not all(1 <= side <= limit for side in size):
        expected = f"sides of 1 to {limit} pixels"
        message = f"the image would have {size[0]} x {size[1]} pixels; expected {expected}."
        raise InputError(message, argument="size", expected=expected)
