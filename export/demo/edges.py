"""How well the edges of one picture lie on those of another: precision, recall and F1 at a tolerance in pixels.

As boundaries are scored in segmentation (Martin et al. 2004), without their one-to-one matching: an edge counts as
found where the other picture has one within the tolerance. Knows nothing of models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Edges = NDArray[np.bool_]  # [H, W]


def edges_of(picture: Any) -> Edges:
    """Where the picture has an edge, by the thresholds that `demo-canny` was trained with.  # [H, W, 3] -> [H, W]"""
    from calotype.images.preprocess import canny

    return np.asarray(canny(picture))[..., 0] > 0


def near(edges: Edges, tolerance_px: float) -> Edges:
    """All that lies within the tolerance of an edge."""
    if not edges.any():
        return np.zeros_like(edges)
    found: Edges = ndimage.distance_transform_edt(~edges) <= tolerance_px
    return found


def f1(got: Edges, wanted: Edges, tolerance_px: float = 2.0) -> float:
    """The harmonic mean of the share of `got` that lies on `wanted`, and of `wanted` that lies on `got`; 0 to 1."""
    if not got.any() or not wanted.any():
        return float(got.any() == wanted.any())
    precision = float(near(wanted, tolerance_px)[got].mean())
    recall = float(near(got, tolerance_px)[wanted].mean())
    return 2 * precision * recall / max(precision + recall, 1e-12)
