"""How well pictures show their prompts, by CLIP (Radford et al. 2021): words and pictures as vectors of one space.

A measure beside the pipelines, run eagerly in float32 by transformers: of any CLIP model's folder, or of the small one
that ships with Calotype, which knows the demonstration model's words. Knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, InputError, SourceError, first_line
from ..files.json_file import read_json
from .arrays import as_list, load_image_array

Floats = NDArray[np.float32]

DEMO = Path(__file__).parent.parent / "demo_clip"
_BATCH = 64  # pictures, or texts, that go through a network at once


class Clip:
    """A CLIP model in transformers' layout, with its own tokenizer and image processor."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """`folder` holds a `CLIPModel`: its config, safetensors, preprocessor_config.json and the tokenizer's files.

        None is the model that ships with Calotype: it knows the demonstration model's words and scenes, and no others.
        Raises `SourceError` where the folder holds no such model, `BackendError` where transformers is not installed.
        """
        self.folder = DEMO if folder is None else Path(folder).expanduser()
        _check(self.folder)
        self._model, self._processor, self._tokenizer = _read(self.folder)

    @property
    def tokens(self) -> int:
        """How many tokens of a text are read, its start and end among them; the rest is cut off, as CLIP does."""
        return int(self._model.config.text_config.max_position_embeddings)

    def encode_text(self, texts: str | Sequence[str]) -> Floats:
        """The texts as vectors of length 1.  # [N] -> float32 [N, D]"""
        import torch

        words = _texts(texts)
        parts = []
        for start in range(0, len(words), _BATCH):
            ids = self._tokenizer(
                words[start : start + _BATCH],
                padding="max_length",
                max_length=self.tokens,
                truncation=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                parts.append(self._model.get_text_features(**ids).pooler_output.numpy())
        return _to_unit_range(np.concatenate(parts))

    def encode_image(self, images: Any) -> Floats:
        """The pictures as vectors of length 1.

        One or several: PIL images, or arrays [H, W, 3] or [N, H, W, 3] of bytes or of floats from 0 to 1, of any size.
        They are resized, cut and scaled as the model's own processor says.  # -> float32 [N, D]
        """
        import torch

        pictures = [_bytes(picture) for picture in _pictures(images)]
        parts = []
        for start in range(0, len(pictures), _BATCH):
            pixels = self._processor(
                pictures[start : start + _BATCH], return_tensors="pt", input_data_format="channels_last"
            )
            with torch.inference_mode():
                parts.append(self._model.get_image_features(**pixels).pooler_output.numpy())
        return _to_unit_range(np.concatenate(parts))

    def score(self, images: Any, prompts: str | Sequence[str]) -> Floats:
        """100 times the cosine of each picture and its prompt, or of all and the one prompt.  # -> float32 [N]"""
        words, pictures = _texts(prompts), _pictures(images)
        if len(words) not in (1, len(pictures)):
            raise InputError(f"give one prompt, or one for each of {len(pictures)} pictures; got {len(words)}.")
        scores: Floats = 100 * (self.encode_image(pictures) * self.encode_text(words)).sum(axis=1)
        return scores


def clip_score(images: Any, prompts: str | Sequence[str], *, model: str | Path | None = None) -> Floats:
    """How well each picture shows its prompt: 100 times the cosine of their CLIP vectors, -100 to 100; more is better.

    Args:
        images: one picture or several: PIL images, or arrays [H, W, 3] or [N, H, W, 3] of bytes or floats from 0 to 1.
        prompts: one for each picture, or one for all. What goes past the model's length (77 tokens) is not read.
        model: the folder of any `CLIPModel` in transformers' layout. None is the model that ships with Calotype, which
            knows the demonstration model's words and scenes, and no others.

    Returns:
        float32 [N], a score for each picture. Those of different models cannot be compared.

    Raises:
        InputError: the pictures or prompts are wrong; SourceError: `model` is no CLIP model's folder;
        BackendError: transformers is not installed.
    """
    return _opened(None if model is None else str(model)).score(images, prompts)


@lru_cache(maxsize=2)
def _opened(folder: str | None) -> Clip:
    return Clip(folder)


def _check(folder: Path) -> None:
    """`SourceError` unless the folder has a CLIP's config."""
    kind = read_json(folder / "config.json", "a CLIP model's folder has one").get("model_type")
    if kind != "clip":
        raise SourceError(f"{folder} holds a model of type {kind}; a CLIP of text and pictures has the type clip.")


def _read(folder: Path) -> tuple[Any, Any, Any]:
    """The model, its image processor and its tokenizer."""
    try:
        import torch
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
        from transformers.utils import logging
    except ImportError:
        raise BackendError(
            "CLIP is run by torch and transformers, which are not installed (pip install 'calotype[build]')."
        ) from None
    logging.disable_progress_bar()  # of reading weights: it would be drawn into pipes as well
    local = {"local_files_only": True}
    try:
        model, told = CLIPModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
        )
        processor = CLIPImageProcessorPil.from_pretrained(folder, **local)
        tokenizer = CLIPTokenizer.from_pretrained(folder, **local)
    except Exception as failed:  # transformers raises kinds of its own, and the tokenizers library bare Exception
        raise SourceError(f"the CLIP model in {folder} cannot be opened: {first_line(failed)}") from None
    if told["missing_keys"]:
        raise SourceError(f"the CLIP model in {folder} lacks weights, of {min(told['missing_keys'])} for one.")
    return model.eval(), processor, tokenizer


def _to_unit_range(vectors: Floats) -> Floats:
    to_unit_range: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return to_unit_range


def _texts(given: str | Sequence[str]) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
    if not texts or not all(isinstance(t, str) for t in texts):
        raise InputError(f"prompts must be text, or a list of texts that is not empty; got {given!r:.80}.")
    return texts


def _pictures(given: Any) -> list[Any]:
    pictures = as_list(given)
    if not pictures:
        raise InputError("images must be a picture, or a list of pictures that is not empty.")
    return pictures


def _bytes(picture: Any) -> NDArray[np.uint8]:
    """# -> uint8 [H, W, 3]"""
    pixels = load_image_array("images", picture)
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)
