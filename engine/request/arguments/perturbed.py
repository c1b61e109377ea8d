"""The arguments of perturbed attention guidance (PAG)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from .argument import argument


@dataclass(frozen=True, kw_only=True)
class PerturbedArguments:
    """Guidance away from an image without self-attention. Each field has its text."""

    pag_scale: float = argument(
        "Strength of perturbed attention guidance: away from the output whose self-attention is skipped; 0 is off.",
        "0 to 100 (Ahn et al. 2024, arXiv 2403.17377); 3 is usual. Load the model with `pag=True`. The U-Net has one "
        "more row for each image. It also works with guidance_scale=1.",
        default=0.0,
        option=float,
        key="pag_scale",
        read=float,
    )
    pag_adaptive_scale: float = argument(
        "How much pag_scale falls with each of the 1000 timesteps, from the noisiest on; not below 0.",
        "0 to 1; at timestep t the scale is pag_scale - pag_adaptive_scale * (1000 - t), as in diffusers.",
        default=0.0,
        option=float,
        key="pag_adaptive_scale",
        read=float,
    )
    pag_applied_layers: str | Sequence[str] = argument(
        "The blocks of the U-Net whose self-attention is skipped: mid, down, up, or for example up_blocks.1.",
        "One, or a list. In diffusers it is an argument of the pipeline, and also names single layers.",
        default="mid",
        option=list[str],
        key="pag_applied_layers",
        read=json.loads,
    )
