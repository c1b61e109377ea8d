"""Attention to image prompts (IP-Adapter: Ye et al. 2023, arXiv 2308.06721), in two networks.

An adapter makes the keys and values of an image for every cross-attention of the U-Net, once an image. The U-Net takes
them as inputs, so that it does not depend on the adapters: each cross-attention adds to its attention to the text that
to each group of image tokens, times a scale and a mask. Imports torch and diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from diffusers.models import embeddings
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from ...errors import SourceError, first_line
from ...files.json_file import read_json
from ...plan.image_prompts.layers import BIAS, SCALE, STATES, ImageLayer, image_layers, mask_name, unsupported_reason

WEIGHTS = "diffusion_pytorch_model.safetensors"
_FURTHER = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj", "add_q_proj")
_CURRENT: ContextVar[Mapping[str, Tensor] | None] = ContextVar("image_prompts", default=None)


@contextmanager
def image_prompts(inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Attend to the image prompts in the inputs of a U-Net inside the block, if there are any."""
    token = _CURRENT.set(inputs if STATES in inputs else None)
    try:
        yield
    finally:
        _CURRENT.reset(token)


class ImageAttention(AttnProcessor2_0):  # type: ignore[misc]  # diffusers is untyped
    """The processor of one cross-attention: the usual one without image prompts."""

    def __init__(self, layers: Sequence[ImageLayer], number: int) -> None:
        super().__init__()
        self._number, self._width = number, layers[number].width
        self._start = 2 * sum(layer.width for layer in layers[:number])
        self._mask = mask_name(layers[number].level)

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **more: Any
    ) -> Tensor:
        """Attend to text, and to images.  # [B, P, C], [B, T, W] -> [B, P, C]"""
        if _CURRENT.get() is None:
            plain: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, **more)
            return plain
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        parts: tuple[Tensor, ...] = (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        q, k, v = (p.view(*p.shape[:2], attn.heads, -1).transpose(1, 2) for p in parts)  # [B, heads, P, D]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v) + self.attend_images(q)
        out: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out

    def attend_images(self, q: Tensor) -> Tensor | float:
        """Return the attention to the current image prompts; 0 without any.  # [B, heads, P, D] -> the same

        One product with the tokens of all groups (G groups of T tokens), a softmax in each group, and one product with
        the values that the scales and masks weigh.
        """
        inputs = _CURRENT.get()
        if inputs is None:
            return 0.0
        heads, groups, tokens = q.shape[1], *inputs[BIAS].shape[1:]
        states = inputs[STATES][..., self._start : self._start + 2 * self._width]
        k, v = states.reshape(q.shape[0], -1, 2, heads, q.shape[-1]).unbind(2)  # [B, G * T, heads, D]
        scores = (q * q.shape[-1] ** -0.5) @ k.permute(0, 2, 3, 1)
        scores = scores.view(*q.shape[:3], groups, tokens) + inputs[BIAS][:, None, None]  # [B, heads, P, G, T]
        weights = inputs[self._mask].flatten(2) * inputs[SCALE][:, :, self._number, None]  # [B, G, P]
        shares = scores.softmax(-1) * weights.transpose(1, 2)[:, None, :, :, None]
        mixed: Tensor = shares.flatten(3) @ v.transpose(1, 2)
        return mixed


def take_image_prompts(unet: Any) -> None:
    """Prepare the cross-attentions of a U-Net for image prompts, if its kind can take them."""
    if unsupported_reason(unet.config) is not None:
        return
    layers = image_layers(unet.config)
    modules = dict(unet.named_modules())
    for number, layer in enumerate(layers):
        attention = modules[layer.name]
        if is_plain(attention):
            attention.processor = ImageAttention(layers, number)


def is_plain(attention: Any) -> bool:
    """Return whether an attention has projections only, which diffusers' usual processor computes."""
    plain = type(getattr(attention, "processor", None)) is AttnProcessor2_0
    plain = plain and all(getattr(attention, name, None) is None for name in _FURTHER)
    return plain and not attention.residual_connection and attention.rescale_output_factor == 1


class IpAdapter(nn.Module):
    """An adapter's network: the projection of an image to tokens, and their keys and values for each attention."""

    def __init__(self, projection: nn.Module, widths: Sequence[int], text: int) -> None:
        super().__init__()
        self.projection = projection
        self.keys = nn.ModuleList([nn.Linear(text, width, bias=False) for width in widths])
        self.values = nn.ModuleList([nn.Linear(text, width, bias=False) for width in widths])

    def forward(self, image_embeds: Tensor) -> tuple[Tensor]:
        """# [B, P] or [B, positions, W] -> [B, tokens, keys and values of all layers]"""
        tokens = self.projection(image_embeds)
        parts = [layer(tokens) for pair in zip(self.keys, self.values, strict=True) for layer in pair]
        return (torch.cat(parts, dim=-1),)


def ip_adapter_of(config: Mapping[str, Any]) -> IpAdapter:
    """Return the network of a config, with random weights."""
    projection = getattr(embeddings, config["projection"]["class"])(**config["projection"]["arguments"])
    return IpAdapter(projection, config["widths"], config["cross_attention_dim"])


def load_ip_adapter(folder: Path) -> nn.Module:
    """Load an adapter in float32 from the folder that `calotype.export.sources.ip_adapter` wrote."""
    from safetensors.torch import load_file

    try:
        network = ip_adapter_of(read_json(folder / "config.json", "an IP-Adapter's config"))
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()})
    except SourceError:
        raise
    except Exception as broken:  # each library raises its own types
        raise SourceError(f"the weights in {folder} cannot be read: {first_line(broken)}", path=folder) from broken
    return network.eval().requires_grad_(False)
