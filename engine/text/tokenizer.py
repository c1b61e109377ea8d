"""Words to token ids, as CLIP reads them.

A byte-level BPE over lower-cased text (Radford et al. 2021), run by the `tokenizers` library straight from the
vocabulary and its merges: the same ids as transformers' CLIPTokenizer, without importing transformers.
Knows nothing of the text encoder.
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
MARKS = ("tokenizer_config.json", "special_tokens_map.json")  # which token pads; the first that says it
ADDED = "added_tokens.json"  # what was learned beside the vocabulary: a word's number, as transformers keeps it
# CLIP's own splitting rule: contractions, letters, single digits, and runs of anything else.
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Padded token ids of several prompts, in as many chunks as the longest needs, and how much each token counts.

    `dropped` is what did not fit: one string a prompt, empty where all did.
    """

    ids: NDArray[np.int64]  # [B, chunks, length]
    weights: NDArray[np.float32]  # [B, chunks, length]
    dropped: tuple[str, ...]

    def of(self, rows: Sequence[int]) -> Tokens:
        """Those of some of the prompts."""
        at = list(rows)
        return Tokens(ids=self.ids[at], weights=self.weights[at], dropped=tuple(self.dropped[i] for i in at))

    def with_chunks(self, chunks: int, padding: NDArray[np.int64]) -> Tokens:
        """The same with chunks of `padding` [length] added, up to so many."""
        if chunks == self.ids.shape[1]:
            return self
        more = ((0, 0), (0, chunks - self.ids.shape[1]), (0, 0))
        ids = np.pad(self.ids, more)
        ids[:, self.ids.shape[1] :] = padding
        return Tokens(ids=ids, weights=np.pad(self.weights, more, constant_values=1), dropped=self.dropped)


