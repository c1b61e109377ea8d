"""Prompts for recorded runs: some for calibration, and held-out ones for the evaluation.

The demonstration model gets captions of its own scenes (its training never saw the held-out ones). Other models get
everyday prompts, or the lines of `--prompts FILE`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from calotype.errors import InputError
from calotype.files.digest import file_digest

from ..sources.source import find

_SUBJECTS = (
    *("a red fox in deep snow", "an old fisherman mending a net", "a bowl of oranges and figs", "a steam locomotive"),
    *("a lighthouse in a storm", "two children flying a kite", "a glass teapot", "a grey cat asleep"),
    *("a market street after rain", "a violin on a chair", "a snow leopard on a cliff", "a woman reading by a window"),
    *(
        "a field of sunflowers",
        "a bicycle against a brick wall",
        "a rocket on its launch pad",
        "a slice of cherry cake",
    ),
)
_MANNERS = (
    *("a photograph of {}, natural light", "an oil painting of {}", "{}, watercolor on paper", "{}, pencil drawing"),
    *("a close-up of {}, shallow depth of field", "{}, studio lighting, plain background", "{} at night, neon light"),
    *("{}, isometric 3d render", "a woodcut of {}"),
)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Two lists without a common prompt. `judged`: the demonstration model's pixel judge can read the prompts."""

    calibration: tuple[str, ...]
    held_out: tuple[str, ...]
    judged: bool


def prompts_for(*, demo: bool, file: Path | None, calibration: int, held_out: int) -> Prompts:
    """Return `calibration` and `held_out` prompts.

    Every other line of a file is held out. Lists that are too short repeat.
    """
    if file is not None:
        lines, judged = _lines(file), False
        lists = lines[::2], lines[1::2] or lines
    elif demo:
        lists, judged = _scenes(calibration, held_out), True
    else:
        texts = [m.format(s) for m, s in product(_MANNERS, _SUBJECTS)]
        texts.sort(key=lambda text: zlib.crc32(text.encode()))  # a shuffle that is the same on every machine
        lists, judged = (texts[::2], texts[1::2]), False
    return Prompts(
        calibration=tuple(lists[0][i % len(lists[0])] for i in range(calibration)),
        held_out=tuple(lists[1][i % len(lists[1])] for i in range(held_out)),
        judged=judged,
    )


def no_prompts(model: str, *, file: Path | None, calibration: int, held_out: int) -> Prompts:
    """Return empty prompts, which a model without text takes. Raises `InputError` for a file of prompts."""
    if file is not None:
        message = f"{model} generates without text. Omit --prompts."
        raise InputError(message, argument="prompts", got=str(file))
    return Prompts(calibration=("",) * calibration, held_out=("",) * held_out, judged=False)


def prompts_from(prompts: Path | Sequence[str] | None, *, demo: bool, calibration: int, held_out: int) -> Prompts:
    """Return prompts as `prompts_for`, from a file, a list or the built-in ones."""
    if prompts is None or isinstance(prompts, (str, Path)):
        file = None if prompts is None else Path(prompts)
        return prompts_for(demo=demo, file=file, calibration=calibration, held_out=held_out)
    lines = [line for line in prompts if line.strip()]
    if not lines:
        raise InputError("prompts is empty. Pass at least two prompts.", argument="prompts", got=prompts)
    return _alternate(lines, calibration, held_out)


def _alternate(lines: Sequence[str], calibration: int, held_out: int) -> Prompts:
    """Return every other line as held out. Lists that are too short repeat."""
    lists = lines[::2], lines[1::2] or lines
    return Prompts(
        calibration=tuple(lists[0][i % len(lists[0])] for i in range(calibration)),
        held_out=tuple(lists[1][i % len(lists[1])] for i in range(held_out)),
        judged=False,
    )


def knows_captions_only(tokenizer: Path) -> bool:
    """Return whether a tokenizer's folder is the demonstration model's, which knows only captions of its scenes."""
    ours = find("demo") / "tokenizer"
    files = [path for path in ours.iterdir() if path.is_file()]
    return all((tokenizer / p.name).is_file() and file_digest(tokenizer / p.name) == file_digest(p) for p in files)


def _scenes(calibration: int, held_out: int) -> tuple[list[str], list[str]]:
    from ..judge import scenes

    trained = [scenes.caption(scenes.draw_scene(10_000 + i, held_out=False)) for i in range(max(calibration, 1))]
    judged = [scenes.caption(scenes.draw_scene(20_000 + i, held_out=True)) for i in range(max(held_out, 1))]
    return trained, judged


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.", argument="prompts", got=str(file)) from None
    except ValueError as error:
        raise InputError(f"{file} is not a text file: {error}.", argument="prompts", got=str(file)) from None
    prompts = [line for line in lines if line]
    if not prompts:
        raise InputError(f"{file} has no prompts. Write one prompt per line.", argument="prompts", got=str(file))
    return prompts
