"""How near two pictures are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def psnr(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB, of arrays of one shape with values in [0, 1]; infinite where they are equal."""
    mse = float(np.mean((got.astype(np.float64) - wanted) ** 2))
    return float("inf") if mse == 0 else -10 * float(np.log10(mse))
