"""Norms and gates with one kernel each."""

from __future__ import annotations

from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from calotype.kernels.geglu import geglu
from calotype.kernels.group_norm_silu import Addends, GroupNorm, group_norm_silu
from calotype.kernels.layer_norm import layer_norm

from .pending import Pending, channels_last


class FusedGroupNorm(nn.Module):
    """Group normalization, optionally with sums before it and SiLU after it."""

    def __init__(self, norm: nn.GroupNorm, *, silu: bool) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self._groups, self._eps, self._silu = norm.num_groups, norm.eps, silu

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """# [B, C, H, W] or [B, C, P], time [B, C] or [C] -> as x"""
        image = x if x.ndim == 4 else x[..., None]
        out, _ = group_norm_silu(channels_last(image), self._norm(), Addends(time=time))
        return out if x.ndim == 4 else out[..., 0]

    def of_sum(
        self, x: Pending, *, stored_bias: Tensor | None = None, stores: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the norm of a sum, and the sum plus a bias where it is stored: always a new tensor.

        x is computed afterwards, except with a bias.
        """
        addends = Addends(
            time=x.bias,
            residual=None if x.residual is None else channels_last(x.residual),
            skip=None if x.skip is None else channels_last(x.skip),
            stored_bias=stored_bias,
            stores=stores or x.is_sum,
        )
        out, total = group_norm_silu(channels_last(x.x), self._norm(), addends)
        if total is not None and stored_bias is None and x.is_sum:
            x.computed(total)
        return out, total

    def _norm(self) -> GroupNorm:
        return GroupNorm(weight=self.weight, bias=self.bias, groups=self._groups, eps=self._eps, silu=self._silu)


class FusedLayerNorm(nn.Module):
    """Layer normalization."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self._eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """# [..., C] -> [..., C]"""
        return layer_norm(x.contiguous(), self.weight, self.bias, eps=self._eps)[0]

    def shifted(
        self, x: Tensor, shift: Tensor | None, stored_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the norm of x + shift; and x + shift + stored_bias if there is such a bias.  # [..., C], [C], [C]"""
        biases = {"shift": shift, "stored_bias": stored_bias}
        return layer_norm(x.contiguous(), self.weight, self.bias, eps=self._eps, **biases)


class FusedGeglu(nn.Module):
    """GEGLU: the projection, then one half times the GELU of the other."""

    def __init__(self, module: GEGLU) -> None:
        super().__init__()
        self.proj = module.proj

    def forward(self, x: Tensor) -> Tensor:
        """# [..., C] -> [..., D]"""
        return geglu(self.proj(x))


def is_affine(norm: nn.Module | None) -> bool:
    """Return whether `FusedLayerNorm` supports a norm."""
    return isinstance(norm, nn.LayerNorm) and norm.bias is not None and len(norm.normalized_shape) == 1
