"""CLIP scores: how well images match their prompts (Radford et al. 2021), by vectors of texts and images in one space.

transformers runs CLIP in float32, separately from the pipelines. The model is any CLIP model's folder, or the small
model that ships with Calotype, which knows the demonstration model's words. This file does not know plans.
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
_BATCH = 64  # the number of images, or texts, in one run of a network


class Clip:
    """A CLIP model in transformers' layout, with its own tokenizer and image processor."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Load a `CLIPModel` from `folder`: its config, safetensors, preprocessor_config.json and tokenizer files.

        None loads the model that ships with Calotype, which only knows the demonstration model's words and scenes.

        Raises:
            SourceError: The folder does not contain such a model.
            BackendError: transformers is not installed.
        """
        self.folder = DEMO if folder is None else Path(folder).expanduser()
        _check(self.folder)
        self._model, self._processor, self._tokenizer = _read(self.folder)

    @property
    def tokens(self) -> int:
        """The maximum number of tokens of a text, including start and end. CLIP truncates longer texts."""
        return int(self._model.config.text_config.max_position_embeddings)

    def encode_text(self, texts: str | Sequence[str]) -> Floats:
        """Return texts as vectors of length 1.  # [N] -> float32 [N, D]"""
        import torch

        words = _as_texts(texts)
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
        return _normalize(np.concatenate(parts))

    def encode_image(self, images: Any) -> Floats:
        """Return images as vectors of length 1.

        One or several: PIL images, or arrays [H, W, 3] or [N, H, W, 3] of bytes or of floats from 0 to 1, of any size.
        The model's own processor resizes, crops and scales them.  # -> float32 [N, D]
        """
        import torch

        arrays = [_to_bytes(image) for image in _as_images(images)]
        parts = []
        for start in range(0, len(arrays), _BATCH):
            pixels = self._processor(
                arrays[start : start + _BATCH], return_tensors="pt", input_data_format="channels_last"
            )
            with torch.inference_mode():
                parts.append(self._model.get_image_features(**pixels).pooler_output.numpy())
        return _normalize(np.concatenate(parts))

    def score(self, images: Any, prompts: str | Sequence[str]) -> Floats:
        """Return 100 times the cosine of each image and its prompt, or of all images and one prompt.

        # -> float32 [N]
        """
        words, listed = _as_texts(prompts), _as_images(images)
        if len(words) not in (1, len(listed)):
            raise InputError(
                f"Invalid prompts: got {len(words)}; expected one prompt, or one for each of {len(listed)} images."
            )
        scores: Floats = 100 * (self.encode_image(listed) * self.encode_text(words)).sum(axis=1)
        return scores


def clip_score(images: Any, prompts: str | Sequence[str], *, model: str | Path | None = None) -> Floats:
    """Score how well each image matches its prompt: 100 times the cosine of their CLIP vectors; higher is better.

    Args:
        images: One image or several: PIL images, or arrays [H, W, 3] or [N, H, W, 3] of bytes or floats from 0 to 1.
        prompts: One for each image, or one for all. Text beyond the model's length (77 tokens) is truncated.
        model: The folder of any `CLIPModel` in transformers' layout. None is the model that ships with Calotype, which
            only knows the demonstration model's words and scenes.

    Returns:
        float32 [N], a score from -100 to 100 for each image. Scores of different models are not comparable.

    Raises:
        InputError: The images or prompts are invalid.
        SourceError: `model` is not the folder of a CLIP model.
        BackendError: transformers is not installed.
    """
    return _load(None if model is None else str(model)).score(images, prompts)


@lru_cache(maxsize=2)
def _load(folder: str | None) -> Clip:
    return Clip(folder)


def _check(folder: Path) -> None:
    """Raise `SourceError` unless the folder has the config of a CLIP model."""
    kind = read_json(folder / "config.json", "a CLIP model's folder has one").get("model_type")
    if kind != "clip":
        raise SourceError(f"Cannot load a CLIP model from {folder}: got the model type {kind}; expected clip.")


def _read(folder: Path) -> tuple[Any, Any, Any]:
    """Load the model, its image processor and its tokenizer."""
    try:
        import torch
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
        from transformers.utils import logging
    except ImportError:
        raise BackendError(
            "CLIP needs torch and transformers, which are not installed: pip install 'calotype[build]'."
        ) from None
    logging.disable_progress_bar()  # for weights: it would also write to pipes
    local = {"local_files_only": True}
    try:
        model, loading_info = CLIPModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
        )
        processor = CLIPImageProcessorPil.from_pretrained(folder, **local)
        tokenizer = CLIPTokenizer.from_pretrained(folder, **local)
    except Exception as error:  # transformers raises its own types, and the tokenizers library bare Exception
        raise SourceError(f"Cannot load the CLIP model in {folder}: {first_line(error)}") from None
    if missing := loading_info["missing_keys"]:
        raise SourceError(f"Cannot load the CLIP model in {folder}: weights are missing, for example {min(missing)}.")
    return model.eval(), processor, tokenizer


def _normalize(vectors: Floats) -> Floats:
    normalized: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return normalized


def _as_texts(prompts: str | Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, Sequence) else []
    if not texts or not all(isinstance(t, str) for t in texts):
        raise InputError(f"Invalid prompts: got {prompts!r:.80}; expected text, or a non-empty list of texts.")
    return texts


def _as_images(images: Any) -> list[Any]:
    listed = as_list(images)
    if not listed:
        raise InputError("Invalid images: got an empty list; expected an image, or a non-empty list of images.")
    return listed


def _to_bytes(image: Any) -> NDArray[np.uint8]:
    """# -> uint8 [H, W, 3]"""
    pixels = load_image_array("images", image)
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)
