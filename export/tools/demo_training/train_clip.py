"""Train a small CLIP on the demonstration's scenes and captions.

The contrastive loss is that of the paper (Radford et al. 2021), against the other captions of the batch and against
captions with one wrong word. Without those, a CLIP reads a caption as a bag of words (Yuksekgonul et al. 2023, arXiv
2210.01936). The text encoder starts from the demonstration's own.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from calotype.export.judge import scenes

from . import networks
from .data import cached, training_scenes, wrong_captions
from .train_text import FACTS, PARTS, facts, load_tokenizer
from .trainer import Stage, Trainer, TrainingConfig

STAGE = Stage(name="clip", steps=450, batch=32, lr=1e-3, warmup=40, hold=0.4, ema_decay=0.99)
SCENES = 6000  # that it trains on
WRONG = 2  # captions with one wrong word, for each image
TOKENS = 16  # of the longest caption; the text encoder is causal, so it does not need the tokens after the end
_NO_SIZE = 0  # the class of a caption without a size word, in `train_text.facts`
_SIZE = 2  # the index of the size among the facts


class ClipTrainer(nn.Module):
    """The CLIP with heads that predict the scene's facts from an embedding of a caption or an image.

    Both embeddings share the heads, which align them long before the contrastive loss does. The heads are not kept.
    """

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.clip = networks.new_clip(text_encoder)
        self.heads = nn.ModuleList(nn.Linear(networks.CLIP_WIDTH, PARTS * classes) for classes in FACTS)

    def forward(self, pixels: Tensor, ids: Tensor, truth: Tensor) -> Tensor:
        """Return the loss.  # pixels [B, 3, S, S], ids [B * (1 + WRONG), T] (true ones first)"""
        seen = self.clip.get_image_features(pixels).pooler_output  # [B, D]
        read = self.clip.get_text_features(ids).pooler_output  # [B * (1 + WRONG), D]
        facts_loss = self._facts(read[: len(seen)], truth) + self._facts(seen, _visible(truth))
        likeness = nn.functional.normalize(seen) @ nn.functional.normalize(read).T * self.clip.logit_scale.exp()
        target = torch.arange(len(seen), device=seen.device)
        contrast = nn.functional.cross_entropy(likeness, target)
        contrast = contrast + nn.functional.cross_entropy(likeness[:, : len(seen)].T, target)
        loss: Tensor = (contrast + facts_loss) / 2
        return loss

    def _facts(self, embedding: Tensor, truth: Tensor) -> Tensor:
        losses = []
        for i, (head, classes) in enumerate(zip(self.heads, FACTS, strict=True)):
            logits = head(embedding).view(-1, classes)  # [B * PARTS, classes]
            losses.append(nn.functional.cross_entropy(logits, truth[..., i].reshape(-1), ignore_index=-1))
        return torch.stack(losses).mean()


def _visible(truth: Tensor) -> Tensor:
    """Ignore the class "no size word": an image does not show whether its caption has a size word."""
    visible = truth.clone()
    visible[..., _SIZE][visible[..., _SIZE] == _NO_SIZE] = -1
    return visible


class SceneImages:
    """The images of training scenes at the CLIP's size, rendered once and cached in a file."""

    def __init__(self, count: int, folder: Path) -> None:
        def compute() -> np.ndarray:
            return np.stack([_resized(scenes.render(s)) for s in training_scenes(count)])

        self.values = cached(folder / f"images-{count}.npy", compute)  # [count, SIGHT, SIGHT, 3] uint8

    def __call__(self, which: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Return some images in [-1, 1] with random blur, shift, tint and noise.  # [B, 3, SIGHT, SIGHT]"""
        pixels = torch.from_numpy(self.values[which]).permute(0, 3, 1, 2).float() / 127.5 - 1
        soft = torch.from_numpy(rng.random((len(which), 1, 1, 1), dtype=np.float32))
        blurred = nn.functional.avg_pool2d(nn.functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
        pixels = torch.roll(torch.lerp(pixels, blurred, soft), tuple(rng.integers(-2, 3, 2).tolist()), (2, 3))
        tint = rng.normal(0, 0.04, (len(which), 3, 1, 1)) + rng.normal(0, 0.04, pixels.shape)
        return pixels + torch.from_numpy(tint.astype(np.float32))


def _resized(pixels: np.ndarray) -> np.ndarray:
    size = (networks.SIGHT, networks.SIGHT)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _captions(drawn: list[scenes.Scene], rng: np.random.Generator) -> list[str]:
    """Return the scenes' captions, then WRONG false captions of the first scene, of the second, ..."""
    wrong = []
    for scene in drawn:
        others = [words for _, words in wrong_captions(scene)]
        wrong += [others[i] for i in rng.choice(len(others), WRONG, replace=False)]
    return [scenes.caption(s) for s in drawn] + wrong


def train_clip(config: TrainingConfig, model: Path) -> Any:
    """Train the CLIP. Its text encoder starts from that of the model (in diffusers' layout) in `model`."""
    from transformers import CLIPTextModel

    text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.float32)
    torch.manual_seed(config.seed)
    trainer = Trainer(STAGE, ClipTrainer(text_encoder), config)
    images, tokenizer = SceneImages(SCENES, config.folder), load_tokenizer(model / "tokenizer")
    drawn = training_scenes(SCENES)
    truths = torch.from_numpy(np.stack([facts(s) for s in drawn]))

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 3, step])
        which = rng.integers(SCENES, size=STAGE.batch)
        words = _captions([drawn[w] for w in which], rng)
        ids = tokenizer(words, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
        pixels = images(which, rng)
        loss: Tensor = trainer.model(pixels.to(config.device), ids.to(config.device), truths[which].to(config.device))
        return loss

    return trainer.train(loss_at).clip


def save_clip(clip: Any, tokenizer: Path, folder: Path) -> None:
    """Write the CLIP in transformers' layout, in fp16, with its image processor and tokenizer."""
    from transformers import CLIPImageProcessorPil

    clip.config.text_config._name_or_path = ""  # remove the path of the folder that the text encoder came from
    clip.cpu().half().save_pretrained(folder, safe_serialization=True)
    side, half = networks.SIGHT, [0.5, 0.5, 0.5]
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=half, image_std=half
    ).save_pretrained(folder)
    for file in sorted(tokenizer.iterdir()):
        shutil.copy(file, folder)
