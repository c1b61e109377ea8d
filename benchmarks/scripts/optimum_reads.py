"""Check that Optimum's ONNX Runtime pipelines open our plans unchanged and generate the same images.

    python -m calotype.benchmarks.scripts.optimum_reads

Makes Optimum's environment if it does not exist. Builds plans of the demonstration model and of a tiny Stable Diffusion
XL with random weights, generates images with them here, and runs `peers/optimum/generate.py` on the same folders and
noise, with `ORTStableDiffusionPipeline` and `ORTStableDiffusionXLPipeline`: two prompts at once, not square, with the
plan's own scheduler, with DDIM, and with a negative prompt. Exits with 1 if an image has less than `--least` dB. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import calotype
from calotype.export import BuildSpec, build
from calotype.export.quality.metrics import psnr
from calotype.export.sources.source import find
from calotype.sampling.noise import BatchNoise

from ..run import environments

PEER = Path(__file__).resolve().parent.parent / "peers" / "optimum"
PROMPTS = ("a large red circle on a blue background", "a small green square on a white background")
SEEDS, STEPS, GUIDANCE, HEIGHT, WIDTH = (7, 8), 4, 5.0, 128, 192
# scheduler (None: the plan's own) and negative prompt
CALLS = ((None, None), ("DDIMScheduler", None), ("DDIMScheduler", "a yellow triangle"))


@dataclass(frozen=True, kw_only=True)
class CallComparison:
    """One call with both programs. Numbers are in [0, 1]; None stands for an infinite PSNR."""

    plan: str
    scheduler: str
    negative: bool
    psnr_db: float | None
    largest_difference: float
    largest_levels: int  # of 8-bit pixels
    contrast: float  # standard deviation of our image; a flat one would match too easily


def make_tiny_xl(folder: Path) -> Path:
    """Write a Stable Diffusion XL in diffusers' layout: random U-Net and text encoder 2, the rest from the demo."""
    import diffusers
    import torch
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    demo = find("demo")
    if not folder.exists():
        torch.manual_seed(2)
        tokenizer = CLIPTokenizer.from_pretrained(demo / "tokenizer", pad_token="!")
        parts = {
            "tokenizer_2": tokenizer,
            "text_encoder_2": CLIPTextModelWithProjection(_text_config(tokenizer)),
            "unet": diffusers.UNet2DConditionModel(**_XL_UNET),
            "scheduler": diffusers.EulerDiscreteScheduler(**_XL_SCHEDULE),
        }
        for name in ("tokenizer", "text_encoder", "vae"):
            shutil.copytree(demo / name, folder / name)
        index = json.loads((demo / "model_index.json").read_text()) | {"_class_name": "StableDiffusionXLPipeline"}
        for name, part in parts.items():
            part.save_pretrained(folder / name)
            library = "transformers" if name.endswith("_2") else "diffusers"
            index[name] = [library, type(part).__name__]
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder


_XL_SCHEDULE = {
    **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    **{"steps_offset": 1, "timestep_spacing": "leading"},
}
_XL_UNET = {
    **{"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "use_linear_projection": True},
    **{"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")},
    **{"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
    **{"cross_attention_dim": 128 + 48, "attention_head_dim": [2, 4], "transformer_layers_per_block": [2, 1]},
    **{"addition_embed_type": "text_time", "addition_time_embed_dim": 8},
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
}


def _text_config(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        **{"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "hidden_act": "gelu"},
        **{"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        projection_dim=24,
    )


def generate_here(plan: Path) -> list[NDArray[np.float32]]:
    """Return our images, float32 [2, H, W, 3] each."""
    pipe = calotype.load(plan, backend="onnxruntime")
    arguments: dict[str, Any] = {
        **{"seed": SEEDS, "steps": STEPS, "guidance_scale": GUIDANCE, "height": HEIGHT, "width": WIDTH},
        "output_type": "np",
    }
    return [pipe(PROMPTS, scheduler=s, negative_prompt=n, **arguments).images for s, n in CALLS]


def generate_there(plan: Path, python: Path, work: Path) -> list[NDArray[np.float32]]:
    """Return Optimum's images for the same noise."""
    work.mkdir(exist_ok=True)
    np.save(work / "noise.npy", BatchNoise(SEEDS, (4, HEIGHT // 8, WIDTH // 8))())
    outs = [work / f"{i}.npy" for i in range(len(CALLS))]
    calls = [
        {"scheduler": s, "negative_prompt": n and [n] * len(PROMPTS), "out": str(out)}
        for (s, n), out in zip(CALLS, outs, strict=True)
    ]
    arguments = {
        **{"prompt": PROMPTS, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE},
        **{"height": HEIGHT, "width": WIDTH},
    }
    job = work / "job.json"
    job.write_text(json.dumps({"noise": str(work / "noise.npy"), "arguments": arguments, "calls": calls}))
    done = subprocess.run([python, PEER / "generate.py", plan, job], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Optimum cannot generate with {plan}:\n{done.stderr[-4000:]}")
    return [np.load(out) for out in outs]


def compare(name: str, plan: Path, python: Path, work: Path) -> list[CallComparison]:
    rows = []
    own = json.loads((plan / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    for (scheduler, negative), cores, there in zip(
        CALLS, generate_here(plan), generate_there(plan, python, work), strict=True
    ):
        levels = np.round(cores * 255) - np.round(there * 255)
        near = psnr(cores, there)
        rows.append(
            CallComparison(
                plan=name,
                scheduler=scheduler or f"{own} (its own)",
                negative=negative is not None,
                psnr_db=None if near == np.inf else near,
                largest_difference=float(np.abs(cores - there).max()),
                largest_levels=int(np.abs(levels).max()),
                contrast=float(cores.std()),
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep models, plans and images there; by default nothing is kept")
    parser.add_argument(
        "--least", dest="min_psnr", type=float, default=60.0, help="PSNR in dB that every image must reach"
    )
    options = parser.parse_args()
    python = environments.make("optimum")
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        rows: list[CallComparison] = []
        failed: list[str] = []
        for name, model in (("demo", "demo"), ("tiny-sdxl", str(make_tiny_xl(work / "model-tiny-sdxl")))):
            build(BuildSpec(model=model, output=work / name))
            try:
                rows += compare(name, work / name, python, work / f"{name}-images")
            except RuntimeError as error:  # the other plans still get their rows
                print(error, file=sys.stderr)
                failed.append(name)
    report(rows, failed)
    sys.exit(bool(failed) or not all(r.psnr_db is None or r.psnr_db >= options.min_psnr for r in rows))


def report(rows: list[CallComparison], failed: list[str]) -> None:
    print(f"{'plan':<10} {'scheduler':<40} {'negative':<9} {'PSNR':>9} {'largest':>9} {'8-bit':>6} {'contrast':>9}")
    for r in rows:
        near = "equal" if r.psnr_db is None else f"{r.psnr_db:.1f} dB"
        figures = f"{near:>9} {r.largest_difference:>9.1e} {r.largest_levels:>6} {r.contrast:>9.3f}"
        print(f"{r.plan:<10} {r.scheduler:<40} {'yes' if r.negative else 'no':<9} {figures}")
    summary = {"benchmark": "optimum_reads", "steps": STEPS, "failed": failed, "rows": [asdict(r) for r in rows]}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
