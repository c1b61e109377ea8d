"""CLIP's vocabulary, for checkpoints in the original layout, which hold only weights.

`vocabulary/merges.txt.gz` holds the 48,894 merges of OpenAI's CLIP (`bpe_simple_vocab_16e6.txt.gz` as the wheel
open_clip_torch 3.3.0 ships it, cut to what CLIP uses; MIT license, in the same folder). The token ids follow
from them: the bytes, the bytes that end a word, the results of the merges in their order, and the two special tokens.
"""

from __future__ import annotations

import gzip
import json
from importlib import resources
from pathlib import Path

from calotype.text.tokenizer import END, START

LENGTH = 77  # tokens of CLIP's text encoders


def write_tokenizer(folder: Path, *, pad: str) -> None:
    """Write vocab.json, merges.txt and the settings of a CLIPTokenizer into a new folder.

    `pad` is the padding token: the end token for OpenAI's text encoder, "!" for those of OpenCLIP.
    """
    folder.mkdir(parents=True)
    merges = _merges()
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    words = {word: number for number, word in enumerate(_words(merges))}
    (folder / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True, **special}
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _merges() -> list[str]:
    packed = resources.files("calotype.export.sources").joinpath("vocabulary", "merges.txt.gz").read_bytes()
    return gzip.decompress(packed).decode("utf-8").splitlines()


def _words(merges: list[str]) -> list[str]:
    # Printable bytes are written as their characters, and then the others as the characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    merged = ["".join(merge.split()) for merge in merges]
    return [*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]
