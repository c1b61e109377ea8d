"""Model families as data: the components of a family, how text conditions it, and the sizes that it serves.

`family_of` reads the configs of a model in the diffusers layout. `networks` computes the tensors of each network. No
code here runs a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import InputError, SourceError
from . import networks
from .bindings import Binding
from .config_fields import checked
from .controls.manifest import UNION_INPUTS
from .controls.t2i_adapter import STATE, check_adapter, features_of, taken_of
from .image_input import image_input_of
from .image_prompts.layers import SKIP, ImagePrompting, image_layers, unsupported_reason
from .image_prompts.perturbed import PERTURBED, skip_names
from .image_prompts.style import MARK, STYLE
from .memory.loads import loads_of_decoder, loads_of_frame, loads_with_text, loads_without_text
from .networks import Component, Config, controlnets_of, folder_of, ip_adapters_of, t2i_adapters_of
from .plan import ModelFields, Prompting
from .profile import Profile, Range
from .video.model import HEIGHT, MAX_FRAMES, WIDTH, check_video, decodes_clips, is_video, usual_frames
from .video.motion import check_motion, has_motion, positions_of, usual_motion_frames

__all__ = ["Component", "Family", "family_of", "folder_of"]

_UPSCALER = 0.08333  # scales the latents of the x4 upscaler, in diffusers whatever its config says
_IMAGES = 4  # of one IP-Adapter in an engine
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True, kw_only=True)
class Family(ModelFields):
    """The description of a model, computed from its configs."""

    name: str  # sd1, sd2, sdxl; pixels or latents for a model without text; video
    components: Mapping[str, Component]


def family_of(configs: Mapping[str, Config]) -> Family:
    """Return the family of a Stable Diffusion 1.x, 2.x or XL model, or of a model without text.

    A model with a vision encoder in place of text is `sd1`.

    Args:
        configs: the content of each config, by folder; "model_index" is the pipeline's.

    Raises:
        SourceError: a config lacks a field that the tensors depend on, or has an invalid value.
    """
    encoders = [name for name in _TEXT_ENCODERS if name in configs]
    folders = {} if encoders or "image_encoder" in configs else {"vae": "vqvae"}
    configs = {name: checked(name, folders.get(name, name), config) for name, config in configs.items()}
    try:
        return _family(configs, encoders)
    except (LookupError, TypeError, ValueError, OverflowError, ArithmeticError, AttributeError, InputError) as error:
        raise SourceError(
            f"the model's configs do not match each other ({error}). Use configs of one Stable Diffusion model."
        ) from None


def _family(configs: Mapping[str, Config], encoders: Sequence[str]) -> Family:
    config, vae = configs["unet"], configs.get("vae")
    video, motion = is_video(config), has_motion(config)
    if video:
        check_video(configs)
    if motion:
        check_motion(configs)
    texts = [networks.text_encoder(name, configs[name]) for name in encoders]
    steering = _t2i_adapters(configs) if texts else []
    unet = networks.unet(configs, with_text=bool(texts))
    marks = configs.get("model_index", {})
    of_style = [Binding(name=STYLE, dtype="int64", dims=("batch",))] if marks.get(MARK) else []
    skips = skip_names(config) if marks.get(PERTURBED) else []
    of_skips = [Binding(name=name, dtype="float32", dims=("batch",)) for name in skips]
    unet = replace(unet, inputs=(*unet.inputs, *of_style, *of_skips))
    vision = [networks.vision_encoder(configs["image_encoder"])] if "image_encoder" in configs and not texts else []
    encoded = [*texts, *vision]  # what the U-Net attends to
    takes = image_input_of(configs, int(configs["vae"]["latent_channels"])) if encoded else None
    kind = "" if takes is None else takes.kind
    controls = [_control(name, configs) for name in controlnets_of(configs)] if texts else []
    adapters = _image_prompts(configs) if texts else []
    autoencoder = () if vae is None else networks.vae(vae)
    for name in ("encoder_hid_dim_type", *(() if encoded else ("class_embed_type", "num_class_embeds"))):
        if config.get(name) is not None:
            raise _unet_error(name, "is set, an input that Calotype does not support")
    if (of_attention := config.get("attention_type", "default")) != "default":
        problem = f"is {of_attention!r:.80} (GLIGEN), which Calotype does not support. Use diffusers"
        raise _unet_error("attention_type", problem)
    if not video and decodes_clips(vae or {}):
        message = "the autoencoder decodes clips, and the U-Net makes images. Use parts of the same model."
        raise SourceError(message, path="vae/config.json", field="_class_name")
    if vae is not None and (vae.get("in_channels", 3), vae.get("out_channels", 3)) != (3, 3):
        channels = vae.get("in_channels", 3)
        message = f"the autoencoder takes images of {channels} channels; expected 3. Use diffusers for such models."
        raise SourceError(message, path="vae/config.json", field="in_channels")
    if encoded:
        _check_conditioning(configs, encoded)
    else:
        _check_channels_without_text(config, vae)
    for control in controls:
        _check_control(control, unet, configs["vae"])
    mean, std = _latents_scale(configs["vae"]) if encoded else ((), ())
    factor = 1 if vae is None else 2 ** (len(networks.vae_widths(vae)) - 1)
    loads = loads_of_frame if video or motion else loads_with_text if encoded else loads_without_text
    # Every size that a traced component serves. Exports have dynamic sizes, so that memory is the limit.
    side = _side(config, factor, largest=1024 if vae is None else 2048)
    profile = Profile(batch=Range(min=1, opt=1, max=32), height=side, width=side, multiple=side.min, factor=factor)
    profile = replace(profile, rows=3 if kind == "edit" else 2)  # with text and image, with the image, without both
    types = max((networks.control_types(c.config) for c in controls), default=0)
    profile = replace(profile, images=(max(1, types), 1))
    if any(block.startswith("K") for block in config.get("up_block_types", ())):  # they pad by reflection
        side = replace(side, min=2 * side.min, opt=max(2 * side.min, side.opt))
        profile = replace(profile, height=side, width=side)
    if video:
        height, width = (replace(side, opt=max(side.min, size // side.min * side.min)) for size in (HEIGHT, WIDTH))
        frames = Range(min=1, opt=usual_frames(config), max=MAX_FRAMES)
        profile = replace(profile, frames=frames, height=height, width=width)
    if motion:
        frames = Range(min=1, opt=usual_motion_frames(config), max=positions_of(config))
        profile = replace(profile, frames=frames)
    if adapters:
        tokens = max(int(str(each.outputs[0].dims[1])) for each in adapters if each.name != "image_encoder")
        profile = replace(profile, images=(max(2, types, len(ip_adapters_of(configs))), _IMAGES * tokens))
    # The configs of the first Stable Diffusion lack the scaling factor.
    default_scale = 1.0 if vae is None or networks.is_tiny(vae) else 0.18215
    scale = (vae or {}).get("scaling_factor", default_scale)
    attends = vae is not None and not networks.is_tiny(vae) and vae.get("mid_block_add_attention", True)
    of_decoder = [] if vae is None else loads_of_decoder(networks.vae_widths(vae), factor, attends=attends)
    return Family(
        name=_name(configs, texts),
        components={c.name: c for c in (*encoded, *adapters, *steering, unet, *autoencoder, *controls)},
        profile=replace(profile, tokens=int(texts[0].config["max_position_embeddings"])) if texts else profile,
        prompting=_prompting(configs, texts, kind),
        scaling_factor=_UPSCALER if kind == "pixels" else float(scale),
        latents_mean=mean,
        latents_std=std,
        loads=(*of_decoder, *loads(config, factor)),
        image_input=takes,
        image_prompts=_image_prompting(configs) if adapters else None,
    )


def _name(configs: Mapping[str, Config], texts: Sequence[Component]) -> str:
    if is_video(configs["unet"]):
        return "video"
    if not texts:
        return "sd1" if "image_encoder" in configs else "latents" if "vae" in configs else "pixels"
    if "text_encoder_2" in configs:
        return "sdxl"
    # The OpenCLIP text encoder of Stable Diffusion 2 uses plain GELU, the one of OpenAI uses quick GELU.
    return "sd2" if configs["text_encoder"].get("hidden_act", "quick_gelu") == "gelu" else "sd1"


def _unet_error(field: str, problem: str) -> SourceError:
    return SourceError(f"unet/config.json: {field} {problem}.", path="unet/config.json", field=field)


def _check_conditioning(configs: Mapping[str, Config], encoders: Sequence[Component]) -> None:
    """Check that the U-Net belongs to the encoders of text, or to that of images."""
    unet = configs["unet"]
    if bool(unet.get("addition_embed_type")) != ("text_encoder_2" in configs):
        raise _unet_error(
            "addition_embed_type",
            f"is {unet.get('addition_embed_type')!r:.80}, but the model has "
            f"{' and '.join(c.name for c in encoders)}; expected it to be set if and only if there is a text_encoder_2",
        )
    field = "projection_dim" if encoders[0].name == "image_encoder" else "hidden_size"
    width, states = unet["cross_attention_dim"], sum(int(c.config[field]) for c in encoders)
    if width != states:
        names = " and ".join(f"{c.name}/config.json" for c in encoders)
        raise _unet_error(
            "cross_attention_dim",
            f"is {width}; expected {states}, the {field} of {names}. Use the U-Net and the encoder of the same model",
        )


def _check_channels_without_text(config: Config, vae: Config | None) -> None:
    """Check the channels of a `UNet2DModel`: over pixels (Ho et al. 2020, arXiv 2006.11239), or over an autoencoder's
    latents (Rombach et al. 2021, arXiv 2112.10752)."""
    channels = 3 if vae is None else networks.latent_channels(vae)
    if config["in_channels"] != channels or config["out_channels"] != channels:
        reason = "RGB without an autoencoder" if vae is None else "the channels of the autoencoder's latents"
        raise _unet_error(
            "in_channels",
            f"is {config['in_channels']} and out_channels {config['out_channels']}; "
            f"expected {channels} for both ({reason})",
        )


def _control(name: str, configs: Mapping[str, Config]) -> Component:
    """Return the tensors of a ControlNet. Raises `SourceError` if it needs a text_encoder_2 that the model lacks."""
    if configs[name].get("addition_embed_type") and "text_encoder_2" not in configs:
        raise _misfit(name, configs[name], configs["unet"])
    return networks.controlnet(name, configs)


def _misfit(name: str, config: Config, unet: Config) -> SourceError:
    return SourceError(
        f"{name} does not match this U-Net: got block_out_channels {config['block_out_channels']} and "
        f"cross_attention_dim {config['cross_attention_dim']}; expected {unet['block_out_channels']} and "
        f"{unet['cross_attention_dim']}. Use a ControlNet of the same model family.",
        path=name,
    )


def _check_control(control: Component, unet: Component, vae: Config) -> None:
    """Check that the ControlNet has the inputs of the U-Net and outputs its residuals. Raises `SourceError`."""
    config = control.config
    if config.get("global_pool_conditions"):
        message = f"{control.name} sets global_pool_conditions, which Calotype does not support."
        raise SourceError(message, path=control.name, field="global_pool_conditions")
    shared = {b.name: b for b in unet.inputs}
    residuals = [tuple(d for d in b.dims if d != "frames") for b in unet.inputs if "additional_residual" in b.name]
    same = [b.dims for b in control.outputs] == residuals and all(
        b == shared.get(b.name, b) for b in control.inputs if b.name != "sample"
    )
    same = same and config.get("in_channels", 4) == vae["latent_channels"]  # without the mask
    inputs = {b.name for b in control.inputs} - {"controlnet_cond", "conditioning_scale", *UNION_INPUTS}
    own = {n for n in shared if "additional_residual" not in n and not n.startswith(("image_", STATE, SKIP))}
    if not same or inputs != own - {"timestep_cond", STYLE}:
        raise _misfit(control.name, config, unet.config)
    halvings = len(config.get("conditioning_embedding_out_channels", (16, 32, 96, 256))) - 1
    if config.get("conditioning_channels", 3) != 3 or halvings != len(networks.vae_widths(vae)) - 1:
        raise SourceError(f"{control.name} does not take RGB images of the output size.", path=control.name)


def _t2i_adapters(configs: Mapping[str, Config]) -> list[Component]:
    """Return the T2I-Adapters. Raises `SourceError` if one does not fit the U-Net."""
    names = t2i_adapters_of(configs)
    factor = 2 ** (len(networks.vae_widths(configs["vae"])) - 1)
    for name in names:
        check_adapter(name, configs[name], configs["unet"], factor)
    counts = [len(taken_of(features_of(configs[name], factor), configs["unet"])) for name in names]
    if len(set(counts)) > 1:
        numbers = " and ".join(map(str, counts))
        raise SourceError(f"the T2I-Adapters make {numbers} features; expected as many each.", path=names[-1])
    return [networks.t2i_adapter(name, configs) for name in names]


def _image_prompts(configs: Mapping[str, Config]) -> list[Component]:
    """Return the image encoder and the IP-Adapters. Raises `SourceError` if one does not fit the U-Net."""
    names, unet = ip_adapters_of(configs), configs["unet"]
    if names and (reason := unsupported_reason(unet)):
        raise SourceError(f"the U-Net cannot take an IP-Adapter: {reason}.", path=names[0])
    for name in names:
        got, expected = configs[name]["widths"], [layer.width for layer in image_layers(unet)]
        text = configs[name]["cross_attention_dim"]
        if got != expected or text != unet["cross_attention_dim"]:
            raise SourceError(
                f"{configs[name].get('file_name', name)} does not match this U-Net: it has {len(got)} attentions, "
                f"{sum(got)} channels of keys and tokens of width {text}; expected {len(expected)}, {sum(expected)} "
                f"and {unet['cross_attention_dim']}. Use an IP-Adapter of the same model family.",
                path=name,
            )
    if names and (encoder := configs.get("image_encoder")) is not None:
        _check_image_encoder(encoder, configs, names)
    encoders = [networks.vision_encoder(configs["image_encoder"])] if names and "image_encoder" in configs else []
    return [*encoders, *(networks.ip_adapter(name, configs) for name in names)]


def _image_prompting(configs: Mapping[str, Config]) -> ImagePrompting:
    kinds = tuple(str(configs[name]["kind"]) for name in ip_adapters_of(configs))
    return ImagePrompting(layers=tuple(layer.place for layer in image_layers(configs["unet"])), kinds=kinds)


def _check_image_encoder(encoder: Config, configs: Mapping[str, Config], names: Sequence[str]) -> None:
    """Check that the image encoder outputs what each IP-Adapter takes, besides those that take embeddings of faces."""
    for name in names:
        config = configs[name]
        if config["kind"] == "face_id":
            continue
        field = "projection_dim" if config["kind"] == "plain" else "hidden_size"
        if encoder[field] != config["image_embeds"][-1]:
            raise SourceError(
                f"{config.get('file_name', name)} takes images of width {config['image_embeds'][-1]}, and the image "
                f"encoder has {field} {encoder[field]}. Pass the encoder that belongs to it: image_encoder=FOLDER "
                "(ViT-H has 1024 and 1280, ViT-bigG 1280 and 1664).",
                path=name,
                field=field,
            )


def _prompting(configs: Mapping[str, Config], texts: Sequence[Component], kind: str) -> Prompting:
    if not texts:
        return Prompting(states=(), pooled=None, zero_negative=False)
    if kind == "latents":  # the last state before the norm; the pooled state is a further input
        state = f"hidden_states.{texts[0].config['num_hidden_layers']}"  # the embedding of the noise level
        return Prompting(states=((texts[0].name, state),), pooled=(texts[0].name, "pooler_output"), zero_negative=False)
    if texts[-1].name == "text_encoder":
        return Prompting(states=(("text_encoder", "last_hidden_state"),), pooled=None, zero_negative=False)
    # SDXL was trained on the second to last hidden state, before the norm (Podell et al. 2023, arXiv 2307.01952).
    return Prompting(
        states=tuple((c.name, f"hidden_states.{c.config['num_hidden_layers'] - 1}") for c in texts),
        pooled=(texts[-1].name, "text_embeds"),
        zero_negative=bool(configs["model_index"].get("force_zeros_for_empty_prompt", True)),
    )


def _latents_scale(vae: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each latent channel. Both are empty unless the config has both."""
    mean, std = (tuple(map(float, vae.get(name) or ())) for name in ("latents_mean", "latents_std"))
    if not mean or not std:
        return (), ()
    channels = vae["latent_channels"]
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise SourceError(
            f"vae/config.json: latents_mean has {len(mean)} numbers and latents_std {len(std)} (smallest: "
            f"{min(std)}); expected one for each of the {channels} latent_channels, and latents_std above 0.",
            path="vae/config.json",
            field="latents_std",
        )
    return mean, std


def _side(unet: Config, factor: int, largest: int) -> Range:
    """Return the range of heights and widths in pixels. Every level of a U-Net but the last halves its sample."""
    smallest = 2 ** (len(unet["block_out_channels"]) - 1)
    size = smallest if is_video(unet) else unet["sample_size"]  # clips have a size of their own
    if size < smallest:
        levels = len(unet["block_out_channels"])
        expected = f"expected at least {smallest}, which its {levels} levels (block_out_channels) halve to 1"
        raise _unet_error("sample_size", f"is {size}; {expected}")
    return Range(min=factor * smallest, opt=factor * size, max=max(largest, factor * size))
