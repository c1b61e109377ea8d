"""Trace one component to ONNX: dynamic in batch, height and width, with the names and dimensions of its bindings.

This module knows torch's exporter. The component's bindings describe its tensors, and `check` validates the result.
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
from calotype.plan.image_prompts.style import STYLE

from ..steps.versions import OPSET
from .capture import Call, write_calls
from .exporter_shortcuts import exporter_shortcuts
from .file import SCOPES, WEIGHTED
from .template import distinct_weights, fill, fill_template, find_weights, save_filled, save_template, unfolded_sigmoids
from .trace_step import REFERENCE, TEMPLATE
from .translatable import make_translatable


def trace_component(
    *,
    component: Mapping[str, Any],
    weights: str,
    sizes: Mapping[str, int],
    others: Sequence[Mapping[str, int]],
    template: str | None,
    out: str,
) -> bool:
    """Write a component's ONNX and its eager outputs at the `others` sizes into the folder `out`, in a child process.

    The module is freed with the process, so the check of the graph does not hold both in memory.

    Args:
        component: the component, as data.
        weights: the folder of its config and weights.
        sizes: the sizes of the trace.
        others: the sizes of the eager outputs.
        template: the folder of a graph without weights, of a component with the same config; None to trace.
        out: an empty folder. A trace that can be a template is in its folder `template` as well.

    Returns:
        Whether the ONNX comes from the template.

    Raises:
        CheckError: torch's exporter failed.
    """
    described, folder = Component.from_json(component), Path(out)
    module = load_module(described.name, Path(weights))
    try:
        calls = [_eager_call(described, module, s, seed) for seed, s in enumerate(others, start=1)]
        write_calls(folder / REFERENCE, calls)
        tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}  # of `_ByPosition`
        if template is not None and fill_template(Path(template), tensors, folder):
            return True
        trace_with_template(described, module, sizes, tensors, folder)
        return False
    except (CalotypeError, OSError):
        raise
    except Exception as failed:  # torch's exporter raises errors of any type
        raise CheckError(
            f"the {described.name} cannot be traced to ONNX: {first_line(failed)}", component=described.name
        ) from failed


def _eager_call(component: Component, module: nn.Module, sizes: Mapping[str, int], seed: int) -> Call:
    inputs = sample_inputs(component, sizes, seed)
    with torch.inference_mode():
        outputs = module(**inputs)
    named = {b.name: tensor.numpy() for b, tensor in zip(component.outputs, outputs, strict=True)}
    return Call(inputs={name: tensor.numpy() for name, tensor in inputs.items()}, outputs=named)


def sample_inputs(component: Component, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Draw realistic inputs: normal latents, timesteps and sizes from 0 to 999, token ids, images in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)

    def draw(binding: Binding) -> Tensor:
        shape = binding.shape(sizes)
        if binding.name == STYLE:  # the first row is the reference of all
            return -torch.arange(shape[0])
        if binding.dtype == "int64":  # token ids, or the levels of noise
            numbers = "num_class_embeds" if binding.name == "class_labels" else "vocab_size"
            return torch.randint(0, int(component.config[numbers]), shape, generator=generator)
        if binding.name in ("timestep", "time_ids", "added_time_ids"):
            return torch.randint(0, 1000, shape, generator=generator).float()
        if binding.name in ("controlnet_cond", "conditioning_scale", "adapter_image"):
            return torch.rand(shape, generator=generator)
        return torch.randn(shape, generator=generator)

    return {b.name: draw(b) for b in component.inputs}


def trace(component: Component, module: nn.Module, sizes: Mapping[str, int], folder: Path) -> Path:
    """Write `model.onnx` and its external data into `folder`.

    `sizes` is one example. Its batch must exceed 1: the exporter would treat a batch of 1 as fixed.
    """
    with _quiet(), exporter_shortcuts(), unfolded_sigmoids():
        return save_filled(_graph(component, _program(component, module, sizes)), folder)


def trace_with_template(
    component: Component, module: nn.Module, sizes: Mapping[str, int], weights: Mapping[str, Tensor], folder: Path
) -> bool:
    """Write the ONNX into `folder`, and its graph without weights into its folder `template`, if it can be one.

    Returns:
        Whether there is a template.
    """
    with _quiet(), exporter_shortcuts(), unfolded_sigmoids():
        program = _program(component, module, sizes)
        with distinct_weights(weights):
            model = _graph(component, program)
            places = find_weights(model, weights)
        if places is None or not fill(model, places, weights):
            save_filled(_graph(component, program), folder)
            return False
        save_filled(model, folder)
        save_template(model, places, folder / TEMPLATE)
    return True


def _program(component: Component, module: nn.Module, sizes: Mapping[str, int]) -> torch.export.ExportedProgram:
    """Trace the module. The program has the module's weights as they are when it is translated."""
    inputs = sample_inputs(component, sizes, seed=0)
    dynamic = tuple(dict.fromkeys(each, torch.export.Dim.DYNAMIC) for each in _symbols(component))
    module = _ByPosition(module, list(inputs)).eval()
    exported = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=(dynamic,), strict=False)
    make_translatable(exported.graph_module)
    return exported


