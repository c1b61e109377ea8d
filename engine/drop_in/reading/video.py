"""Read the calls of Stable Video Diffusion's U-Net, and of the decoder of its autoencoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...plan import networks
from ...plan.video.model import IDS
from .calls import SIDES, Arguments, Call, Outputs, Reader, Unsupported, float_output
from .encoders import vae_config


def read_video_unet(module: Any, arguments: Arguments) -> Call:
    """Read a call of `UNetSpatioTemporalConditionModel`."""
    config, sample = module.config, arguments["sample"]
    if not isinstance(sample, Tensor) or sample.ndim != 5:
        raise Unsupported("sample is no tensor of 5 dimensions")
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    if sample.shape[3] % factor or sample.shape[4] % factor:
        raise Unsupported(f"the sample's sides {list(sample.shape[3:])} are no multiples of {factor}")
    reader = Reader(len(sample))
    reader.add("sample", sample, "frames", config["in_channels"], *SIDES)
    timestep = reader.timestep(arguments["timestep"])
    reader.add("encoder_hidden_states", arguments["encoder_hidden_states"], 1, config["cross_attention_dim"])
    reader.add("added_time_ids", arguments["added_time_ids"], IDS)
    dtype, device = sample.dtype, sample.device

    def finish(outputs: Outputs) -> Any:
        result = outputs["out_sample"].to(device, dtype)
        if not arguments["return_dict"]:
            return (result,)
        from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionOutput

        return UNetSpatioTemporalConditionOutput(sample=result)

    return Call(
        name="unet",
        inputs=tuple(reader.inputs),
        outputs=(float_output("out_sample", "frames", config["out_channels"], *SIDES),),
        arrays=reader.arrays,
        finish=finish,
        timestep=timestep,
    )


def read_clip_decoder(module: Any, arguments: Arguments) -> Call:
    """Read a call of the decoder of `AutoencoderKLTemporalDecoder`, which mixes the frames of each clip."""
    component, _ = networks.vae(vae_config(module))
    sample, frames, images = (arguments[name] for name in ("sample", "num_frames", "image_only_indicator"))
    if not isinstance(sample, Tensor) or sample.ndim != 4 or not isinstance(frames, int) or len(sample) % frames:
        raise Unsupported(f"the latents are no clips of {frames} frames")
    if not isinstance(images, Tensor) or images.any():
        raise Unsupported("image_only_indicator marks images")
    clips = sample.reshape(-1, frames, *sample.shape[1:])
    (source,), (target,) = component.inputs, component.outputs
    reader = Reader(len(clips))
    reader.add(source.name, clips, *source.dims[1:])
    dtype, device = sample.dtype, sample.device
    return Call(
        name=component.name,
        inputs=component.inputs,
        outputs=component.outputs,
        arrays=reader.arrays,
        finish=lambda outputs: outputs[target.name].to(device, dtype).flatten(0, 1),
    )
