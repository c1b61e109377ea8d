"""Read the calls of ControlNet-Unions and T2I-Adapters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...plan import networks
from ...plan.controls.t2i_adapter import IMAGE, features_of
from .calls import Arguments, Call, Outputs, Reader, Unsupported, refuse
from .denoisers import add_conditions, controlnet_output, latents, lora_scale, text_width

_FACTOR = 8  # the usual pixels of a latent: they give features the names of their sizes, and change no number


def read_control_union(module: Any, arguments: Arguments) -> Call:
    """Read a call of `ControlNetUnionModel`, with one or several control images."""
    config = {**module.config, "_class_name": "ControlNetUnionModel"}
    refuse(arguments, "attention_mask", "class_labels", "timestep_cond")
    if config.get("global_pool_conditions"):
        raise Unsupported("global_pool_conditions is set")
    images, tasks, scales = (arguments[name] for name in ("controlnet_cond", "control_type_idx", "conditioning_scale"))
    scales = [scales] * len(images) if isinstance(scales, (int, float)) else list(scales)
    if not len(images) == len(tasks) == len(scales) or not images:
        raise Unsupported(f"there are {len(images)} control images, {len(tasks)} types and {len(scales)} scales")
    reader, types = latents(arguments, config), networks.control_types(config)
    if not all(isinstance(t, int) and 0 <= t < types for t in tasks):
        raise Unsupported(f"control_type_idx is {tasks}, expected numbers below {types}")
    timestep = reader.timestep(arguments["timestep"])
    reader.add("encoder_hidden_states", arguments["encoder_hidden_states"], "tokens", text_width(config))
    of_outputs = bool(arguments.get("from_multi")) or len(images) == 1  # else of each image
    guesses, rows = bool(arguments.get("guess_mode")), reader.rows
    image = ("image_groups", config.get("conditioning_channels", 3), "height", "width")
    if not all(isinstance(each, Tensor) and each.shape == images[0].shape for each in images):
        raise Unsupported("the control images have several sizes")
    reader.add("controlnet_cond", torch.stack(list(images), dim=1), *image)
    hot = torch.nn.functional.one_hot(torch.tensor(tasks), types).float()
    reader.add("control_task", hot.expand(rows, -1, -1), "image_groups", types)
    reader.add("control_type", arguments["control_type"], types)
    of_images = torch.tensor([1.0 if of_outputs else float(scale) for scale in scales])
    reader.add("condition_scale", of_images.expand(rows, -1), "image_groups")
    factor = float(scales[0]) if of_outputs else 1.0
    reader.add("conditioning_scale", torch.full((rows,), 1.0 if guesses else factor))
    add_conditions(reader, {**arguments, "class_labels": None, "timestep_cond": None}, config)
    component = networks.controlnet("controlnet", {"controlnet": {**config, "addition_embed_type": None}})
    dtype, device = arguments["sample"].dtype, arguments["sample"].device

    def finish(values: Outputs) -> Any:
        residuals = [values[b.name].to(device, dtype) for b in component.outputs]
        return controlnet_output(residuals, factor if guesses else None, as_dict=arguments["return_dict"])

    return Call(
        name="controlnet",
        inputs=tuple(reader.inputs),
        outputs=component.outputs,
        arrays=reader.arrays,
        finish=finish,
        lora_scale=lora_scale(arguments),
        timestep=timestep,
    )


def read_t2i_adapter(module: Any, arguments: Arguments) -> Call:
    """Read a call of `T2IAdapter`."""
    config, image = dict(module.config), arguments["x"]
    factor = math.gcd(_FACTOR, int(config["downscale_factor"]))
    try:
        features = features_of(config, factor)
    except ValueError as reason:
        raise Unsupported(str(reason)) from None
    levels = {"block_out_channels": [1] * factor.bit_length()}
    component = networks.t2i_adapter("adapter", {"adapter": config, "vae": levels})
    if not isinstance(image, Tensor) or image.ndim != 4:
        raise Unsupported("the image is no tensor of 4 dimensions")
    multiple = 2 ** max(level for _, level in features) * factor
    if image.shape[2] % multiple or image.shape[3] % multiple:
        raise Unsupported(f"the image's sides {list(image.shape[2:])} are no multiples of {multiple}")
    reader = Reader(len(image))
    reader.add(IMAGE, image, *component.inputs[0].dims[1:])
    dtype, device = module.dtype, image.device
    return Call(
        name="t2i_adapter",
        inputs=component.inputs,
        outputs=component.outputs,
        arrays=reader.arrays,
        finish=lambda outputs: [outputs[b.name].to(device, dtype) for b in component.outputs],
    )
