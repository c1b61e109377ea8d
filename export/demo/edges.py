"""Compare the edges of two images: precision, recall and F1 at a tolerance in pixels.

The score is that of segmentation boundaries (Martin et al. 2004) without their one-to-one matching: an edge matches
if the other image has an edge within the tolerance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Edges = NDArray[np.bool_]  # [H, W]


def edges_of(image: Any) -> Edges:
    """Return the edges of an image, with the thresholds of `demo-canny`'s training.  # [H, W, 3] -> [H, W]"""
    from calotype.images.preprocess import canny

    return np.asarray(canny(image))[..., 0] > 0


def near(edges: Edges, tolerance_px: float) -> Edges:
    """Return the pixels within the tolerance of an edge."""
    if not edges.any():
        return np.zeros_like(edges)
    close: Edges = ndimage.distance_transform_edt(~edges) <= tolerance_px
    return close


def f1(got: Edges, expected: Edges, tolerance_px: float = 2.0) -> float:
    """Return the F1 score, 0 to 1: the harmonic mean of precision and recall of `got` against `expected`."""
    if not got.any() or not expected.any():
        return float(got.any() == expected.any())
    precision = float(near(expected, tolerance_px)[got].mean())
    recall = float(near(got, tolerance_px)[expected].mean())
    return 2 * precision * recall / max(precision + recall, 1e-12)
