"""Textual inversion: learned words (Gal et al. 2022, arXiv 2208.01618) as rows of a text encoder's token embeddings.

The result is an entry of the store: a text encoder whose embedding table has the vectors as additional rows, and a
tokenizer that knows the words. So every backend, quantization and plans support them, and only the text encoder is
traced again. Layouts: diffusers' (one tensor, named as the word), AUTOMATIC1111's (`emb_params`; the file's name is the
word), and SDXL's with both encoders (`clip_l` and `clip_g`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calotype.errors import SourceError
from calotype.files.digest import file_digest
from calotype.files.json_file import read_json
from calotype.text.tokenizer import ADDED, END, START, added_numbers, added_words, vocabulary_of
from calotype.weights.types import check_types

from ..steps.stored_step import StoredStep
from ..store.store import key_of
from .parts import stem_of
from .source import Source
from .weight_files import PICKLES, check_safetensors, refusal_of_pickle, weight_files

TEACHER = 2  # increased when adding words produces other files
_SDXL_TENSORS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_UNNAMED = ("emb_params", "*", *_SDXL_TENSORS.values())
_MAX_VECTORS = 75 * 32  # per word: the length of the longest prompt
_TABLE = "embeddings.token_embedding.weight"


@dataclass(frozen=True, kw_only=True)
class LearnedEmbedding:
    """A file with the vectors of one word."""

    path: Path
    text: str
    tensors: Mapping[str, str]  # text encoder -> name of its tensor in the file
    count: int  # number of vectors


def add_embeddings(source: Source, files: Sequence[str | Path]) -> Source:
    """Return the source with these words. Its text encoders and tokenizers are folders of the store.

    Args:
        source: the model.
        files: each is FILE or FILE:<word>.

    Raises:
        SourceError: a file is missing, is not a textual inversion, or does not fit the model.
    """
    if not files:
        return source
    if not source.tokenizers:
        message = f"{source.model} is an unconditional model and takes no textual inversion."
        raise SourceError(message, path=source.folder)
    words = [read_embedding(each, source) for each in files]
    _check_new(words, source)
    for encoder in source.tokenizers:
        source = _with_words(source, encoder, words)
    return source


def read_embedding(argument: str | Path, source: Source) -> LearnedEmbedding:
    """Read FILE or FILE:<word> for this model. Raises `SourceError`."""
    path, word = _split(str(argument))
    if not path.is_file():
        raise SourceError(f"there is no file {path}; expected a .safetensors file, as FILE or FILE:<word>.", path=path)
    if path.suffix in PICKLES:
        raise SourceError(refusal_of_pickle(path).partition(" If you")[0] + " Get it as .safetensors.", path=path)
    header = check_safetensors(path)
    check_types(path, header.types)
    shapes = header.shapes
    widths = {encoder: _size(source, encoder, "hidden_size") for encoder in source.tokenizers}
    if set(shapes) == set(_SDXL_TENSORS.values()):
        tensors = {encoder: _SDXL_TENSORS[encoder] for encoder in widths if encoder in _SDXL_TENSORS}
        text = path.stem
    elif len(shapes) == 1:
        (name,) = shapes
        tensors, text = dict.fromkeys(widths, name), path.stem if name in _UNNAMED else name
    else:
        raise SourceError(
            f"{path} is not a textual inversion: got {len(shapes)} tensors, such as {min(shapes, default='none')}; "
            "expected a single tensor, or clip_l and clip_g.",
            path=path,
        )
    count = _vector_count(path, {encoder: shapes[name] for encoder, name in tensors.items()}, widths)
    if (text := word or text).split() != [text]:  # no prompt could have it
        raise SourceError(
            f"{path}: a word must not have spaces; got {text!r}. Choose another: {path}:<word>", path=path
        )
    return LearnedEmbedding(path=path, text=text, tensors=tensors, count=count)


def _vector_count(path: Path, shapes: Mapping[str, Sequence[int]], widths: Mapping[str, int]) -> int:
    """Return the number of vectors. `shapes` and `widths` are by text encoder. Raises `SourceError` for a misfit."""
    matching = [len(shape) in (1, 2) and shape[-1] == widths[encoder] for encoder, shape in shapes.items()]
    counts = {[1, *shape][-2] for shape in shapes.values()} if all(matching) else set()
    if len(counts) != 1 or 0 in counts:
        shown = " and ".join(dict.fromkeys(str(list(shape)) for shape in shapes.values()))
        raise SourceError(
            f"{path} does not fit the model: its vectors have shape {shown}; expected width "
            f"{' and '.join(map(str, widths.values()))}. Use one of the model's family.",
            path=path,
        )
    if max(counts) > _MAX_VECTORS:
        raise SourceError(
            f"{path} holds {max(counts)} vectors for one word; a prompt holds at most {_MAX_VECTORS}.", path=path
        )
    return counts.pop()


def _size(source: Source, encoder: str, name: str) -> int:
    try:
        return int(source.configs[encoder][name])
    except (LookupError, TypeError, ValueError):
        raise SourceError(
            f"{source.folders[encoder] / 'config.json'} has no {name}. Fetch the model again.",
            path=source.folders[encoder] / "config.json",
            field=name,
        ) from None


def _split(argument: str) -> tuple[Path, str]:
    try:
        path = Path(argument).expanduser()
        if path.is_file() or ":" not in argument:
            return path, ""
        name, _, word = argument.rpartition(":")
        return Path(name).expanduser(), word
    except (OSError, RuntimeError) as failed:  # no permission, too long a name, no such home
        reason = failed.strerror if isinstance(failed, OSError) else failed
        raise SourceError(f"cannot read the file {argument:.80} ({reason}).", path=argument) from None


def _check_new(words: Sequence[LearnedEmbedding], source: Source) -> None:
    """Raise `SourceError` if a word, or the name of one of its vectors, has another meaning already."""
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
                conflict = "is in the model's vocabulary" if name in known else "belongs to another file"
                raise SourceError(
                    f"{word.path}: the word {name!r} {conflict}. Choose another: {word.path}:<{word.text}>",
                    path=word.path,
                )
        taken |= {*names}


def _names(text: str, count: int) -> list[str]:
    """Return the names of a word's vectors, and the next one, which a tokenizer would read as another vector."""
    return [text, *(f"{text}_{i}" for i in range(1, count + 1))]