def _symbols(component: Component) -> tuple[dict[int, str], ...]:
    """Return the names of each input's dynamic dimensions by axis."""
    return tuple({axis: d for axis, d in enumerate(b.dims) if isinstance(d, str)} for b in component.inputs)


def _graph(component: Component, exported: torch.export.ExportedProgram) -> ir.Model:
    """Translate the program to ONNX.

    The exporter decomposes operators by tracing the program again, which takes half of the time. Our networks use
    operators that it translates as they are. It decomposes only if it meets another one.
    """
    decompose = exported.run_decompositions
    try:
        exported.run_decompositions = lambda _table=None: exported
        model = _translated(component, exported)
    except torch.onnx.OnnxExporterError:
        exported.run_decompositions = decompose
        model = _translated(component, exported)
    exported.run_decompositions = decompose
    _allow_one_timestep(model)
    _drop_notes(model)
    return model


def _translated(component: Component, exported: torch.export.ExportedProgram) -> ir.Model:
    program = torch.onnx.export(
        exported,
        dynamo=True,
        opset_version=OPSET,
        input_names=[b.name for b in component.inputs],
        output_names=[b.name for b in component.outputs],
        dynamic_shapes=(_symbols(component),),
        verbose=False,
    )
    assert program is not None
    return program.model


def _drop_notes(model: ir.Model) -> None:
    """Drop the exporter's notes, four fifths of a file. They name folders of this machine.

    The modules that nodes with weights come from stay: `calotype.export.precision.candidates` reads them.
    """
    values: list[ir.Value] = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(SCOPES) if node.op_type in WEIGHTED else None
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[SCOPES] = scopes
        values += node.outputs
    for value in values:
        value.metadata_props.clear()


class _ByPosition(nn.Module):
    """Takes tensors by position: the exporter does not pass tensors by names that are not parameters of `forward`."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module = module
        self.names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the module on the inputs in the order of the bindings."""
        outputs: tuple[Tensor, ...] = self.module(**dict(zip(self.names, tensors, strict=True)))
        return outputs


def _allow_one_timestep(model: ir.Model) -> None:
    """Accept one timestep for the full batch, as Optimum passes it, as well as one per image."""
    inputs = {value.name: value for value in model.graph.inputs}
    if "timestep" not in inputs:
        return
    timestep = inputs["timestep"]
    uses = list(timestep.uses())
    batch = ir.node("Shape", [inputs["sample"]], {"start": 0, "end": 1})
    expand = ir.node("Expand", [timestep, batch.outputs[0]])
    for use in uses:
        use.node.replace_input_with(use.idx, expand.outputs[0])
    expand.outputs[0].type = timestep.type
    timestep.shape = ir.Shape(["timesteps"])  # not "batch": ONNX Runtime shares buffers between sizes of one name
    model.graph.insert_before(model.graph[0], [batch, expand])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: its warnings concern its internals, and `check` validates the result."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
