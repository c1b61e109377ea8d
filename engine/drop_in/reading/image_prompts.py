"""Read the image prompts in a call of a U-Net with IP-Adapters (Ye et al. 2023, arXiv 2308.06721).

The projection of the images and their keys and values run in PyTorch, once an image, with the adapters' weights. The
U-Net's artifact takes them as inputs, so that it is that of `load` and depends on no adapter.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...plan import networks
from ...plan.image_prompts.layers import BIAS, SCALE, STATES, ImageLayer, image_layers, unsupported_reason
from .calls import Array, Reader, Unsupported

PROCESSORS = ("IPAdapterAttnProcessor", "IPAdapterAttnProcessor2_0")
_ABSENT = -1e4  # added to the scores of tokens that an adapter lacks

_kept: weakref.WeakKeyDictionary[nn.Module, tuple[Any, list[Array]]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Tokens that share a softmax: those of an adapter, or with masks those of one image."""

    states: Array  # [B, tokens, width of all layers]
    scales: Sequence[float]  # of each layer
    mask: Tensor | None  # [1, H, W]


def add_image_prompts(reader: Reader, unet: Any, embeds: Any, masks: Any) -> None:
    """Add keys and values, scales and masks of a call's image prompts to its inputs.

    Args:
        reader: receives the inputs. Its sample is there already.
        unet: the U-Net, with adapters.
        embeds: the embeddings of the images, a tensor for each adapter.  # [B, images, ...] each
        masks: the masks of the images, a tensor or None for each adapter; None for no masks.  # [1, images, H, W] each

    Raises:
        Unsupported: the adapters are not all of diffusers' usual kind, or their images do not fit them.
    """
    layers = _layers(unet)
    processors = [unet.get_submodule(layer.name).processor for layer in layers]
    if not isinstance(embeds, list) or any(not isinstance(each, Tensor) or each.ndim < 3 for each in embeds):
        raise Unsupported("image_embeds are no list of tensors [batch, images, ...]")
    masks = [None] * len(embeds) if masks is None else list(masks.unsqueeze(1) if isinstance(masks, Tensor) else masks)
    if any(len(each) != len(embeds) for each in (masks, *(processor.scale for processor in processors))):
        raise Unsupported(f"there are other numbers of scales or masks than of image_embeds, which are {len(embeds)}")
    groups: list[_Group] = []
    for i, states in enumerate(_states(unet, processors, embeds)):
        if len(states) != reader.rows:
            raise Unsupported(f"image_embeds have {len(states)} rows, expected {reader.rows}")
        groups += _groups(states, [processor.scale[i] for processor in processors], masks[i])
    tokens = max(group.states.shape[1] for group in groups)
    arrays = {
        STATES: np.stack([np.pad(g.states, ((0, 0), (0, tokens - g.states.shape[1]), (0, 0))) for g in groups], axis=1),
        BIAS: _for_rows([np.where(np.arange(tokens) < g.states.shape[1], 0, _ABSENT) for g in groups], reader.rows),
        SCALE: _for_rows([group.scales for group in groups], reader.rows),
    }
    height, width = reader.arrays["sample"].shape[2:]
    for binding in networks.image_prompt_inputs(unet.config):
        if binding.name not in arrays:
            level = binding.name.rpartition("_")[2]
            factor = int(level) if level.isdigit() else 1
            sides = height // factor, width // factor
            arrays[binding.name] = np.stack([_mask(group.mask, reader.rows, sides) for group in groups], axis=1)
        reader.inputs.append(binding)
        reader.arrays[binding.name] = np.ascontiguousarray(arrays[binding.name], np.float32)


def _groups(states: Array, scales: Sequence[Any], mask: Tensor | None) -> Iterator[_Group]:
    """Yield the groups of an adapter.  # states [B, images, tokens, width]; a scale is a number, or one an image"""
    count = states.shape[1]
    if mask is None:
        if not all(isinstance(scale, (int, float)) for scale in scales):
            raise Unsupported("an IP-Adapter has a scale for each image, and no masks")
        yield _Group(states=states.reshape(len(states), -1, states.shape[3]), scales=scales, mask=None)
        return
    each = [scale if isinstance(scale, (list, tuple)) else [scale] * count for scale in scales]
    if not isinstance(mask, Tensor) or mask.ndim != 4 or {mask.shape[1], *map(len, each)} != {count}:
        raise Unsupported(f"ip_adapter_masks are no tensors [1, {count}, height, width]")
    for i in range(count):
        yield _Group(states=states[:, i], scales=[of_layer[i] for of_layer in each], mask=mask[:, i])


def _for_rows(values: Sequence[Any], rows: int) -> Array:
    return np.repeat(np.array(values, np.float32)[None], rows, axis=0)


def _mask(mask: Tensor | None, rows: int, sides: tuple[int, int]) -> Array:
    """Return a mask in the size of a level, as diffusers scales it.  # [1, H, W] -> [B, h, w]"""
    if mask is None:
        return np.ones((rows, *sides), np.float32)
    from diffusers.image_processor import IPAdapterMaskProcessor

    scaled: Tensor = IPAdapterMaskProcessor.downsample(mask.detach().float().cpu(), rows, sides[0] * sides[1], 1)
    return scaled.reshape(rows, *sides).numpy()


def _layers(unet: Any) -> tuple[ImageLayer, ...]:
    if unsupported_reason(unet.config) is not None or getattr(unet, "text_encoder_hid_proj", None) is not None:
        raise Unsupported("its IP-Adapter is not of the usual kind")
    projections = unet.encoder_hid_proj.image_projection_layers
    if any(hasattr(each, "clip_embeds") for each in projections):
        raise Unsupported("its IP-Adapter is a FaceID Plus, which takes embeddings besides those of the call")
    layers = image_layers(unet.config)
    prompted = {name for name, each in unet.attn_processors.items() if type(each).__name__ in PROCESSORS}
    if prompted != {f"{layer.name}.processor" for layer in layers}:
        raise Unsupported("its IP-Adapters are not in every cross-attention")
    return layers


def _states(unet: Any, processors: Sequence[Any], embeds: Sequence[Tensor]) -> list[Array]:
    """Return the keys and values of each adapter for all layers: those of the last call if nothing changed.

    # [B, images, tokens, width of all layers] each
    """
    parameters = [p for part in (unet.encoder_hid_proj, *processors) for p in part.parameters()]
    counts = [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in (*embeds, *parameters)]
    kept = _kept.get(unet)
    if kept is not None and kept[0][0] == counts and all(ref() is e for ref, e in zip(kept[0][1], embeds, strict=True)):
        return kept[1]
    with torch.no_grad():
        projected = unet.encoder_hid_proj([each.to(unet.dtype) for each in embeds])
        states = [
            torch.cat([f(image) for p in processors for f in (p.to_k_ip[i], p.to_v_ip[i])], dim=-1)
            for i, image in enumerate(projected)
        ]
    arrays = [state.to("cpu", torch.float32).numpy() for state in states]
    _kept[unet] = (counts, [weakref.ref(each) for each in embeds]), arrays
    return arrays
