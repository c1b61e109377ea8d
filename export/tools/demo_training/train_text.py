"""Training of the text encoder: its padding tokens learn to predict what the caption describes.

A caption has about fifteen of seventy-seven tokens; the rest is padding, and padding tokens attend to the full caption.
Each learns to predict one part of the scene (in turn the first thing, the second, the background) through linear heads
that are not kept. So the U-Net gets the parts of the scene in separate keys and values from its first step, and learns
colors hours sooner than with an encoder that trains at the same time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calotype.export.judge import scenes

from . import networks

PARTS = 3  # padding token i predicts part i % PARTS: the first thing, the second, the background
_COLORS = [*scenes.COLORS, "absent"]
_SHAPES = [*scenes.SHAPES, "absent"]
_SIZES = [None, "small", "large", "absent"]
_PLACES = ["middle", "left", "top", "right", "bottom", "absent", "everywhere"]
FACTS = (len(_COLORS), len(_SHAPES), len(_SIZES), len(_PLACES))  # classes of each fact of a part

_PLACE_OF = {None: ("middle", "absent"), "left of": ("left", "right"), "above": ("top", "bottom")}


def facts(scene: scenes.Scene) -> np.ndarray:
    """Return the facts of each part as class numbers.  # [PARTS, len(FACTS)]"""
    rows: list[tuple[Any, ...]] = []
    for i, place in enumerate(_PLACE_OF[scene.relation]):
        if i < len(scene.things):
            t = scene.things[i]
            rows.append((t.color, t.shape, t.size, place))
        else:
            rows.append(("absent", "absent", "absent", "absent"))
    rows.append((scene.background, "absent", "absent", "everywhere"))
    tables: tuple[list[Any], ...] = (_COLORS, _SHAPES, _SIZES, _PLACES)
    return np.array([[table.index(fact) for table, fact in zip(tables, row, strict=True)] for row in rows])


class TextTrainer(nn.Module):
    """The text encoder with its heads; `forward` returns the loss of one batch of captions."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.encoder = networks.new_text_encoder(vocabulary)
        self.heads = nn.ModuleList(nn.Linear(networks.TEXT_WIDTH, classes) for classes in FACTS)

    def predict(self, ids: Tensor) -> list[Tensor]:
        """Return the logits of every fact at every position.  # [B, T] -> len(FACTS) x [B, T, classes]"""
        hidden = self.encoder(ids).last_hidden_state
        # Dropout forces a margin between the facts, so that the U-Net can separate them early in its training.
        hidden = nn.functional.dropout(hidden, 0.2, self.training)
        return [head(hidden) for head in self.heads]

    def forward(self, ids: Tensor, truth: Tensor) -> Tensor:
        """Return the mean cross-entropy over padding.  # ids [B, T], truth [B, PARTS, len(FACTS)]"""
        part = torch.arange(ids.shape[1], device=ids.device) % PARTS
        padding = ids == self.encoder.config.eos_token_id
        losses = [
            nn.functional.cross_entropy(logits[padding], truth[:, part, i][padding])
            for i, logits in enumerate(self.predict(ids))
        ]
        return torch.stack(losses).mean()


def load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: Any, captions: list[str]) -> Tensor:
    """Tokenize captions and pad them to 77 tokens.  # [B, 77] int64"""
    out = tokenizer(captions, padding="max_length", max_length=networks.MAX_TOKENS, truncation=True)
    return torch.tensor(out["input_ids"])


def accuracy(model: TextTrainer, tokenizer: Any, seeds: range) -> float:
    """Return the share of held-out captions whose padding predicts every fact of every part correctly."""
    drawn = [scenes.draw_scene(s, held_out=True) for s in seeds]
    ids = tokenize(tokenizer, [scenes.caption(s) for s in drawn])
    truth = torch.from_numpy(np.stack([facts(s) for s in drawn]))
    with torch.no_grad():
        predicted = torch.stack([t.argmax(-1) for t in model.eval().predict(ids)], dim=-1)  # [B, T, facts]
    last = networks.MAX_TOKENS - PARTS
    part = torch.arange(last, networks.MAX_TOKENS) % PARTS
    return float((predicted[:, last:] == truth[:, part]).all(dim=(1, 2)).float().mean())
