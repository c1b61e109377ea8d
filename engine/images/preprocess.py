"""Control images from pictures: the edges that a canny ControlNet is steered by.

Depth, pose and segmentation maps come from networks of their own, and are given as the pictures that those make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BackendError, InputError
from ..errors.validation import check_float
from .arrays import load_image_array

if TYPE_CHECKING:
    from PIL import Image

# The largest gradient that a picture of bytes can have: Sobel's kernels weigh four steps of 255 each way.
MOST = 2 * 4 * 255


def canny(image: Any, low: float = 100, high: float = 200) -> Image.Image:
    """The edges of a picture, white on black, as OpenCV finds them (Canny 1986): a `control_image`.

    Args:
        image: a PIL image, or an array [H, W, 3] or [H, W] of bytes or of floats from 0 to 1.
        low: gradients below are no edge, 0 to 2040: |dx| + |dy| by Sobel's 3 x 3 kernels, of the channel that has most.
        high: gradients above are one; what lies between is an edge where it touches one.

    Returns:
        A picture of the same size in RGB, of 0 and 255 alone.

    Raises:
        InputError: an argument is wrong.
        BackendError: OpenCV is not installed.
    """
    pixels = load_image_array("image", image)  # [H, W, 3]
    low, high = check_float("low", low, MOST), check_float("high", high, MOST)
    if low > high:
        raise InputError(f"low {low:g} must not be above high {high:g}.")
    cv2 = _opencv()
    from PIL import Image

    whole = pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)
    edges = cv2.Canny(np.ascontiguousarray(whole), low, high)  # [H, W]
    return Image.fromarray(edges).convert("RGB")


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise BackendError(
            "edges are found by OpenCV, which is not installed (pip install 'calotype[control]'); or give a picture of "
            "edges as control_image."
        ) from None
    return cv2
