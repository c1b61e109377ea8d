"""Performance targets for one H200 as data, and the result of a run: `calotype bench targets RUN`.

A target names a case of the preset gpu and a figure of our best row with correct images. A ratio is relative to a
peer's row of the same run. `gpu_close` measures figures that no image shows (the decoder by itself, the host's time).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..measure.record import ResultRow
from ..suite.contenders import OURS

_CALLS, _SECONDS, _IMAGES = "U-Net calls a second", "seconds for an image", "images a second"
_COMPILED = "times as fast as torch-compile:fp16"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A limit of one figure. `at` is the id of a case, and only the `precisions` count."""

    at: str
    figure: str
    unit: str = ""
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


_SD15, _SDXL = "sd15-512-20xeuler-g7.5-b1-cuda", "sdxl-1024-30xeuler-g5-b1-cuda"
TARGETS = (
    Target(at=_SD15, figure=_CALLS, unit="it/s", minimum=250),
    Target(at=_SD15, figure=_COMPILED, minimum=1.4),
    Target(at=_SDXL, figure=_SECONDS, unit="s", maximum=0.85),
    Target(at=_SDXL, figure=_SECONDS, unit="s", maximum=0.6, precisions=("fp8", "fp8+fp16")),
    Target(at="sd-turbo-taesd-512-1xeuler-unguided-b1-cuda", figure=_IMAGES, minimum=350),
    # 85 % of the measured peak in fp16, so a target of eight bits.
    Target(at="sdxl-1024-20xeuler-g5-b8-cuda", figure=_IMAGES, minimum=2.4, precisions=("fp8", "fp8+fp16")),
)


def _figure(name: str, row: ResultRow, rows: Sequence[ResultRow]) -> float | None:
    """Return a figure of a row. Without times by component, calls a second are those of the complete image."""
    if row.speed is None:
        return None
    if name == _COMPILED:
        peers = [r for r in rows if r.case_id == row.case_id and r.contender == "torch-compile:fp16" and r.speed]
        return peers[0].speed.median_s / row.speed.median_s if peers and peers[0].speed else None
    calls = row.speed.it_per_s or row.case["steps"] * row.speed.images_per_s / row.case["batch"]
    return {_CALLS: calls, _SECONDS: row.speed.median_s, _IMAGES: row.speed.images_per_s}[name]


def describe_targets(rows: Sequence[ResultRow]) -> Iterator[str]:
    """Yield a line for each target: met or missed with our best figure, or why there is no figure."""
    for target in TARGETS:
        ours = [r for r in rows if r.maker == OURS and r.case_id == target.at and r.precision in target.precisions]
        figures = {r.contender: value for r in ours if (value := _figure(target.figure, r, rows)) is not None}
        if not figures:
            why = next((f"{r.contender}: {r.reason}" for r in ours if r.reason), "this run has no such row")
            yield f"no figure  {target.words()} ({why})"
            continue
        best = (max if target.minimum is not None else min)(figures, key=lambda name: figures[name])
        verdict = "met" if target.met(figures[best]) else "missed"
        yield f"{verdict:<9}  {target.words()}; {best} has {figures[best]:.3g}"
