"""Textual inversion: words that were learned (Gal et al. 2022, arXiv 2208.01618), as rows of a text encoder's table.

A file becomes a text encoder with its vectors below the table of tokens, and a tokenizer that knows the words: an entry
of the store. So every backend has them, quantization and plans too, and of a model's artifacts only the text encoder's
is made again. Layouts: diffusers' (one tensor under the word), AUTOMATIC1111's (`emb_params`, the file's name is the
word), and of SDXL both encoders' (`clip_l` and `clip_g`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calotype.errors import SourceError
from calotype.files.digest import file_digest
from calotype.files.json_file import read_json
from calotype.text.tokenizer import ADDED, END, START, added_numbers, added_words, vocabulary_of
from calotype.weights.types import check_types

from ..steps.subprocess_task import run_in_subprocess
from ..store.store import fetch, key_of
from .source import Source, stem_of
from .weight_files import PICKLES, check_safetensors, refusal_of_pickle, weight_files

TEACHER = 2  # raised when the way words are added changes what comes out
_OF_SDXL = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_UNNAMED = ("emb_params", "*", *_OF_SDXL.values())
_MOST_VECTORS = 75 * 32  # of one word: what a prompt of all its chunks holds
_TABLE = "embeddings.token_embedding.weight"


@dataclass(frozen=True, kw_only=True)
class Word:
    """A file of vectors, one after the other, and the word that stands for them."""

    path: Path
    text: str
    tensors: Mapping[str, str]  # text encoder -> the tensor of the file that is for it
    count: int  # vectors


def learn(source: Source, said: Sequence[str | Path]) -> Source:
    """The source with these words: its text encoders and tokenizers are entries of the store.

    Raises `SourceError` where a file is missing, is no textual inversion, or does not fit the model.
    """
    if not said:
        return source
    if not source.tokenizers:
        raise SourceError(f"{source.model} paints without text, and learns no words.")
    words = [word_from(each, source) for each in said]
    _check_new(words, source)
    learned = source
    for encoder in source.tokenizers:
        learned = _learned(learned, encoder, words)
    return learned


def word_from(said: str | Path, source: Source) -> Word:
    """FILE or FILE:<word>, as a user writes it, for this model. Raises `SourceError`."""
    path, called = _split(str(said))
    if not path.is_file():
        raise SourceError(f"there is no file {path}; learned words are .safetensors files, as FILE or FILE:<word>.")
    if path.suffix in PICKLES:
        raise SourceError(refusal_of_pickle(path).partition(" Convert")[0] + " Fetch it as .safetensors.")
    header = check_safetensors(path)
    check_types(path, header.types)
    shapes = header.shapes
    wide = {encoder: _size(source, encoder, "hidden_size") for encoder in source.tokenizers}
    if set(shapes) == set(_OF_SDXL.values()):
        tensors = {encoder: _OF_SDXL[encoder] for encoder in wide if encoder in _OF_SDXL}
        text = path.stem
    elif len(shapes) == 1:
        (only,) = shapes
        tensors, text = dict.fromkeys(wide, only), path.stem if only in _UNNAMED else only
    else:
        raise SourceError(
            f"{path} is no textual inversion: it holds {len(shapes)} tensors, such as {min(shapes, default='none')}; "
            "one has a single tensor, or clip_l and clip_g."
        )
    fits = [len(shapes[t]) in (1, 2) and shapes[t][-1] == wide[encoder] for encoder, t in tensors.items()]
    counts = {[1, *shapes[t]][-2] for t in tensors.values()} if all(fits) else set()
    if len(counts) != 1 or 0 in counts:
        told = " and ".join(str(list(shapes[t])) for t in dict.fromkeys(tensors.values()))
        raise SourceError(
            f"{path} does not fit the model: its vectors are {told}, and the model's words are "
            f"{' and '.join(map(str, wide.values()))} wide. Take one of the model's own family."
        )
    if max(counts) > _MOST_VECTORS:
        raise SourceError(f"{path} holds {max(counts)} vectors for one word; a prompt has room for {_MOST_VECTORS}.")
    return Word(path=path, text=_word(called or text, path), tensors=tensors, count=counts.pop())


def _size(source: Source, encoder: str, name: str) -> int:
    try:
        return int(source.configs[encoder][name])
    except (LookupError, TypeError, ValueError):
        raise SourceError(f"{source.folders[encoder] / 'config.json'} says no {name}; fetch the model again.") from None


def _split(said: str) -> tuple[Path, str]:
    try:
        path = Path(said).expanduser()
        if path.is_file() or ":" not in said:
            return path, ""
        name, _, called = said.rpartition(":")
        return Path(name).expanduser(), called
    except (OSError, RuntimeError) as failed:  # no permission, too long a name, no such home
        told = failed.strerror if isinstance(failed, OSError) else failed
        raise SourceError(f"the file {said:.80} cannot be looked at ({told}).") from None


def _word(text: str, path: Path) -> str:
    """The word as prompts have it. Raises `SourceError` for one that no prompt could hold."""
    if not text.strip() or text.split() != [text]:
        raise SourceError(f"{path}: a word has no spaces, got {text!r}; name it otherwise, as {path}:<word>")
    return text


def _check_new(words: Sequence[Word], source: Source) -> None:
    """`SourceError` where a word, or a further vector's name, is there already: it would be two things at once."""
    known = {START, END}
    for folder in source.tokenizers.values():
        vocabulary, _ = vocabulary_of(folder)
        known |= {token.removesuffix("</w>") for token in vocabulary if token.endswith("</w>")}
        known |= {name for text, numbers in added_words(folder).items() for name in _names(text, len(numbers))}
    taken: set[str] = set()
    for word in words:
        names = _names(word.text.lower(), word.count)
        for name in names:
            if name in known | taken:
                told = "is in the model's vocabulary" if name in known else "belongs to another file's word"
                raise SourceError(
                    f"{word.path}: the word {name!r} {told}; call it otherwise, as {word.path}:<{word.text}>"
                )
        taken |= {*names}