def _with_words(source: Source, encoder: str, words: Sequence[LearnedEmbedding]) -> Source:
    """Return the source with the words in this text encoder and its tokenizer."""
    folder, tokenizer = source.folders[encoder], source.tokenizers[encoder]
    end = vocabulary_of(tokenizer)[0].get(END)
    if end is None:
        raise SourceError(f"the tokenizer in {tokenizer} has no {END}. Fetch the model again.", path=tokenizer)
    files = [[str(word.path), word.tensors[encoder], word.text, word.count] for word in words]
    step = StoredStep(
        depends_on={
            "encoder": [encoder, source.digests[encoder], source.configs[encoder]],
            "tokenizer": {p.name: file_digest(p) for p in sorted(tokenizer.iterdir()) if p.is_file()},
            "words": [[file_digest(word.path), *each[1:]] for word, each in zip(words, files, strict=True)],
            "teacher": TEACHER,
        },
        label={"component": encoder, "kind": "learned words", "model": source.model},
    )
    sides = {"encoder": encoder, "weights": str(folder), "tokenizer": str(tokenizer)}
    first = _size(source, encoder, "vocab_size")
    function = f"{__name__}:add_embeddings_into"
    entry = step.run_in_child(
        f"adding words to the {encoder}", function, **sides, words=files, first=first, end=end
    ).folder
    config = read_json(entry / encoder / "config.json", "the text encoder's config")
    return replace(
        source,
        configs={**source.configs, encoder: config},
        folders={**source.folders, encoder: entry / encoder},
        digests={**source.digests, encoder: key_of({entry.name: encoder})},
        generated=source.generated | {encoder},
        tokenizers={**source.tokenizers, encoder: entry / tokenizer.name},
    )


def add_embeddings_into(
    *,
    out: str,
    encoder: str,
    weights: str,
    tokenizer: str,
    words: Sequence[tuple[str, str, str, int]],
    first: int,
    end: int,
) -> None:
    """Save the text encoder and its tokenizer with the words into `out`, in a child process.

    The vectors are appended to the embedding table, in float32, from the token id `first` on. The config gets `end` as
    its end token: for the published value 2, transformers pools at the largest token id, which would be a learned word.
    """
    import torch
    from safetensors.torch import load_file, save_file

    folder, source, stem = Path(out, encoder), Path(weights), stem_of(encoder)
    folder.mkdir()
    tensors = {name: t for file in weight_files(source, stem) for name, t in load_file(file).items()}
    table = next((name for name in tensors if name.endswith(_TABLE)), None)
    if table is None:
        raise SourceError(f"the text encoder in {source} has no token embeddings ({_TABLE}).", path=source)
    vectors = [load_file(path)[name].float().reshape(count, -1) for path, name, _, count in words]
    for (path, *_), vector in zip(words, vectors, strict=True):
        if not vector.isfinite().all():
            raise SourceError(f"{path} holds values that are not finite. Fetch it again.", path=path)
    tensors[table] = torch.cat([tensors[table].float(), *vectors])
    config = read_json(source / "config.json", "the text encoder's config")
    config |= {"vocab_size": len(tensors[table]), "eos_token_id": end}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    added = Path(shutil.copytree(tokenizer, Path(out, Path(tokenizer).name)))
    names = [f"{word}_{i}" if i else word for _, _, word, count in words for i in range(count)]  # as transformers
    ids = {**added_numbers(added), **{name: first + i for i, name in enumerate(names)}}
    (added / ADDED).write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
