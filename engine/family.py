"""A family is data: which components a line of models has, and the tensors that each takes and gives.

`family_of` reads a model's configs (diffusers layout) into tables of bindings. Names of tensors are the ones
that Optimum's ONNX Runtime pipelines use, so that an export of ours opens there. Nothing here runs anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from calotype.bindings import Binding
from calotype.errors import InputError, SourceError
from calotype.plan import Load
from calotype.profile import Profile, Range

Config = Mapping[str, Any]

# component -> the folder of its config and weights in a model of diffusers' layout
FOLDERS = {"text_encoder": "text_encoder", "unet": "unet", "vae_decoder": "vae", "vae_encoder": "vae"}


@dataclass(frozen=True, kw_only=True)
class Component:
    """One network: its tensors, and the config it was made from."""

    name: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    config: Config = field(repr=False)


def _text_encoder(config: Config) -> Component:
    width, layers, tokens = config["hidden_size"], config["num_hidden_layers"], config["max_position_embeddings"]
    state = ("batch", tokens, width)
    hidden = (Binding(name=f"hidden_states.{i}", dtype="float32", dims=state) for i in range(layers + 1))
    return Component(
        name="text_encoder",
        inputs=(Binding(name="input_ids", dtype="int64", dims=("batch", tokens)),),
        outputs=(
            Binding(name="last_hidden_state", dtype="float32", dims=state),
            Binding(name="pooler_output", dtype="float32", dims=("batch", width)),
            *hidden,
        ),
        config=config,
    )


def _unet(config: Config, tokens: int) -> Component:
    latents = ("latent_height", "latent_width")
    return Component(
        name="unet",
        inputs=(
            Binding(name="sample", dtype="float32", dims=("batch", config["in_channels"], *latents)),
            # One timestep a picture: slots of a batch may stand at different steps.
            Binding(name="timestep", dtype="float32", dims=("batch",)),
            Binding(
                name="encoder_hidden_states",
                dtype="float32",
                dims=("batch", tokens, config["cross_attention_dim"]),
            ),
        ),
        outputs=(Binding(name="out_sample", dtype="float32", dims=("batch", config["out_channels"], *latents)),),
        config=config,
    )


def _vae(config: Config) -> tuple[Component, Component]:
    pixels = ("batch", 3, "height", "width")
    channels, latents = config["latent_channels"], ("latent_height", "latent_width")
    decoder = Component(
        name="vae_decoder",
        inputs=(Binding(name="latent_sample", dtype="float32", dims=("batch", channels, *latents)),),
        outputs=(Binding(name="sample", dtype="float32", dims=pixels),),
        config=config,
    )
    encoder = Component(
        name="vae_encoder",
        inputs=(Binding(name="sample", dtype="float32", dims=pixels),),
        # Mean and log-variance of the posterior, one after the other.
        outputs=(Binding(name="latent_parameters", dtype="float32", dims=("batch", 2 * channels, *latents)),),
        config=config,
    )
    return decoder, encoder


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known of a model before it is opened."""

    components: Mapping[str, Component]
    profile: Profile
    scaling_factor: float
    loads: tuple[Load, ...]


def family_of(configs: Mapping[str, Config]) -> Family:
    """A Stable Diffusion 1.x model, from its configs by folder (text_encoder, unet, vae).

    Raises `SourceError` where a config lacks a field that its tensors depend on, or has nonsense in it.
    """
    try:
        text = _text_encoder(configs["text_encoder"])
        unet = _unet(configs["unet"], configs["text_encoder"]["max_position_embeddings"])
        components = (text, unet, *_vae(configs["vae"]))
        return Family(
            components={c.name: c for c in components},
            profile=_profile(configs),
            scaling_factor=_scaling_factor(configs),
            loads=_loads(configs),
        )
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError, InputError) as lacking:
        told = f"lack {lacking}" if isinstance(lacking, KeyError) else f"do not make sense ({lacking})"
        raise SourceError(f"the model's configs {told}; is it a Stable Diffusion 1.x model?") from None


def _scaling_factor(configs: Mapping[str, Config]) -> float:
    """Of the latents; configs of the first Stable Diffusion do not say it."""
    factor = float(configs["vae"].get("scaling_factor", 0.18215))
    if not 0 < factor < math.inf:
        raise ValueError(f"a scaling_factor of {factor}")
    return factor


def _profile(configs: Mapping[str, Config]) -> Profile:
    """Every size that a traced component serves: the exports are dynamic, and memory is the limit."""
    unet, vae = configs["unet"], configs["vae"]
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    multiple = factor * 2 ** (len(unet["block_out_channels"]) - 1)
    side = Range(
        low=multiple, usual=int(unet["sample_size"]) * factor, high=max(2048, int(unet["sample_size"]) * factor)
    )
    return Profile(batch=Range(low=1, usual=1, high=32), height=side, width=side, multiple=multiple, factor=factor)


def _loads(configs: Mapping[str, Config]) -> tuple[Load, ...]:
    """The largest arrays that a picture goes through: attention scores of the U-Net and the decoder, and its pixels."""
    unet, vae = configs["unet"], configs["vae"]
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    loads = [Load(pixels=1, width=vae["block_out_channels"][0], squared=False, guided=False)]
    if vae.get("mid_block_add_attention", True):
        loads.append(Load(pixels=factor, width=1, squared=True, guided=False))
    heads = unet.get("num_attention_heads") or unet["attention_head_dim"]  # the second is misnamed in diffusers
    for level, kind in enumerate(unet["down_block_types"]):
        if "CrossAttn" in kind:
            count = heads if isinstance(heads, int) else heads[level]
            loads.append(Load(pixels=factor * 2**level, width=count, squared=True, guided=True))
    return tuple(loads)
