"""Open a plan's folder with Optimum's ONNX Runtime pipelines, as it lies there, and paint what a job asks for.

    python paint.py PLAN JOB.json

Runs in Optimum's own environment (requirements.txt beside this file) and knows nothing of Calotype. The job: `noise`, a
.npy of standard normal numbers; `arguments` of the pipeline's call; `pictures`, each with the `scheduler` (null: the
folder's own), a `negative_prompt` (or null) and the .npy to write, float32 [N, H, W, 3] in [0, 1].
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
    for picture in job["pictures"]:
        made = getattr(diffusers, picture["scheduler"] or type(own).__name__)
        # The class's default of clip_sample was made for pixels; latents have no bounds to clip to.
        pipeline.scheduler = made.from_config(own.config, clip_sample=False) if picture["scheduler"] else own
        images = pipeline(
            **job["arguments"],
            negative_prompt=picture["negative_prompt"],
            latents=noise.clone(),  # the pipeline scales it by the scheduler's first sigma
            output_type="np",
        ).images
        np.save(picture["out"], images)


if __name__ == "__main__":
    main()
