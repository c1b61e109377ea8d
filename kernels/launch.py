"""One launch of a kernel as a value: what is launched is what the ahead-of-time check compiles.

Triton makes a kernel anew for other types, for constants, and for integers and addresses that 16 divides. `signature`
says which of them a launch asks for, in the words of `triton.compiler.ASTSource`; tensors on the meta device will do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Arguments = Mapping[str, Tensor | int | float | None]  # None: a tensor that is not there

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
_ALIGNED = 16  # bytes of an address, or a factor of an integer: what makes wide loads possible


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel with its grid, its arguments and its constants.

    `exact` keeps a product and a sum two roundings, for kernels that promise the very bits of their reference.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Arguments
    constants: Mapping[str, Any]
    warps: int
    exact: bool = False

    @property
    def least(self) -> int:
        """The compute capability from which on GPUs, and so the compiler, know all of its types."""
        kinds = [a.dtype for a in self.arguments.values() if isinstance(a, Tensor)]
        return 89 if torch.float8_e4m3fn in kinds else 80

    @property
    def name(self) -> str:
        """The kernel's own name."""
        return str(self.kernel.__name__)

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told besides."""
        return {"num_warps": self.warps, "enable_fp_fusion": not self.exact}

    def __call__(self) -> None:
        """Launch it on the current device and stream."""
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    def signature(self) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
        """Types by argument, constants by argument, and attributes by the argument's place."""
        constants = dict(self.constants) | {n: a for n, a in self.arguments.items() if a is None or _is_one(a)}
        given = {n: a for n, a in self.arguments.items() if n not in constants}
        types = {n: "constexpr" if n in constants else _type(given[n]) for n in self.kernel.arg_names}
        places = {n: i for i, n in enumerate(self.kernel.arg_names)}
        aligned = {(places[n],): [["tt.divisibility", _ALIGNED]] for n, a in given.items() if _is_aligned(a)}
        return types, constants, aligned


def _is_one(argument: Any) -> bool:
    return isinstance(argument, int) and argument == 1  # Triton takes it for a constant


def _is_aligned(argument: Any) -> bool:
    if isinstance(argument, Tensor):  # the allocator aligns what is no view into something larger
        return argument.storage_offset() * argument.element_size() % _ALIGNED == 0
    return isinstance(argument, int) and argument % _ALIGNED == 0


def _type(argument: Any) -> str:
    if isinstance(argument, Tensor):
        return f"*{_TYPES[argument.dtype]}"
    return "fp32" if isinstance(argument, float) else "i32" if -(2**31) <= argument < 2**31 else "i64"


def power_of_two(least: int) -> int:
    """The smallest power of two that is not below `least`: Triton's blocks come in these."""
    return 1 << max(0, least - 1).bit_length()


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)


def require(holds: bool, wanted: str, tensors: Iterable[Tensor | None]) -> None:
    """`ValueError` that says what was wanted and what the tensors are, unless it holds."""
    if not holds:
        got = ", ".join(f"{str(t.dtype)[6:]} {list(t.shape)} strides {t.stride()}" for t in tensors if t is not None)
        raise ValueError(f"wanted {wanted}; got {got}.")


def wide(tensor: Tensor) -> Tensor:
    """What references compute in: float32, or float64 where that is given (the truth that float32 is held to)."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
