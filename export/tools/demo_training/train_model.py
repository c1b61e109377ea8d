"""Train the demonstration model from scratch: the autoencoder, the tokenizer and text encoder, then the U-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calotype.export.judge import scenes
from calotype.export.judge.judge import judge

from . import networks
from . import train_text as text
from . import train_unet as unet
from .data import HELD_OUT, images_of, training_scenes
from .trainer import Stage, Trainer, TrainingConfig, grid

STAGES = {
    "vae": Stage(name="vae", steps=1800, batch=12, lr=1.5e-3, ema_decay=0.995),
    "text": Stage(name="text", steps=300, batch=64, lr=1e-3, ema_decay=0.98),
    "unet": Stage(name="unet", steps=4400, batch=32, lr=1e-3, hold=0.5, ema_decay=0.9985, sheet_seconds=480.0),
}
CROPPED = 3000  # scenes that the autoencoder trains on crops of
ENCODED = 20_000  # scenes that the U-Net trains on


def train_vae(config: TrainingConfig) -> Any:
    """Train the autoencoder on random 64-px crops: five times the steps per hour of full scenes, at equal quality."""
    stage, device = STAGES["vae"], config.device
    torch.manual_seed(config.seed)
    trainer = Trainer(stage, networks.new_vae(), config)
    pool = images_of([scenes.draw_scene(s) for s in range(CROPPED)])
    held_out = images_of([scenes.draw_scene(s) for s in range(HELD_OUT, HELD_OUT + 8)]).to(device)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 1, step])
        which, y, x = rng.integers(len(pool), size=stage.batch), *rng.integers(0, 65, size=(2, stage.batch))
        crops = [pool[w, :, b : b + 64, a : a + 64] for w, b, a in zip(which, y, x, strict=True)]
        real = torch.stack(crops).to(device)
        posterior = trainer.model.encode(real).latent_dist
        decoded = trainer.model.decode(posterior.sample(torch.Generator(device).manual_seed(step))).sample
        error = decoded - real
        loss: Tensor = error.abs().mean() + error.square().mean() + 1e-6 * posterior.kl().mean()
        return loss

    @torch.no_grad()
    def sheet(model: Any) -> np.ndarray:
        decoded = model.decode(model.encode(held_out).latent_dist.mode()).sample
        mse = (decoded.clamp(-1, 1) - held_out).square().mean(dim=(1, 2, 3)) / 4
        print(f"vae: {float((-10 * mse.log10()).mean()):.2f} dB on {len(held_out)} held-out scenes", flush=True)
        return grid(torch.cat([held_out, decoded]))

    return trainer.train(loss_at, sheet)


def train_text(config: TrainingConfig) -> tuple[Any, Any]:
    """Train the tokenizer (in `folder/tokenizer`) and the text encoder, and return both."""
    stage, folder = STAGES["text"], config.folder / "tokenizer"
    if not (folder / "merges.txt").exists():
        networks.train_tokenizer((scenes.caption(s) for s in training_scenes(4000)), folder)
    tokenizer = text.load_tokenizer(folder)
    torch.manual_seed(config.seed)
    trainer = Trainer(stage, text.TextTrainer(len(tokenizer)), config)

    def loss_at(step: int) -> Tensor:
        drawn = training_scenes(stage.batch, first=step * stage.batch)
        ids = text.tokenize(tokenizer, [scenes.caption(s) for s in drawn])
        truth = torch.from_numpy(np.stack([text.facts(s) for s in drawn]))
        loss: Tensor = trainer.model(ids.to(config.device), truth.to(config.device))
        return loss

    best = trainer.train(loss_at)
    print(f"text: {100 * text.accuracy(best, tokenizer, range(256)):.1f} % of held-out captions right", flush=True)
    return tokenizer, best.encoder


def train_unet(config: TrainingConfig, vae: Any, tokenizer: Any, text_encoder: Any) -> tuple[Any, float]:
    """Train the U-Net on the autoencoder's latents, and return it with the latents' scaling factor."""
    stage = STAGES["unet"]
    latents = unet.Latents.cached(vae, ENCODED, config)
    denoising = unet.Denoising(text_encoder, tokenizer, latents, config.device)
    torch.manual_seed(config.seed)
    trainer = Trainer(stage, networks.new_unet(), config)
    held_out = [scenes.caption(scenes.draw_scene(s, held_out=True)) for s in range(32)]

    def sheet(model: nn.Module) -> np.ndarray:
        images = grid(unet.sample(model, vae, denoising, held_out, guidance=5.0))
        tiles = [p for row in np.split(images, 4) for p in np.split(row, 8, axis=1)]
        right = sum(judge(tile, words).right for tile, words in zip(tiles, held_out, strict=True))
        print(f"unet: {right} of {len(held_out)} held-out captions right at step {trainer.step}", flush=True)
        return images

    best = trainer.train(lambda step: denoising.loss(trainer.model, config.seed, step, stage.batch), sheet)
    return best, latents.scaling_factor


def train_model(config: TrainingConfig, out: Path) -> None:
    """Run all stages, each from its last checkpoint, then write the model to `out`."""
    vae = train_vae(config)
    tokenizer, text_encoder = train_text(config)
    network, scaling_factor = train_unet(config, vae, tokenizer, text_encoder)
    vae.register_to_config(scaling_factor=round(scaling_factor, 5))
    parts = {"unet": network.cpu(), "vae": vae.cpu(), "text_encoder": text_encoder.cpu()}
    networks.save_model(out, parts, config.folder / "tokenizer")
