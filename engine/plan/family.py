"""Model families as data: the components of a family, how text conditions it, and the sizes that it serves.

`family_of` reads the configs of a model in the diffusers layout. `networks` computes the tensors of each network. No
code here runs a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError, SourceError
from ..system.memory import Load
from . import networks
from .config_fields import checked
from .networks import Component, Config, controlnets_of, folder_of
from .plan import Prompting
from .profile import Profile, Range

__all__ = ["TEXT_ENCODERS", "Component", "Family", "autoencoder_of", "family_of", "folder_of"]

# Pipeline class in model_index.json -> text encoder -> the folder of its tokenizer.
TEXT_ENCODERS: Mapping[str, Mapping[str, str]] = {
    "StableDiffusionPipeline": {"text_encoder": "tokenizer"},
    "StableDiffusionInpaintPipeline": {"text_encoder": "tokenizer"},
    "StableDiffusionXLPipeline": {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
    "StableDiffusionXLInpaintPipeline": {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
    "StableDiffusionXLImg2ImgPipeline": {"text_encoder_2": "tokenizer_2"},  # the refiner
    "LatentConsistencyModelPipeline": {"text_encoder": "tokenizer"},
    "DDPMPipeline": {},  # pixels from noise, without text and without an autoencoder
    "DDIMPipeline": {},
    "LDMPipeline": {},  # latents from noise, without text
}


def autoencoder_of(kind: str) -> str | None:
    """Return the folder of the autoencoder for a pipeline class; None for a model that denoises pixels."""
    return "vae" if TEXT_ENCODERS[kind] else {"LDMPipeline": "vqvae"}.get(kind)


# Inputs of U-Nets that Calotype does not support: class labels, image embeddings.
_UNSUPPORTED = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


@dataclass(frozen=True, kw_only=True)
class Family:
    """The description of a model, computed from its configs."""

    name: str  # sd1, sd2, sdxl; pixels or latents for a model without text
    components: Mapping[str, Component]
    profile: Profile
    prompting: Prompting
    scaling_factor: float
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    loads: tuple[Load, ...]

    @property
    def inpaints(self) -> bool:
        """Tell whether the U-Net is an inpainting model: it also takes a mask and the latents of the masked image."""
        decoder = self.components.get("vae_decoder")
        return decoder is not None and decoder.inputs[0].dims != self.components["unet"].inputs[0].dims


def family_of(configs: Mapping[str, Config]) -> Family:
    """Return the family of a Stable Diffusion 1.x, 2.x or XL model, or of a model without text.

    Args:
        configs: the content of each config, by folder; "model_index" is the pipeline's.

    Raises:
        SourceError: a config lacks a field that the tensors depend on, or has an invalid value.
    """
    kind = configs["model_index"]["_class_name"]
    folders = {"vae": autoencoder_of(kind) or "vae"}
    configs = {name: checked(name, folders.get(name, name), config) for name, config in configs.items()}
    try:
        encoders = TEXT_ENCODERS[kind]
        if not encoders:
            return _without_text(configs)
        texts = [networks.text_encoder(name, configs[name]) for name in encoders]
        unet = networks.unet(configs)
        controls = [_control(name, configs) for name in controlnets_of(configs)]
        components = (*texts, unet, *networks.vae(configs["vae"]), *controls)
        _check_consistency(configs, texts)
        for control in controls:
            _check_control(control, unet, configs["vae"])
        mean, std = _latents_scale(configs["vae"])
        return Family(
            name=_name(configs),
            components={c.name: c for c in components},
            profile=_profile(configs),
            prompting=_prompting(configs, texts),
            scaling_factor=_scaling_factor(configs),
            latents_mean=mean,
            latents_std=std,
            loads=_loads(configs),
        )
    except (LookupError, TypeError, ValueError, OverflowError, ArithmeticError, AttributeError, InputError) as error:
        raise SourceError(
            f"the model's configs do not match each other ({error}). Use configs of one Stable Diffusion model."
        ) from None


def _name(configs: Mapping[str, Config]) -> str:
    if "text_encoder_2" in configs:
        return "sdxl"
    # The OpenCLIP text encoder of Stable Diffusion 2 uses plain GELU, the one of OpenAI uses quick GELU.
    return "sd2" if configs["text_encoder"].get("hidden_act", "quick_gelu") == "gelu" else "sd1"


def _check_consistency(configs: Mapping[str, Config], texts: list[Component]) -> None:
    """Check that the networks belong together and that Calotype supports all inputs of the U-Net."""
    unet, vae = configs["unet"], configs["vae"]
    for name in _UNSUPPORTED:
        if unet.get(name) is not None:
            raise SourceError(f"unet/config.json sets {name}, an input that Calotype does not support.")
    if bool(unet.get("addition_embed_type")) != ("text_encoder_2" in configs):
        raise SourceError(
            f"unet/config.json: addition_embed_type is {unet.get('addition_embed_type')!r:.80}, but the model has "
            f"{' and '.join(c.name for c in texts)}; expected it to be set if and only if there is a text_encoder_2."
        )
    width, states = unet["cross_attention_dim"], sum(int(c.config["hidden_size"]) for c in texts)
    if width != states:
        names = " and ".join(f"{c.name}/config.json" for c in texts)
        raise SourceError(
            f"unet/config.json: cross_attention_dim is {width}; expected {states}, the hidden_size of {names}. "
            "Use the U-Net and the text encoder of the same model."
        )
    # An inpainting model takes the latents, the mask and the latents of the masked image.
    channels, latents = unet["in_channels"], vae["latent_channels"]
    if channels not in (latents, 2 * latents + 1):
        raise SourceError(
            f"unet/config.json: in_channels is {channels}; expected {latents} (latent_channels in vae/config.json), or "
            f"{2 * latents + 1} for an inpainting model. Use the U-Net and the autoencoder of the same model."
        )


def _control(name: str, configs: Mapping[str, Config]) -> Component:
    """Return the tensors of a ControlNet. Raises `SourceError` if it needs a text_encoder_2 that the model lacks."""
    if configs[name].get("addition_embed_type") and "text_encoder_2" not in configs:
        raise SourceError(_misfit(name, configs[name], configs["unet"]))
    return networks.controlnet(name, configs)


def _misfit(name: str, config: Config, unet: Config) -> str:
    return (
        f"{name} does not match this U-Net: got block_out_channels {config['block_out_channels']} and "
        f"cross_attention_dim {config['cross_attention_dim']}; expected {unet['block_out_channels']} and "
        f"{unet['cross_attention_dim']}. Use a ControlNet of the same model family."
    )


def _check_control(control: Component, unet: Component, vae: Config) -> None:
    """Check that the ControlNet has the inputs of the U-Net and outputs its residuals. Raises `SourceError`."""
    config = control.config
    if config.get("global_pool_conditions"):
        raise SourceError(f"{control.name} sets global_pool_conditions, which Calotype does not support.")
    shared = {b.name: b for b in unet.inputs}
    residuals = [b.dims for b in unet.inputs if "additional_residual" in b.name]
    same = [b.dims for b in control.outputs] == residuals and all(
        b == shared.get(b.name, b) for b in control.inputs if b.name != "sample"
    )
    same = same and config.get("in_channels", 4) == vae["latent_channels"]  # without the mask
    inputs = {b.name for b in control.inputs} - {"controlnet_cond", "conditioning_scale"}
    if not same or inputs != {n for n in shared if "additional_residual" not in n} - {"timestep_cond"}:
        raise SourceError(_misfit(control.name, config, unet.config))
    halvings = len(config.get("conditioning_embedding_out_channels", (16, 32, 96, 256))) - 1
    if config.get("conditioning_channels", 3) != 3 or halvings != len(networks.vae_widths(vae)) - 1:
        raise SourceError(f"{control.name} does not take RGB images of the output size.")


def _prompting(configs: Mapping[str, Config], texts: list[Component]) -> Prompting:
    if texts[-1].name == "text_encoder":
        return Prompting(states=(("text_encoder", "last_hidden_state"),), pooled=None, zero_negative=False)
    # SDXL was trained on the second to last hidden state, before the norm (Podell et al. 2023, arXiv 2307.01952).
    return Prompting(
        states=tuple((c.name, f"hidden_states.{c.config['num_hidden_layers'] - 1}") for c in texts),
        pooled=(texts[-1].name, "text_embeds"),
        zero_negative=bool(configs["model_index"].get("force_zeros_for_empty_prompt", True)),
    )


def _scaling_factor(configs: Mapping[str, Config]) -> float:
    """Return the scaling factor of the latents. Configs of the first Stable Diffusion do not have it."""
    return float(configs["vae"].get("scaling_factor", 1.0 if networks.is_tiny(configs["vae"]) else 0.18215))


def _latents_scale(vae: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each latent channel. Both are empty unless the config has both."""
    mean, std = (tuple(map(float, vae.get(name) or ())) for name in ("latents_mean", "latents_std"))
    if not mean or not std:
        return (), ()
    channels = vae["latent_channels"]
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise SourceError(
            f"vae/config.json: latents_mean has {len(mean)} numbers and latents_std {len(std)} (smallest: "
            f"{min(std)}); expected one for each of the {channels} latent_channels, and latents_std above 0."
        )
    return mean, std


