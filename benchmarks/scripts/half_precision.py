"""What bf16 and fp16 cost in fidelity, as a table for the documentation. It needs no hardware with half precision.

    python -m calotype.benchmarks.scripts.half_precision [--images 100] [--steps 20]
    python -m calotype.benchmarks.scripts.half_precision --backend openvino --precision bf16

With `--backend`, a backend computes on this machine's hardware, next to itself in float32. Without it PyTorch computes
the demonstration model in float32 on the CPU, and rounds the weights, the inputs and the result of each operator to the
lower precision. So do units that multiply in half precision and add in float32. Fused kernels round less often.
Timesteps stay in float32, and the autoencoder is scaled in fp16, as in the backend `cuda`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import calotype
from calotype.backends import choose
from calotype.backends.base import Array, Arrays, Runner
from calotype.backends.components import Components
from calotype.backends.torch.modules import load_module
from calotype.cuda.vae_scale import scale_residuals
from calotype.export.quality.metrics import figures
from calotype.export.quality.prompts import prompts_for
from calotype.pipeline import Pipeline
from calotype.plan.plan import Artifact, PlannedComponent

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WIDE = ("timestep", "time_ids")
HEADS = ("precision", "mean PSNR, dB", "worst PSNR, dB", "judge", "judge in float32")


class _Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds every float result to a type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map(self._rounded, func(*args, **(kwargs or {})))

    def _rounded(self, value: Any) -> Any:
        return value.to(self._dtype).float() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


class RoundingRunner(Runner):
    """A component in PyTorch on the CPU, whose numbers are rounded to the artifact's precision."""

    def __init__(self, component: PlannedComponent, artifact: Artifact, *, backend: str = "eager") -> None:
        """`backend` is the name in reports."""
        self.backend, self.precision = backend, artifact.precision
        self._dtype = TYPES[artifact.precision]
        self._module = load_module(component.name, artifact.path)
        if artifact.precision == "fp16" and component.name.startswith("vae"):
            scale_residuals(self._module)
        for parameter in self._module.parameters():
            parameter.data = parameter.data.to(self._dtype).float()
        self._names = [binding.name for binding in component.outputs]

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Return all outputs by name."""
        with torch.no_grad():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
            if self._dtype == torch.float32:
                outputs = self._module(**tensors)
            else:
                with _Rounding(self._dtype):
                    outputs = self._module(**{n: t + 0 if _rounds(n, t) else t for n, t in tensors.items()})
        return {name: out.numpy() for name, out in zip(self._names, outputs, strict=True)}


def _rounds(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and name not in _WIDE


class _Opened(Components):
    """Components of one precision."""

    def __init__(self, pipe: Pipeline, precision: str) -> None:
        super().__init__(pipe.plan, choose("fake"))
        self._precision, self._plan = precision, pipe.plan

    def __call__(self, name: str) -> Any:
        """Return a component, opened at its first use."""
        if name not in self._opened:
            component = self._plan.components[name]
            artifact = Artifact(
                form="diffusers", path=component.artifacts[-1].path, precision=self._precision, check={}
            )
            opened = super().__call__(name)
            opened.runner = RoundingRunner(component, artifact)
        return self._opened[name]


def _rounded(precision: str) -> Pipeline:
    pipe = calotype.load("demo", backend="eager")
    return Pipeline(pipe.plan, _Opened(pipe, precision), opens=False)


def measure(
    precisions: Sequence[str], *, images: int, steps: int, size: int = 128, backend: str | None = None
) -> list[Mapping[str, Any]]:
    """Generate the same images in each precision, and compare them with those in float32.

    `backend` computes on the hardware; None rounds in PyTorch.
    """
    prompts = prompts_for(demo=True, file=None, calibration=0, held_out=images).held_out
    pixels = {}
    for precision in ("fp32", *precisions):
        runs = calotype.load("demo", backend=backend, precision=precision) if backend else _rounded(precision)
        calls = (runs(p, seed=i, steps=steps, height=size, width=size) for i, p in enumerate(prompts))
        pixels[precision] = np.concatenate([[np.asarray(image) for image in call.images] for call in calls])
    rows: list[Mapping[str, Any]] = []
    for precision in precisions:
        values = figures(pixels[precision], pixels["fp32"], prompts, ["judge_drop"])
        judged = values["judge"], values["judge"] + values["judge_drop"]
        rows.append(dict(zip(HEADS, (precision, values["psnr"], values["psnr_min"], *judged), strict=True)))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--backend", help="compute on this machine's hardware")
    parser.add_argument("--precision", action="append", choices=("bf16", "fp16"), help="default: both")
    options = parser.parse_args()
    precisions = options.precision or ("bf16", "fp16")
    rows = measure(precisions, images=options.images, steps=options.steps, backend=options.backend)
    print(f"| {' | '.join(HEADS)} |\n| {' | '.join('---' for _ in HEADS)} |")
    for row in rows:
        print(f"| {' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in row.values())} |")


if __name__ == "__main__":
    main()
