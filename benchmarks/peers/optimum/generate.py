"""Open a plan's folder unchanged with Optimum's ONNX Runtime pipelines, and generate the images of a job.

    python generate.py PLAN JOB.json

Runs in Optimum's own environment (requirements.txt in this folder) and does not know Calotype. The job contains
`noise`, a .npy of standard normal numbers; `arguments` of the pipeline's call; and `calls`, each with a `scheduler`
(null: the folder's own), a `negative_prompt` (or null) and the .npy to write, float32 [N, H, W, 3] in [0, 1].
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from optimum import onnxruntime


def open_plan(folder: Path) -> Any:
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    pipeline = getattr(onnxruntime, f"ORT{kind}").from_pretrained(folder, provider="CPUExecutionProvider")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("job", type=Path)
    options = parser.parse_args()
    job = json.loads(options.job.read_text())
    noise = torch.from_numpy(np.load(job["noise"]))
    pipeline = open_plan(options.plan)
    own = pipeline.scheduler
    for call in job["calls"]:
        scheduler = getattr(diffusers, call["scheduler"] or type(own).__name__)
        # The class's default of clip_sample is for pixels; latents have no bounds.
        pipeline.scheduler = scheduler.from_config(own.config, clip_sample=False) if call["scheduler"] else own
        images = pipeline(
            **job["arguments"],
            negative_prompt=call["negative_prompt"],
            latents=noise.clone(),  # the pipeline scales it by the scheduler's first sigma
            output_type="np",
        ).images
        np.save(call["out"], images)


if __name__ == "__main__":
    main()
