"""Read the calls of encoders of text and images, and of the two networks of an autoencoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...plan import networks
from .calls import Arguments, Call, Outputs, Reader, Unsupported, refuse

CONVOLUTIONS = ("quant_conv.", "post_quant_conv.")  # the weights around an autoencoder's latents


def read_text_encoder(module: Any, arguments: Arguments) -> Call:
    """Read a call of `CLIPTextModel` or `CLIPTextModelWithProjection`."""
    projects = type(module).__name__ == "CLIPTextModelWithProjection"
    component = networks.text_encoder("text_encoder_2" if projects else "text_encoder", module.config.to_dict())
    refuse(arguments, "attention_mask", "position_ids")
    with_states, as_dict = _transformers_options(module, arguments)
    ids = arguments.get("input_ids")
    length = component.inputs[0].dims[1]
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[1] != length:
        raise Unsupported(f"input_ids are no tensor [batch, {length}]")
    reader = Reader(len(ids))
    reader.add("input_ids", ids, -1, dtype="int64")
    if ids.min() < 0 or ids.max() >= module.config.vocab_size:
        raise Unsupported("input_ids has numbers beyond the vocabulary")
    dtype, device = module.dtype, ids.device

    def finish(outputs: Outputs) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling
        from transformers.models.clip.modeling_clip import CLIPTextModelOutput

        states = tuple(
            outputs[f"hidden_states.{i}"].to(device, dtype) for i in range(module.config.num_hidden_layers + 1)
        )
        last = outputs["last_hidden_state"].to(device, dtype)
        pooled = outputs["text_embeds" if projects else "pooler_output"].to(device, dtype)
        hidden = states if with_states else None
        result: Any = (
            CLIPTextModelOutput(text_embeds=pooled, last_hidden_state=last, hidden_states=hidden)
            if projects
            else BaseModelOutputWithPooling(last_hidden_state=last, pooler_output=pooled, hidden_states=hidden)
        )
        return result if as_dict else result.to_tuple()

    return Call(
        name=component.name,
        inputs=component.inputs,
        outputs=component.outputs,
        arrays=reader.arrays,
        finish=finish,
    )


def read_vision_encoder(module: Any, arguments: Arguments) -> Call:
    """Read a call of `CLIPVisionModelWithProjection`."""
    config = module.config
    component = networks.vision_states(config.to_dict())
    with_states, as_dict = _transformers_options(module, arguments)
    if arguments.get("interpolate_pos_encoding"):
        raise Unsupported("interpolate_pos_encoding is set")
    pixels = arguments.get("pixel_values")
    if not isinstance(pixels, Tensor) or tuple(pixels.shape[1:]) != component.inputs[0].dims[1:]:
        raise Unsupported(f"pixel_values are no tensor {component.inputs[0]}")
    reader = Reader(len(pixels))
    reader.add("pixel_values", pixels, -1, -1, -1)
    dtype, device = pixels.dtype, pixels.device

    def finish(outputs: Outputs) -> Any:
        from transformers.models.clip.modeling_clip import CLIPVisionModelOutput

        tensors = {name: value.to(device, dtype) for name, value in outputs.items()}
        states = tuple(tensors[f"hidden_states.{i}"] for i in range(config.num_hidden_layers + 1))
        result = CLIPVisionModelOutput(
            image_embeds=tensors["image_embeds"],
            last_hidden_state=tensors["last_hidden_state"],
            hidden_states=states if with_states else None,
        )
        return result if as_dict else result.to_tuple()

    return Call(
        name=component.name, inputs=component.inputs, outputs=component.outputs, arrays=reader.arrays, finish=finish
    )


def _transformers_options(module: Any, arguments: Arguments) -> tuple[bool, bool]:
    """Return whether the call takes hidden states, and whether it returns an object in place of a tuple."""
    more = dict(arguments.get("kwargs") or {})
    as_dict, states = more.pop("return_dict", None), more.pop("output_hidden_states", None)
    attentions = more.pop("output_attentions", None)
    if attentions or (attentions is None and getattr(module.config, "output_attentions", False)):
        raise Unsupported("output_attentions is set")
    if unknown := [name for name, value in more.items() if value is not None]:
        raise Unsupported(f"{', '.join(unknown)} is set")
    states = getattr(module.config, "output_hidden_states", False) if states is None else states
    as_dict = getattr(module.config, "return_dict", True) if as_dict is None else as_dict
    return bool(states), bool(as_dict)


def read_vae_decoder(module: Any, arguments: Arguments) -> Call:
    """Read a call of the decoder of an autoencoder: its tiles and slices are calls of their own."""
    refuse(arguments, "latent_embeds")
    return _autoencoder_call(module, "vae_decoder", next(iter(arguments.values())))


def read_vae_encoder(module: Any, arguments: Arguments) -> Call:
    """Read a call of the encoder of an autoencoder."""
    return _autoencoder_call(module, "vae_encoder", next(iter(arguments.values())))


def _autoencoder_call(vae: Any, name: str, sample: Any) -> Call:
    if (vae.config["in_channels"], vae.config["out_channels"]) != (3, 3):
        raise Unsupported("the autoencoder's images do not have 3 channels")
    decoder, encoder = networks.vae(vae_config(vae))
    component = decoder if name == "vae_decoder" else encoder
    (source,), (target,) = component.inputs, component.outputs
    if not isinstance(sample, Tensor) or sample.ndim != 4 or sample.shape[1] != source.dims[1]:
        raise Unsupported(f"the input is no tensor {source}")
    factor = 2 ** (len(networks.vae_widths(vae.config)) - 1)
    if name == "vae_encoder" and (sample.shape[2] % factor or sample.shape[3] % factor):
        raise Unsupported(f"the image's sides {list(sample.shape[2:])} are no multiples of {factor}")
    reader = Reader(len(sample))
    reader.add(source.name, sample, *source.dims[1:])
    dtype, device = sample.dtype, sample.device
    return Call(
        name=name,
        inputs=component.inputs,
        outputs=component.outputs,
        arrays=reader.arrays,
        finish=lambda outputs: outputs[target.name].to(device, dtype),
    )


def vae_config(vae: Any) -> dict[str, Any]:
    """Return the config of an autoencoder."""
    return {**vae.config, "_class_name": type(vae).__name__}


def convolution_of(vae: Any, part: str) -> str | None:
    """Return the convolution of latents next to a network of an autoencoder, or None. PyTorch runs it."""
    name = "post_quant_conv" if part == "decoder" else "quant_conv"
    return name if getattr(vae, name, None) is not None else None
