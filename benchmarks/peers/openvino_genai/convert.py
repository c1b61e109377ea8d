"""Convert a folder in diffusers' layout to the OpenVINO IR that GenAI reads, with OpenVINO's own tools (optimum-intel).

    python convert.py MODEL OUT fp32|int8

`int8` lets NNCF compress the weights to 8 bits, and does not change the activations. This is a separate process, so
that its memory does not count as the peer's.
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
        command = f"export openvino --task text-to-image --library diffusers --weight-format {form}".split()
        sys.argv = ["optimum-cli", *command, "--model", str(staged), str(out)]
        optimum_cli()
    _plain_scheduler(out / "scheduler" / "scheduler_config.json")


def stage(model: Path, folder: Path) -> Path:
    """Link the files of the model in a layout that these versions of the tools understand."""
    for path in model.rglob("*"):
        if path.is_file():
            place = folder / path.relative_to(model)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
    for weights in folder.glob("text_encoder*/*.safetensors"):
        _with_prefix(weights)
    return folder


def _with_prefix(weights: Path) -> None:
    """Add `text_model.` to names: transformers 5.6 omits it, and older versions then ignore the weights silently."""
    from safetensors.torch import load_file, save_file

    held = load_file(weights)
    if not any(name.startswith("text_model.") for name in held):
        bare = ("text_projection.weight",)
        weights.unlink()
        save_file({n if n in bare else f"text_model.{n}": t for n, t in held.items()}, weights, {"format": "pt"})


def _plain_scheduler(path: Path) -> None:
    """Rewrite the config: GenAI's JSON reader rejects infinity and unknown classes. A job brings its own scheduler."""
    config: dict[str, Any] = json.loads(path.read_text())
    kept = {k: v for k, v in config.items() if not (isinstance(v, float) and not math.isfinite(v))}
    path.write_text(json.dumps({**kept, "_class_name": "EulerDiscreteScheduler"}))


if __name__ == "__main__":
    main()
