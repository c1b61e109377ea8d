"""CLIP tokenizer: turn prompts into token ids.

A byte-level BPE over lower-case text (Radford et al. 2021). The `tokenizers` library runs it directly from the
vocabulary and its merges: the ids equal those of transformers' CLIPTokenizer, without importing transformers.
This file does not know the text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, SourceError
from ..files.json_file import read_json, read_text
from .prompt_weights import parse_weighted_prompt

START, END = "<|startoftext|>", "<|endoftext|>"
MARKS = ("tokenizer_config.json", "special_tokens_map.json")  # the padding token: the first file that has it wins
ADDED = "added_tokens.json"  # learned words and their ids, in transformers' format
# CLIP's splitting rule: contractions, letters, single digits, and runs of anything else.
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Padded token ids and weights of several prompts, in as many chunks as the longest prompt needs.

    `dropped` is the text that did not fit: one string for each prompt, empty if all of it fit.
    """

    ids: NDArray[np.int64]  # [B, chunks, length]
    weights: NDArray[np.float32]  # [B, chunks, length]
    dropped: tuple[str, ...]

    def of(self, rows: Sequence[int]) -> Tokens:
        """Return the tokens of the prompts `rows`."""
        at = list(rows)
        return Tokens(ids=self.ids[at], weights=self.weights[at], dropped=tuple(self.dropped[i] for i in at))

    def with_chunks(self, chunks: int, padding: NDArray[np.int64]) -> Tokens:
        """Append chunks of `padding` [length] up to `chunks`."""
        if chunks == self.ids.shape[1]:
            return self
        more = ((0, 0), (0, chunks - self.ids.shape[1]), (0, 0))
        ids = np.pad(self.ids, more)
        ids[:, self.ids.shape[1] :] = padding
        return Tokens(ids=ids, weights=np.pad(self.weights, more, constant_values=1), dropped=self.dropped)


