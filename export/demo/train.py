"""`python -m calotype.export.demo.train`: train the demonstration model from scratch, in stages, with a fixed seed.

Stages: `vae` (autoencoder), `text` (tokenizer and text encoder), `unet`. Each stage resumes from its last checkpoint,
appends its loss to `log.csv` and draws a sample sheet. Every random draw is a function of (seed, step), so a resumed
run sees the same data as an uninterrupted one.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from calotype.system import threads

from ..judge import scenes
from ..judge.judge import judge
from . import networks
from . import train_text as text
from . import train_unet as unet

CHECKPOINT_SECONDS = 90.0
LOG_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Training settings of one network. `lr` is constant for a share `hold` of the steps, then a cosine to `lr_end`."""

    name: str
    steps: int
    batch: int
    lr: float
    lr_end: float = 1e-5
    warmup: int = 100
    hold: float = 0.0
    ema_decay: float = 0.998
    sheet_seconds: float = 90.0


STAGES = {
    "vae": Stage(name="vae", steps=1800, batch=12, lr=1.5e-3, ema_decay=0.995),
    "text": Stage(name="text", steps=300, batch=64, lr=1e-3, ema_decay=0.98),
    "unet": Stage(name="unet", steps=4400, batch=32, lr=1e-3, hold=0.5, ema_decay=0.9985, sheet_seconds=480.0),
}
CROPPED = 3000  # scenes that the autoencoder trains on crops of
ENCODED = 20_000  # scenes that the U-Net trains on
HELD_OUT = 10_000_000  # training never uses seeds from here on


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The folder of checkpoints, the seed and the device of a training."""

    folder: Path
    seed: int
    device: torch.device


def learning_rate(stage: Stage, step: int) -> float:
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    falls_at = max(stage.warmup, int(stage.hold * stage.steps))
    done = min(1.0, max(0.0, (step - falls_at) / max(1, stage.steps - falls_at)))
    return stage.lr_end + (stage.lr - stage.lr_end) * 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """Trains one network: holds the network, its moving average, its optimizer and its checkpoint."""

    def __init__(self, stage: Stage, model: Any, config: TrainingConfig) -> None:
        self.stage = stage
        self.model = model.to(config.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), stage.lr, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
        )
        self.folder = config.folder
        self.step = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._restore(torch.load(self.checkpoint, map_location=config.device, weights_only=True))

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.stage.name}.ckpt"

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        fresh = self.checkpoint.with_suffix(".part")
        torch.save(state, fresh)
        fresh.replace(self.checkpoint)

    def train(self, loss_at: Callable[[int], Tensor], sheet: Callable[[nn.Module], np.ndarray] | None = None) -> Any:
        """Minimize `loss_at(step)` to the end of the stage, and return the moving average of the network."""
        saved = drawn = time.monotonic()
        recent: list[float] = []
        while self.step < self.stage.steps:
            began = time.monotonic()
            recent.append(self._advance(loss_at))
            last = self.step == self.stage.steps
            if self.step % LOG_EVERY == 0 or last:
                self._log(float(np.mean(recent)), time.monotonic() - began)
                recent = []
            if last or time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
            if sheet is not None and (last or time.monotonic() - drawn > self.stage.sheet_seconds):
                Image.fromarray(sheet(self.ema)).save(self.folder / f"{self.stage.name}.png")
                drawn = time.monotonic()
        return self.ema

    def _advance(self, loss_at: Callable[[int], Tensor]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.stage, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(self.step)  # dropout is the same after a restart
        loss = loss_at(self.step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.stage.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averages: list[Tensor] = list(self.ema.parameters())
            torch._foreach_lerp_(averages, [p.detach() for p in self.model.parameters()], 1 - decay)
        return float(loss.detach())

    def _log(self, loss: float, seconds: float) -> None:
        line = f"{self.stage.name},{self.step},{loss:.5f},{learning_rate(self.stage, self.step):.2e},{seconds:.3f}"
        with (self.folder / "log.csv").open("a") as log:
            log.write(line + "\n")
        print(line, flush=True)


def grid(images: Tensor, columns: int = 8) -> np.ndarray:
    """Arrange images in [-1, 1] in a grid.  # [N, 3, H, W] -> [rows*H, columns*W, 3] uint8"""
    u8 = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = [np.concatenate(list(u8[i : i + columns]), axis=1) for i in range(0, len(u8), columns)]
    return np.concatenate(rows, axis=0)


def images_of(seeds: range) -> Tensor:
    """Return rendered scenes in [-1, 1].  # [N, 3, 128, 128]"""
    pixels = np.stack([scenes.render(scenes.draw_scene(s)) for s in seeds])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(config: TrainingConfig) -> Any:
    """Train the autoencoder on random 64-px crops: five times the steps per hour of full scenes, at equal quality."""
    stage, device = STAGES["vae"], config.device
    torch.manual_seed(config.seed)
    trainer = Trainer(stage, networks.new_vae(), config)
    pool, held_out = images_of(range(CROPPED)), images_of(range(HELD_OUT, HELD_OUT + 8)).to(device)

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
        networks.train_tokenizer((scenes.caption(scenes.draw_scene(s, held_out=False)) for s in range(4000)), folder)
    tokenizer = text.load_tokenizer(folder)
    torch.manual_seed(config.seed)
    trainer = Trainer(stage, text.TextTrainer(len(tokenizer)), config)

    def loss_at(step: int) -> Tensor:
        drawn = [scenes.draw_scene(step * stage.batch + i, held_out=False) for i in range(stage.batch)]
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
    latents = unet.Latents(vae, ENCODED, config.folder, config.device)
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


def train(config: TrainingConfig, out: Path) -> None:
    """Run all stages, each from its last checkpoint, then write the model to `out`."""
    vae = train_vae(config)
    tokenizer, text_encoder = train_text(config)
    network, scaling_factor = train_unet(config, vae, tokenizer, text_encoder)
    vae.register_to_config(scaling_factor=round(scaling_factor, 5))
    parts = {"unet": network.cpu(), "vae": vae.cpu(), "text_encoder": text_encoder.cpu()}
    networks.save_model(out, parts, config.folder / "tokenizer")
    print(f"wrote the model to {out}", flush=True)


def parse_args(what: str, *, folder: str, out: str, **more: str) -> tuple[TrainingConfig, argparse.Namespace]:
    """Parse the command line of a training. `more` are further options with their defaults."""
    parser = argparse.ArgumentParser(description=f"Train {what}; resumes from the last checkpoint.")
    parser.add_argument("--folder", type=Path, default=Path(folder), help="checkpoints, log and sample sheets")
    parser.add_argument("--out", type=Path, default=Path(out), help="output folder of the trained network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, default in more.items():
        parser.add_argument(f"--{name}", default=default)
    args = parser.parse_args()
    torch.set_num_threads(threads.available())
    return TrainingConfig(folder=args.folder, seed=args.seed, device=torch.device(args.device)), args


def main() -> None:
    """The command line of `make train-demo`."""
    config, args = parse_args("the demonstration model from scratch", folder=".train", out="engine/demo_model")
    train(config, args.out)


if __name__ == "__main__":
    main()
