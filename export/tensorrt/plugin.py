"""Group normalization and SiLU inside TensorRT's engines by our own kernel: an ahead-of-time plugin, and its nodes.

    graph   GroupNormalization -> Sigmoid, Mul      becomes      calotype::group_norm_silu

The kernel is compiled to PTX when an engine is built and lies in it: running one needs no Python. `tensorrt.plugin` is
an argument. Whether it beats TensorRT's own fusion is a question for a GPU: until that is answered no build takes it.
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

_LAYOUTS = {"FP16": "HWC8", "BF16": "HWC8", "FP32": "HWC"}  # what TensorRT has of channels last, for each type
_TORCH = {"HALF": torch.float16, "BF16": torch.bfloat16, "FLOAT": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A kernel as TensorRT takes it."""

    name: str
    ptx: str
    threads: int
    shared_bytes: int


def register(trtp: Any, capability: int) -> Callable[..., Any]:
    """Make the plugin known to TensorRT, for GPUs of this compute capability; the implementation."""
    tensors = dict.fromkeys(("x", "weight", "bias"), trtp.TensorDesc)

    def described(x: Any, weight: Any, bias: Any, groups: Any, eps: Any) -> Any:
        return x.like()

    # The library reads the signature from them, and wants its own class.
    described.__annotations__ = {**tensors, "groups": int, "eps": float, "return": trtp.TensorDesc}

    def layouts(x, weight, bias, groups, eps, outputs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        # Pictures channels last alone: the kernel reads whole lines of a pixel's channels.
        return [
            trtp.AutoTuneCombination(", ".join([kind] * 4), f"{order}, LINEAR, LINEAR, {order}")
            for kind, order in _LAYOUTS.items()
        ]

    def implemented(x, weight, bias, groups, eps, outputs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        kind = _TORCH[str(x.dtype).rpartition(".")[2]]
        made = compiled(channels=int(x.shape[1]), groups=groups, eps=eps, dtype=kind, capability=capability)
        launch = trtp.KernelLaunchParams()
        launch.grid_x, launch.grid_y, launch.block_x = groups, x.shape_expr[0], made.threads
        launch.shared_mem = made.shared_bytes
        extra = trtp.SymIntExprs(1)
        extra[0] = trtp.SymInt32(x.shape_expr[2] * x.shape_expr[3])
        return made.name, made.ptx, launch, extra

    trtp.register(PLUGIN)(described)
    trtp.autotune(PLUGIN)(layouts)
    return cast("Callable[..., Any]", trtp.aot_impl(PLUGIN)(implemented))


def compiled(*, channels: int, groups: int, eps: float, dtype: torch.dtype, capability: int) -> Compiled:
    """The kernel for pictures of any size: of no pixel count is assumed that 16 divides it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    x = torch.empty(2, channels, 31, 37, dtype=dtype, device="meta").contiguous(memory_format=torch.channels_last)
    scale = torch.empty(channels, dtype=dtype, device="meta")
    launch = plugin_launch(x, GroupNorm(weight=scale, bias=scale, groups=groups, eps=eps))
    types, constants, aligned = launch.signature()
    source = ASTSource(fn=launch.kernel, signature=types, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    arguments = sum(kind != "constexpr" for kind in types.values())
    return Compiled(
        name=str(made.metadata.name),
        ptx=without_hidden(str(made.asm["ptx"]), arguments),
        threads=32 * int(made.metadata.num_warps),
        shared_bytes=int(made.metadata.shared),
    )


def without_hidden(ptx: str, arguments: int) -> str:
    """Without the parameters that Triton adds after a kernel's own for memory that this kernel does not ask for.

    TensorRT hands over the kernel's own alone. Raises `ValueError` where the kernel uses one of the others.
    """
    entry = re.search(r"(\.entry \w+\(\n)(.*?)(\n\))", ptx, flags=re.DOTALL)
    assert entry is not None, ptx[:2000]
    declared = [line.strip().rstrip(",") for line in entry[2].splitlines()]
    own, hidden = declared[:arguments], declared[arguments:]
    body = ptx[entry.end() :]
    for line in hidden:
        if re.search(rf"\b{line.split()[-1]}\b", body):
            raise ValueError(f"the kernel takes {line.split()[-1]}, which TensorRT does not give it.")
    return f"{ptx[: entry.start()]}{entry[1]}{(',' + chr(10)).join(own)}{entry[3]}{body}"


def with_plugins(source: Path, out: Path) -> int:
    """The graph at `source` with the plugin's nodes to `out`, with its weights in `out`.data; how many there are."""
    model = open_graph(source)
    graph, found = model.graph, 0
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
        made = ir.node(NAME, list(node.inputs), attributes, domain=NAMESPACE, name=f"{node.name}.silu")
        result, after = made.outputs[0], product.outputs[0]
        result.shape, result.type, result.name = after.shape, after.type, f"{after.name}.by_plugin"
        graph.insert_before(node, made)
        after.replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove([product, sigmoid, node], safe=True)
        found += 1
    model.opset_imports[NAMESPACE] = 1
    save_graph(model, out)
    return found


def _silu_after(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The sigmoid and the product that make a SiLU of a group norm's output, where nothing else reads it."""
    if node.op_type != "GroupNormalization":
        return None
    readers = {use.node for use in node.outputs[0].uses()}
    sigmoid = next((n for n in readers if n.op_type == "Sigmoid"), None)
    product = next((n for n in readers if n.op_type == "Mul"), None)
    if sigmoid is None or product is None or len(readers) != 2:
        return None
    alone = [use.node for use in sigmoid.outputs[0].uses()] == [product]
    return (sigmoid, product) if alone and not node.outputs[0].is_graph_output() else None