class ClipTokenizer:
    """The tokenizer of one text encoder. Threads may share it."""

    def __init__(self, folder: Path, length: int) -> None:
        """Load vocab.json and merges.txt from `folder`. `length` is the text encoder's number of tokens (77)."""
        self.length = length
        self._bpe, vocabulary, self._pad = _read(folder)
        self._start, self._end = vocabulary[START], vocabulary[END]
        self._words = added_words(folder)
        longest = sorted(self._words, key=len, reverse=True)
        self._word = re.compile("|".join(map(re.escape, longest)), re.IGNORECASE) if longest else None

    @property
    def empty(self) -> NDArray[np.int64]:
        """The chunk of the empty prompt.  # [length]"""
        return np.array(self._chunk([]), dtype=np.int64)

    def __call__(self, prompts: Sequence[str], max_chunks: int = 1) -> Tokens:
        """Return chunks of start, words, end and padding. Text beyond `max_chunks` is dropped, see `Tokens.dropped`.

        Raises `InputError` if a prompt is not text, or has an invalid weight.
        """
        room = self.length - 2
        read = [self._read(prompt, room * max_chunks) for prompt in prompts]
        chunks = max(1, *(-(-len(ids) // room) for ids, _, _ in read))
        ids = [[self._chunk(ids[i * room : (i + 1) * room]) for i in range(chunks)] for ids, _, _ in read]
        weights = np.ones((len(read), chunks, self.length), dtype=np.float32)
        for row, (_, counts, _) in zip(weights, read, strict=True):
            for i in range(chunks):
                part = counts[i * room : (i + 1) * room]
                row[i, 1 : 1 + len(part)] = part
        return Tokens(ids=np.array(ids, dtype=np.int64), weights=weights, dropped=tuple(left for _, _, left in read))

    def _chunk(self, ids: list[int]) -> list[int]:
        chunk = [self._start, *ids, self._end]
        return chunk + [self._pad] * (self.length - len(chunk))

    def _read(self, prompt: str, limit: int) -> tuple[list[int], list[float], str]:
        """Return at most `limit` tokens, their weights, and the rest of the text."""
        if not isinstance(prompt, str):
            raise InputError(
                f"Invalid prompt: got {type(prompt).__name__} {prompt!r}; expected text.", argument="prompt", got=prompt
            )
        ids: list[int] = []
        weights: list[float] = []
        left: list[str] = []
        for text, weight in parse_weighted_prompt(prompt):
            if left:
                left.append(text)
                continue
            tokens = self._encoded(text)
            room = limit - len(ids)
            if len(tokens) > room:
                left.append(text[tokens[room][1] :])
            ids += [number for number, _ in tokens[:room]]
            weights += [weight] * len(tokens[:room])
        return ids, weights, "".join(left)

    def _encoded(self, text: str) -> list[tuple[int, int]]:
        """Return token ids and each token's start in the text. A learned word becomes all of its ids."""
        tokens: list[tuple[int, int]] = []
        # With IGNORECASE Python matches "ı" to "i", but lower() does not: then it is not that word.
        words = self._word.finditer(text) if self._word else ()
        matches = [match for match in words if match[0].lower() in self._words]
        ends = [0, *(match.end() for match in matches)]
        for begin, match in zip(ends, [*matches, None], strict=True):
            code = self._bpe.encode(text[begin : match.start() if match else None], add_special_tokens=False)
            tokens += [(number, begin + at) for number, (at, _) in zip(code.ids, code.offsets, strict=True)]
            if match:
                tokens += [(number, match.start()) for number in self._words[match[0].lower()]]
        return tokens


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a CLIP vocabulary: vocab.json and merges.txt, or the newer tokenizer.json; and learned words.

    Raises `SourceError` if the folder has neither.
    """
    for names in (("vocab.json", "merges.txt"), ("tokenizer.json",)):
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in (*names, ADDED) if (folder / name).is_file()]
    raise SourceError(
        f"{folder} is not a CLIP tokenizer: expected vocab.json and merges.txt, or tokenizer.json.", path=folder
    )


def vocabulary_of(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return token ids by text, and the merges in order. Raises `SourceError` for missing or invalid files."""
    files = tokenizer_files(folder)
    try:
        vocabulary, merges = _vocabulary(files)
        odd = next((text for text, n in vocabulary.items() if type(n) is not int), None)
        if odd is not None:
            raise ValueError(f"the id of {odd!r:.80} is {vocabulary[odd]!r:.80}")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise _unreadable(folder, error) from None
    return vocabulary, merges


def _unreadable(folder: Path, error: Exception) -> SourceError:
    return SourceError(f"Cannot read the tokenizer in {folder} ({type(error).__name__}: {error}).", path=folder)


def added_numbers(folder: Path) -> dict[str, int]:
    """Return the learned words that are not in the vocabulary, in the order of their ids. Raises `SourceError`."""
    _, added, special = _added_tokens(folder)
    vocabulary = vocabulary_of(folder)[0] if added else {}
    words = [(text, n) for text, n in added.items() if text not in vocabulary and text not in special]
    return dict(sorted(words, key=lambda pair: pair[1]))


def check_token_ids(folder: Path, rows: int, encoder: Path) -> None:
    """Raise `SourceError` if a token id exceeds the `rows` of the embedding table of the text encoder in `encoder`.

    A backend would read beyond the table's end, and some do so without an error.
    """
    file, added, _ = _added_tokens(folder)
    for path, numbers in ((tokenizer_files(folder)[0], vocabulary_of(folder)[0]), (file, added)):
        token = max(numbers, key=lambda text: numbers[text], default=None)
        lowest = min(numbers.values(), default=0)
        if token is not None and (numbers[token] >= rows or lowest < 0):
            top = numbers[token]
            raise SourceError(
                f"{path}: the token {token!r:.80} has the id {top if top >= rows else lowest}, and the text encoder in "
                f"{encoder} has embeddings for the ids 0 to {rows - 1}. Use the tokenizer of the same model, or call "
                f"resize_token_embeddings({top + 1}) on the text encoder and save it.",
                path=path,
            )


def _added_tokens(folder: Path) -> tuple[Path, dict[str, int], set[str]]:
    """Return the file with the added tokens, their ids, and the set of special tokens."""
    file, full = folder / ADDED, folder / "tokenizer.json"
    special: set[str] = set()
    try:
        if file.is_file():
            added = {str(text): int(n) for text, n in read_json(file, "a tokenizer's added tokens").items()}
        elif full.is_file():
            tokens = read_json(full, "a tokenizer")["added_tokens"]
            added = {str(token["content"]): int(token["id"]) for token in tokens}
            special = {str(token["content"]) for token in tokens if token["special"]}
        else:
            added = {}
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise _unreadable(folder, error) from None
    return file if file.is_file() else full, added, special


def added_words(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return learned words in lower case -> their ids: those of "word", "word_1", "word_2", ...

    As in diffusers for textual inversions of several vectors; "word_1" in a prompt is only the second vector.
    """
    numbers = {text.lower(): n for text, n in added_numbers(folder).items()}
    words = {}
    for text in numbers:
        parts = [text]
        while f"{text}_{len(parts)}" in numbers:
            parts.append(f"{text}_{len(parts)}")
        words[text] = tuple(numbers[part] for part in parts)
    return words


def _vocabulary(files: list[Path]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if files[0].name == "tokenizer.json":
        data = read_json(files[0], "a tokenizer")
        marks = {t["content"]: t["id"] for t in data["added_tokens"] if t["content"] in (START, END)}
        pairs = (m.split() if isinstance(m, str) else m for m in data["model"]["merges"])
        return data["model"]["vocab"] | marks, [(a, b) for a, b in pairs]
    lines = read_text(files[1], "a tokenizer's merges").splitlines()
    pairs = (line.split() for line in lines if line and not line.startswith("#version"))
    return read_json(files[0], "a tokenizer's vocabulary"), [(a, b) for a, b in pairs]


def _read(folder: Path) -> tuple[Any, dict[str, int], int]:
    """Return the BPE, its vocabulary, and the id of the padding token."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary, merges = vocabulary_of(folder)
    try:
        model = models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END)
        padding = (_added_tokens(folder)[1] | vocabulary).get(_pad_token(folder), vocabulary[END])
        vocabulary[START]
    except SourceError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise _unreadable(folder, error) from None
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
    return bpe, vocabulary, padding


def _pad_token(folder: Path) -> str:
    """Return the padding token's text: the end token in Stable Diffusion 1.x, "!" in 2.x."""
    for name in MARKS:
        path = folder / name
        if path.exists():
            token = read_json(path, "a tokenizer's settings").get("pad_token")
            if token is not None:
                return str(token["content"] if isinstance(token, dict) else token)
    return END
