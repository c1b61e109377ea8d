"""The weights of a module: whether they changed, their digest, and their values with all adapters of peft.

Counters of PyTorch's tensors show most changes, but not writes through `.data`, as peft's own when it fuses a LoRA. So
checksums of all weights are compared whenever an image may begin, and only counters between two steps of it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..weights.content import content_digest
from ..weights.delta import WeightDelta, WeightDeltas
from .memory.checksums import checksum, checksums
from .reading.calls import Unsupported
from .structure import Structure

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplacedTerm:
    """Replaces a weight by that of a layer with its adapters, computed when it is applied."""

    layer: nn.Module
    adapted: Any | None
    scale: float

    def apply(self, weight: Floats, original: Floats) -> Floats:
        """Return the new value of the weight."""
        return effective(self.layer, self.adapted, self.scale)

    def largest(self) -> float:
        """Return the largest magnitude of the weight."""
        return float(np.abs(effective(self.layer, self.adapted, self.scale)).max())

    def bound(self) -> float:
        """Return the largest magnitude of the weight."""
        return self.largest()


@dataclass(frozen=True, kw_only=True)
class State:
    """The values of all weights at a time: equal states have equal weights.

    Attributes:
        sums: name -> a checksum, for the weights of the layers.
        adapters: name -> the adapters of the layer that change it, with their checksums and scales.
        scale: the factor of all LoRAs.
    """

    sums: Mapping[str, int]
    adapters: Mapping[str, str]
    scale: float
    key: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", hash((*self.sums.items(), *self.adapters.items(), self.scale)))


def state_of(structure: Structure, scale: float) -> State:
    """Read all weights, and return their state."""
    adapters = {name: text for name, layer in structure.adapted.items() if (text := _adapters_of(name, layer))}
    tensors = dict(structure.tensors())
    return State(
        sums=dict(zip(tensors, checksums(tensors.values()), strict=True)),
        adapters=adapters,
        scale=scale if adapters else 1.0,
    )


def counters(structure: Structure) -> list[Any]:
    """Return numbers that change with most writes: cheap enough for every call."""
    numbers: list[Any] = []
    for module in structure.modules:
        own = module.__dict__
        numbers += map(id, own["_modules"].values())
        numbers += (len(own["_forward_hooks"]), len(own["_forward_pre_hooks"]), id(own.get("processor")))
        for tensor in own["_parameters"].values():
            if tensor is not None:
                numbers += (id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
    for layer in structure.adapted.values():
        numbers += (layer._disable_adapters, str(layer._active_adapter), *layer.merged_adapters)
        numbers += dict(getattr(layer, "scaling", {})).items()
    return numbers


def _adapters_of(name: str, layer: Any) -> str:
    """Describe the adapters of a layer that change its outputs; "" if none does."""
    merged = list(layer.merged_adapters)
    if layer.disable_adapters:
        if merged:
            raise Unsupported(f"the adapters of {name} are disabled and merged")
        return ""
    if merged:
        return ""
    active = [each for each in layer.active_adapters if _has(layer, each)]
    if not active:
        return ""
    base = {id(parameter) for parameter in layer.get_base_layer().parameters()}
    sums = [checksum(p) for p in layer.parameters() if id(p) not in base]
    scaling = {each: getattr(layer, "scaling", {}).get(each) for each in active}
    return f"{type(layer).__module__}.{type(layer).__name__} {scaling} {sums}"


def _has(layer: Any, adapter: str) -> bool:
    return any(adapter in getattr(layer, name) for name in layer.adapter_layer_names if hasattr(layer, name))


def effective(layer: nn.Module, adapted: Any | None, scale: float) -> Floats:
    """Return the weight of a layer with its active adapters.  # [out, in, ...], float32"""
    weight = layer.weight
    if adapted is not None and _adapters_of("a layer", adapted):
        merged = copy.deepcopy(adapted)
        if scale != 1 and hasattr(merged, "scale_layer"):
            merged.scale_layer(scale)
        with torch.no_grad():
            merged.merge()
        base, bias = merged.get_base_layer(), getattr(layer, "bias", None)
        if isinstance(bias, Tensor) and not torch.equal(bias, base.bias):
            raise Unsupported("a LoRA changes a bias")
        weight = base.weight
    assert isinstance(weight, Tensor)
    return np.ascontiguousarray(weight.detach().to("cpu", torch.float32).numpy())


def deltas_between(
    structure: Structure, traced: Mapping[str, int], now: State, shapes: Mapping[str, tuple[int, ...]], prefix: str
) -> WeightDeltas | None:
    """Return the updates from the weights of an artifact to those of now, or None if it needs another artifact.

    Args:
        structure: of the module now.
        traced: the checksums of the weights in the artifact.
        now: the state of the module.
        shapes: the weights that the artifact can change, by the name of the layer.
        prefix: of the names of the module's layers in the artifact.

    Raises:
        Unsupported: an adapter changes what an artifact cannot change.
    """
    changed = {name for name, value in now.sums.items() if traced.get(name) != value}
    if not all(name.endswith(".weight") and _plain(prefix, name[:-7]) in shapes for name in changed):
        return None
    layers = {name[:-7] for name in changed} | set(now.adapters)
    patches: dict[str, WeightDelta] = {}
    digest = hashlib.sha256()  # of the values: caches on the disk know changed networks by it
    for name in sorted(layers):
        layer, adapted = structure.layers[name], structure.adapted.get(name)
        artifact_name = _plain(prefix, name)
        if shapes.get(artifact_name) != tuple(getattr(layer, "weight", torch.empty(0)).shape):
            raise Unsupported(f"the adapters of {name} ({type(layer).__name__}) cannot become weights")
        try:
            digest.update(artifact_name.encode() + effective(layer, adapted, now.scale).tobytes())
        except (NotImplementedError, ValueError, RuntimeError, TypeError, AttributeError, KeyError) as failed:
            raise Unsupported(f"the adapters of {name} cannot be merged: {failed!s:.80}") from failed
        term = ReplacedTerm(layer=layer, adapted=adapted, scale=now.scale)
        patches[f"{artifact_name}.weight"] = WeightDelta(terms=(term,))
    if not patches:
        return WeightDeltas()
    return WeightDeltas(patches=patches, key=digest.hexdigest())


def _plain(prefix: str, name: str) -> str:
    """Return a layer's name as `calotype.weights.onnx.plain` leaves it."""
    return (prefix + name).removeprefix("model.").removeprefix("text_model.")


def digest_of_weights(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of the names and the values of weights that `load` has for a file with them."""
    floats = {name: tensor.detach() for name, tensor in tensors.items() if tensor.dtype.is_floating_point}
    return content_digest(floats, lambda name: floats[name].to("cpu", torch.float32).numpy())


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in float32 as safetensors."""
    from safetensors.torch import save_file

    floats = {
        name: (t.to("cpu", torch.float32) if t.dtype.is_floating_point else t.cpu()).contiguous()
        for name, t in _detached(tensors)
    }
    seen: set[int] = set()
    for name, tensor in floats.items():  # safetensors refuses tensors that share memory
        if tensor.untyped_storage().data_ptr() in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            floats[name] = tensor.clone()
        seen.add(floats[name].untyped_storage().data_ptr())
    save_file(floats, path, metadata={"format": "pt"})


def _detached(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor.detach()) for name, tensor in tensors.items())
