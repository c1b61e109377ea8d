"""One launch of a kernel as a value, so that the ahead-of-time check compiles exactly what runs.

Triton compiles a kernel again for other types and constants, and for integers and addresses divisible by 16.
`Launch.source` tells it which; it also works for tensors on the meta device.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.compiler import ASTSource

Arguments = Mapping[str, Tensor | int | float | None]  # None: an absent tensor

_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.int32: "i32",
    torch.int64: "i64",
}
_ALIGNED = 16  # bytes of an address, or a factor of an integer: the condition for wide loads


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel with its grid, its arguments and its constants.

    `exact` disables fused multiply-add, for kernels that equal their reference bit for bit.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Arguments
    constants: Mapping[str, Any]
    warps: int
    exact: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The compiler's options."""
        return {"num_warps": self.warps, "enable_fp_fusion": not self.exact}

    def __call__(self) -> None:
        """Launch it on the current device and stream."""
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    def tensor(self, name: str) -> Tensor:
        """Return the argument of this name, which is a tensor, such as the output."""
        tensor = self.arguments[name]
        assert isinstance(tensor, Tensor)
        return tensor

    def run(self) -> Tensor:
        """Launch it, and return the argument `out`."""
        self()
        return self.tensor("out")

    def source(self) -> ASTSource:
        """Return what Triton compiles at the first launch, for compilation ahead of time."""
        # Triton treats the integer 1 as a constant.
        ones = {n: a for n, a in self.arguments.items() if a is None or (isinstance(a, int) and a == 1)}
        constants = {**self.constants, **ones}
        variables = {n: a for n, a in self.arguments.items() if n not in constants}
        types = {n: "constexpr" if n in constants else _type(variables[n]) for n in self.kernel.arg_names}
        positions = {n: i for i, n in enumerate(self.kernel.arg_names)}
        aligned = {(positions[n],): [["tt.divisibility", _ALIGNED]] for n, a in variables.items() if _is_aligned(a)}
        return ASTSource(fn=self.kernel, signature=types, constexprs=constants, attrs=aligned)


def _is_aligned(argument: Any) -> bool:
    if isinstance(argument, Tensor):  # the allocator aligns tensors that are not views
        return argument.storage_offset() * argument.element_size() % _ALIGNED == 0
    return isinstance(argument, int) and argument % _ALIGNED == 0


def _type(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return f"*{_TYPES[argument.dtype]}"
    return "fp32" if isinstance(argument, float) else "i32" if -(2**31) <= argument < 2**31 else "i64"


def require(condition: bool, expected: str, tensors: Iterable[Tensor | None]) -> None:
    """Raise a `ValueError` with the expected and the actual tensors if the condition is false."""
    if not condition:
        got = ", ".join(f"{str(t.dtype)[6:]} {list(t.shape)} strides {t.stride()}" for t in tensors if t is not None)
        raise ValueError(f"Invalid tensors: got {got}; expected {expected}.")


def wide(tensor: Tensor) -> Tensor:
    """Convert to the type of references: float64 stays (to test float32 kernels), all others become float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
