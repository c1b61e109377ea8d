"""Depth maps of images by transformers' DPT (Ranftl et al. 2021, arXiv 2103.13413), in float32 on the CPU.

Imports torch and transformers when it runs. Does not know plans or requests.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, SourceError, first_line

PROCESSOR = "feature_extractor"  # the folder of the preprocessor's config, next to the estimator's


def estimate_depth(folder: Path, images: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """Return the depth map of each image; brighter is nearer.  # float32 [N, 3, H, W] in [0, 1] -> N x [h, w]

    Raises:
        BackendError: torch or transformers is not installed.
        SourceError: the estimator cannot be read.
    """
    model, processor = _load(folder)
    import torch

    pixels = [np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8) for image in images]
    values = processor(images=pixels, return_tensors="pt", input_data_format="channels_last").pixel_values
    with torch.inference_mode():
        return [np.asarray(model(value[None]).predicted_depth[0], dtype=np.float64) for value in values]


@lru_cache(maxsize=1)
def _load(folder: Path) -> tuple[Any, Any]:
    try:
        import torch
        from transformers import DPTForDepthEstimation, DPTImageProcessorPil
        from transformers.utils import logging
    except ImportError:
        raise BackendError(
            "the depth estimator needs torch and transformers, which are not installed: pip install 'calotype[build]'. "
            "Or pass depth_map=."
        ) from None
    logging.disable_progress_bar()
    local = {"local_files_only": True}
    try:
        model = DPTForDepthEstimation.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **local)
        processor = DPTImageProcessorPil.from_pretrained(folder.parent / PROCESSOR, **local)
    except Exception as broken:  # transformers raises its own types
        raise SourceError(f"cannot load the depth estimator in {folder}: {first_line(broken)}", path=folder) from None
    return model.eval(), processor
