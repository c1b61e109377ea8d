"""TensorRT plugin for group normalization with SiLU by Calotype's kernel: an ahead-of-time plugin, and its nodes.

    graph   GroupNormalization -> Sigmoid, Mul      becomes      calotype::group_norm_silu

The build compiles the kernel to PTX and stores it in the engine, so running it needs no Python. `tensorrt.plugin` is
an argument. No default build uses the plugin until a GPU measurement shows that it beats TensorRT's own fusion.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir
import torch

from calotype.kernels.group_norm_silu import GroupNorm, plugin_launch

from ..onnx.file import open_graph, save_graph

NAMESPACE, NAME = "calotype", "group_norm_silu"
PLUGIN = f"{NAMESPACE}::{NAME}"

_LAYOUTS = {"FP16": "HWC8", "BF16": "HWC8", "FP32": "HWC"}  # TensorRT's channels-last layout of each type
_TORCH = {"HALF": torch.float16, "BF16": torch.bfloat16, "FLOAT": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled kernel in the form that TensorRT uses."""

    name: str
    ptx: str
    threads: int
    shared_bytes: int


def register(trtp: Any, capability: int) -> Callable[..., Any]:
    """Register the plugin with TensorRT for GPUs of this compute capability, and return its implementation."""
    tensors = dict.fromkeys(("x", "weight", "bias"), trtp.TensorDesc)

    def described(x: Any, weight: Any, bias: Any, groups: Any, eps: Any) -> Any:
        return x.like()

    # The library reads the signature from the annotations, and requires its own class.
    described.__annotations__ = {**tensors, "groups": int, "eps": float, "return": trtp.TensorDesc}

    def layouts(x, weight, bias, groups, eps, outputs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        # Only channels-last images: the kernel reads all channels of a pixel as one line.
        return [
            trtp.AutoTuneCombination(", ".join([kind] * 4), f"{order}, LINEAR, LINEAR, {order}")
            for kind, order in _LAYOUTS.items()
        ]

    def implemented(x, weight, bias, groups, eps, outputs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        kind = _TORCH[str(x.dtype).rpartition(".")[2]]
        kernel = compiled(channels=int(x.shape[1]), groups=groups, eps=eps, dtype=kind, capability=capability)
        launch = trtp.KernelLaunchParams()
        launch.grid_x, launch.grid_y, launch.block_x = groups, x.shape_expr[0], kernel.threads
        launch.shared_mem = kernel.shared_bytes
        extra = trtp.SymIntExprs(1)
        extra[0] = trtp.SymInt32(x.shape_expr[2] * x.shape_expr[3])
        return kernel.name, kernel.ptx, launch, extra

    trtp.register(PLUGIN)(described)
    trtp.autotune(PLUGIN)(layouts)
    return cast("Callable[..., Any]", trtp.aot_impl(PLUGIN)(implemented))


def compiled(*, channels: int, groups: int, eps: float, dtype: torch.dtype, capability: int) -> Compiled:
    """Compile the kernel for images of any size: it does not assume that 16 divides the number of pixels."""
    import triton
    from triton.backends.compiler import GPUTarget

    x = torch.empty(2, channels, 31, 37, dtype=dtype, device="meta").contiguous(memory_format=torch.channels_last)
    scale = torch.empty(channels, dtype=dtype, device="meta")
    launch = plugin_launch(x, GroupNorm(weight=scale, bias=scale, groups=groups, eps=eps))
    source = launch.source()
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    arguments = sum(kind != "constexpr" for kind in source.signature.values())
    return Compiled(
        name=str(kernel.metadata.name),
        ptx=without_hidden(str(kernel.asm["ptx"]), arguments),
        threads=32 * int(kernel.metadata.num_warps),
        shared_bytes=int(kernel.metadata.shared),
    )


def without_hidden(ptx: str, arguments: int) -> str:
    """Remove the parameters that Triton adds after a kernel's own, for scratch memory that this kernel does not use.

    TensorRT passes only the kernel's own parameters. Raise `ValueError` if the kernel uses an added one.
    """
    entry = re.search(r"(\.entry \w+\(\n)(.*?)(\n\))", ptx, flags=re.DOTALL)
    assert entry is not None, ptx[:2000]
    declared = [line.strip().rstrip(",") for line in entry[2].splitlines()]
    own, hidden = declared[:arguments], declared[arguments:]
    body = ptx[entry.end() :]
    for line in hidden:
        if re.search(rf"\b{line.split()[-1]}\b", body):
            raise ValueError(f"the kernel uses the parameter {line.split()[-1]}, which TensorRT does not pass.")
    return f"{ptx[: entry.start()]}{entry[1]}{(',' + chr(10)).join(own)}{entry[3]}{body}"


def with_plugins(source: Path, out: Path) -> int:
    """Write the graph with the plugin's nodes to `out`, with its weights in `out`.data. Return the number of nodes."""
    model = open_graph(source)
    graph, count = model.graph, 0
    for node in list(graph):
        joined = _silu_after(node)
        if joined is None:
            continue
        sigmoid, product = joined
        attributes: dict[str, int | float | str] = {
            "groups": node.attributes["num_groups"].as_int(),
            "eps": node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5,
            "plugin_namespace": NAMESPACE,
            "plugin_version": "1",
        }
        plugin = ir.node(NAME, list(node.inputs), attributes, domain=NAMESPACE, name=f"{node.name}.silu")
        result, after = plugin.outputs[0], product.outputs[0]
        result.shape, result.type, result.name = after.shape, after.type, f"{after.name}.by_plugin"
        graph.insert_before(node, plugin)
        after.replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove([product, sigmoid, node], safe=True)
        count += 1
    model.opset_imports[NAMESPACE] = 1
    save_graph(model, out)
    return count


def _silu_after(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Return the Sigmoid and Mul of a SiLU on a group norm's output, or None if anything else reads the output."""
    if node.op_type != "GroupNormalization":
        return None
    readers = {use.node for use in node.outputs[0].uses()}
    sigmoid = next((n for n in readers if n.op_type == "Sigmoid"), None)
    product = next((n for n in readers if n.op_type == "Mul"), None)
    if sigmoid is None or product is None or len(readers) != 2:
        return None
    only_reader = [use.node for use in sigmoid.outputs[0].uses()] == [product]
    return (sigmoid, product) if only_reader and not node.outputs[0].is_graph_output() else None