def _profile(configs: Mapping[str, Config]) -> Profile:
    """Return every size that a traced component serves. Exports have dynamic sizes, so that memory is the limit."""
    unet, vae = configs["unet"], configs["vae"]
    factor = 2 ** (len(networks.vae_widths(vae)) - 1)
    side = _side(unet, factor, largest=2048)
    tokens = int(configs[next(n for n in configs if n.startswith("text_encoder"))]["max_position_embeddings"])
    batch = Range(min=1, opt=1, max=32)
    return Profile(batch=batch, height=side, width=side, multiple=side.min, factor=factor, tokens=tokens)


def _side(unet: Config, factor: int, largest: int) -> Range:
    """Return the range of heights and widths in pixels. Every level of a U-Net but the last halves its sample."""
    smallest, size = 2 ** (len(unet["block_out_channels"]) - 1), unet["sample_size"]
    if size < smallest:
        raise SourceError(
            f"unet/config.json: sample_size is {size}; expected at least {smallest}, which its "
            f"{len(unet['block_out_channels'])} levels (block_out_channels) halve to 1."
        )
    return Range(min=factor * smallest, opt=factor * size, max=max(largest, factor * size))


def _loads(configs: Mapping[str, Config]) -> tuple[Load, ...]:
    """Return the largest arrays of one image: attention scores of the U-Net and the decoder, and its pixels."""
    unet, loads = configs["unet"], _loads_of_vae(configs["vae"])
    factor = 2 ** (len(networks.vae_widths(configs["vae"])) - 1)
    heads = unet.get("num_attention_heads") or unet["attention_head_dim"]  # the second is misnamed in diffusers
    if heads is None:
        raise SourceError("unet/config.json: attention_head_dim is None; expected the number of attention heads.")
    for level, kind in enumerate(unet["down_block_types"]):
        if "CrossAttn" in kind:
            count = heads if isinstance(heads, int) else heads[level]
            loads.append(Load(pixels=factor * 2**level, width=count, squared=True, guided=True))
    return tuple(loads)


