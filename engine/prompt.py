"""Words to token ids, as CLIP reads them.

A byte-level BPE over lower-cased text (Radford et al. 2021), run by the `tokenizers` library straight from
`vocab.json` and `merges.txt`: the same ids as transformers' CLIPTokenizer, without importing transformers.
Knows nothing of the text encoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.errors import InputError, SourceError

START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's own splitting rule: contractions, letters, single digits, and runs of anything else.
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Padded token ids of several prompts, and what did not fit: one string a prompt, empty where all did."""

    ids: NDArray[np.int64]  # [B, length]
    dropped: tuple[str, ...]


class ClipTokenizer:
    """The tokenizer of one text encoder. Threads may share it."""

    def __init__(self, folder: Path, length: int) -> None:
        """`folder` holds vocab.json and merges.txt; `length` is the text encoder's number of tokens (77)."""
        self.length = length
        self._bpe, vocabulary = _read(folder)
        self._start, self._end = vocabulary[START], vocabulary[END]
        self._pad = vocabulary.get(_pad_token(folder), self._end)

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Start, words, end, padding; what goes past `length` is dropped and said in `Tokens.dropped`."""
        rows, dropped = [], []
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise InputError(f"a prompt is text, got {type(prompt).__name__}: {prompt!r}.")
            code = self._bpe.encode(_encodable(prompt), add_special_tokens=False)
            room = self.length - 2
            ids = [self._start, *code.ids[:room], self._end]
            rows.append(ids + [self._pad] * (self.length - len(ids)))
            dropped.append(prompt[code.offsets[room][0] :] if len(code.ids) > room else "")
        return Tokens(ids=np.array(rows, dtype=np.int64), dropped=tuple(dropped))


def _encodable(prompt: str) -> str:
    """Lone surrogates (bytes of a terminal that were no UTF-8) cannot be encoded: they become U+FFFD."""
    return prompt.encode("utf-8", "replace").decode("utf-8") if not prompt.isascii() else prompt


def _read(folder: Path) -> tuple[Any, dict[str, int]]:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    try:
        vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [(a, b) for a, b in (line.split() for line in lines if line and not line.startswith("#version"))]
        model = models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END)
        vocabulary[START], vocabulary[END]
    except FileNotFoundError as missing:
        raise SourceError(
            f"the tokenizer lacks {missing.filename}; a CLIP tokenizer has vocab.json and merges.txt."
        ) from None
    except Exception as broken:  # the tokenizers library raises bare Exception
        raise SourceError(f"the tokenizer in {folder} cannot be read: {broken}") from None
    bpe = Tokenizer(model)
    bpe.add_special_tokens([START, END])
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return bpe, vocabulary


def _pad_token(folder: Path) -> str:
    """The padding token's text: the end token in Stable Diffusion 1.x, "!" in 2.x."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.exists():
            token = json.loads(path.read_text(encoding="utf-8")).get("pad_token")
            if token is not None:
                return str(token["content"] if isinstance(token, dict) else token)
    return END
