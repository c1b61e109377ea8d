"""The loop that all trainings share: optimizer, learning rate, moving average, checkpoints, log and sample sheets.

Every random draw is a function of (seed, step), so a resumed training sees the same data as an uninterrupted one.
"""

from __future__ import annotations

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
        self.folder, self.checkpoint = config.folder, config.folder / f"{stage.name}.ckpt"
        self.step = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=config.device, weights_only=True)
            self.step = state["step"]
            for name, part in self._parts().items():
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "ema": self.ema, "optimizer": self.optimizer}

    def save(self) -> None:
        fresh = self.checkpoint.with_suffix(".part")
        torch.save({"step": self.step, **{name: part.state_dict() for name, part in self._parts().items()}}, fresh)
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
