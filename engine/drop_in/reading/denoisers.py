"""Read the calls of U-Nets and ControlNets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...plan import networks
from ...plan.bindings import Binding
from ...plan.controls.t2i_adapter import STATE, places_of
from .calls import SIDES, Arguments, Call, Outputs, Reader, Unsupported, float_output, refuse
from .image_prompts import add_image_prompts


def lora_scale(arguments: Arguments) -> float:
    """Return the LoRAs' scale in `cross_attention_kwargs`. Other entries go to attention processors."""
    others = dict(arguments.get("cross_attention_kwargs") or {})
    scale = others.pop("scale", 1.0)
    if others:
        raise Unsupported(f"cross_attention_kwargs has {', '.join(map(str, others))}")
    if not isinstance(scale, (int, float)):
        raise Unsupported(f"the scale of LoRAs is a {type(scale).__name__}")
    return float(scale)


def text_width(config: Any) -> int:
    """Return the width of the text's states that a network takes, or -1 if only the network knows it."""
    projected = config.get("encoder_hid_dim_type") is not None
    width = config.get("encoder_hid_dim") if projected else config.get("cross_attention_dim")
    return width if isinstance(width, int) else -1


def add_conditions(reader: Reader, arguments: Arguments, config: Any) -> None:
    """Add the inputs that U-Nets and ControlNets share, after the states of the text."""
    if (labels := arguments.get("class_labels")) is not None:
        labels = torch.as_tensor(labels)
        if config.get("num_class_embeds") is not None:
            reader.add("class_labels", labels, dtype="int64")
        elif config.get("class_embed_type") is not None:
            reader.add("class_labels", labels, *(-1 for _ in labels.shape[1:]))
    if (condition := arguments.get("timestep_cond")) is not None:
        if config.get("time_cond_proj_dim") is None:
            raise Unsupported("timestep_cond is set, which the config does not have")
        reader.add("timestep_cond", condition, -1)
    added = dict(arguments.get("added_cond_kwargs") or {})
    if config.get("addition_embed_type") == "text_time" and config.get("encoder_hid_dim_type") in (None, "text_proj"):
        for name in ("text_embeds", "time_ids"):
            if name in added:
                reader.add(name, added.pop(name), -1)
    if added and (config.get("addition_embed_type") or config.get("encoder_hid_dim_type")):
        raise Unsupported(f"added_cond_kwargs has {', '.join(map(str, added))}")


def latents(arguments: Arguments, config: Any) -> Reader:
    """Return a reader with the sample of a call. Raises `Unsupported` if its sides do not fit the levels."""
    sample = arguments.get("sample")
    if not isinstance(sample, Tensor) or sample.ndim != 4:
        raise Unsupported("sample is no tensor of 4 dimensions")
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    if sample.shape[2] % factor or sample.shape[3] % factor:
        raise Unsupported(f"the sample's sides {list(sample.shape[2:])} are no multiples of {factor}")
    reader = Reader(len(sample))
    reader.add("sample", sample, config["in_channels"], *SIDES)
    return reader


def _add_residuals(reader: Reader, arguments: Arguments, config: Any) -> None:
    """Add the residuals of ControlNets, each of which has the channels and the size of its level in the U-Net."""
    down, middle = (arguments.get(f"{n}") for n in ("down_block_additional_residuals", "mid_block_additional_residual"))
    if down is None and middle is None:
        return
    *downs, mid = networks.residual_dims(config)
    if down is None or middle is None or len(down) != len(downs):
        raise Unsupported(f"the residuals are not {len(downs)} of the down blocks and one of the middle")
    for i, (each, dims) in enumerate(zip(down, downs, strict=True)):
        reader.add(f"down_block_additional_residual.{i}", each, *dims[1:])
    reader.add("mid_block_additional_residual", middle, *mid[1:])


def _add_features(reader: Reader, arguments: Arguments, config: Any) -> None:
    """Add the features of T2I-Adapters, each of which has the channels and the size of its place in the U-Net."""
    features = arguments.get("down_intrablock_additional_residuals")
    if features is None:
        return
    try:
        places = places_of(config)
    except ValueError as reason:
        raise Unsupported(f"the U-Net cannot take features of a T2I-Adapter: {reason}") from None
    if not 0 < len(features) <= len(places):
        raise Unsupported(f"there are {len(features)} features of a T2I-Adapter, expected 1 to {len(places)}")
    for i, (each, place) in enumerate(zip(features, places, strict=False)):
        reader.add(f"{STATE}.{i}", each, *networks.level_dims(*place)[1:])


def _is_adapted(unet: Any) -> bool:
    """Return whether the U-Net has IP-Adapters: diffusers sets this attribute of the config, and not its item."""
    return getattr(unet.config, "encoder_hid_dim_type", None) == "ip_image_proj"


