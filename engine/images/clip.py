"""CLIP scores: how well images match their prompts (Radford et al. 2021), by vectors of texts and images in one space.

transformers runs CLIP in float32, separately from the pipelines. The model is any CLIP model's folder, or the small
model that ships with Calotype, which knows the demonstration model's words. This file does not know plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, InputError, SourceError, first_line
from ..files.json_file import read_json
from .arrays import as_list, load_image_array, to_bytes

Floats = NDArray[np.float32]

DEMO = Path(__file__).parent.parent / "demo_clip"
_BATCH = 64  # the number of images, or texts, in one run of a network


class Clip:
    """A CLIP model in transformers' layout, with its own tokenizer and image processor."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Load a model.

        Args:
            folder: The folder of a `CLIPModel`: its config, safetensors, preprocessor_config.json and tokenizer files.
                None is the model that ships with Calotype, which only knows the demonstration model's words and scenes.

        Raises:
            SourceError: The folder does not contain such a model.
            BackendError: transformers is not installed.
        """
        self.folder = DEMO if folder is None else Path(folder).expanduser()
        self._model, self._processor, self._tokenizer = _read(self.folder)

    @property
    def tokens(self) -> int:
        """The maximum number of tokens of a text, including start and end. CLIP truncates longer texts."""
        return int(self._model.config.text_config.max_position_embeddings)

    def encode_text(self, texts: str | Sequence[str]) -> Floats:
        """Encode texts.

        Args:
            texts: One text or several. CLIP truncates texts beyond `tokens`.

        Returns:
            Vectors of length 1. float32 [N, D].

        Raises:
            InputError: An entry is not text, or there is none.
        """
        options = {"padding": "max_length", "max_length": self.tokens, "truncation": True, "return_tensors": "pt"}
        return _encode(_as_texts(texts), lambda part: self._model.get_text_features(**self._tokenizer(part, **options)))

    def encode_image(self, images: Any) -> Floats:
        """Encode images. The model's own processor resizes, crops and scales them.

        Args:
            images: One image or several, of any size: files, PIL images, arrays [H, W, 3] or [N, H, W, 3], or tensors
                [3, H, W] or [N, 3, H, W], of bytes or of floats from 0 to 1.

        Returns:
            Vectors of length 1. float32 [N, D].

        Raises:
            InputError: An entry is not an image, or there is none.
        """
        arrays = [to_bytes(load_image_array("images", image)) for image in _as_images(images)]
        options = {"return_tensors": "pt", "input_data_format": "channels_last"}
        return _encode(arrays, lambda part: self._model.get_image_features(**self._processor(part, **options)))

    def score(self, images: Any, prompts: str | Sequence[str]) -> Floats:
        """Score how well each image matches its prompt: 100 times the cosine of their vectors.

        Args:
            images: One image or several, as `encode_image` takes them.
            prompts: One for each image, or one for all.

        Returns:
            float32 [N], a score from -100 to 100 for each image.

        Raises:
            InputError: The images or prompts are invalid, or their numbers differ.
        """
        words, listed = _as_texts(prompts), _as_images(images)
        if len(words) not in (1, len(listed)):
            expected = f"one prompt, or one for each of {len(listed)} images"
            message = f"Invalid prompts: got {len(words)}; expected {expected}."
            raise InputError(message, argument="prompts", got=len(words), expected=expected)
        scores: Floats = 100 * (self.encode_image(listed) * self.encode_text(words)).sum(axis=1)
        return scores


def clip_score(images: Any, prompts: str | Sequence[str], *, model: str | Path | None = None) -> Floats:
    """Score how well each image matches its prompt: 100 times the cosine of their CLIP vectors; higher is better.

    Args:
        images: One image or several: files, PIL images, arrays [H, W, 3] or [N, H, W, 3], or tensors [3, H, W] or
            [N, 3, H, W], of bytes or floats from 0 to 1.
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


def _read(folder: Path) -> tuple[Any, Any, Any]:
    """Load the model, its image processor and its tokenizer."""
    kind = read_json(folder / "config.json", "a CLIP model's folder has one").get("model_type")
    if kind != "clip":
        message = f"Cannot load a CLIP model from {folder}: got the model type {kind}; expected clip."
        raise SourceError(message, path=folder / "config.json", field="model_type")
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
        raise SourceError(f"Cannot load the CLIP model in {folder}: {first_line(error)}", path=folder) from None
    if missing := loading_info["missing_keys"]:
        message = f"Cannot load the CLIP model in {folder}: weights are missing, for example {min(missing)}."
        raise SourceError(message, path=folder, field=min(missing))
    return model.eval(), processor, tokenizer


def _encode(inputs: list[Any], features: Callable[[list[Any]], Any]) -> Floats:
    """Run a network on the inputs in batches and scale its vectors to length 1."""
    import torch

    with torch.inference_mode():
        starts = range(0, len(inputs), _BATCH)
        vectors = np.concatenate([features(inputs[i : i + _BATCH]).pooler_output.numpy() for i in starts])
    normalized: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return normalized


def _as_texts(prompts: str | Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, Sequence) else []
    if not texts or not all(isinstance(t, str) for t in texts):
        expected = "text, or a non-empty list of texts"
        message = f"Invalid prompts: got {prompts!r:.80}; expected {expected}."
        raise InputError(message, argument="prompts", got=prompts, expected=expected)
    return texts


def _as_images(images: Any) -> list[Any]:
    listed = as_list(images)
    if not listed:
        expected = "an image, or a non-empty list of images"
        raise InputError(
            f"Invalid images: got an empty list; expected {expected}.", argument="images", expected=expected
        )
    return listed
