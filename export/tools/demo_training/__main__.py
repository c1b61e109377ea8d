"""`PYTHONPATH=export/tools python -m demo_training COMMAND`: train the demonstration's networks, and measure them.

Trainings have a fixed seed and resume from their last checkpoint. Measurements print JSON as their last line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from safetensors.torch import save_file

import calotype
from calotype.export.sources.source import find
from calotype.images.clip import Clip
from calotype.system import threads

from . import evaluate
from .train_clip import save_clip, train_clip
from .train_control import train_control
from .train_lora import train_lora
from .train_model import train_model
from .trainer import TrainingConfig

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train and measure the demonstration model.")

Sheet = Annotated[Path | None, typer.Option(help="Also write a .png of examples.")]
Count = Annotated[int, typer.Option(help="Held-out scenes or captions.")]
OUTPUTS = {
    "model": Path("engine/demo_model"),
    "control": Path("engine/demo_canny"),
    "clip": Path("engine/demo_clip"),
    "lora": Path("engine/demo_model/outline.safetensors"),
}


@app.command()
def train(
    what: Annotated[Literal["model", "control", "clip", "lora"], typer.Argument(help="The network.")],
    folder: Annotated[
        Path | None, typer.Option(help="Checkpoints, log, sample sheets.  [default: .train/WHAT]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The trained network.  [default: the one that ships]")] = None,
    model: Annotated[str, typer.Option(help="What the others are trained for: a model in diffusers' layout.")] = "demo",
    seed: int = 0,
) -> None:
    """Train a network from scratch, or resume its training."""
    torch.set_num_threads(threads.available())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = TrainingConfig(folder=folder or Path(".train", what), seed=seed, device=device)
    out = out or OUTPUTS[what]
    if what == "model":
        train_model(config, out)
    elif what == "control":
        train_control(config, find(model)).cpu().half().save_pretrained(out, safe_serialization=True)
    elif what == "clip":
        save_clip(train_clip(config, find(model)), find(model) / "tokenizer", out)
    else:
        save_file(train_lora(config, find(model)), out)
    print(f"wrote {out}")


@app.command("captions")
def measure_captions(
    model: str = "demo",
    backend: str = "auto",
    count: Count = 200,
    steps: int = 20,
    guidance_scale: float = 5.0,
    sheet: Sheet = None,
) -> None:
    """Measure how often the model follows a held-out caption."""
    pipe = calotype.load(model, backend=backend)
    settings: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale}
    report: dict[str, Any] = {"model": pipe.plan.model_id, **settings}
    for name, things in (("one_thing", 1), ("two_things", 2)):
        result = evaluate.score(pipe, evaluate.held_out_captions(things, count), **settings)
        print(f"{name}: {result.right} of {result.total} right; wrong: {dict(result.wrong)}")
        report[name] = result.share
    if sheet:
        captions = [c for things in (2, 1) for c in evaluate.held_out_captions(things, 4, seed=100)]
        evaluate.sheet([*zip(captions, pipe(captions, seed=0, **settings).images, strict=True)], columns=4).save(sheet)
    print(json.dumps(report))


@app.command("edges")
def measure_edges(
    controlnet: str = "demo-canny",
    backend: str = "auto",
    count: Count = 60,
    steps: int = 20,
    scale: float = 1.0,
    sheet: Sheet = None,
) -> None:
    """Measure how well the ControlNet steers."""
    pipe = calotype.load("demo", controlnet=controlnet, backend=backend)
    arguments: dict[str, Any] = {"steps": steps, "controlnet_conditioning_scale": scale}
    report = {"scenes": count, **arguments, **evaluate.steer(pipe, evaluate.held_out_scenes(count), **arguments).report}
    if sheet:
        evaluate.steer(pipe, evaluate.held_out_scenes(6, skip=1000), **arguments).page().save(sheet)
    print(json.dumps(report))


@app.command("clip")
def measure_clip(model: Path | None = None, count: Count = 300) -> None:
    """Measure how well `calotype.clip_score` separates scenes."""
    print(json.dumps(evaluate.measure_clip(Clip(model), evaluate.held_out_scenes(count))))


if __name__ == "__main__":
    app()