def read_unet(module: Any, arguments: Arguments) -> Call:
    """Read a call of `UNet2DConditionModel` or `UNet2DModel`."""
    config = module.config
    reader, with_text = latents(arguments, config), "encoder_hidden_states" in arguments
    timestep = reader.timestep(arguments["timestep"])
    if with_text:
        refuse(arguments, "attention_mask", "encoder_attention_mask")
        reader.add("encoder_hidden_states", arguments["encoder_hidden_states"], "tokens", text_width(config))
        added = dict(arguments.get("added_cond_kwargs") or {})
        adapted = getattr(module, "encoder_hid_proj", None) is not None and _is_adapted(module)
        embeds = added.pop("image_embeds", None) if adapted else None
        add_conditions(reader, {**arguments, "added_cond_kwargs": added}, config)
        _add_residuals(reader, arguments, config)
        _add_features(reader, arguments, config)
        if adapted:
            attention = dict(arguments.get("cross_attention_kwargs") or {})
            add_image_prompts(reader, module, embeds, attention.pop("ip_adapter_masks", None))
            arguments = {**arguments, "cross_attention_kwargs": attention}
    else:
        refuse(arguments, "class_labels")
    dtype, device = arguments["sample"].dtype, arguments["sample"].device

    def finish(outputs: Outputs) -> Any:
        sample = outputs["out_sample"].to(device, dtype)
        if not arguments["return_dict"]:
            return (sample,)
        from diffusers.models.unets import unet_2d, unet_2d_condition

        return (unet_2d_condition.UNet2DConditionOutput if with_text else unet_2d.UNet2DOutput)(sample=sample)

    return Call(
        name="unet",
        inputs=tuple(reader.inputs),
        outputs=(float_output("out_sample", config["out_channels"], *SIDES),),
        arrays=reader.arrays,
        finish=finish,
        lora_scale=lora_scale(arguments),
        timestep=timestep,
    )


def controlnet_output(residuals: list[Tensor], guess_scale: float | None, *, as_dict: bool) -> Any:
    """Return what a ControlNet's `forward` returns: in `guess_mode` with residuals that grow from block to block."""
    if guess_scale is not None:
        factors = torch.logspace(-1, 0, len(residuals), device=residuals[0].device) * guess_scale
        residuals = [residual * factor for residual, factor in zip(residuals, factors, strict=True)]
    *downs, middle = residuals
    if not as_dict:
        return downs, middle
    from diffusers.models.controlnets.controlnet import ControlNetOutput

    return ControlNetOutput(down_block_res_samples=downs, mid_block_res_sample=middle)


def read_controlnet(module: Any, arguments: Arguments) -> Call:
    """Read a call of `ControlNetModel`. The weights of `guess_mode` multiply its outputs afterwards."""
    config = module.config
    refuse(arguments, "attention_mask", "class_labels", "timestep_cond")
    reader = latents(arguments, config)
    timestep = reader.timestep(arguments["timestep"])
    reader.add("encoder_hidden_states", arguments["encoder_hidden_states"], "tokens", text_width(config))
    condition = arguments["controlnet_cond"]
    reader.add("controlnet_cond", condition, config.get("conditioning_channels", 3), "height", "width")
    guesses = bool(arguments.get("guess_mode")) and not config.get("global_pool_conditions")
    scale = torch.as_tensor(arguments["conditioning_scale"], dtype=torch.float32).detach().cpu()
    if scale.numel() != 1:
        raise Unsupported(f"conditioning_scale has {scale.numel()} values")
    rows = torch.full((reader.rows,), 1.0 if guesses else float(scale))
    reader.add("conditioning_scale", rows)
    add_conditions(reader, {**arguments, "class_labels": None, "timestep_cond": None}, config)
    *down, middle = networks.residual_dims(config)
    if config.get("global_pool_conditions"):
        down, middle = [(*d[:2], 1, 1) for d in down], (*middle[:2], 1, 1)
    outputs = [Binding(name=f"down_block_res_sample_{i}", dtype="float32", dims=dims) for i, dims in enumerate(down)]
    outputs.append(Binding(name="mid_block_res_sample", dtype="float32", dims=middle))
    dtype, device = arguments["sample"].dtype, arguments["sample"].device

    def finish(values: Outputs) -> Any:
        residuals = [values[b.name].to(device, dtype) for b in outputs]
        return controlnet_output(residuals, float(scale) if guesses else None, as_dict=arguments["return_dict"])

    return Call(
        name="controlnet",
        inputs=tuple(reader.inputs),
        outputs=tuple(outputs),
        arrays=reader.arrays,
        finish=finish,
        lora_scale=lora_scale(arguments),
        timestep=timestep,
    )
