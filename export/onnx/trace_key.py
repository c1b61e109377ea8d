"""What a trace depends on besides the weights: a component's tensors, and its config in one form.

The config of a folder, of an older folder, and of a module in memory describe the same network in different forms. The
forms are made equal without the libraries that define them, which take seconds to import: fields without an effect on
the network are left out, as are those with the library's default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from calotype.plan.family import Component

# CLIP's encoders depend on these fields, with transformers' defaults.
_CLIP: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads")),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "image_size", "patch_size")),
    **{"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "eos_token_id": 49407, "num_channels": 3},
}
# Of the sizes of images and latents, and of the numbers by which latents are scaled.
_WITHOUT_EFFECT: tuple[str, ...] = (
    "sample_size",
    "num_frames",
    "scaling_factor",
    "shift_factor",
    "latents_mean",
    "latents_std",
)
_WITHOUT_EFFECT += ("latent_magnitude", "latent_shift", "force_upcast")
# The defaults of diffusers' classes for fields that older files lack. A default of None needs no entry.
DEFAULTS: Mapping[str, Any] = {
    "act_fn": "silu",
    "add_attention": True,
    "addition_embed_type_num_heads": 64,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "controlnet_conditioning_channel_order": "rgb",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "global_pool_conditions": False,
    "lookup_from_codebook": False,
    "mid_block_add_attention": True,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "norm_type": "group",
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
    "upcast_attention": False,
    "upsample_fn": "nearest",
    "upsample_type": "conv",
    "use_linear_projection": False,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
OTHER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "AutoencoderTiny": {"act_fn": "relu"},
    "UNet2DModel": {"mid_block_type": "UNetMidBlock2D"},
}
_NUMBERED = re.compile(r"^(controlnet|ip_adapter|t2i_adapter)_\d+$")


def trace_key(component: Component) -> dict[str, Any]:
    """Return plain data of a component: equal for equal networks, wherever their configs come from."""
    data = component.to_json()
    name = _NUMBERED.sub(r"\1", component.name)  # a second ControlNet is a ControlNet
    return {**data, "name": name, "config": _config(component.config)}


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    if "_class_name" not in config and str(config.get("model_type", "")).startswith("clip"):
        return {name: config.get(name, default) for name, default in _CLIP.items()}
    kind = config.get("_class_name")
    defaults = {**DEFAULTS, **OTHER_DEFAULTS.get(str(kind), {})}
    kept = {name: value for name, value in config.items() if name[:1] != "_" and name not in _WITHOUT_EFFECT}
    fields = {name: value for name, value in kept.items() if value != defaults.get(name)}
    return {**fields, "_class_name": kind}