def _loads_of_vae(vae: Config) -> list[Load]:
    factor = 2 ** (len(networks.vae_widths(vae)) - 1)
    widest = max(networks.vae_widths(vae)[:2])  # the decoder's last upsampling has the second level's channels
    loads = [Load(pixels=1, width=widest, squared=False, guided=False)]
    if not networks.is_tiny(vae) and vae.get("mid_block_add_attention", True):
        loads.append(Load(pixels=factor, width=1, squared=True, guided=False))
    return loads


def _without_text(configs: Mapping[str, Config]) -> Family:
    """Return the family of a `UNet2DModel`: over pixels (Ho et al. 2020, arXiv 2006.11239), or over an autoencoder's
    latents (Rombach et al. 2021, arXiv 2112.10752). Raises `SourceError`."""
    config, vae = configs["unet"], configs.get("vae")
    for name in ("class_embed_type", "num_class_embeds"):
        if config.get(name) is not None:
            raise SourceError(f"unet/config.json sets {name}, an input that Calotype does not support.")
    channels = 3 if vae is None else networks.latent_channels(vae)
    if config["in_channels"] != channels or config["out_channels"] != channels:
        reason = "RGB without an autoencoder" if vae is None else "the channels of the autoencoder's latents"
        raise SourceError(
            f"unet/config.json: in_channels is {config['in_channels']} and out_channels {config['out_channels']}; "
            f"expected {channels} for both ({reason})."
        )
    autoencoder = () if vae is None else networks.vae(vae)
    factor = 1 if vae is None else 2 ** (len(networks.vae_widths(vae)) - 1)
    side = _side(config, factor, largest=1024 if vae is None else 2048)
    return Family(
        name="pixels" if vae is None else "latents",
        components={c.name: c for c in (networks.unconditional(config), *autoencoder)},
        profile=Profile(batch=Range(min=1, opt=1, max=32), height=side, width=side, multiple=side.min, factor=factor),
        prompting=Prompting(states=(), pooled=None, zero_negative=False),
        scaling_factor=1.0 if vae is None else _scaling_factor(configs),
        latents_mean=(),
        latents_std=(),
        loads=(*_loads_without_text(config, factor), *(() if vae is None else _loads_of_vae(vae))),
    )


def _loads_without_text(config: Config, factor: int) -> list[Load]:
    """Return the largest arrays of the U-Net: its hidden states at full size, and its attention scores."""
    loads = [Load(pixels=factor, width=config["block_out_channels"][0], squared=False, guided=True)]
    for level, (kind, width) in enumerate(zip(config["down_block_types"], config["block_out_channels"], strict=True)):
        if "Attn" in kind:
            heads = max(1, width // (config.get("attention_head_dim") or width))
            loads.append(Load(pixels=factor * 2**level, width=heads, squared=True, guided=True))
    return loads
