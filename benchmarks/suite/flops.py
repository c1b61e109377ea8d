"""Number of floating point operations of a component, for the utilization.

Each multiply-add of a convolution, a matrix product or an attention (both its products) counts as two operations. The
network's config decides, whatever a backend does with it: a backend that saves operations is faster, and so is its
utilization. Norms, activations, softmax, biases and resizing do not count, as is usual: together they are well under 1
%.

The network runs once on the meta device, which has shapes and no numbers, so this reads no weights and takes no memory.
`torch.utils.flop_counter` counts the calls. It does not know the fused attention kernel of the CPU, so attention runs
as its two products here, which it counts on every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from calotype.backends.torch.controls import ControlNet
from calotype.backends.torch.modules import ProjectedTextEncoder, TextEncoder, UNet, VaeDecoder, VaeEncoder
from calotype.errors import InputError
from calotype.export.sources.source import Source, read_source
from calotype.plan.family import family_of

from .models import network

_CLASSES: Mapping[str, tuple[str, type[nn.Module]]] = {
    "text_encoder": ("CLIPTextModel", TextEncoder),
    "text_encoder_2": ("CLIPTextModelWithProjection", ProjectedTextEncoder),
    "unet": ("UNet2DConditionModel", UNet),
    "controlnet": ("ControlNetModel", ControlNet),
    "vae_decoder": ("AutoencoderKL", VaeDecoder),
    "vae_encoder": ("AutoencoderKL", VaeEncoder),
}


def component_flops(
    source: Source | str | Path, name: str, *, batch: int, height: int, width: int, chunks: int = 1
) -> int:
    """Return the operations of one call for images of this size in pixels, and a prompt of `chunks` times 77 tokens.

    `batch` is the network's own batch: the caller doubles it for guidance. The source decides which components exist.
    With a ControlNet, the U-Net takes its states, which costs only additions.
    """
    source = source if isinstance(source, Source) else read_source(source)
    family = family_of(source.configs)
    if name not in family.components:
        message = f"{source.model} has no component {name!r}; it has {', '.join(family.components)}."
        raise InputError(message, argument="name", got=name)
    component = family.components[name]
    sizes = family.profile.sizes(batch=batch, height=height, width=width, chunks=chunks)
    with torch.device("meta"):
        inputs = {b.name: torch.zeros(b.shape(sizes), dtype=getattr(torch, b.dtype)) for b in component.inputs}
    return count(module_of(name, component.config), **inputs)


def count(module: nn.Module, **inputs: torch.Tensor) -> int:
    """Return the operations of one call of `module`. The module and its inputs are on the meta device."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(**inputs)
    return int(counter.get_total_flops())


def module_of(name: str, config: Mapping[str, Any]) -> nn.Module:
    """Return the component on the meta device, as `calotype.backends.torch.modules.load_module` builds it."""
    class_name, wrapper = _CLASSES["controlnet" if name.startswith("controlnet") else name]
    if name.startswith("vae"):
        class_name = config.get("_class_name") or class_name  # TAESD has another class
    with torch.device("meta"):
        return wrapper(network(class_name, config)).eval()
