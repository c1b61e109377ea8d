"""Runs of a model over many prompts in lockstep: every batch makes call i before any makes call i + 1.

A sampler can then be fitted to all prompts row by row. Uses the stages of the runtime, so that every family, backend
and LoRA runs as in a call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.generator import ImageGenerator
from calotype.plan.plan import Plan
from calotype.sampling.matrix import SamplerMatrix
from calotype.stages.denoise_inputs import DenoiseInputs, prepare
from calotype.stages.generation import Generation

Floats = NDArray[np.float32]
Network = Callable[[int, Floats], Floats]
"""(call, samples [n, C, h, w]) -> the outputs after guidance, [n, C, h, w]."""

BATCH = 8  # prompts in one call of the U-Net, if the plan takes as many


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One run of all prompts.

    Attributes:
        states: The network's input at each call, and the final latents. [calls + 1, n, C, h, w].
        outputs: Its outputs after guidance. [calls, n, C, h, w].
    """

    states: Floats
    outputs: Floats

    @property
    def latents(self) -> Floats:
        """The final latents.  # [n, C, h, w]"""
        return np.asarray(self.states[-1])

    def first(self, count: int) -> Trace:
        """Return the run of the first prompts."""
        return Trace(states=self.states[:, :count], outputs=self.outputs[:, :count])


class Runs:
    """n prompts with their noise, guidance scales, and the images that they start from.

    Attributes:
        scales: The guidance scale of each prompt. [n].
        noise: The initial noise. [n, C, h, w].
        draws: The noise that a stochastic sampler draws after it. [draws, n, C, h, w].
        clean: The clean latents of the images to start from, or None. [n, C, h, w].
    """

    def __init__(
        self,
        plan: Plan,
        generator: ImageGenerator,
        prompts: Sequence[str],
        seeds: Sequence[int],
        arguments: Mapping[str, Any],
        scales: Sequence[float],
        *,
        draws: int = 0,
        clean: Floats | None = None,
    ) -> None:
        """Encode the prompts. `arguments` are those of a call, for all prompts; `clean` is passed on as the image."""
        self._generator, self._plan, self.scales = generator, plan, np.array(scales, dtype=np.float64)
        self._calls: list[tuple[Generation, DenoiseInputs]] = []
        limit = min(BATCH, plan.profile.batch.max)
        for at in range(0, len(prompts), limit):
            rows = slice(at, at + limit)
            each: dict[str, Any] = {**arguments, "seed": list(seeds[rows]), "guidance_scale": float(max(scales))}
            if clean is not None:
                each["image"] = clean[rows]
            if plan.prompting.states:
                call = generator.start(list(prompts[rows]), each, threading.Event())
            else:  # without text: as many images as seeds
                call = generator.start(None, each | {"num_images": len(seeds[rows])}, threading.Event())
            call.loras = generator.loras.loras
            self._calls.append((call, prepare(plan, call.request, generator.codec, call.watch)))
        self.noise = np.concatenate([inputs.noise for _, inputs in self._calls])
        self.draws = np.concatenate([_draws(inputs, draws) for _, inputs in self._calls], axis=1)
        self.clean = clean

    @property
    def guided(self) -> bool:
        """Whether the network also runs without the prompt."""
        return self._calls[0][0].request.guided

    def network(self, sampler: SamplerMatrix) -> Network:
        """Return the network's calls at the timesteps of a sampler."""
        nets = []
        for call, inputs in self._calls:
            call.sampler = sampler
            nets.append((self._generator.denoiser(call, inputs), len(inputs.noise)))
        scales = self.scales.astype(np.float32)[:, None, None, None]

        def run(index: int, samples: Floats) -> Floats:
            outputs, at = [], 0
            for net, count in nets:
                rows = slice(at, at + count)
                output = net(index, np.ascontiguousarray(samples[rows], dtype=np.float32))
                if len(output) > count:
                    output = output[:count] + scales[rows] * (output[count:] - output[:count])
                outputs.append(output)
                at += count
            return np.concatenate(outputs)

        return run

    def groups(self) -> dict[float, list[int]]:
        """Return the prompts of each guidance scale."""
        return {float(scale): np.flatnonzero(self.scales == scale).tolist() for scale in np.unique(self.scales)}

    def columns(self) -> Floats:
        """Return what a row mixes besides the outputs: noise, draws, and clean latents.  # [1 + draws + 1, n, ...]"""
        clean = np.zeros_like(self.noise) if self.clean is None else self.clean
        return np.concatenate([self.noise[None], self.draws, clean[None]])

    def play(self, sampler: SamplerMatrix) -> Trace:
        """Run a sampler over all prompts. It uses the first of the draws."""
        network = self.network(sampler)
        history = np.zeros((sampler.rows.shape[1] + 1, *self.noise.shape), dtype=np.float32)
        history[0], calls = self.noise, sampler.calls
        history[1 + calls : -1] = self.draws[: sampler.draws]
        if self.clean is not None:
            history[-1] = self.clean
        image = np.zeros(calls + 1) if sampler.image_coefficients is None else sampler.image_coefficients
        rows = np.concatenate([sampler.rows, image[:, None]], axis=1)
        states = np.empty((calls + 1, *self.noise.shape), dtype=np.float32)
        for i in range(calls + 1):
            states[i] = np.einsum("j,j...->...", rows[i], history, dtype=np.float64)
            if i < calls:
                history[1 + i] = network(i, states[i])
        return Trace(states=states, outputs=history[1 : 1 + calls])

    def decode(self, latents: Floats) -> Floats:
        """Return the pixels of latents, in [0, 1].  # [n, 3, H, W]"""
        codec, images = self._generator.codec, []
        height, width = (side * self._plan.profile.factor for side in latents.shape[2:])
        for at in range(0, len(latents), BATCH):
            part = latents[at : at + BATCH]
            images.append(codec.decode(part, codec.tiling(len(part), height, width)))
        return np.asarray(np.clip(np.concatenate(images) / 2 + 0.5, 0, 1), dtype=np.float32)


def _draws(inputs: DenoiseInputs, count: int) -> Floats:
    draw = deepcopy(inputs.draw)
    return np.stack([draw() for _ in range(count)]) if count else np.zeros((0, *inputs.noise.shape), np.float32)
