"""Compare a module with a fresh one of its class and config: an artifact stands only for what the config describes.

Hooks, attention processors, replaced methods and changed attributes (`padding_mode`, FreeU's factors) would be lost in
an artifact. `inspect_module` returns the layers and adapters of a module, or raises `Unsupported` with the reason.
"""

from __future__ import annotations

import functools
import json
import sys
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .reading.calls import Unsupported
from .reading.image_prompts import PROCESSORS

_PROCESSORS = (*PROCESSORS, "AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")
_IP_ADAPTERS = (*PROCESSORS, "MultiIPAdapterImageProjection")
# Attributes without an effect on the numbers.
_HARMLESS = frozenset(
    (
        "training",
        "gradient_checkpointing",
        "name_or_path",
        "use_slicing",
        "use_tiling",
        "sliceable_head_dim",
        "use_memory_efficient_attention_xformers",
        "is_gradient_checkpointing",
        "main_input_name",
        "vocab_size",
        "lora_scale",
    )
)
_FREEU = {"s1", "s2", "b1", "b2"}
_SCALARS = (bool, int, float, str, type(None))
_OWN_HOOKS = "transformers."  # collects hidden states by hooks of its own


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The layers of a module by their names in a fresh one.

    Attributes:
        root: the module itself, which this does not keep alive.
        layers: name -> the layer with its weights; of an adapted layer the original. Without the module itself.
        adapted: name -> peft's layer around it.
        inner: all modules in it, those of adapters too.
        random: the class of a module that draws random numbers in training mode, or "".
    """

    root: weakref.ref[nn.Module]
    layers: dict[str, nn.Module]
    adapted: dict[str, Any]
    inner: tuple[nn.Module, ...]
    random: str

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All modules, the module itself first."""
        root = self.root()
        return self.inner if root is None else (root, *self.inner)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights of the layers, and the buffers that belong to them, by their names in a fresh module."""
        root = self.root()
        for name, layer in (*((("", root),) if root is not None else ()), *self.layers.items()):
            dot = f"{name}." if name else ""
            buffers = {n: b for n, b in layer._buffers.items() if n not in layer._non_persistent_buffers_set}
            for own, tensor in (*layer._parameters.items(), *buffers.items()):
                if tensor is not None:
                    yield dot + own, tensor


def random_in_training(modules: Iterable[nn.Module]) -> str:
    """Return the class of a module whose outputs differ in training mode; "" if there is none."""
    for module in modules:
        rates = (module.__dict__.get(name) for name in ("p", "dropout", "attention_dropout"))
        if any(isinstance(rate, float) and rate > 0 for rate in rates) or "BatchNorm" in type(module).__name__:
            return type(module).__name__
    return ""


def inspect_module(owner: Any, part: str) -> Structure:
    """Return the structure of a module or of a part of it. Raises `Unsupported` if an artifact cannot stand for it."""
    root = getattr(owner, part) if part else owner
    expected = _template(owner, part)
    layers: dict[str, nn.Module] = {}
    adapted: dict[str, Any] = {}
    for name, module, layer in _walk(root):
        if layer is not module:
            adapted[name] = module
        _check_module(name, layer, expected.get(name), is_root=not name)
        layers[name] = layer
    if missing := expected.keys() - layers.keys():
        raise Unsupported(f"{min(missing)} is missing")
    del layers[""]
    modules = tuple(root.modules())
    structure = Structure(
        root=weakref.ref(root), layers=layers, adapted=adapted, inner=modules[1:], random=random_in_training(modules)
    )
    for name, tensor in structure.tensors():
        if tensor.is_meta:
            raise Unsupported(f"{name} has no values here (an offload)")
        if not tensor.dtype.is_floating_point and not name.endswith(("position_ids", "num_batches_tracked")):
            raise Unsupported(f"{name} is {tensor.dtype}, which is not a float type")
    return structure


def _walk(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield name, module and layer, which differ where peft has put a layer of adapters around the original."""
    layer = module
    if type(module).__name__ in _IP_ADAPTERS:  # its weights make inputs of the artifact
        return
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    while tuners is not None and isinstance(layer, tuners.BaseTunerLayer):
        layer = layer.get_base_layer()
    yield name, module, layer
    for child, sub in layer._modules.items():
        if sub is not None:
            yield from _walk(sub, f"{name}.{child}" if name else child)


def _check_module(name: str, layer: nn.Module, expected: nn.Module | None, *, is_root: bool) -> None:
    title = name or type(layer).__name__
    processor = getattr(layer, "processor", None)
    if processor is not None and type(processor).__name__ not in _PROCESSORS:
        raise Unsupported(f"it has the attention processor {type(processor).__name__}")
    if expected is None:
        raise Unsupported(f"{title} ({type(layer).__name__}) was added")
    if type(layer) is not type(expected):
        raise Unsupported(f"{title} is a {type(layer).__name__}, expected {type(expected).__name__}")
    if not is_root and "forward" in layer.__dict__:
        raise Unsupported(f"the method forward of {title} was replaced")
    if not is_root and (hook := _hook_of(layer)):
        raise Unsupported(f"{title} has a hook ({hook})")
    if hasattr(layer, "parametrizations"):
        raise Unsupported(f"{title} is parametrized")
    ours, theirs = _scalars(layer), _scalars(expected)
    if ours.keys() & _FREEU:
        raise Unsupported("FreeU is enabled")
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise Unsupported(f"{key} of {title} is {ours.get(key)!r:.40}, expected {theirs.get(key)!r:.40}")
    for key, tensor in expected._parameters.items():
        own = layer._parameters.get(key)
        if (own is None) != (tensor is None) or (own is not None and tensor is not None and own.shape != tensor.shape):
            raise Unsupported(f"{key} of {title} has another shape than in the config")


def _hook_of(module: nn.Module) -> str | None:
    """Return the name of a hook of the user's or of another library, or None."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for hook in hooks.values():
            where = str(getattr(hook, "__module__", ""))
            if not where.startswith(_OWN_HOOKS):
                return str(getattr(hook, "__qualname__", type(hook).__name__))
    return None


def _scalars(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in module.__dict__.items()
        if value is not None and name[0] != "_" and name not in _HARMLESS and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(isinstance(each, _SCALARS) for each in value)
    return isinstance(value, _SCALARS)


@dataclass(frozen=True)
class _Class:
    """A class of modules, which types like `_fresh`'s cache take."""

    kind: Any


def _template(owner: Any, part: str) -> dict[str, nn.Module]:
    """Return the modules of a fresh one of the same class and config, without memory for weights."""
    config = owner.config
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    text = json.dumps({k: v for k, v in plain.items() if k != "_name_or_path"}, sort_keys=True, default=str)
    try:
        fresh = _fresh(_Class(type(owner)), text)
    except Exception as failed:  # a class may raise anything for a config
        raise Unsupported(f"its config does not build a {type(owner).__name__}: {failed!s:.100}") from None
    return dict((getattr(fresh, part) if part else fresh).named_modules())


@functools.lru_cache(maxsize=16)
def _fresh(of: _Class, config: str) -> Any:
    fields, kind = json.loads(config), of.kind
    with torch.device("meta"):
        return kind.from_config(fields) if hasattr(kind, "from_config") else kind(kind.config_class(**fields))
