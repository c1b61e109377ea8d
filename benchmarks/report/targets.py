"""What one H200 is to reach, as data, and how far a run came: `calotype bench targets RUN`.

A target names a case of the preset gpu and a figure of our best row there whose pictures are right. A ratio is against
a peer's row of the same run. Figures that no picture has (a decoder alone, the host's time) are `gpu_close`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..measure.record import Row
from ..suite.contenders import OURS


@dataclass(frozen=True, kw_only=True)
class Target:
    """`at` is a case's id; `least` or `most` is allowed of `figure`; `precisions` are those that count."""

    at: str
    figure: str
    unit: str
    least: float | None = None
    most: float | None = None
    precisions: tuple[str, ...] = ("fp16", "bf16")

    def words(self) -> str:
        """As people say it."""
        bound = f"{self.least:g} or more" if self.least is not None else f"{self.most:g} or less"
        return f"{self.at}, {'/'.join(self.precisions)}: {self.figure} {bound} {self.unit}".rstrip()

    def met(self, value: float) -> bool:
        """Is this figure good enough?"""
        return value >= self.least if self.least is not None else value <= (self.most or 0.0)


_SDXL = "sdxl-1024-30xeuler-g5-b1-cuda"
_FP8 = ("fp8", "fp8+fp16")
TARGETS = (
    Target(at="sd15-512-20xeuler-g7.5-b1-cuda", figure="U-Net calls a second", unit="it/s", least=250),
    Target(at="sd15-512-20xeuler-g7.5-b1-cuda", figure="times as fast as torch-compile:fp16", unit="", least=1.4),
    Target(at=_SDXL, figure="seconds a picture", unit="s", most=0.85),
    Target(at=_SDXL, figure="seconds a picture", unit="s", most=0.6, precisions=_FP8),
    Target(at="sd-turbo-taesd-512-1xeuler-unguided-b1-cuda", figure="pictures a second", unit="", least=350),
    Target(at="sdxl-1024-20xeuler-g5-b8-cuda", figure="pictures a second", unit="", least=2.4),
)


def _calls_a_second(row: Row, rows: Sequence[Row]) -> float | None:
    """In the loop where parts were told; of a captured picture by its whole time, text and decoding in it."""
    assert row.speed is not None
    steps, batch = int(row.case["steps"]), int(row.case["batch"])
    return row.speed.it_per_s or steps * row.speed.images_per_s / batch


def _seconds(row: Row, rows: Sequence[Row]) -> float | None:
    return None if row.speed is None else row.speed.median_s


def _pictures(row: Row, rows: Sequence[Row]) -> float | None:
    return None if row.speed is None else row.speed.images_per_s


def _against_compiled(row: Row, rows: Sequence[Row]) -> float | None:
    assert row.speed is not None
    peer = next((r for r in rows if r.case_id == row.case_id and r.contender == "torch-compile:fp16" and r.speed), None)
    return None if peer is None or peer.speed is None else peer.speed.median_s / row.speed.median_s


_FIGURES: dict[str, Callable[[Row, Sequence[Row]], float | None]] = {
    "U-Net calls a second": _calls_a_second,
    "seconds a picture": _seconds,
    "pictures a second": _pictures,
    "times as fast as torch-compile:fp16": _against_compiled,
}


def told(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each target: met or missed with our best figure, or why there is none."""
    for target in TARGETS:
        ours = [r for r in rows if r.maker == OURS and r.case_id == target.at and r.precision in target.precisions]
        figures = {r.contender: _FIGURES[target.figure](r, rows) for r in ours if r.speed is not None}
        known = {name: value for name, value in figures.items() if value is not None}
        if not known:
            why = next((f"{r.contender}: {r.reason}" for r in ours if r.reason), "no such row in this run")
            yield f"no figure  {target.words()} ({why})"
            continue
        best = (max if target.least is not None else min)(known, key=lambda name: known[name])
        verdict = "met" if target.met(known[best]) else "missed"
        yield f"{verdict:<9}  {target.words()}; {best} has {known[best]:.3g}"