class ClipTokenizer:
    """The tokenizer of one text encoder. Threads may share it."""

    def __init__(self, folder: Path, length: int) -> None:
        """`folder` holds vocab.json and merges.txt; `length` is the text encoder's number of tokens (77)."""
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

    def __call__(self, prompts: Sequence[str], most: int = 1) -> Tokens:
        """Chunks of start, words, end and padding; what goes past `most` of them is dropped and said.

        Raises `InputError` where a prompt is no text, or says a weight that is none.
        """
        room = self.length - 2
        read = [self._read(prompt, room * most) for prompt in prompts]
        chunks = max(1, *(-(-len(ids) // room) for ids, _, _ in read))
        ids = [[self._chunk(ids[i * room : (i + 1) * room]) for i in range(chunks)] for ids, _, _ in read]
        weights = np.ones((len(read), chunks, self.length), dtype=np.float32)
        for row, (_, counts, _) in zip(weights, read, strict=True):
            for i in range(chunks):
                part = counts[i * room : (i + 1) * room]
                row[i, 1 : 1 + len(part)] = part
        return Tokens(ids=np.array(ids, dtype=np.int64), weights=weights, dropped=tuple(left for _, _, left in read))

    def _chunk(self, ids: list[int]) -> list[int]:
        whole = [self._start, *ids, self._end]
        return whole + [self._pad] * (self.length - len(whole))

    def _read(self, prompt: str, most: int) -> tuple[list[int], list[float], str]:
        """At most so many tokens of the words, their weights, and the text that is left."""
        if not isinstance(prompt, str):
            raise InputError(f"a prompt is text, got {type(prompt).__name__}: {prompt!r}.")
        ids: list[int] = []
        weights: list[float] = []
        left: list[str] = []
        for piece in parse_weighted_prompt(prompt):
            if left:
                left.append(piece.text)
                continue
            found = self._encoded(piece.text)
            room = most - len(ids)
            if len(found) > room:
                left.append(piece.text[found[room][1] :])
            ids += [number for number, _ in found[:room]]
            weights += [piece.weight] * len(found[:room])
        return ids, weights, "".join(left)

    def _encoded(self, text: str) -> list[tuple[int, int]]:
        """Token numbers, and where in the text each begins; a word that was learned is all of its numbers."""
        found: list[tuple[int, int]] = []
        # Python takes "ı" for an "i" where case is ignored, and it is none in small letters: then it is not that word.
        found_words = self._word.finditer(text) if self._word else ()
        matches = [match for match in found_words if match[0].lower() in self._words]
        ends = [0, *(match.end() for match in matches)]
        for begin, match in zip(ends, [*matches, None], strict=True):
            code = self._bpe.encode(text[begin : match.start() if match else None], add_special_tokens=False)
            found += [(number, begin + at) for number, (at, _) in zip(code.ids, code.offsets, strict=True)]
            if match:
                found += [(number, match.start()) for number in self._words[match[0].lower()]]
        return found


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that say a CLIP vocabulary: vocab.json and merges.txt, or tokenizer.json, which newer tools write; and
    what was learned beside it.

    Raises `SourceError` where neither is there.
    """
    for names in (("vocab.json", "merges.txt"), ("tokenizer.json",)):
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in (*names, ADDED) if (folder / name).is_file()]
    raise SourceError(f"{folder} has neither vocab.json and merges.txt nor tokenizer.json; a CLIP tokenizer has one.")


def vocabulary_of(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token numbers and merges, in their order. Raises `SourceError` where the files are missing or broken."""
    files = tokenizer_files(folder)
    try:
        vocabulary, merges = _vocabulary(files)
        odd = next((text for text, n in vocabulary.items() if type(n) is not int), None)
        if odd is not None:
            raise ValueError(f"the id of {odd!r:.80} is {vocabulary[odd]!r:.80}")
    except (ValueError, TypeError, LookupError, AttributeError) as broken:
        raise SourceError(f"the tokenizer in {folder} cannot be read ({type(broken).__name__}: {broken}).") from None
    return vocabulary, merges


def added_numbers(folder: Path) -> dict[str, int]:
    """What a tokenizer knows beside its vocabulary, in the order of its numbers. Raises `SourceError`."""
    _, added, special = _added_tokens(folder)
    vocabulary = vocabulary_of(folder)[0] if added else {}
    words = [(text, n) for text, n in added.items() if text not in vocabulary and text not in special]
    return dict(sorted(words, key=lambda pair: pair[1]))


def check_token_ids(folder: Path, rows: int, encoder: Path) -> None:
    """`SourceError` where a token's id is past the `rows` of the embedding table of the text encoder in `encoder`.

    A backend would read past the table's end, and some do so without an error.
    """
    file, added, _ = _added_tokens(folder)
    for path, numbers in ((tokenizer_files(folder)[0], vocabulary_of(folder)[0]), (file, added)):
        token = max(numbers, key=lambda text: numbers[text], default=None)
        lowest = min(numbers.values(), default=0)
        if token is not None and (numbers[token] >= rows or lowest < 0):
            top = numbers[token]
            raise SourceError(
                f"{path}: the token {token!r:.80} has the id {top if top >= rows else lowest}, and the text encoder in "
                f"{encoder} has embeddings for the ids 0 to {rows - 1}. Take the tokenizer of the same model, or call "
                f"resize_token_embeddings({top + 1}) on the text encoder and save it."
            )


def _added_tokens(folder: Path) -> tuple[Path, dict[str, int], set[str]]:
    """The file that says what a tokenizer knows beside its vocabulary, those tokens' ids, and which are special."""
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
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as broken:
        raise SourceError(f"the tokenizer in {folder} cannot be read ({type(broken).__name__}: {broken}).") from None
    return file if file.is_file() else full, added, special


def added_words(folder: Path) -> dict[str, tuple[int, ...]]:
    """Words that were learned, in small letters -> their numbers: those of "word", "word_1", "word_2", ...

    As diffusers reads textual inversions of several vectors; "word_1" in a prompt is the second vector alone.
    """
    numbers = {text.lower(): n for text, n in added_numbers(folder).items()}
    found = {}
    for text in numbers:
        more = [text]
        while f"{text}_{len(more)}" in numbers:
            more.append(f"{text}_{len(more)}")
        found[text] = tuple(numbers[each] for each in more)
    return found


def _vocabulary(files: list[Path]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token numbers and merges, in their order."""
    if files[0].name == "tokenizer.json":
        data = read_json(files[0], "a tokenizer")
        marks = {t["content"]: t["id"] for t in data["added_tokens"] if t["content"] in (START, END)}
        pairs = (m.split() if isinstance(m, str) else m for m in data["model"]["merges"])
        return data["model"]["vocab"] | marks, [(a, b) for a, b in pairs]
    lines = read_text(files[1], "a tokenizer's merges").splitlines()
    pairs = (line.split() for line in lines if line and not line.startswith("#version"))
    return read_json(files[0], "a tokenizer's vocabulary"), [(a, b) for a, b in pairs]


def _read(folder: Path) -> tuple[Any, dict[str, int], int]:
    """The BPE, its vocabulary, and the number of the padding token."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary, merges = vocabulary_of(folder)
    try:
        model = models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END)
        padding = (_added_tokens(folder)[1] | vocabulary).get(_pad_token(folder), vocabulary[END])
        vocabulary[START]
    except SourceError:
        raise
    except Exception as broken:  # the tokenizers library raises bare Exception
        raise SourceError(f"the tokenizer in {folder} cannot be read ({type(broken).__name__}: {broken}).") from None
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
    """The padding token's text: the end token in Stable Diffusion 1.x, "!" in 2.x."""
    for name in MARKS:
        path = folder / name
        if path.exists():
            token = read_json(path, "a tokenizer's settings").get("pad_token")
            if token is not None:
                return str(token["content"] if isinstance(token, dict) else token)
    return END
