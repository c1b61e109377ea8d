"""`python -m calotype.export.demo.train`: makes the demonstration model from nothing, in stages, with a fixed seed.

Stages: `vae` (autoencoder), `text` (tokenizer and text encoder), `unet`. Each one resumes from its last checkpoint
after a stop, appends its loss to `log.csv` and draws a sample sheet. Every draw is a function of (seed, step), so a
resumed run sees the data that an unbroken one would have seen.
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
    """How one network is trained. `lr` is held for a share `hold` of the steps, then falls on a cosine to `lr_end`."""

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
CROPPED = 3000  # scenes that the autoencoder's crops are cut from
ENCODED = 20_000  # scenes that the U-Net learns from
HELD_OUT = 10_000_000  # seeds from here on are never trained on


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where and how a training goes on: its checkpoints' folder, its seed, its device."""

    folder: Path
    seed: int
    device: torch.device


def learning_rate(stage: Stage, step: int) -> float:
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    falls_at = max(stage.warmup, int(stage.hold * stage.steps))
    done = min(1.0, max(0.0, (step - falls_at) / max(1, stage.steps - falls_at)))
    return stage.lr_end + (stage.lr - stage.lr_end) * 0.5 * (1 + math.cos(math.pi * done))


class Run:
    """One stage under way: the network, its moving average, its optimizer, and where they are kept."""

    def __init__(self, stage: Stage, model: Any, shop: Workshop) -> None:
        self.stage = stage
        self.model = model.to(shop.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), stage.lr, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
        )
        self.folder = shop.folder
        self.step = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._restore(torch.load(self.checkpoint, map_location=shop.device, weights_only=True))

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

    def fit(self, loss_at: Callable[[int], Tensor], sheet: Callable[[nn.Module], np.ndarray] | None = None) -> Any:
        """Minimise `loss_at(step)` to the stage's end; the moving average of the weights is returned."""
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
                _save_sheet(sheet(self.ema), self.folder / f"{self.stage.name}.png")
                drawn = time.monotonic()
        return self.ema

    def _advance(self, loss_at: Callable[[int], Tensor]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.stage, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(self.step)  # of dropout: after a stop it goes on as if there had been none
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


def _save_sheet(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)


def grid(pictures: Tensor, columns: int = 8) -> np.ndarray:
    """Pictures in [-1, 1] side by side.  # [N, 3, H, W] -> [rows*H, columns*W, 3] uint8"""
    u8 = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = [np.concatenate(list(u8[i : i + columns]), axis=1) for i in range(0, len(u8), columns)]
    return np.concatenate(rows, axis=0)


def pictures_of(seeds: range) -> Tensor:
    """Rendered scenes in [-1, 1].  # [N, 3, 128, 128]"""
    pixels = np.stack([scenes.render(scenes.draw_scene(s)) for s in seeds])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(shop: Workshop) -> Any:
    """On random 64-px crops: five times as many steps an hour as on whole scenes, and as good on those."""
    stage, device = STAGES["vae"], shop.device
    torch.manual_seed(shop.seed)
    run = Run(stage, networks.new_vae(), shop)
    pool, held_out = pictures_of(range(CROPPED)), pictures_of(range(HELD_OUT, HELD_OUT + 8)).to(device)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([shop.seed, 1, step])
        which, y, x = rng.integers(len(pool), size=stage.batch), *rng.integers(0, 65, size=(2, stage.batch))
        crops = [pool[w, :, b : b + 64, a : a + 64] for w, b, a in zip(which, y, x, strict=True)]
        real = torch.stack(crops).to(device)
        posterior = run.model.encode(real).latent_dist
        made = run.model.decode(posterior.sample(torch.Generator(device).manual_seed(step))).sample
        error = made - real
        loss: Tensor = error.abs().mean() + error.square().mean() + 1e-6 * posterior.kl().mean()
        return loss

    @torch.no_grad()
    def sheet(model: Any) -> np.ndarray:
        made = model.decode(model.encode(held_out).latent_dist.mode()).sample
        mse = (made.clamp(-1, 1) - held_out).square().mean(dim=(1, 2, 3)) / 4
        print(f"vae: {float((-10 * mse.log10()).mean()):.2f} dB on {len(held_out)} held-out scenes", flush=True)
        return grid(torch.cat([held_out, made]))

    return run.fit(loss_at, sheet)


def train_text(shop: Workshop) -> tuple[Any, Any]:
    """The tokenizer (kept in `folder/tokenizer`) and the text encoder."""
    stage, where = STAGES["text"], shop.folder / "tokenizer"
    if not (where / "merges.txt").exists():
        networks.train_tokenizer((scenes.caption(scenes.draw_scene(s, held_out=False)) for s in range(4000)), where)
    tokenizer = text.load_tokenizer(where)
    torch.manual_seed(shop.seed)
    run = Run(stage, text.TextTrainer(len(tokenizer)), shop)

    def loss_at(step: int) -> Tensor:
        drawn = [scenes.draw_scene(step * stage.batch + i, held_out=False) for i in range(stage.batch)]
        ids = text.tokenize(tokenizer, [scenes.caption(s) for s in drawn])
        truth = torch.from_numpy(np.stack([text.facts(s) for s in drawn]))
        loss: Tensor = run.model(ids.to(shop.device), truth.to(shop.device))
        return loss

    best = run.fit(loss_at)
    print(f"text: {100 * text.accuracy(best, tokenizer, range(256)):.1f} % told rightly", flush=True)
    return tokenizer, best.encoder


def train_unet(shop: Workshop, vae: Any, tokenizer: Any, text_encoder: Any) -> tuple[Any, float]:
    """The U-Net, on latents of the autoencoder and states of the text encoder; and the latents' scaling factor."""
    stage = STAGES["unet"]
    latents = unet.Latents(vae, ENCODED, shop.folder, shop.device)
    denoising = unet.Denoising(text_encoder, tokenizer, latents, shop.device)
    torch.manual_seed(shop.seed)
    run = Run(stage, networks.new_unet(), shop)
    held_out = [scenes.caption(scenes.draw_scene(s, held_out=True)) for s in range(32)]

    def sheet(model: nn.Module) -> np.ndarray:
        pictures = grid(unet.sample(model, vae, denoising, held_out, guidance=5.0))
        tiles = [p for row in np.split(pictures, 4) for p in np.split(row, 8, axis=1)]
        right = sum(judge(tile, words).right for tile, words in zip(tiles, held_out, strict=True))
        print(f"unet: {right} of {len(held_out)} held-out captions painted right at step {run.step}", flush=True)
        return pictures

    best = run.fit(lambda step: denoising.loss(run.model, shop.seed, step, stage.batch), sheet)
    return best, latents.scaling_factor


def train(shop: Workshop, out: Path) -> None:
    """All stages, each from where it stopped, then the model into `out`."""
    vae = train_vae(shop)
    tokenizer, text_encoder = train_text(shop)
    network, scaling_factor = train_unet(shop, vae, tokenizer, text_encoder)
    vae.register_to_config(scaling_factor=round(scaling_factor, 5))
    parts = {"unet": network.cpu(), "vae": vae.cpu(), "text_encoder": text_encoder.cpu()}
    networks.save_model(out, parts, shop.folder / "tokenizer")
    print(f"the model is in {out}", flush=True)


def asked(what: str, *, folder: str, out: str, **more: str) -> tuple[Workshop, argparse.Namespace]:
    """What the command line of a training says: where and on what it works; `more` are further options' defaults."""
    parser = argparse.ArgumentParser(description=f"Train {what}; resumes after a stop.")
    parser.add_argument("--folder", type=Path, default=Path(folder), help="checkpoints, log and sample sheets")
    parser.add_argument("--out", type=Path, default=Path(out), help="where what was trained goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, usual in more.items():
        parser.add_argument(f"--{name}", default=usual)
    said = parser.parse_args()
    torch.set_num_threads(threads.available())
    return Workshop(folder=said.folder, seed=said.seed, device=torch.device(said.device)), said


def main() -> None:
    """The command line of `make train-demo`."""
    shop, said = asked("the demonstration model from nothing", folder=".train", out="engine/demo_model")
    train(shop, said.out)


if __name__ == "__main__":
    main()
