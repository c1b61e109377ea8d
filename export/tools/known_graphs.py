"""Trace models, and keep their graphs without weights in `export/onnx/graphs`, which comes with Calotype.

    make graphs MODELS="demo demo+demo-canny sd15 sd15+controlnet"

`sd15` and the other names of `calotype.export.sources.configs.MODELS` are made with random weights: a graph depends on
the config alone. MODEL+CONTROLNET adds a ControlNet. A network takes minutes and 4 bytes of memory for each weight.
Remove the folder and run it for all models after `TRACER` is increased.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from calotype.benchmarks.suite.models import controlnet_folder, model_folder
from calotype.export.builder.prepare import prepare, source_with
from calotype.export.onnx import known_graphs
from calotype.export.onnx.trace_step import known_key, template_step
from calotype.export.sources.configs import MODELS
from calotype.plan.family import family_of

GRAPHS = Path(__file__).parents[1] / "onnx" / "graphs"


def main(models: list[str]) -> None:
    """Trace the models, and print each graph with its size."""
    known_graphs.FOLDER = Path(tempfile.gettempdir()) / "no graphs"  # trace even what is known
    for model in models:
        name, _, controlnet = model.partition("+")
        folder = str(model_folder(name)) if name in MODELS else name
        nets = [str(controlnet_folder(name)) if controlnet == "controlnet" else controlnet] if controlnet else []
        prepare(folder, controlnets=nets)
        source = source_with(
            folder, controlnets=nets, vae=None, unet=None, ip_adapters=(), image_encoder=None, t2i_adapters=(),
            motion_adapter=None, words=(), offline=True,
        )  # fmt: skip
        for component in family_of(source.configs).components.values():
            stored = template_step(component, source.model).stored()
            if stored is None:
                print(f"{model} {component.name}: its graph depends on its weights")
                continue
            path = GRAPHS / known_graphs.archive_of(known_key(component)).name
            known_graphs.pack(stored.folder, path)
            print(f"{model} {component.name}: {path.name}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
