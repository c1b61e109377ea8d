"""The base of the networks that have a signature of tensors. Imports torch."""

from __future__ import annotations

from typing import Any

from torch import nn


class Wrapper(nn.Module):
    """A network with a signature of tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
