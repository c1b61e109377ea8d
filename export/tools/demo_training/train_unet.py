"""Training of the U-Net: it predicts the noise of noised latents from the text encoder's states.

This module has the loss and its weights, the latents, and the sampler of a sample sheet; `trainer` has the loop over
steps. A ControlNet trains with the same loss and its own `Denoising.predict`, a LoRA with latents of its own scenes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calotype.export.judge import scenes

from . import networks
from .data import cached, images_of, training_scenes
from .train_text import tokenize
from .trainer import TrainingConfig

DROPPED = 0.1  # share of empty captions, for classifier-free guidance


def loss_weights(signal_to_noise: Tensor) -> Tensor:
    """Return the weight of the squared error of the noise at each timestep, from its signal-to-noise ratio.

    Min-SNR (Hang et al. 2023, arXiv 2303.09556) with gamma 5 reduces the weight at the nearly clean end. At the noisy
    end the weight is that of v-prediction, (1 + SNR) / SNR, limited to 16: there the caption decides the image, and
    a plain epsilon loss has little weight.
    """
    return torch.minimum(signal_to_noise + 1, torch.full_like(signal_to_noise, 5.0)).div(signal_to_noise).clamp(max=16)


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Latents of the scenes of seeds 0..count-1, with their scaling factor."""

    values: Tensor  # [count, 4, 16, 16]
    scaling_factor: float

    @classmethod
    def cached(cls, vae: Any, count: int, config: TrainingConfig) -> Latents:
        """Encode the scenes once, and cache them in a file."""
        path = config.folder / f"latents-{count}-{_digest(vae)}.npy"
        values = torch.from_numpy(cached(path, lambda: encode(vae, count, config.device).numpy())).float()
        return cls(values=values, scaling_factor=float(1 / values.std()))


def _digest(network: nn.Module) -> str:
    """Return the first 16 digits of the SHA-256 of the network's weights."""
    sha = hashlib.sha256()
    for tensor in network.state_dict().values():
        sha.update(tensor.cpu().numpy().tobytes())
    return sha.hexdigest()[:16]


@torch.no_grad()
def encode(vae: Any, count: int, device: torch.device, render: Callable[[scenes.Scene], Any] = scenes.render) -> Tensor:
    """Return the latents of the scenes of seeds 0..count-1.  # [count, 4, 16, 16] fp16"""
    parts = []
    for start in range(0, count, 50):
        real = images_of(training_scenes(min(50, count - start), first=start), render).to(device)
        parts.append(vae.encode(real).latent_dist.mode().half().cpu())
    return torch.cat(parts)


class Denoising:
    """The loss of one step, a function of only (seed, step)."""

    dropped = DROPPED

    def __init__(self, text_encoder: nn.Module, tokenizer: Any, latents: Latents, device: torch.device) -> None:
        from diffusers import DDPMScheduler

        schedule = DDPMScheduler(**dict(networks.SCHEDULER.items()))
        self.kept = schedule.alphas_cumprod.to(device)  # [1000]
        self.weights = loss_weights(self.kept / (1 - self.kept))
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.tokenizer, self.latents, self.device = tokenizer, latents, device

    @torch.no_grad()
    def states(self, captions: list[str]) -> Tensor:
        """Return the text encoder's states.  # [B, 77, TEXT_WIDTH]"""
        states: Tensor = self.text_encoder(tokenize(self.tokenizer, captions).to(self.device)).last_hidden_state
        return states

    def predict(self, network: Any, noised: Tensor, t: Tensor, states: Tensor, which: np.ndarray) -> Tensor:
        """Predict the noise in latents of the scenes `which` with the network.  # [B, 4, 16, 16] -> the same"""
        predicted: Tensor = network(noised, t, states).sample
        return predicted

    def loss(self, network: Any, seed: int, step: int, batch: int) -> Tensor:
        rng = np.random.default_rng([seed, 2, step])
        which = rng.integers(len(self.latents.values), size=batch)
        captions = [
            "" if rng.random() < self.dropped else scenes.caption(scenes.draw_scene(int(w), held_out=False))
            for w in which
        ]
        clean = self.latents.values[which].to(self.device) * self.latents.scaling_factor
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(self.device)
        # One timestep from each of `batch` equal parts of the schedule: less noise in the loss than uniform draws.
        spread = (np.arange(batch) + rng.random(batch)) * (len(self.kept) / batch)
        t = torch.from_numpy(spread.astype(np.int64)).to(self.device)
        kept = self.kept[t].view(-1, 1, 1, 1)
        noised = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        predicted = self.predict(network, noised, t, self.states(captions), which)
        errors: Tensor = (predicted - noise).square().mean(dim=(1, 2, 3))
        return (errors * self.weights[t]).mean()


@torch.no_grad()
def sample(
    network: Any, vae: Any, denoising: Denoising, captions: list[str], *, guidance: float, steps: int = 20
) -> Tensor:
    """Generate images with DPM++ 2M; seeds are the indices of captions.  # [N, 3, 128, 128] in [-1, 1]"""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**networks.SCHEDULER)
    scheduler.set_timesteps(steps, device=denoising.device)
    size = (4, networks.LATENT_SIZE, networks.LATENT_SIZE)
    x = torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(i)) for i in range(len(captions))])
    x = x.to(denoising.device)
    states = denoising.states(["" for _ in captions] + captions)
    which = np.tile(np.arange(len(captions)), 2)
    for t in scheduler.timesteps:
        uncond, cond = denoising.predict(network, torch.cat([x, x]), t, states, which).chunk(2)
        x = scheduler.step(uncond + guidance * (cond - uncond), t, x).prev_sample
    images: Tensor = vae.decode(x / denoising.latents.scaling_factor).sample
    return images