def _names(text: str, count: int) -> list[str]:
    """A word's, its further vectors', and the one by which a tokenizer would take it to have another vector."""
    return [text, *(f"{text}_{i}" for i in range(1, count + 1))]


def _learned(source: Source, encoder: str, words: Sequence[Word]) -> Source:
    """The source with the words in this text encoder and its tokenizer."""
    folder, tokenizer = source.folders[encoder], source.tokenizers[encoder]
    files = [[str(word.path), word.tensors[encoder], word.text, word.count] for word in words]
    first, end = _size(source, encoder, "vocab_size"), vocabulary_of(tokenizer)[0].get(END)
    if end is None:
        raise SourceError(f"the tokenizer in {tokenizer} has no {END}; fetch the model again.")
    key = key_of(
        {
            "encoder": [encoder, source.digests[encoder], source.configs[encoder]],
            "tokenizer": {p.name: file_digest(p) for p in sorted(tokenizer.iterdir()) if p.is_file()},
            "words": [[file_digest(word.path), *each[1:]] for word, each in zip(words, files, strict=True)],
            "teacher": TEACHER,
        }
    )

    def make(empty: Path) -> Mapping[str, Any]:
        done = run_in_subprocess(
            f"adding words to the {encoder}",
            "calotype.export.sources.textual_inversion:learn_into",
            out=str(empty / encoder),
            weights=str(folder),
            stem=stem_of(encoder),
            words=files,
            end=end,
        )
        shutil.copytree(tokenizer, empty / tokenizer.name)
        _teach(empty / tokenizer.name, words, first)
        return {"peak_bytes": done.peak_bytes}

    made, _ = fetch(key, make, label={"component": encoder, "kind": "learned words", "model": source.model})
    config = read_json(made / encoder / "config.json", "the text encoder's config")
    return replace(
        source,
        configs={**source.configs, encoder: config},
        folders={**source.folders, encoder: made / encoder},
        digests={**source.digests, encoder: key_of({key: encoder})},
        tokenizers={**source.tokenizers, encoder: made / tokenizer.name},
    )


def _teach(tokenizer: Path, words: Sequence[Word], first: int) -> None:
    """Write the words' numbers as transformers has them: <word>, <word>_1, ... one for each vector."""
    numbers = added_numbers(tokenizer)
    for word in words:
        for i in range(word.count):
            numbers[f"{word.text}_{i}" if i else word.text] = first
            first += 1
    (tokenizer / ADDED).write_text(json.dumps(numbers, ensure_ascii=False), encoding="utf-8")


def learn_into(*, out: str, weights: str, stem: str, words: Sequence[tuple[str, str, str, int]], end: int) -> None:
    """In a child process: the text encoder with the vectors of (file, tensor) below its table, in float32.

    Its config says which token is the `end`: where it says 2, as published ones do, transformers pools at the largest
    number of all, which would be a word's.
    """
    import torch
    from safetensors.torch import load_file, save_file

    folder, source = Path(out), Path(weights)
    folder.mkdir()
    tensors = {name: t for file in weight_files(source, stem) for name, t in load_file(file).items()}
    table = next((name for name in tensors if name.endswith(_TABLE)), None)
    if table is None:
        raise SourceError(f"the text encoder in {source} has no table of tokens ({_TABLE}).")
    vectors = [load_file(path)[name].float().reshape(count, -1) for path, name, _, count in words]
    if not all(vector.isfinite().all() for vector in vectors):
        raise SourceError("a textual inversion holds numbers that are not finite; fetch it again.")
    tensors[table] = torch.cat([tensors[table].float(), *vectors])
    config = read_json(source / "config.json", "the text encoder's config")
    config |= {"vocab_size": len(tensors[table]), "eos_token_id": end}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})
