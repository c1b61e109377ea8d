"""`python -m calotype.export.demo.train_clip`: a small CLIP that knows the demonstration's scenes and their captions.

Words and pictures are drawn together as in the paper (Radford et al. 2021), against the other captions of the batch
and against captions with one wrong word, without which a CLIP reads a caption as a bag of words (Yuksekgonul et al.
2023, arXiv 2210.01936). The text encoder begins as the demonstration's own. Resumes after a stop, as `train` does.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..judge import scenes
from ..judge.validate import wrong_captions
from ..sources.source import find
from . import networks, train
from .train_text import FACTS, PARTS, facts, load_tokenizer

STAGE = train.Stage(name="clip", steps=450, batch=32, lr=1e-3, warmup=40, hold=0.4, ema_decay=0.99)
SCENES = 6000  # that it learns from
WRONG = 2  # captions with one wrong word, for each picture
TOKENS = 16  # of the longest caption; the text encoder looks back alone: what comes after its end is not needed
_UNSAID = 0  # the class of a size that a caption does not say, in `train_text.facts`
_SIZE = 2  # the place of the size among the facts


class ClipTrainer(nn.Module):
    """The CLIP with heads that read the scene's facts from an embedding, of words and of pictures alike.

    The heads are shared by both, and thrown away: they bring the two together long before the contrast does.
    """

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.clip = networks.new_clip(text_encoder)
        self.heads = nn.ModuleList(nn.Linear(networks.CLIP_WIDTH, PARTS * classes) for classes in FACTS)

    def forward(self, pixels: Tensor, ids: Tensor, truth: Tensor) -> Tensor:
        """The loss.  # pixels [B, 3, S, S], ids [B * (1 + WRONG), T], true captions first; truth [B, PARTS, FACTS]"""
        seen = self.clip.get_image_features(pixels).pooler_output  # [B, D]
        read = self.clip.get_text_features(ids).pooler_output  # [B * (1 + WRONG), D]
        told = self._facts(read[: len(seen)], truth) + self._facts(seen, _visible(truth))
        likeness = nn.functional.normalize(seen) @ nn.functional.normalize(read).T * self.clip.logit_scale.exp()
        mine = torch.arange(len(seen), device=seen.device)
        contrast = nn.functional.cross_entropy(likeness, mine)
        contrast = contrast + nn.functional.cross_entropy(likeness[:, : len(seen)].T, mine)
        loss: Tensor = (contrast + told) / 2
        return loss

    def _facts(self, embedding: Tensor, truth: Tensor) -> Tensor:
        losses = []
        for i, (head, classes) in enumerate(zip(self.heads, FACTS, strict=True)):
            logits = head(embedding).view(-1, classes)  # [B * PARTS, classes]
            losses.append(nn.functional.cross_entropy(logits, truth[..., i].reshape(-1), ignore_index=-1))
        return torch.stack(losses).mean()


def _visible(truth: Tensor) -> Tensor:
    """A picture does not show whether its caption speaks of size: there is nothing to learn then."""
    shown = truth.clone()
    shown[..., _SIZE][shown[..., _SIZE] == _UNSAID] = -1
    return shown


class Pictures:
    """The scenes that training draws, as the CLIP's image processor shrinks them, made once and kept in a file."""

    def __init__(self, count: int, folder: Path) -> None:
        path = folder / f"pictures-{count}.npy"
        if not path.exists():
            made = np.stack([_shrunk(scenes.render(scenes.draw_scene(s, held_out=False))) for s in range(count)])
            fresh = path.with_suffix(".part.npy")
            np.save(fresh, made)
            fresh.replace(path)
        self.values = np.load(path)  # [count, SIGHT, SIGHT, 3] uint8

    def __call__(self, which: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Some of them in [-1, 1], softened, shifted, tinted, noisy as painted ones may be.  # [B, 3, SIGHT, SIGHT]"""
        pixels = torch.from_numpy(self.values[which]).permute(0, 3, 1, 2).float() / 127.5 - 1
        soft = torch.from_numpy(rng.random((len(which), 1, 1, 1), dtype=np.float32))
        blurred = nn.functional.avg_pool2d(nn.functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
        pixels = torch.roll(torch.lerp(pixels, blurred, soft), tuple(rng.integers(-2, 3, 2).tolist()), (2, 3))
        tint = rng.normal(0, 0.04, (len(which), 3, 1, 1)) + rng.normal(0, 0.04, pixels.shape)
        return pixels + torch.from_numpy(tint.astype(np.float32))


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    size = (networks.SIGHT, networks.SIGHT)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _captions(drawn: list[scenes.Scene], rng: np.random.Generator) -> list[str]:
    """Those of the scenes, then WRONG false ones of the first scene, of the second, ..."""
    wrong = []
    for scene in drawn:
        others = [words for _, words in wrong_captions(scene)]
        wrong += [others[i] for i in rng.choice(len(others), WRONG, replace=False)]
    return [scenes.caption(s) for s in drawn] + wrong


def train_clip(shop: train.Workshop, model: Path) -> Any:
    """The CLIP, whose text encoder begins as that of the model in diffusers' layout in `model`."""
    from transformers import CLIPTextModel

    text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.float32)
    torch.manual_seed(shop.seed)
    run = train.Run(STAGE, ClipTrainer(text_encoder), shop)
    pictures, tokenizer = Pictures(SCENES, shop.folder), load_tokenizer(model / "tokenizer")
    drawn = [scenes.draw_scene(s, held_out=False) for s in range(SCENES)]
    truths = torch.from_numpy(np.stack([facts(s) for s in drawn]))

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([shop.seed, 3, step])
        which = rng.integers(SCENES, size=STAGE.batch)
        words = _captions([drawn[w] for w in which], rng)
        ids = tokenizer(words, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids
        pixels = pictures(which, rng)
        loss: Tensor = run.model(pixels.to(shop.device), ids.to(shop.device), truths[which].to(shop.device))
        return loss

    return run.fit(loss_at).clip


def save_clip(clip: Any, tokenizer: Path, folder: Path) -> None:
    """In transformers' layout, in fp16, with the image processor and the tokenizer that go with it."""
    from transformers import CLIPImageProcessorPil

    clip.config.text_config._name_or_path = ""  # whose text encoder it began with, as a folder of this machine
    clip.cpu().half().save_pretrained(folder, safe_serialization=True)
    side, half = networks.SIGHT, [0.5, 0.5, 0.5]
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=half, image_std=half
    ).save_pretrained(folder)
    for file in sorted(tokenizer.iterdir()):
        shutil.copy(file, folder)


def main() -> None:
    """The command line."""
    shop, said = train.asked("the demonstration's CLIP", folder=".train/clip", out="engine/demo_clip", model="demo")
    model = find(said.model)
    save_clip(train_clip(shop, model), model / "tokenizer", said.out)
    print(f"the CLIP is in {said.out}", flush=True)


if __name__ == "__main__":
    main()
