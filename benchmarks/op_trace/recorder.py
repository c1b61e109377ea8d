"""Records the kernels that a network on the meta device would launch on a GPU.

Every operation of torch counts as one kernel, except views. A convolution with a bias counts as two: torch adds the
bias in a second kernel after cuDNN's. A convolution whose input is not in channels-last format counts a layout copy.
Our own kernels are not run: their launches are counted. Attention counts as one kernel, whatever implementation a GPU
selects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from calotype.cuda import attention
from calotype.kernels.launch import Launch

CONVOLUTION, BIAS, LAYOUT, PRODUCT = "convolution", "convolution bias", "layout copy", "matrix product"
ATTENTION, ADD, CONCATENATION = "attention", "add", "concatenation"
GROUP_NORM, LAYER_NORM, GEGLU, OTHER = "group norm", "layer norm", "geglu", "other"
KINDS = (CONVOLUTION, BIAS, LAYOUT, PRODUCT, ATTENTION, GROUP_NORM, LAYER_NORM, GEGLU, ADD, CONCATENATION, OTHER)

_VIEWS = (  # and what only allocates
    *("view", "_unsafe_view", "reshape", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze"),
    *("t", "alias", "detach", "as_strided", "split", "split_with_sizes", "chunk", "unflatten", "unbind", "lift_fresh"),
    *("_reshape_alias", "empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided"),
)
_KERNELS = (
    ("add_bias", ADD),
    ("group_norm", GROUP_NORM),
    ("layer_norm", LAYER_NORM),
    ("geglu", GEGLU),
    ("attention", ATTENTION),
)
_PRODUCTS = {"mm": (0, 1), "addmm": (1, 2), "addmm_": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2), "baddbmm_": (1, 2)}
_COPIES = ("clone", "copy_", "contiguous")
_ADDS = ("add", "add_")
_RELUS = (torch.cudnn_convolution_relu, torch.cudnn_convolution_add_relu)


@dataclass(frozen=True, kw_only=True)
class Op:
    """A kernel: its kind and name, the network's layer (convolutions only), and its work.

    `shape` depends on the kind: a convolution has (images, channels, kernel size, outputs, height, width), a product
    (products, rows, columns, depth), attention (images, heads, queries, keys, head size), others the output's shape.
    """

    kind: str
    name: str
    flops: int
    bytes: int
    shape: tuple[int, ...]
    layer: str = ""


class OpRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the operations inside of the block `with recorder.recording(module)`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self.launches: list[Launch] = []  # of our kernels
        self._layer = ""

    @contextmanager
    def recording(self, module: nn.Module) -> Iterator[None]:
        """Record what `module` launches inside of the block."""
        layers = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d)]
        with ExitStack() as stack:
            for name, layer in layers:
                stack.callback(layer.register_forward_pre_hook(self._entering(name)).remove)
            stack.enter_context(mock.patch.object(Launch, "__call__", self._launched()))
            stack.enter_context(mock.patch.object(attention, "CHOICES", _AnyAttention(self)))
            stack.enter_context(_Attention(self))
            stack.enter_context(self)
            yield

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Record attention, and return a tensor of its output's shape, with the heads of a query adjacent."""
        images, heads, queries, width = q.shape
        shape = (images, heads, queries, k.shape[2], width)
        size = (2 * q.numel() + 2 * k.numel()) * q.element_size()
        self._add(ATTENTION, "attention", 4 * math.prod(shape), size, shape)
        return q.new_empty(images, queries, heads, v.shape[3]).transpose(1, 2)

    def relu(self, name: str, args: Any) -> Tensor:
        """Record a convolution with its bias, residual and ReLU in one kernel."""
        x, weight = args[:2]
        stride, padding = args[-4:-2]
        high, wide = (
            (size + 2 * pad - kernel) // step + 1
            for size, pad, kernel, step in zip(x.shape[2:], padding, weight.shape[2:], stride, strict=True)
        )
        return self._convolved((x, weight, None), x.new_empty(len(x), len(weight), high, wide), name)

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._layer = name

        return hook

    def _launched(self) -> Callable[[Launch], None]:
        def call(launch: Launch) -> None:
            self.launches.append(launch)
            name = launch.kernel.__name__.removeprefix("_")
            tensors = [t for t in launch.arguments.values() if isinstance(t, Tensor)]
            kind = next((kind for stem, kind in _KERNELS if name.startswith(stem)), OTHER)
            main = tensors[0]
            self._add(kind, name, 10 * main.numel(), sum(map(_size, tensors)), tuple(main.shape))

        return call

    def _add(self, kind: str, name: str, flops: int, size: int, shape: tuple[int, ...], layer: str = "") -> None:
        self.ops.append(Op(kind=kind, name=name, flops=flops, bytes=size, shape=shape, layer=layer))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record an operation of torch."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _VIEWS or not isinstance(out, Tensor):
            return out
        if name in ("convolution", "_convolution"):
            return self._convolved(args, out)
        if name in _PRODUCTS:
            a, b = (args[i] for i in _PRODUCTS[name])
            products, (rows, depth), columns = a.shape[0] if a.ndim == 3 else 1, a.shape[-2:], b.shape[-1]
            size = _size(a) + _size(b) + _size(out) * (2 if name.endswith("_") else 1)
            work = (products, rows, columns, depth)
            self._add(PRODUCT, name, 2 * math.prod(work), size, work)
            return out
        inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        same = name == "_to_copy" and inputs[0].dtype == out.dtype
        kind = LAYOUT if name in _COPIES or same else ADD if name in _ADDS else OTHER
        kind = CONCATENATION if name == "cat" else kind
        self._add(kind, name, out.numel(), sum(map(_size, inputs)) + _size(out), tuple(out.shape), self._layer)
        return out

    def _convolved(self, args: Any, out: Tensor, name: str = "convolution") -> Tensor:
        """Record a convolution and what torch launches with it; return its output as cuDNN does, channels last."""
        x, weight, bias = args[:3]
        flops = 2 * out.numel() * math.prod(weight.shape[1:])
        shape = (x.shape[0], x.shape[1], weight.shape[2], *out.shape[1:])
        if not x.is_contiguous(memory_format=torch.channels_last):
            self._add(LAYOUT, "to channels last", 0, 2 * _size(x), tuple(x.shape), self._layer)
        self._add(CONVOLUTION, name, flops, _size(x) + _size(weight) + _size(out), shape, self._layer)
        if bias is not None:
            self._add(BIAS, "add_", out.numel(), 2 * _size(out), tuple(out.shape), self._layer)
        return torch.empty(out.shape, dtype=out.dtype, device=out.device, memory_format=torch.channels_last)


class _Attention(TorchFunctionMode):
    """Records torch's attention, which the meta device would split into its parts."""

    def __init__(self, recorder: OpRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return self._recorder.attention(*args[:3])
        if func in _RELUS:  # the meta device has no such operators
            return self._recorder.relu(func.__name__, args)
        return func(*args, **(kwargs or {}))


class _AnyAttention:
    """Takes the place of the choice of an implementation."""

    def __init__(self, recorder: OpRecorder) -> None:
        self._recorder = recorder

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Record one kernel."""
        return self._recorder.attention(q, k, v)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def totals(ops: list[Op]) -> Mapping[str, int]:
    """Return the number of kernels of each kind."""
    return {kind: sum(op.kind == kind for op in ops) for kind in KINDS}
