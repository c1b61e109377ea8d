"""Counted floating point operations of a component: what utilisation is computed from.

Two for each multiply-add of a convolution, a matrix product or an attention (both its products), of the network as its
config says, whatever a backend makes of it: one that saves some of them is faster, and so is its utilisation. Norms,
activations, softmax, biases and resizing are not counted, which is the custom: together they are well under 1 %.

The network runs once on the meta device, which has shapes and no numbers: no weights are read, no memory is taken.
`torch.utils.flop_counter` counts what it is asked for. It knows no kernel that fuses an attention on the CPU and would
count nothing there, so attention is made of its two products here, which it counts as such on every device.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from calotype.backends.torch.modules import ControlNet, ProjectedTextEncoder, TextEncoder, UNet, VaeDecoder, VaeEncoder
from calotype.errors import InputError
from calotype.export.sources.source import Source, read_source
from calotype.plan.family import family_of

_MADE_OF: Mapping[str, tuple[str, type[nn.Module]]] = {
    "text_encoder": ("CLIPTextModel", TextEncoder),
    "text_encoder_2": ("CLIPTextModelWithProjection", ProjectedTextEncoder),
    "unet": ("UNet2DConditionModel", UNet),
    "controlnet": ("ControlNetModel", ControlNet),
    "vae_decoder": ("AutoencoderKL", VaeDecoder),
    "vae_encoder": ("AutoencoderKL", VaeEncoder),
}


def component_flops(source: Source | str | Path, name: str, *, batch: int, height: int, width: int) -> int:
    """Of one call, for pictures of that size in pixels.

    `batch` is what the network sees: guidance doubles the U-Net's and the ControlNets', and the caller knows of it. The
    source says which components there are: with a ControlNet the U-Net takes its states, which costs additions alone.
    """
    source = source if isinstance(source, Source) else read_source(source)
    family = family_of(source.configs)
    if name not in family.components:
        raise InputError(f"{source.model} has no component {name!r}; it has {', '.join(family.components)}.")
    component = family.components[name]
    sizes = family.profile.sizes(batch=batch, height=height, width=width)
    with torch.device("meta"):
        inputs = {b.name: torch.zeros(b.shape(sizes), dtype=getattr(torch, b.dtype)) for b in component.inputs}
    return count(module_of(name, component.config), **inputs)


def count(module: nn.Module, **inputs: torch.Tensor) -> int:
    """Operations of one call of `module`, which lies on the meta device as its inputs do."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(**inputs)
    return int(counter.get_total_flops())


def module_of(name: str, config: Mapping[str, Any]) -> nn.Module:
    """The component on the meta device, otherwise as `calotype.backends.torch.modules.load_module` makes it."""
    import diffusers
    import transformers

    class_name, wrapper = _MADE_OF["controlnet" if name.startswith("controlnet") else name]
    with torch.device("meta"):
        if name.startswith("text_encoder"):
            model = getattr(transformers, class_name)(transformers.CLIPTextConfig(**config))
        else:
            kind = config.get("_class_name") if name.startswith("vae") else None  # TAESD's is another class
            model = getattr(diffusers, str(kind or class_name)).from_config(dict(config))
        return wrapper(model).eval()
