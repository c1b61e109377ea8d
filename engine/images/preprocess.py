"""Control images: edges for a canny ControlNet.

Depth, pose and segmentation maps come from other networks. Pass the images of those networks as `control_image`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BackendError, InputError
from ..errors.validation import check_float
from .arrays import load_image_array, to_bytes

if TYPE_CHECKING:
    from PIL import Image

# The largest gradient of an image of bytes: Sobel's kernels have weights of 4 in each direction, for steps of 255.
_MAX_GRADIENT = 2 * 4 * 255


def canny(image: Any, low: float = 100, high: float = 200) -> Image.Image:
    """Detect the edges of an image with OpenCV, white on black (Canny 1986), for use as a `control_image`.

    Args:
        image: A file, a PIL image, an array [H, W, 3] or [H, W], or a tensor [3, H, W], of bytes or floats from 0 to 1.
        low: Gradients below are not an edge, 0 to 2040: |dx| + |dy| by Sobel's 3 x 3 kernels, the channels' maximum.
        high: Gradients above are an edge. Gradients between `low` and `high` are an edge if they touch one.

    Returns:
        An RGB image of the same size, with the values 0 and 255.

    Raises:
        InputError: An argument is invalid.
        BackendError: OpenCV is not installed.
    """
    pixels = load_image_array("image", image)  # [H, W, 3]
    low, high = check_float("low", low, _MAX_GRADIENT), check_float("high", high, _MAX_GRADIENT)
    if low > high:
        message = f"Invalid thresholds: got low {low:g} above high {high:g}; expected low <= high."
        raise InputError(message, argument="low", got=low, expected=f"at most {high:g}")
    try:
        import cv2
    except ImportError:
        raise BackendError(
            "Edges need OpenCV, which is not installed: pip install 'calotype[control]'. Or pass an image of edges as "
            "control_image."
        ) from None
    from PIL import Image

    edges: Any = cv2.Canny(np.ascontiguousarray(to_bytes(pixels)), low, high)  # [H, W]
    return Image.fromarray(edges).convert("RGB")
