"""A family is data: which components a line of models has, how text steers it, and the sizes that it serves.

`family_of` reads a model's configs (diffusers layout) into tables; those of each network's tensors are `networks`'.
Nothing here runs anything.
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

# The classes that a model_index.json may name -> the text encoders of such a model -> the folder of its tokenizer.
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
    """The folder of the autoencoder of such a model; None where pixels themselves are denoised."""
    return "vae" if TEXT_ENCODERS[kind] else {"LDMPipeline": "vqvae"}.get(kind)


# Inputs of U-Nets that no pipeline here feeds: classes, pictures.
_UNFED = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known of a model before it is opened."""

    name: str  # sd1, sd2, sdxl; without text pixels or latents
    components: Mapping[str, Component]
    profile: Profile
    prompting: Prompting
    scaling_factor: float
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    loads: tuple[Load, ...]

    @property
    def inpaints(self) -> bool:
        """Does the U-Net take a mask and the masked picture's latents beside the latents that it cleans?"""
        coded = self.components.get("vae_decoder")
        return coded is not None and coded.inputs[0].dims != self.components["unet"].inputs[0].dims


def family_of(configs: Mapping[str, Config]) -> Family:
    """A model without text, or a Stable Diffusion 1.x, 2.x or XL model: from its configs by folder.

    Raises `SourceError` where a config lacks a field that its tensors depend on, or has nonsense in it.
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
        _check_fit(configs, texts)
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
    except (LookupError, TypeError, ValueError, OverflowError, ArithmeticError, AttributeError, InputError) as odd:
        raise SourceError(
            f"the model's configs do not fit together ({odd}); take them all from the same Stable Diffusion model."
        ) from None


def _name(configs: Mapping[str, Config]) -> str:
    if "text_encoder_2" in configs:
        return "sdxl"
    # OpenCLIP's text encoder, which came with Stable Diffusion 2, has plain GELUs; OpenAI's has quick ones.
    return "sd2" if configs["text_encoder"].get("hidden_act", "quick_gelu") == "gelu" else "sd1"


def _check_fit(configs: Mapping[str, Config], texts: list[Component]) -> None:
    """Do the parts belong together, and is all that the U-Net wants fed?"""
    unet, vae = configs["unet"], configs["vae"]
    for name in _UNFED:
        if unet.get(name) is not None:
            raise SourceError(f"the U-Net's config says {name}, an input that this version does not feed.")
    if bool(unet.get("addition_embed_type")) != ("text_encoder_2" in configs):
        raise SourceError(
            f"unet/config.json: addition_embed_type is {unet.get('addition_embed_type')!r:.80}, and the model has "
            f"{' and '.join(c.name for c in texts)}; a U-Net has one if and only if there is a text_encoder_2."
        )
    width, states = unet["cross_attention_dim"], sum(int(c.config["hidden_size"]) for c in texts)
    if width != states:
        names = " and ".join(f"{c.name}/config.json" for c in texts)
        raise SourceError(
            f"unet/config.json: cross_attention_dim is {width}; expected {states}, the hidden_size of {names}. "
            "Take the U-Net and the text encoder of the same model."
        )
    # Latents; beside them, of an inpainting model, the mask and the latents of the masked picture.
    channels, latents = unet["in_channels"], vae["latent_channels"]
    if channels not in (latents, 2 * latents + 1):
        raise SourceError(
            f"unet/config.json: in_channels is {channels}; expected {latents} (latent_channels in vae/config.json), or "
            f"{2 * latents + 1} for an inpainting model. Take the U-Net and the autoencoder of the same model."
        )


def _control(name: str, configs: Mapping[str, Config]) -> Component:
    """A ControlNet's tensors. `SourceError` where it is told what models of one text encoder do not have."""
    if configs[name].get("addition_embed_type") and "text_encoder_2" not in configs:
        raise SourceError(_misfit(name, configs[name], configs["unet"]))
    return networks.controlnet(name, configs)


def _misfit(name: str, config: Config, unet: Config) -> str:
    return (
        f"the {name} is not made for this U-Net (widths {config['block_out_channels']}, text "
        f"{config['cross_attention_dim']} wide; the U-Net has {unet['block_out_channels']} and "
        f"{unet['cross_attention_dim']}): take one of the model's own family."
    )


def _check_control(control: Component, unet: Component, vae: Config) -> None:
    """`SourceError` unless the ControlNet takes what the U-Net takes, and gives what it adds to."""
    config = control.config
    if config.get("global_pool_conditions"):
        raise SourceError(f"the {control.name} pools its conditions, which this version does not do.")
    shared = {b.name: b for b in unet.inputs}
    wanted = [b.dims for b in unet.inputs if "additional_residual" in b.name]
    same = [b.dims for b in control.outputs] == wanted and all(
        b == shared.get(b.name, b) for b in control.inputs if b.name != "sample"
    )
    same = same and config.get("in_channels", 4) == vae["latent_channels"]  # it sees no mask
    took = {b.name for b in control.inputs} - {"controlnet_cond", "conditioning_scale"}
    if not same or took != {n for n in shared if "additional_residual" not in n} - {"timestep_cond"}:
        raise SourceError(_misfit(control.name, config, unet.config))
    halvings = len(config.get("conditioning_embedding_out_channels", (16, 32, 96, 256))) - 1
    if config.get("conditioning_channels", 3) != 3 or halvings != len(networks.vae_widths(vae)) - 1:
        raise SourceError(f"the {control.name} does not take RGB pictures of the size of the model's own.")


