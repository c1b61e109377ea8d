"""The tensors of each network: bindings computed from its config.

Names are those of Optimum's ONNX Runtime pipelines. Optimum does not support ControlNets: their names are diffusers'
names in the same style. Knows nothing of which networks a model has (`family`), and runs no network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import SourceError
from .bindings import Binding, Network, bindings_from_json
from .controls.t2i_adapter import ADAPTER as T2I_ADAPTER
from .controls.t2i_adapter import IMAGE, STATE, Feature, features_of, taken_of
from .image_prompts.layers import ADAPTER, BIAS, SCALE, STATES, image_layers, mask_name, packed_width
from .video.model import IDS, decodes_clips, is_video
from .video.motion import has_motion

Config = Mapping[str, Any]

UNION_MARK = "task_embedding"  # a weight that only a ControlNet-Union has
_LATENTS = ("latent_height", "latent_width")
_TIME_IDS = (6, 5)  # SDXL: original size, crop, target size; refiner: an aesthetic score for the target size


@dataclass(frozen=True, kw_only=True)
class Component(Network):
    """A network with its config."""

    config: Config = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for a child process that works on this component."""
        return {"name": self.name, "config": dict(self.config), **self.bindings_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Component:
        """Return the component that `to_json` wrote."""
        return cls(name=data["name"], config=data["config"], **bindings_from_json(data))


def folder_of(component: str) -> str:
    """Return the folder of a component's config and weights in a model of the diffusers layout."""
    return "vae" if component.startswith("vae_") else component


def controlnets_of(names: Iterable[str]) -> list[str]:
    """Return the names of ControlNets: controlnet, controlnet_1, ..."""
    return [n for n in names if n.startswith("controlnet")]


def ip_adapters_of(names: Iterable[str]) -> list[str]:
    """Return the names of IP-Adapters: ip_adapter, ip_adapter_1, ..."""
    return [n for n in names if n.startswith(ADAPTER)]


def t2i_adapters_of(names: Iterable[str]) -> list[str]:
    """Return the names of T2I-Adapters: t2i_adapter, t2i_adapter_1, ..."""
    return [n for n in names if n.startswith(T2I_ADAPTER)]


def text_encoder(name: str, config: Config) -> Component:
    """Return a CLIP text encoder. SDXL's second one outputs the projected pooled state first, as Optimum expects."""
    layers, tokens = config["num_hidden_layers"], config["max_position_embeddings"]
    state = ("batch", tokens, config["hidden_size"])
    last = _float("last_hidden_state", *state)
    skipped: tuple[Binding, ...] = ()
    if name == "text_encoder":
        pooled = (last, _float("pooler_output", "batch", config["hidden_size"]))
        # The hidden state before the last `i` layers, after the final norm: the output for clip_skip=i.
        skipped = tuple(_float(f"skipped_states.{i}", *state) for i in range(1, layers + 1))
    else:
        pooled = (_float("text_embeds", "batch", config["projection_dim"]), last)
    return Component(
        name=name,
        inputs=(Binding(name="input_ids", dtype="int64", dims=("batch", tokens)),),
        outputs=(*pooled, *(_float(f"hidden_states.{i}", *state) for i in range(layers + 1)), *skipped),
        config=config,
    )


def vision_encoder(config: Config) -> Component:
    """Return CLIP's vision transformer: the projected vector of each image, and its states before the last layer."""
    side = config["image_size"]
    return Component(
        name="image_encoder",
        inputs=(_float("pixel_values", "batch", 3, side, side),),
        outputs=(
            _float("image_embeds", "batch", config["projection_dim"]),
            _float("hidden_states", "batch", image_positions(config), config["hidden_size"]),
        ),
        config=config,
    )


def image_positions(config: Config) -> int:
    """Return the number of states of a vision transformer: one for each patch, and one for the image."""
    return int((config["image_size"] // config["patch_size"]) ** 2 + 1)


def ip_adapter(name: str, configs: Mapping[str, Config]) -> Component:
    """Return an IP-Adapter: from what an encoder makes of an image to keys and values of every cross-attention.

    (Ye et al. 2023, arXiv 2308.06721.) `calotype.export.sources.ip_adapter` writes the config.
    """
    config, layers = configs[name], image_layers(configs["unet"])
    dims = tuple(config["image_embeds"])
    if len(dims) == 2 and "image_encoder" in configs:
        dims = (image_positions(configs["image_encoder"]), dims[1])
    tokens = dims[0] if config["kind"] == "full" else config["tokens"]
    return Component(
        name=name,
        inputs=(_float("image_embeds", "batch", *dims),),
        outputs=(_float(STATES, "batch", tokens, packed_width(layers)),),
        config=config,
    )


def vision_states(config: Config) -> Component:
    """Return CLIP's vision transformer with all its outputs: the projected vector, the last state, every state."""
    side, layers = config["image_size"], config["num_hidden_layers"]
    state = ("batch", (side // config["patch_size"]) ** 2 + 1, config["hidden_size"])
    states = (_float(f"hidden_states.{i}", *state) for i in range(layers + 1))
    projected = vision_encoder(config)
    outputs = (*projected.outputs[:1], _float("last_hidden_state", *state), *states)
    return Component(name="image_states", inputs=projected.inputs, outputs=outputs, config=config)


def unet(configs: Mapping[str, Config], *, with_text: bool = True) -> Component:
    """Return the U-Net. With ControlNets it has an input for each of their residuals, with T2I-Adapters one for each of
    their features, and with IP-Adapters those of `image_prompt_inputs`.

    Without text it takes only pixels or latents and the timestep, and with a vision encoder its vector as one token.
    """
    config = configs["unet"]
    if is_video(config):
        return _video_unet(config)
    frames = ("frames",) if has_motion(config) else ()  # all frames of a clip have the same text and image prompts
    inputs = _latents(config, *frames)
    if not with_text and "image_encoder" in configs:
        inputs.append(_float("encoder_hidden_states", "batch", 1, config["cross_attention_dim"]))
    if with_text:
        inputs += _text(config)
        if config.get("num_class_embeds") is not None:  # the level of an image's noise (Ho et al. 2021, 2106.15282)
            inputs.append(Binding(name="class_labels", dtype="int64", dims=("batch",)))
        # The guidance of a latent consistency model (Luo et al. 2023, arXiv 2310.04378).
        if (width := config.get("time_cond_proj_dim")) is not None and not frames:
            inputs.append(_float("timestep_cond", "batch", int(width)))
        inputs += _added(config, configs)
        if controlnets_of(configs):
            *down, middle = residual_dims(config)
            named = [(f"down_block_additional_residual.{i}", dims) for i, dims in enumerate(down)]
            named.append(("mid_block_additional_residual", middle))
            inputs += (_float(name, dims[0], *frames, *dims[1:]) for name, dims in named)
        for adapter in t2i_adapters_of(configs)[:1]:  # the features of several are added up
            inputs += _adapter_states(taken_of(_features(configs[adapter], configs), config))
        if ip_adapters_of(configs):
            inputs += image_prompt_inputs(config)
    outputs = (_float("out_sample", "batch", config["out_channels"], *frames, *_LATENTS),)
    return Component(name="unet", inputs=tuple(inputs), outputs=outputs, config=config)


def _video_unet(config: Config) -> Component:
    """Return the U-Net of Stable Video Diffusion, which sees all frames of a clip (arXiv 2311.15127)."""
    return Component(
        name="unet",
        inputs=(
            _float("sample", "batch", "frames", config["in_channels"], *_LATENTS),
            _float("timestep", "batch"),
            _float("encoder_hidden_states", "batch", 1, config["cross_attention_dim"]),
            _float("added_time_ids", "batch", IDS),
        ),
        outputs=(_float("out_sample", "batch", "frames", config["out_channels"], *_LATENTS),),
        config=config,
    )


def controlnet(name: str, configs: Mapping[str, Config]) -> Component:
    """Return a ControlNet, which outputs residuals for the U-Net (Zhang et al. 2023, arXiv 2302.05543).

    A ControlNet-Union (https://github.com/xinsir6/ControlNetPlus) takes a group of control images, each with its type.
    """
    config = configs[name]
    *down, middle = residual_dims(config)
    image = (config.get("conditioning_channels", 3), "height", "width")
    conditions = [_float("controlnet_cond", "batch", *image)]
    if types := control_types(config):
        groups = ("batch", "image_groups")
        conditions = [_float("controlnet_cond", *groups, *image), _float("control_task", *groups, types)]
        conditions += [_float("control_type", "batch", types), _float("condition_scale", *groups)]
    return Component(
        name=name,
        inputs=(
            *_latents(config),
            *_text(config),
            *conditions,
            _float("conditioning_scale", "batch"),
            *_added(config, configs),
        ),
        outputs=(
            *(_float(f"down_block_res_sample_{i}", *dims) for i, dims in enumerate(down)),
            _float("mid_block_res_sample", *middle),
        ),
        config=config,
    )


def control_types(config: Config) -> int:
    """Return how many types of control images a ControlNet-Union knows; 0 for another ControlNet."""
    return int(config.get("num_control_type", 6)) if config.get("_class_name") == "ControlNetUnionModel" else 0


def t2i_adapter(name: str, configs: Mapping[str, Config]) -> Component:
    """Return a T2I-Adapter, which outputs features for the U-Net (Mou et al. 2023, arXiv 2302.08453)."""
    config = configs[name]
    image = _float(IMAGE, "batch", config.get("in_channels", 3), "height", "width")
    states = _adapter_states(_features(config, configs))
    return Component(name=name, inputs=(image,), outputs=tuple(states), config=config)


def _features(config: Config, configs: Mapping[str, Config]) -> list[Feature]:
    return features_of(config, 2 ** (len(vae_widths(configs["vae"])) - 1))


def _adapter_states(features: Sequence[Feature]) -> list[Binding]:
    return [_float(f"{STATE}.{i}", *level_dims(width, level)) for i, (width, level) in enumerate(features)]


def vae(config: Config) -> tuple[Component, Component]:
    """Return decoder and encoder. Tiny and quantizing autoencoders output latents, others a distribution of them.

    A decoder of clips mixes the frames of each clip in its batch.
    """
    pixels, channels = ("batch", 3, "height", "width"), latent_channels(config)
    clip = ("batch", "frames") if decodes_clips(config) else ("batch",)
    decoder = Component(
        name="vae_decoder",
        inputs=(_float("latent_sample", *clip, channels, *_LATENTS),),
        outputs=(_float("sample", *clip, *pixels[1:]),),
        config=config,
    )
    # Mean and log-variance of the posterior, concatenated.
    posterior = _float("latent_parameters", "batch", 2 * channels, *_LATENTS)
    plain = is_tiny(config) or is_quantizing(config)
    encoder = Component(
        name="vae_encoder",
        inputs=(_float("sample", *pixels),),
        outputs=(_float("latents", "batch", channels, *_LATENTS) if plain else posterior,),
        config=config,
    )
    return decoder, encoder


def is_tiny(config: Config) -> bool:
    """Tell whether it is the autoencoder TAESD (https://github.com/madebyollin/taesd)."""
    return config.get("_class_name") == "AutoencoderTiny"


def is_quantizing(config: Config) -> bool:
    """Tell whether it has a codebook of latents (VQ-VAE: van den Oord et al. 2017, arXiv 1711.00937)."""
    return config.get("_class_name") == "VQModel"


def latent_channels(config: Config) -> int:
    """Return the number of channels of the latents that the U-Net takes."""
    return int((is_quantizing(config) and config.get("vq_embed_dim")) or config["latent_channels"])


def vae_widths(config: Config) -> Sequence[int]:
    """Return the channels of each level of an autoencoder. There is one level more than there are halvings."""
    widths: Sequence[int] = config["decoder_block_out_channels" if is_tiny(config) else "block_out_channels"]
    return widths


def _float(name: str, *dims: int | str) -> Binding:
    return Binding(name=name, dtype="float32", dims=dims)


def _latents(config: Config, *frames: str) -> list[Binding]:
    # One timestep per image: images of a batch may be at different steps.
    return [_float("sample", "batch", config["in_channels"], *frames, *_LATENTS), _float("timestep", "batch")]


def _text(config: Config) -> list[Binding]:
    # A long prompt has several chunks of the encoder's context length.
    return [_float("encoder_hidden_states", "batch", "tokens", config["cross_attention_dim"])]


def _added(config: Config, configs: Mapping[str, Config]) -> list[Binding]:
    """Return the added conditions of an SDXL network."""
    if not config.get("addition_embed_type"):
        return []
    kind, pooled = config["addition_embed_type"], configs["text_encoder_2"]["projection_dim"]
    width, each = config["projection_class_embeddings_input_dim"], config["addition_time_embed_dim"]
    ids = next((ids for ids in _TIME_IDS if each is not None and pooled + ids * each == width), None)
    if kind != "text_time" or ids is None:
        raise SourceError(
            f"{getattr(config, 'file', 'the config')}: addition_embed_type is {kind!r:.80}, "
            f"projection_class_embeddings_input_dim {width} and addition_time_embed_dim {each}; expected text_time, "
            f"and {pooled} (projection_dim of text_encoder_2) plus {' or '.join(map(str, _TIME_IDS))} times "
            "addition_time_embed_dim.",
            path=getattr(config, "file", None),
            field="addition_embed_type",
        )
    return [_float("text_embeds", "batch", pooled), _float("time_ids", "batch", ids)]


def image_prompt_inputs(config: Config) -> list[Binding]:
    """Return the U-Net's inputs for image prompts: groups of tokens, of which each has a softmax of its own.

    A group is an adapter, or with masks one image of an adapter. All are sizes of a call, so one graph serves any
    number of adapters and images.
    """
    layers, groups = image_layers(config), ("batch", "image_groups")
    levels = sorted({layer.level for layer in layers})
    return [
        _float(STATES, *groups, "image_tokens", packed_width(layers)),
        _float(BIAS, *groups, "image_tokens"),  # 0, and a large negative number for a token that a group lacks
        _float(SCALE, *groups, len(layers)),
        *(_float(mask_name(level), *groups, *level_dims(0, level)[2:]) for level in levels),
    ]


def residual_dims(config: Config) -> list[tuple[int | str, ...]]:
    """Return the shapes of the residuals: first convolution, each layer and each halving, and last the middle."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    dims = [level_dims(widths[0], 0)]
    for level, width in enumerate(widths):
        dims += [level_dims(width, level)] * (layers if isinstance(layers, int) else layers[level])
        if level + 1 < len(widths):
            dims.append(level_dims(width, level + 1))
    return [*dims, level_dims(widths[-1], len(widths) - 1)]


def level_dims(width: int, level: int) -> tuple[int | str, ...]:
    """Return the shape of a level. A symbol names the factor to the latents: latent_height_2 is half their height."""
    return "batch", width, *(f"{side}_{2**level}" if level else side for side in _LATENTS)
