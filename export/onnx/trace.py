"""One component to ONNX: dynamic in batch, height and width, with the names and dimensions of its bindings.

Knows torch's exporter; what a component's tensors are comes from its bindings, and whether the result is right is
`check`'s to say.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from calotype.backends.torch.modules import load_module
from calotype.errors import CalotypeError, CheckError, first_line
from calotype.plan.bindings import Binding
from calotype.plan.family import Component

from ..steps.versions import OPSET
from .capture import Call, write_calls

MODEL = "model.onnx"
REFERENCE = "reference.npz"


def trace_component(
    *,
    component: Mapping[str, Any],
    weights: str,
    sizes: Mapping[str, int],
    others: Sequence[Mapping[str, int]],
    out: str,
) -> None:
    """In a child process: the component's ONNX into `out`, and what eager answers at the `others` sizes beside it.

    The reference is made first and the module let go of with the process: what checks the graph need not hold both.
    """
    described, folder = Component.from_json(component), Path(out)
    module = load_module(described.name, Path(weights))
    try:
        calls = [_eager_call(described, module, s, seed) for seed, s in enumerate(others, start=1)]
        write_calls(folder / REFERENCE, calls)
        trace(described, module, sizes, folder)
    except (CalotypeError, OSError):
        raise
    except Exception as failed:  # torch's exporter raises whatever its inside raises
        raise CheckError(f"the {described.name} cannot be traced to ONNX: {first_line(failed)}") from failed


def _eager_call(component: Component, module: nn.Module, sizes: Mapping[str, int], seed: int) -> Call:
    inputs = sample_inputs(component, sizes, seed)
    with torch.inference_mode():
        outputs = module(**inputs)
    named = {b.name: tensor.numpy() for b, tensor in zip(component.outputs, outputs, strict=True)}
    return Call(inputs={name: tensor.numpy() for name, tensor in inputs.items()}, outputs=named)


def sample_inputs(component: Component, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Inputs as a run would have: normal latents, timesteps and sizes of 0 to 999, token ids, pictures in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)

    def draw(binding: Binding) -> Tensor:
        shape = binding.shape(sizes)
        if binding.dtype == "int64":
            return torch.randint(0, int(component.config["vocab_size"]), shape, generator=generator)
        if binding.name in ("timestep", "time_ids"):
            return torch.randint(0, 1000, shape, generator=generator).float()
        if binding.name in ("controlnet_cond", "conditioning_scale"):
            return torch.rand(shape, generator=generator)
        return torch.randn(shape, generator=generator)

    return {b.name: draw(b) for b in component.inputs}


def trace(component: Component, module: nn.Module, sizes: Mapping[str, int], folder: Path) -> Path:
    """Write `model.onnx` and its external data into `folder`. `sizes` is one example; a batch of 1 would be fixed."""
    inputs = sample_inputs(component, sizes, seed=0)
    dynamic = [{axis: d for axis, d in enumerate(b.dims) if isinstance(d, str)} for b in component.inputs]
    with _quiet():
        program = torch.onnx.export(
            _ByPosition(module, list(inputs)).eval(),
            args=tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=[b.name for b in component.inputs],
            output_names=[b.name for b in component.outputs],
            dynamic_shapes=(tuple(dynamic),),
            verbose=False,
        )
        assert program is not None
        _one_timestep_will_do(program.model)
        program.save(folder / MODEL, external_data=True)
    return folder / MODEL


class _ByPosition(nn.Module):
    """The exporter takes any number of tensors by position, but not by names that are no parameters of `forward`."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """All inputs in the bindings' order."""
        outputs: tuple[Tensor, ...] = self.module(**dict(zip(self.names, tensors, strict=True)))
        return outputs


def _one_timestep_will_do(model: ir.Model) -> None:
    """One timestep may stand for the whole batch, as Optimum gives it; one a picture is taken as well."""
    inputs = {value.name: value for value in model.graph.inputs}
    if "timestep" not in inputs:
        return
    timestep = inputs["timestep"]
    uses = list(timestep.uses())
    batch = ir.node("Shape", [inputs["sample"]], {"start": 0, "end": 1})
    each = ir.node("Expand", [timestep, batch.outputs[0]])
    for use in uses:
        use.node.replace_input_with(use.idx, each.outputs[0])
    each.outputs[0].type = timestep.type
    timestep.shape = ir.Shape(["timesteps"])  # not "batch": ONNX Runtime shares buffers between sizes of one name
    model.graph.insert_before(model.graph[0], [batch, each])


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
