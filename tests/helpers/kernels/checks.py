"""Random tensors for kernels, and tolerances: two times the error of torch in the same type, against float32."""

import torch
from triton import knobs

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Draw on the CPU, where `tests/gpu/kernels/conftest.py` sets the seed."""
    return torch.randn(*shape).to(DEVICE, dtype)


def widened(dtype: torch.dtype, *tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Convert tensors to the reference's type: float64 for float32, float32 for half types."""
    kind = torch.float64 if dtype == torch.float32 else torch.float32
    return [None if t is None else t.to(kind) for t in tensors]


def _off(got: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Return the relative L2 error and the largest difference."""
    apart = (got.double() - expected.double()).abs()
    return float(apart.norm() / expected.double().norm().clamp(min=1e-30)), float(apart.max())


def assert_no_worse_than_torch(got: torch.Tensor, by_torch: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare a kernel and torch in the same type with the reference: at most two times torch's own error.

    If torch is nearly exact, the limit is two units in float32's last place; on a GPU eight, as its exponentials, roots
    and quotients are approximate.
    """
    assert got.dtype == by_torch.dtype
    assert got.shape == by_torch.shape == expected.shape
    assert torch.isfinite(got).all()
    floor = (2 if knobs.runtime.interpret else 8) * torch.finfo(torch.float32).eps
    scale = float(expected.abs().max())
    (l2, largest), (torch_l2, torch_largest) = _off(got, expected), _off(by_torch, expected)
    assert l2 <= 2 * max(torch_l2, floor), (l2, torch_l2)
    assert largest <= 2 * max(torch_largest, floor * scale), (largest, torch_largest)
