"""One component to ONNX: dynamic in batch, height and width, with the names and dimensions of its bindings.

Knows torch's exporter; what a component's tensors are comes from its bindings, and whether the result is right is
`check`'s to say.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from calotype.bindings import Binding
from calotype.export.versions import OPSET
from calotype.family import Component

MODEL = "model.onnx"


def sample_inputs(component: Component, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Inputs of the ranges that a run would have: normal latents, timesteps of 0 to 999, ids of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)

    def draw(binding: Binding) -> Tensor:
        shape = binding.shape(sizes)
        if binding.dtype == "int64":
            return torch.randint(0, int(component.config["vocab_size"]), shape, generator=generator)
        if binding.name == "timestep":
            return torch.randint(0, 1000, shape, generator=generator).float()
        return torch.randn(shape, generator=generator)

    return {b.name: draw(b) for b in component.inputs}


def trace(component: Component, module: nn.Module, sizes: Mapping[str, int], folder: Path) -> Path:
    """Write `model.onnx` and its external data into `folder`. `sizes` is one example; a batch of 1 would be fixed."""
    inputs = sample_inputs(component, sizes, seed=0)
    dynamic = {b.name: {axis: d for axis, d in enumerate(b.dims) if isinstance(d, str)} for b in component.inputs}
    with _quiet():
        program = torch.onnx.export(
            module,
            args=(),
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=[b.name for b in component.inputs],
            output_names=[b.name for b in component.outputs],
            dynamic_shapes=dynamic,
            verbose=False,
        )
        assert program is not None
        program.save(folder / MODEL, external_data=True)
    return folder / MODEL


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings and log lines are about its own insides; what matters is checked afterwards."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in loggers]
    try:
        for log in loggers:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