def _prompting(configs: Mapping[str, Config], texts: list[Component]) -> Prompting:
    if texts[-1].name == "text_encoder":
        return Prompting(states=(("text_encoder", "last_hidden_state"),), pooled=None, zero_negative=False)
    # Of the last state but one, before the final norm, as SDXL was trained (Podell et al. 2023, arXiv 2307.01952).
    return Prompting(
        states=tuple((c.name, f"hidden_states.{c.config['num_hidden_layers'] - 1}") for c in texts),
        pooled=(texts[-1].name, "text_embeds"),
        zero_negative=bool(configs["model_index"].get("force_zeros_for_empty_prompt", True)),
    )


def _scaling_factor(configs: Mapping[str, Config]) -> float:
    """Of the latents; configs of the first Stable Diffusion do not say it."""
    return float(configs["vae"].get("scaling_factor", 1.0 if networks.is_tiny(configs["vae"]) else 0.18215))


def _latents_scale(vae: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of the latents; both empty unless the config has both."""
    mean, std = (tuple(map(float, vae.get(name) or ())) for name in ("latents_mean", "latents_std"))
    if not mean or not std:
        return (), ()
    channels = vae["latent_channels"]
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise SourceError(
            f"vae/config.json: latents_mean has {len(mean)} numbers and latents_std {len(std)}, the smallest of them "
            f"{min(std)}; expected one for each of the {channels} latent_channels, and latents_std above 0."
        )
    return mean, std


def _profile(configs: Mapping[str, Config]) -> Profile:
    """Every size that a traced component serves: the exports are dynamic, and memory is the limit."""
    unet, vae = configs["unet"], configs["vae"]
    factor = 2 ** (len(networks.vae_widths(vae)) - 1)
    side = _side(unet, factor, high=2048)
    tokens = int(configs[next(n for n in configs if n.startswith("text_encoder"))]["max_position_embeddings"])
    batch = Range(min=1, opt=1, max=32)
    return Profile(batch=batch, height=side, width=side, multiple=side.min, factor=factor, tokens=tokens)


def _side(unet: Config, factor: int, high: int) -> Range:
    """Of heights and widths in pixels. A U-Net halves its sample at every level but the last."""
    least, size = 2 ** (len(unet["block_out_channels"]) - 1), unet["sample_size"]
    if size < least:
        raise SourceError(
            f"unet/config.json: sample_size is {size}; expected at least {least}, which its "
            f"{len(unet['block_out_channels'])} levels (block_out_channels) halve to 1."
        )
    return Range(min=factor * least, opt=factor * size, max=max(high, factor * size))


def _loads(configs: Mapping[str, Config]) -> tuple[Load, ...]:
    """The largest arrays that a picture goes through: attention scores of the U-Net and the decoder, and its pixels."""
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
    widest = max(networks.vae_widths(vae)[:2])  # the last doubling of the decoder is of the second level's channels
    loads = [Load(pixels=1, width=widest, squared=False, guided=False)]
    if not networks.is_tiny(vae) and vae.get("mid_block_add_attention", True):
        loads.append(Load(pixels=factor, width=1, squared=True, guided=False))
    return loads


def _without_text(configs: Mapping[str, Config]) -> Family:
    """A `UNet2DModel` over pixels (Ho et al. 2020, arXiv 2006.11239), or over an autoencoder's latents (Rombach et al.
    2021, arXiv 2112.10752). Raises as `family_of`, and `SourceError`."""
    config, vae = configs["unet"], configs.get("vae")
    for name in ("class_embed_type", "num_class_embeds"):
        if config.get(name) is not None:
            raise SourceError(f"the U-Net's config says {name}, an input that this version does not feed.")
    channels = 3 if vae is None else networks.latent_channels(vae)
    if config["in_channels"] != channels or config["out_channels"] != channels:
        wanted = "RGB pictures without an autoencoder" if vae is None else f"the autoencoder's {channels} channels"
        told = f"the U-Net paints {config['out_channels']} channels from {config['in_channels']}"
        raise SourceError(f"{told}; this version paints {wanted}.")
    coded = () if vae is None else networks.vae(vae)
    factor = 1 if vae is None else 2 ** (len(networks.vae_widths(vae)) - 1)
    side = _side(config, factor, high=1024 if vae is None else 2048)
    return Family(
        name="pixels" if vae is None else "latents",
        components={c.name: c for c in (networks.unconditional(config), *coded)},
        profile=Profile(
            batch=Range(min=1, opt=1, max=32), height=side, width=side, multiple=side.min, factor=factor
        ),
        prompting=Prompting(states=(), pooled=None, zero_negative=False),
        scaling_factor=1.0 if vae is None else _scaling_factor(configs),
        latents_mean=(),
        latents_std=(),
        loads=(*_loads_without_text(config, factor), *(() if vae is None else _loads_of_vae(vae))),
    )


def _loads_without_text(config: Config, factor: int) -> list[Load]:
    """The largest arrays of the U-Net: its states at full size, and its attention scores."""
    loads = [Load(pixels=factor, width=config["block_out_channels"][0], squared=False, guided=True)]
    for level, (kind, width) in enumerate(zip(config["down_block_types"], config["block_out_channels"], strict=True)):
        if "Attn" in kind:
            heads = max(1, width // (config.get("attention_head_dim") or width))
            loads.append(Load(pixels=factor * 2**level, width=heads, squared=True, guided=True))
    return loads
