"""Performance targets for one H200 as data, and the result of a run: `calotype bench targets RUN`.

A target names a case of the preset gpu and a figure of our best row with correct images. A ratio is relative to a
peer's row of the same run. `gpu_close` measures figures that no image shows (the decoder by itself, the host's time).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..measure.record import ResultRow
from ..suite.contenders import OURS


@dataclass(frozen=True, kw_only=True)
class Target:
    """A limit of one figure. `at` is the id of a case, and only the `precisions` count."""

    at: str
    figure: str
    unit: str
    minimum: float | None = None
    maximum: float | None = None
    precisions: tuple[str, ...] = ("fp16", "bf16")

    def words(self) -> str:
        """Return the target as text."""
        bound = f"{self.minimum:g} or more" if self.minimum is not None else f"{self.maximum:g} or less"
        return f"{self.at}, {'/'.join(self.precisions)}: {self.figure} {bound} {self.unit}".rstrip()

    def met(self, value: float) -> bool:
        """Return whether a figure meets the target."""
        return value >= self.minimum if self.minimum is not None else value <= (self.maximum or 0.0)


_SDXL = "sdxl-1024-30xeuler-g5-b1-cuda"
_FP8 = ("fp8", "fp8+fp16")
TARGETS = (
    Target(at="sd15-512-20xeuler-g7.5-b1-cuda", figure="U-Net calls a second", unit="it/s", minimum=250),
    Target(at="sd15-512-20xeuler-g7.5-b1-cuda", figure="times as fast as torch-compile:fp16", unit="", minimum=1.4),
    Target(at=_SDXL, figure="seconds for an image", unit="s", maximum=0.85),
    Target(at=_SDXL, figure="seconds for an image", unit="s", maximum=0.6, precisions=_FP8),
    Target(at="sd-turbo-taesd-512-1xeuler-unguided-b1-cuda", figure="images a second", unit="", minimum=350),
    Target(at="sdxl-1024-20xeuler-g5-b8-cuda", figure="images a second", unit="", minimum=2.4),
)


def _calls_a_second(row: ResultRow, rows: Sequence[ResultRow]) -> float | None:
    """Return U-Net calls a second in the loop, or without parts those of the complete image."""
    assert row.speed is not None
    steps, batch = int(row.case["steps"]), int(row.case["batch"])
    return row.speed.it_per_s or steps * row.speed.images_per_s / batch


def _seconds(row: ResultRow, rows: Sequence[ResultRow]) -> float | None:
    return None if row.speed is None else row.speed.median_s


def _images(row: ResultRow, rows: Sequence[ResultRow]) -> float | None:
    return None if row.speed is None else row.speed.images_per_s


def _against_compiled(row: ResultRow, rows: Sequence[ResultRow]) -> float | None:
    assert row.speed is not None
    peer = next((r for r in rows if r.case_id == row.case_id and r.contender == "torch-compile:fp16" and r.speed), None)
    return None if peer is None or peer.speed is None else peer.speed.median_s / row.speed.median_s


_FIGURES: dict[str, Callable[[ResultRow, Sequence[ResultRow]], float | None]] = {
    "U-Net calls a second": _calls_a_second,
    "seconds for an image": _seconds,
    "images a second": _images,
    "times as fast as torch-compile:fp16": _against_compiled,
}


def describe_targets(rows: Sequence[ResultRow]) -> Iterator[str]:
    """Yield a line for each target: met or missed with our best figure, or why there is no figure."""
    for target in TARGETS:
        ours = [r for r in rows if r.maker == OURS and r.case_id == target.at and r.precision in target.precisions]
        figures = {r.contender: _FIGURES[target.figure](r, rows) for r in ours if r.speed is not None}
        known = {name: value for name, value in figures.items() if value is not None}
        if not known:
            why = next((f"{r.contender}: {r.reason}" for r in ours if r.reason), "this run has no such row")
            yield f"no figure  {target.words()} ({why})"
            continue
        best = (max if target.minimum is not None else min)(known, key=lambda name: known[name])
        verdict = "met" if target.met(known[best]) else "missed"
        yield f"{verdict:<9}  {target.words()}; {best} has {known[best]:.3g}"
