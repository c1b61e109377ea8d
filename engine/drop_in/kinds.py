"""The modules that can run compiled: their classes, how their calls are read, and how their weights are saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..plan.profile import Profile, Range
from .reading import controls, denoisers, encoders, video
from .reading.calls import Arguments, Call


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of module.

    Attributes:
        name: of the component, for `precision` of a network without a pipeline.
        read: reads a call of it.
        part: the submodule of the owner whose `forward` runs compiled; "" for the owner.
    """

    name: str
    read: Callable[[Any, Arguments], Call]
    part: str = ""


_KINDS: Mapping[str, tuple[Kind, ...]] = {
    "diffusers.UNet2DConditionModel": (Kind(name="unet", read=denoisers.read_unet),),
    "diffusers.UNet2DModel": (Kind(name="unet", read=denoisers.read_unet),),
    "diffusers.ControlNetModel": (Kind(name="controlnet", read=denoisers.read_controlnet),),
    "diffusers.ControlNetUnionModel": (Kind(name="controlnet", read=controls.read_control_union),),
    "diffusers.T2IAdapter": (Kind(name="t2i_adapter", read=controls.read_t2i_adapter),),
    "diffusers.UNetSpatioTemporalConditionModel": (Kind(name="unet", read=video.read_video_unet),),
    "diffusers.AutoencoderKLTemporalDecoder": (
        Kind(name="vae_encoder", read=encoders.read_vae_encoder, part="encoder"),
        Kind(name="vae_decoder", read=video.read_clip_decoder, part="decoder"),
    ),
    "diffusers.AutoencoderKL": (
        Kind(name="vae_encoder", read=encoders.read_vae_encoder, part="encoder"),
        Kind(name="vae_decoder", read=encoders.read_vae_decoder, part="decoder"),
    ),
    "diffusers.AutoencoderTiny": (
        Kind(name="vae_encoder", read=encoders.read_vae_encoder, part="encoder"),
        Kind(name="vae_decoder", read=encoders.read_vae_decoder, part="decoder"),
    ),
    "transformers.CLIPTextModel": (Kind(name="text_encoder", read=encoders.read_text_encoder),),
    "transformers.CLIPTextModelWithProjection": (Kind(name="text_encoder_2", read=encoders.read_text_encoder),),
    "transformers.CLIPVisionModelWithProjection": (Kind(name="image_encoder", read=encoders.read_vision_encoder),),
}
CLASSES = tuple(name.partition(".")[2] for name in _KINDS)


def kinds_of(module: nn.Module) -> tuple[Kind, ...]:
    """Return the kinds of a module: one for each part that can run compiled; none for an unknown class.

    A subclass may compute something else, so that only the classes themselves count.
    """
    kind = type(module)
    library = kind.__module__.partition(".")[0]
    return _KINDS.get(f"{library}.{kind.__name__}", ())


def networks_of(name: str, module: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield the networks of a part of a pipeline: several ControlNets, or several T2I-Adapters, are one part."""
    if type(module).__name__ in ("MultiControlNetModel", "MultiControlNetUnionModel"):
        yield from ((f"{name}.{i}", net) for i, net in enumerate(module.nets))
    elif type(module).__name__ == "MultiAdapter":
        yield from ((f"{name}.{i}", adapter) for i, adapter in enumerate(module.adapters))
    elif isinstance(module, nn.Module):
        yield name, module
    elif isinstance(module, (list, tuple)):
        yield from ((f"{name}.{i}", net) for i, net in enumerate(module) if isinstance(net, nn.Module))


def config_of(owner: Any, kind: Kind) -> dict[str, Any]:
    """Return the config of a module without what depends on its file."""
    if not kind.part:
        config = owner.config.to_dict() if hasattr(owner.config, "to_dict") else dict(owner.config)
        config |= {} if hasattr(owner.config, "to_dict") else {"_class_name": type(owner).__name__}
    else:
        config = encoders.vae_config(owner)
    left = (
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "output_hidden_states",
        "output_attentions",
        "return_dict",
    )
    return {
        name: value
        for name, value in config.items()
        if name not in left and (not name.startswith("_") or name == "_class_name")
    }


def profile_of(component: str, config: Mapping[str, Any]) -> Profile:
    """Return the sizes with which a module is traced. They limit engines only: other artifacts take every size."""
    widths = config.get("block_out_channels") or config.get("decoder_block_out_channels") or (1,)
    levels, factor, side = len(widths), 8, config.get("sample_size")
    if component.startswith("vae"):
        factor = multiple = 2 ** (levels - 1)
    elif component == "t2i_adapter":
        multiple = config["downscale_factor"] * 2 ** (len(config["channels"]) - 1)
    elif component.startswith("controlnet"):
        factor = 2 ** (len(config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)) - 1)
        multiple = factor * 2 ** (levels - 1)
    else:
        multiple = factor * 2 ** (levels - 1)
        multiple *= 2 if any(str(block).startswith("K") for block in config.get("up_block_types", ())) else 1
    usual = (side if isinstance(side, int) and not component.startswith("vae") else 64) * 8
    usual = max(usual // multiple, 1) * multiple
    sides = Range(min=multiple, opt=usual, max=max(2048 // multiple, 1) * multiple if usual < 2048 else usual)
    tokens = int(config.get("max_position_embeddings") or 77)
    return Profile(
        batch=Range(min=1, opt=1, max=32), height=sides, width=sides, multiple=multiple, factor=factor, tokens=tokens
    )
