"""Work with a known number of operations, to time for the peaks: matrix products, a convolution of a U-Net, copies.

`PeakTrial.work` counts a multiply-add as two operations, and of a copy the bytes read and the bytes written. Numbers
are normally distributed and not zeros, because the bits of a product change the power of a GPU, and so its clock.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .system_load import cache_bytes

SIZES, GPU_SIZES = (512, 1024, 2048), (4096, 8192)  # of square products
_COPY_BYTES, _GPU_COPY_BYTES = 128 << 20, 1 << 30


@dataclass(frozen=True, kw_only=True)
class PeakTrial:
    """A function to time, with a known amount of work."""

    name: str
    work: float  # operations, or bytes
    run: Callable[[], Any]


def product(library: str, n: int, run: Callable[[], Any]) -> PeakTrial:
    """Return the trial of a product of two square matrices."""
    return PeakTrial(name=f"{library}, product {n}", work=2 * n**3, run=run)


def copies(device: str) -> list[PeakTrial]:
    """Return the copy of an array that no cache holds."""
    import torch

    size = max(_COPY_BYTES, 4 * (cache_bytes() or 0)) if device == "cpu" else _GPU_COPY_BYTES
    source = torch.ones(size, dtype=torch.uint8, device=device)
    return [PeakTrial(name="torch, copy", work=2 * size, run=partial(torch.empty_like(source).copy_, source))]


def torch_on_cpu(precision: str) -> list[PeakTrial]:
    """Return PyTorch's trials in fp32, bf16, fp16 or int8."""
    import torch

    if precision == "int8":
        ints = [torch.randint(-128, 128, (n, n), dtype=torch.int8) for n in SIZES]
        return [product("torch", len(a), partial(torch._int_mm, a, a)) for a in ints]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    trials = []
    for n in SIZES:
        a = torch.randn(n, n).to(dtype)
        # In float32 torch.mm uses MKL, which is half as fast as oneDNN on CPUs that are not Intel's.
        if precision == "fp32" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            trials.append(product("torch", n, partial(torch.ops.aten.mkldnn_linear, a.to_mkldnn(), a)))
        else:
            trials.append(product("torch", n, partial(torch.mm, a, a, out=torch.empty_like(a))))
    # A convolution of a U-Net, in the layout that oneDNN prefers.
    shapes = ((1, 256, 16, 16), (256, 256, 3, 3))
    x, w = (torch.randn(s).to(dtype).to(memory_format=torch.channels_last) for s in shapes)
    work = 2 * 16 * 16 * 256 * 256 * 9
    return [*trials, PeakTrial(name="torch, convolution", work=work, run=partial(torch.conv2d, x, w, padding=1))]


def openvino_on_cpu(precision: str, threads: int) -> list[PeakTrial]:
    """Return OpenVINO's trials; [] if it is not installed or lacks the precision."""
    from calotype.backends import unavailable
    from calotype.backends.openvino.network import library as openvino_library

    if unavailable("openvino") or precision == "fp16":
        return []
    hint = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}[precision]
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint}
    openvino = openvino_library()
    return [product("OpenVINO", n, _openvino_product(openvino, n, precision, settings)) for n in SIZES]


def _openvino_product(openvino: Any, n: int, precision: str, settings: Mapping[str, Any]) -> Callable[[], Any]:
    ops = importlib.import_module("openvino.opset13")
    numbers = np.random.default_rng(0)
    x = parameter = ops.parameter([n, n], np.float32)
    weights: Any = numbers.standard_normal((n, n), dtype=np.float32)
    if precision == "int8":  # OpenVINO fuses this into an integer product
        low, high = np.float32(-4), np.float32(4 * 127 / 128)
        x = ops.fake_quantize(x, low, high, low, high, 256)
        rounded = ops.constant(np.clip(np.round(weights * 32), -127, 127).astype(np.int8))
        weights = ops.multiply(ops.convert(rounded, np.float32), np.full((n, 1), 1 / 32, np.float32))
    else:
        weights = ops.constant(weights)
    model = openvino.Model([ops.matmul(x, weights, False, True)], [parameter])
    request = openvino.Core().compile_model(model, "CPU", dict(settings)).create_infer_request()
    request.set_input_tensor(openvino.Tensor(numbers.standard_normal((n, n), dtype=np.float32)))
    run: Callable[[], Any] = request.infer
    return run


def torch_on_gpu(precision: str) -> list[PeakTrial]:
    """Return the products of one precision. Raises torch's error if the GPU or this torch lacks it."""
    import torch

    pairs = [(torch.randn(n, n, device="cuda"), torch.randn(n, n, device="cuda")) for n in GPU_SIZES]
    return [product("torch", len(a), matrix_product(precision, a, b)) for a, b in pairs]


def matrix_product(precision: str, a: Any, b: Any) -> Callable[[], Any]:
    """Return the product of two float32 matrices in a precision, as a GPU computes it fastest."""
    import torch

    if precision in ("fp32", "tf32"):
        # A setting of the process, which only measures peaks. Each call sets it, so the order does not matter.
        torch.backends.cuda.matmul.fp32_precision = "ieee" if precision == "fp32" else "tf32"
        return partial(torch.mm, a, b)
    if precision == "int8":
        x, y = ((t * 32).clamp(-127, 127).to(torch.int8) for t in (a, b))
        return lambda: torch._int_mm(x, y.t())
    if precision == "fp8":
        x, y, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones((), device=a.device)
        # The second matrix is stored by columns, as the tensor cores read it. Accumulation is that of inference.
        return lambda: torch._scaled_mm(x, y.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return partial(torch.mm, a.to(dtype), b.to(dtype))
