"""Prompts for recorded runs: some to calibrate on, others, held out, to judge by.

The demonstration model has captions of its own kind (training never saw the ones it is judged by); other models get
everyday prompts, or the lines of `--prompts FILE`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from calotype.errors import InputError

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
    """Two lists without a prompt in common. `judged`: the demonstration model's pixel judge can read them."""

    calibration: tuple[str, ...]
    held_out: tuple[str, ...]
    judged: bool


def prompts_for(*, demo: bool, file: Path | None, calibration: int, held_out: int) -> Prompts:
    """So many of each. Of a file every other line is held out; short lists are gone over again."""
    if file is not None:
        own, judged = _lines(file), False
        apart = own[::2], own[1::2] or own
    elif demo:
        apart, judged = _scenes(calibration, held_out), True
    else:
        texts = [m.format(s) for m, s in product(_MANNERS, _SUBJECTS)]
        texts.sort(key=lambda text: hash_of(text))
        apart, judged = (texts[::2], texts[1::2]), False
    return Prompts(
        calibration=tuple(apart[0][i % len(apart[0])] for i in range(calibration)),
        held_out=tuple(apart[1][i % len(apart[1])] for i in range(held_out)),
        judged=judged,
    )


def hash_of(text: str) -> int:
    """A number that mixes a list up in the same way everywhere."""
    import zlib

    return zlib.crc32(text.encode())


def _scenes(calibration: int, held_out: int) -> tuple[list[str], list[str]]:
    from ..judge import scenes

    trained = [scenes.caption(scenes.draw_scene(10_000 + i, held_out=False)) for i in range(max(calibration, 1))]
    judged = [scenes.caption(scenes.draw_scene(20_000 + i, held_out=True)) for i in range(max(held_out, 1))]
    return trained, judged


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as failed:
        raise InputError(f"{file} cannot be read ({failed.strerror}).") from None
    except ValueError as broken:
        raise InputError(f"{file} is no text ({broken}).") from None
    found = [line for line in lines if line]
    if not found:
        raise InputError(f"{file} has no prompts; it takes one a line.")
    return found
