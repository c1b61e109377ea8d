"""A whole picture as one function of tensors on a device: token ids and noise in, bytes out.

Text encoders, every call of the denoiser with the step between, and the autoencoder's decoder follow each other on one
stream, and nothing waits for the host: captured by `graphs`, a picture is one launch. All that a request says is in the
inputs (`calotype.graph.inputs`). Shapes, and which inputs there are, decide what is launched: one graph serves every
prompt, seed, guidance and sampler of one size and number of calls.

Imports torch and triton. Knows nothing of graphs, backends or where networks come from; has no ControlNets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from calotype.kernels.guided_step import Network, Slots, SourceLatents, guided_step
from calotype.kernels.to_uint8 import to_uint8

from ..plan.plan import Plan, skipping
from .inputs import IDS, SKIP, WEIGHTS

Tensors = Mapping[str, Tensor]


class OnDevice(Protocol):
    """A network as a function of tensors on the device: inputs by name, outputs in the bindings' order."""

    dtype: torch.dtype  # of its floats

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Put it on the current stream."""


class GraphPipeline(nn.Module):
    """The function. `networks` are the plan's by name, on the device of the inputs."""

    _scale: Tensor
    _mean: Tensor

    def __init__(self, plan: Plan, networks: Mapping[str, OnDevice]) -> None:
        super().__init__()
        self._plan, self._networks = plan, dict(networks)
        spread = (plan.latents_std or (1.0,), plan.latents_mean or (0.0,))
        std, mean = (torch.tensor(numbers, dtype=torch.float32)[:, None, None] for numbers in spread)
        self.register_buffer("_scale", std / plan.scaling_factor, persistent=False)
        self.register_buffer("_mean", mean, persistent=False)

    def forward(self, inputs: Tensors) -> dict[str, Tensor]:
        """`pixels` uint8 [B, H, W, 3], and whether all numbers that they are made of are `finite`, bool [1]."""
        steering = self.steering(inputs)
        network, slots = self._at_the_start(inputs, guided=len(inputs["said"]) == 2 * len(inputs["noise"]))
        rescaled, unet, extra_channels = "rescaled" in inputs, self._networks["unet"], inputs.get("beside")
        guided_step(network, slots, rescaled=rescaled)
        with self._step_invariants(inputs, steering) as at:
            for i in range(inputs["timesteps"].shape[1] - 1):
                at(i)
                sample = network.sample
                if extra_channels is not None:  # the mask and the masked picture's latents
                    sample = torch.cat([sample, extra_channels.to(sample.dtype)], dim=1)
                output = unet(sample=sample, timestep=network.timestep, **steering)[0]
                network = replace(network, output=output.contiguous())
                guided_step(network, slots, rescaled=rescaled)
        latents = slots.latents * self._scale + self._mean
        decoder = self._networks["vae_decoder"]
        pixels = decoder(latent_sample=latents.to(decoder.dtype))[0]
        return {"pixels": to_uint8(pixels), "finite": torch.isfinite(pixels).all()[None]}  # bytes would not show it

    def steering(self, inputs: Tensors) -> dict[str, Tensor]:
        """What the denoiser is given at every call besides the sample and the timestep."""
        prompting, outputs = self._plan.prompting, {}
        for name in dict.fromkeys(component for component, _ in prompting.states):
            outputs[name] = self._encoded(name, inputs[IDS + name])
        kind = self._networks["unet"].dtype
        said = inputs["said"].to(kind)  # 0 makes the zeros of a negative prompt that was not said
        skip = next((int(name.removeprefix(SKIP)) for name in inputs if name.startswith(SKIP)), None)
        without = len(said) - len(inputs["noise"])  # rows to steer away from, whose layers are all taken
        states = []
        for component, output in prompting.states:
            taken = outputs[component][skipping(output, skip)]
            if skip is not None:
                taken = torch.cat([outputs[component][output][:without], taken[without:]])
            states.append(_weighed(taken, inputs.get(WEIGHTS + component)).to(kind))
        found = {"encoder_hidden_states": torch.cat(states, dim=-1) * said[:, None, None]}
        if prompting.pooled is not None:
            component, output = prompting.pooled
            found["text_embeds"] = outputs[component][output][:, 0].to(kind) * said[:, None]
        return found | {name: inputs[name] for name in ("time_ids", "timestep_cond") if name in inputs}

    def _encoded(self, name: str, ids: Tensor) -> dict[str, Tensor]:
        """Every output for every chunk.  # [N, chunks, T] -> [N, chunks, ...]"""
        outputs = [b.name for b in self._plan.components[name].outputs]
        made = self._networks[name](input_ids=ids.flatten(0, 1))
        return {n: t.reshape(*ids.shape[:2], *t.shape[1:]) for n, t in zip(outputs, made, strict=True)}

    def _step_invariants(self, inputs: Tensors, steering: Tensors) -> AbstractContextManager[Callable[[int], None]]:
        """Inside, what does not depend on the sample is computed once; the function says which call is next."""
        module: Any = getattr(self._networks["unet"], "module", None)
        if module is None:  # an engine
            return nullcontext(lambda call: None)
        from ..cuda.step_cache import step_invariants

        halves = len(inputs["said"]) // len(inputs["noise"])
        return step_invariants(
            module, inputs["timesteps"][:, :-1].repeat(halves, 1).T, steering, self._networks["unet"].dtype
        )

    def _at_the_start(self, inputs: Tensors, *, guided: bool) -> tuple[Network, Slots]:
        noise, rows = inputs["noise"], inputs["rows"]
        count, calls = len(noise), rows.shape[1] - 1
        history = noise.new_empty(count, rows.shape[2], *noise.shape[1:])
        history[:, 0], history[:, 1 + calls :] = noise, inputs["draws"]
        original = None
        if "image_coefficients" in inputs:
            names = ("image_coefficients", "inpaint_mask", "masked_rows")
            original = SourceLatents(latents=inputs["original"], **{n: inputs[n] for n in names if n in inputs})
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
        halves = count * (1 + guided)
        sample = noise.new_empty(halves, *noise.shape[1:], dtype=self._networks["unet"].dtype)
        network = Network(output=torch.empty_like(sample), sample=sample, timestep=noise.new_empty(halves))
        return network, slots


def _weighed(states: Tensor, weights: Tensor | None) -> Tensor:
    """Each token's state as often as it counts, each prompt's mean as it was; chunks one after the other.

    As `calotype.stages.conditioning` does it.  # [N, chunks, T, W], [N, chunks, T] -> [N, chunks * T, W]
    """
    if weights is not None:
        heavier = states.float() * weights[..., None]
        before, after = (each.double().mean(dim=(1, 2, 3), keepdim=True) for each in (states, heavier))
        some = (weights != 1).flatten(1).any(dim=1)[:, None, None, None]
        states = torch.where(some, (heavier * (before / after)).float(), states.float())
    return states.flatten(1, 2)
