"""A folder in diffusers' layout to OpenVINO IR in the layout that GenAI reads, by OpenVINO's own tools (optimum-intel).

    python convert.py MODEL OUT fp32|int8

`int8` has NNCF compress the weights to 8 bits, and leaves the activations alone. A process of its own, so that its
memory is not counted as the peer's.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    from optimum.commands.optimum_cli import main as optimum_cli

    model, out, form = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        staged = stage(model, Path(folder) / "model")
        asked = f"export openvino --task text-to-image --library diffusers --weight-format {form}".split()
        sys.argv = ["optimum-cli", *asked, "--model", str(staged), str(out)]
        optimum_cli()
    _plain_scheduler(out / "scheduler" / "scheduler_config.json")


def stage(model: Path, folder: Path) -> Path:
    """The model, by links, in the words that these versions of the tools understand."""
    for path in model.rglob("*"):
        if path.is_file():
            place = folder / path.relative_to(model)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
    for weights in folder.glob("text_encoder*/*.safetensors"):
        _with_prefix(weights)
    return folder


def _with_prefix(weights: Path) -> None:
    """transformers 5.6 leaves `text_model.` out of names; before, it takes such weights for missing, in silence."""
    from safetensors.torch import load_file, save_file

    held = load_file(weights)
    if not any(name.startswith("text_model.") for name in held):
        bare = ("text_projection.weight",)
        weights.unlink()
        save_file({n if n in bare else f"text_model.{n}": t for n, t in held.items()}, weights, {"format": "pt"})


def _plain_scheduler(path: Path) -> None:
    """GenAI's reader of JSON knows no infinity, and it refuses classes that it lacks; a job brings its own anyway."""
    config: dict[str, Any] = json.loads(path.read_text())
    kept = {k: v for k, v in config.items() if not (isinstance(v, float) and not math.isfinite(v))}
    path.write_text(json.dumps({**kept, "_class_name": "EulerDiscreteScheduler"}))


if __name__ == "__main__":
    main()
