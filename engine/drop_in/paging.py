"""Eager weights in a memory-mapped file of the cache (`keep_eager=False`): the system reads what is used, and drops it.

The parameters stay the same objects with the same values. A write, as of a fused LoRA, changes private pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files.digest import digest_of
from .memory.checksums import checksums
from .memory.mapped_pages import mapped
from .weights import digest_of_weights

FILE = "weights.bin"
_ALIGNMENT = 64


def move_to_file(module: nn.Module, name: str) -> int:
    """Move the parameters of a module on the CPU into a mapped file, and return their bytes.

    Args:
        module: the module.
        name: its name, for listings of the cache.

    Raises:
        SourceError: the cache cannot be written.
    """
    floats = {n: p for n, p in module.named_parameters() if p.device.type == "cpu" and p.dtype.is_floating_point}
    tensors = {name: p for name, p in floats.items() if p.numel() and p.is_contiguous()}
    if not tensors:
        return 0
    # The store keeps an entry that this process uses.
    from calotype.export import keep_weights

    offsets, end = _layout(tensors)
    types = {each: str(tensor.dtype) for each, tensor in tensors.items()}
    digest = digest_of({"values": digest_of_weights(tensors), "types": types})
    folder = keep_weights("mapped", digest, name, lambda path: _write(path / FILE, tensors, offsets, end))
    sums = zip(tensors.items(), checksums(tensors.values()), strict=True)
    pages = mapped(folder / FILE, {(offsets[each], tensor.nbytes): value for (each, tensor), value in sums})
    for each, parameter in tensors.items():
        values = pages[offsets[each] : offsets[each] + parameter.nbytes]
        parameter.data = values.view(parameter.dtype).view(parameter.shape)
    return end


def _layout(tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], int]:
    """Return the offset of each tensor, and the size of the file."""
    offsets, end = {}, 0
    for name, tensor in sorted(tensors.items()):
        offsets[name] = end
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _write(path: Path, tensors: Mapping[str, Tensor], offsets: Mapping[str, int], end: int) -> None:
    with path.open("wb") as file:
        for name, offset in offsets.items():
            file.seek(offset)
            file.write(tensors[name].detach().reshape(-1).view(torch.uint8).numpy().data)
        file.truncate(end)
