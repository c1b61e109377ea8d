"""Networks that get their weights without a first set of random ones: created on the meta device, then assigned.

For SDXL, random weights in float32 take 20 to 40 seconds and 10 GB. Imports torch and safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...weights.safetensors import TensorFile


def on_meta(create: Callable[[], nn.Module], files: Iterable[TensorFile], dtype: torch.dtype) -> nn.Module | None:
    """Return the network that `create` returns, with the weights of the files in a type.

    Returns:
        The network; None if the files have other names or shapes, or if it has buffers that no file contains. Its own
        library then loads it, or explains what is wrong.
    """
    from safetensors import safe_open

    with torch.device("meta"):
        network = create()
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state: dict[str, Tensor] = {}
    for file in files:
        if any(file.shape(name) != expected.get(name) for name in file):
            return None
        with safe_open(file.path, framework="pt") as opened:
            for name in file:
                tensor = opened.get_tensor(name)
                state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    if state.keys() != expected.keys():
        return None
    network.load_state_dict(state, strict=True, assign=True)
    return None if any(tensor.is_meta for tensor in network.buffers()) else network
