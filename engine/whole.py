"""A whole picture as one function of tensors on a device: token ids and noise in, bytes out.

Text encoders, every call of the denoiser with the step between, and the autoencoder's decoder follow each other on one
stream, and nothing waits for the host: captured by `graphs`, a picture is one launch. All that a request says is in the
inputs (`inputs_of`): prompts, seeds' noise, guidance, the rows of the sampler matrix. Shapes alone decide what is
launched, so one graph serves every prompt, seed and sampler of one size and number of calls.

Imports torch, diffusers and triton. Knows nothing of graphs, backends or where modules come from; has no ControlNets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from calotype.bindings import Array
from calotype.conditioning import time_ids_of
from calotype.course import WHOLE
from calotype.errors import BackendError
from calotype.fused import remembered
from calotype.kernels.guided_step import Network, Slots, guided_step
from calotype.kernels.to_uint8 import to_uint8
from calotype.latents import BatchNoise
from calotype.networks import controlnets_of
from calotype.plan import Plan
from calotype.prompt import ClipTokenizer, Tokens
from calotype.request import Job
from calotype.sampler import SamplerMatrix

IDS = "ids."  # and a text encoder's name


def inputs_of(plan: Plan, tokenizers: Mapping[str, ClipTokenizer], matrix: SamplerMatrix, job: Job) -> dict[str, Array]:
    """What `WholePicture` takes for this job. N is 2B with guidance, the unconditional half first; else B."""
    texts = (*job.negative_prompts, *job.prompts) if job.guided else job.prompts
    ids = {IDS + name: _ids(tokenizer([t or "" for t in texts])) for name, tokenizer in tokenizers.items()}
    _check(plan, job)
    count = len(job.seeds)
    sizes = plan.profile.sizes(batch=count, height=job.height, width=job.width)
    _, *shape = plan.latents.shape(sizes)
    draw = BatchNoise(job.seeds, (shape[0], shape[1], shape[2]))
    drawn = np.stack([draw() for _ in range(1 + matrix.draws)], axis=1)  # [B, 1 + draws, C, h, w]
    timesteps = np.append(matrix.timesteps, 0).astype(np.float32)
    arrays: dict[str, Array] = {
        **ids,
        "said": np.array([t is not None for t in texts], dtype=np.float32),
        "noise": drawn[:, 0],
        "draws": drawn[:, 1:],
        "rows": np.tile(matrix.rows, (count, 1, 1)),
        "timesteps": np.tile(timesteps, (count, 1)),
        "guidance": np.tile(np.array([job.guidance_scale, 0], dtype=np.float32), (count, 1)),
    }
    if plan.prompting.pooled is not None:
        arrays["time_ids"] = time_ids_of(plan, job)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _ids(tokens: Tokens) -> Array:
    """Of prompts that are one chunk of words without weights; `BackendError` for others.  # [B, 1, T] -> [B, T]"""
    if any(tokens.dropped) or (tokens.weights != 1).any():
        raise BackendError("a whole picture is one graph for prompts of one chunk of tokens, without weights, alone.")
    return np.asarray(tokens.ids[:, 0])


def _check(plan: Plan, job: Job) -> None:
    """`BackendError` for what this function has no part for: the pipeline's loop does all of these."""
    asked = {
        "a picture to set out from": job.task.course != WHOLE or job.task.image is not None,
        "clip_skip": job.clip_skip is not None,
        "guidance_rescale": job.guided and job.guidance_rescale != 0,
        "a guidance embedding": any(b.name == "timestep_cond" for b in plan.components["unet"].inputs),
        "a U-Net that paints in masks": plan.inpaints,
    }
    for what, there in asked.items():
        if there:
            raise BackendError(f"a whole picture is one graph without {what} alone; take the pipeline's loop.")


class WholePicture(nn.Module):
    """The function. `modules` are the plan's networks by name, as `load_module` gives them, of any types."""

    _scale: Tensor
    _mean: Tensor

    def __init__(self, plan: Plan, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if controlnets_of(plan.components):
            raise BackendError("a whole picture is one graph without ControlNets alone; leave them out.")
        self.networks = nn.ModuleDict(modules)
        self._plan = plan
        self._dtypes = {name: next(module.parameters()).dtype for name, module in modules.items()}
        spread = (plan.latents_std or (1.0,), plan.latents_mean or (0.0,))
        std, mean = (torch.tensor(numbers, dtype=torch.float32)[:, None, None] for numbers in spread)
        self.register_buffer("_scale", std / plan.scaling_factor, persistent=False)
        self.register_buffer("_mean", mean, persistent=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`pixels` uint8 [B, H, W, 3], and whether all numbers that they are made of are `finite`, bool [1]."""
        steering = self.steering(inputs)
        network, slots = self._at_the_start(inputs, guided=len(inputs["said"]) == 2 * len(inputs["noise"]))
        guided_step(network, slots)
        with remembered(self.networks["unet"], steering["encoder_hidden_states"]):
            for _ in range(inputs["timesteps"].shape[1] - 1):
                (output,) = self.networks["unet"](sample=network.sample, timestep=network.timestep, **steering)
                network = replace(network, output=output.contiguous())
                guided_step(network, slots)
        latents = slots.latents * self._scale + self._mean
        (pixels,) = self.networks["vae_decoder"](latent_sample=latents.to(self._dtypes["vae_decoder"]))
        return {"pixels": to_uint8(pixels), "finite": torch.isfinite(pixels).all()[None]}  # bytes would not show it

    def steering(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the denoiser is given at every call besides the sample and the timestep."""
        prompting, outputs = self._plan.prompting, {}
        for name in {component for component, _ in prompting.states}:
            names = [b.name for b in self._plan.components[name].outputs]
            outputs[name] = dict(zip(names, self.networks[name](inputs[IDS + name]), strict=True))
        kind = self._dtypes["unet"]
        said = inputs["said"].to(kind)  # 0 makes the zeros of a negative prompt that was not said
        states = torch.cat([outputs[component][output].to(kind) for component, output in prompting.states], dim=-1)
        found = {"encoder_hidden_states": states * said[:, None, None]}
        if prompting.pooled is not None:
            component, output = prompting.pooled
            found |= {
                "text_embeds": outputs[component][output].to(kind) * said[:, None],
                "time_ids": inputs["time_ids"],
            }
        return found

    def _at_the_start(self, inputs: Mapping[str, Tensor], *, guided: bool) -> tuple[Network, Slots]:
        noise, rows = inputs["noise"], inputs["rows"]
        count, calls = len(noise), rows.shape[1] - 1
        history = noise.new_empty(count, rows.shape[2], *noise.shape[1:])
        history[:, 0], history[:, 1 + calls :] = noise, inputs["draws"]
        slots = Slots(
            call=noise.new_full((count,), -1, dtype=torch.int32),
            calls=noise.new_full((count,), calls, dtype=torch.int32),
            rows=rows,
            timesteps=inputs["timesteps"],
            guidance=inputs["guidance"],
            history=history,
            latents=torch.empty_like(noise),
        )
        halves = count * (1 + guided)
        sample = noise.new_empty(halves, *noise.shape[1:], dtype=self._dtypes["unet"])
        network = Network(output=torch.empty_like(sample), sample=sample, timestep=noise.new_empty(halves))
        return network, slots
