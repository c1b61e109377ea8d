"""The pipeline as one function of tensors on a device: token ids and noise in, image bytes out.

The text encoders, every call of the denoiser with its scheduler step, and the VAE decoder run on one stream, and
nothing waits for the host: captured by `cuda.graphs`, a batch is one launch. `calotype.graph.inputs` turns a request
into the inputs. Their names and shapes and the options decide what is launched: one graph serves every prompt, seed,
guidance scale and sampler of one size and number of calls.

Imports torch and triton. Does not know graphs, backends or the sources of networks. Supports no ControlNets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from calotype.kernels.guided_step import Network, Slots, SourceLatents, guided_step
from calotype.kernels.to_uint8 import to_uint8

from ..backends.base import DeviceNetwork, Tensors
from ..plan.plan import Plan
from ..stages.prompt_encoder import ArrayLibrary, text_states
from ..stages.vae import latent_scaling
from .inputs import IDS, WEIGHTS, GraphOptions

_CONSTANTS = ("time_ids", "timestep_cond", "class_labels")
TORCH = ArrayLibrary(torch.cat, torch.float64)


class GraphPipeline(nn.Module):
    """The function. `networks` are the plan's components by name, on the device of the inputs."""

    _scale: Tensor
    _shift: Tensor

    def __init__(self, plan: Plan, networks: Mapping[str, DeviceNetwork]) -> None:
        super().__init__()
        self._plan, self._networks = plan, dict(networks)
        for name, array in zip(("_scale", "_shift"), latent_scaling(plan), strict=True):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def forward(self, inputs: Tensors, options: GraphOptions) -> dict[str, Tensor]:
        """Return `pixels`, uint8 [B, H, W, 3], and `finite`, bool [1]: whether all of them were finite numbers."""
        conditioning = self.conditioning(inputs, options)
        halves = len(inputs["has_text"]) // len(inputs["noise"])
        network, slots = self._initial_state(inputs, halves)
        rescaled, extra_channels = options.rescaled, inputs.get("extra_channels")
        timesteps = inputs["timesteps"][:, :-1].repeat(halves, 1).T.contiguous()  # [calls, N]
        unet = self._networks["unet"].session(conditioning, timesteps)
        guided_step(network, slots, rescaled=rescaled)
        for i in range(len(timesteps)):
            sample = network.sample
            if extra_channels is not None:  # the mask and the latents of the masked image
                sample = torch.cat([sample, extra_channels.to(sample.dtype)], dim=1)
            network = replace(network, output=unet(i, sample, {})["out_sample"])
            guided_step(network, slots, rescaled=rescaled)
        latents = slots.latents * self._scale + self._shift
        decoder = self._networks["vae_decoder"]
        latents = latents.to(decoder.dtype, memory_format=_format_of(decoder))
        (pixels,) = decoder({"latent_sample": latents}).values()
        return {"pixels": to_uint8(pixels), "finite": torch.isfinite(pixels).all()[None]}  # bytes do not show it

    def conditioning(self, inputs: Tensors, options: GraphOptions) -> dict[str, Tensor]:
        """Return the inputs of the denoiser that stay the same at every call."""
        encoders = dict.fromkeys(name for name, _ in self._plan.prompting.states)
        outputs = {name: self._encoded(name, inputs[IDS + name]) for name in encoders}
        weights = {name: inputs[WEIGHTS + name] for name in encoders if WEIGHTS + name in inputs}
        negatives = len(inputs["has_text"]) - len(inputs["noise"])  # rows of negative prompts, which skip no layer
        halves = [
            text_states(
                self._plan.prompting,
                {encoder: {name: tensor[rows] for name, tensor in each.items()} for encoder, each in outputs.items()},
                {name: each[rows] for name, each in weights.items()},
                skip,
                TORCH,
            )
            for rows, skip in ((slice(negatives), None), (slice(negatives, None), options.clip_skip))
        ]
        kind = self._networks["unet"].dtype
        has_text = inputs["has_text"].to(kind)  # 0 gives the zeros of an absent negative prompt
        states = torch.cat([states.to(kind) for states, _ in halves])
        arrays = {"encoder_hidden_states": states * has_text[:, None, None]}
        if self._plan.prompting.pooled is not None:
            arrays["text_embeds"] = torch.cat([pooled.to(kind) for _, pooled in halves]) * has_text[:, None]
        return arrays | {name: inputs[name] for name in _CONSTANTS if name in inputs}

    def _encoded(self, name: str, ids: Tensor) -> dict[str, Tensor]:
        """Return all outputs of a text encoder for all chunks.  # [N, chunks, T] -> [N, chunks, ...]"""
        outputs = self._networks[name]({"input_ids": ids.flatten(0, 1)})
        return {name: tensor.reshape(*ids.shape[:2], *tensor.shape[1:]) for name, tensor in outputs.items()}

    def _initial_state(self, inputs: Tensors, halves: int) -> tuple[Network, Slots]:
        noise, rows = inputs["noise"], inputs["rows"]
        count, calls = len(noise), rows.shape[1] - 1
        history = noise.new_empty(count, rows.shape[2], *noise.shape[1:])
        history[:, 0], history[:, 1 + calls :] = noise, inputs["draws"]
        original = None
        if "image_coefficients" in inputs:
            optional = {name: inputs[name] for name in ("inpaint_mask", "masked_rows") if name in inputs}
            original = SourceLatents(
                latents=inputs["original"], image_coefficients=inputs["image_coefficients"], **optional
            )
        slots = Slots(
            call=noise.new_full((count,), -1, dtype=torch.int32),
            calls=noise.new_full((count,), calls, dtype=torch.int32),
            rows=rows,
            timesteps=inputs["timesteps"],
            guidance=inputs["guidance"],
            history=history,
            latents=torch.empty_like(noise),
            original=original,
        )
        unet = self._networks["unet"]
        sample = noise.new_empty(count * halves, *noise.shape[1:], dtype=unet.dtype).to(memory_format=_format_of(unet))
        network = Network(output=torch.empty_like(sample), sample=sample, timestep=noise.new_empty(len(sample)))
        return network, slots


def _format_of(network: DeviceNetwork) -> torch.memory_format:
    return torch.channels_last if network.channels_last else torch.contiguous_format
