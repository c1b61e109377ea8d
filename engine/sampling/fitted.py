"""Samplers that were fitted to a model: their stored form, and the look-up in a plan and in the cache.

`calotype.export.fit` fits them. A fit imitates a schedule of many steps with fewer network calls; its rows are
polynomials of the guidance scale. This file only needs numpy.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SamplerError
from ..errors.schema import boolean, integer, list_of, number, record, text
from ..files.cache import FITS
from ..files.digest import digest_of
from .fewer_calls import with_rows
from .matrix import SamplerMatrix
from .schedule_range import ScheduleRange
from .schedulers import SchedulerSpec

Doubles = NDArray[np.float64]

FORMAT = 1
SUFFIX = ".fit"
_MAX_BYTES = 64 << 20
_SETTINGS = record(
    {
        "format": integer(FORMAT, FORMAT),
        "fingerprint": text(r"[0-9a-f]{64}", "a SHA-256"),
        "scheduler": text(r"[^\x00]{1,200}", "a name"),
        "scheduler_key": text(r"[0-9a-f]{64}", "a SHA-256"),
        "steps": integer(1, 1000),
        "calls": integer(1, 1000),
        "guidance": list_of(number(0, 100), 2, 2),
        "guided": boolean,
        "height": integer(1, 1 << 20),
        "width": integer(1, 1 << 20),
        "loras": list_of(text(r"[0-9a-f]{64}:.{1,40}", "a LoRA's digest and weight"), max_length=100),
    },
    more=True,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedRows:
    """The rows for one starting point: noise, or an image after some skipped steps.

    Attributes:
        positions: The calls of the full schedule that run.
        rows: Coefficients of Legendre polynomials of the guidance scale, which is mapped from its range to [-1, 1].
            Columns as in `SamplerMatrix.rows`. float64 [degree + 1, calls + 1, 1 + calls + draws].
        image_coefficients: The same for the clean latents of an image; None without one. [degree + 1, calls + 1].
    """

    positions: tuple[int, ...]
    rows: Doubles
    image_coefficients: Doubles | None


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedSampler:
    """A sampler that imitates a schedule with fewer network calls of one model.

    Attributes:
        settings: What it was fitted to: model fingerprint, scheduler, steps, calls, guidance range, LoRAs, prompts.
        figures: PSNR of held-out images to the full schedule's, in dB, and of the rivals with as many calls.
        parts: The rows by the name of their starting point, see `part_of`.
    """

    settings: Mapping[str, Any]
    figures: Mapping[str, Any]
    parts: Mapping[str, FittedRows]

    @property
    def key(self) -> str:
        """The key under which it is stored, 64 hexadecimal digits."""
        s = self.settings
        return fit_key(s["fingerprint"], s["scheduler_key"], s["steps"], s["calls"], s["loras"])

    @property
    def p10(self) -> float:
        """The PSNR that nine of ten held-out images reach, in dB."""
        return float(self.figures["fitted"]["p10"])

    def matrix(self, full: SamplerMatrix, part: str, guidance_scale: float) -> SamplerMatrix:
        """Return the sampler for a guidance scale.

        Args:
            full: The schedule that it imitates, from the same starting point.
            part: The name of the starting point.
            guidance_scale: A scale in the range of the fit.

        Raises:
            SamplerError: The rows are those of another schedule.
        """
        fitted = self.parts[part]
        if fitted.positions[-1] >= full.calls or fitted.rows.shape[2] != 1 + len(fitted.positions) + full.draws:
            message = f"The fitted sampler is damaged: its rows do not fit the schedule of {full.name}."
            raise SamplerError(message, scheduler=full.name)
        basis = guidance_basis(guidance_scale, self.settings["guidance"], len(fitted.rows))
        image = None if fitted.image_coefficients is None else basis @ fitted.image_coefficients
        name = f"{full.name} fitted to the model"
        return with_rows(full, fitted.positions, np.tensordot(basis, fitted.rows, 1), image, name)

    def to_bytes(self) -> bytes:
        """Return the sampler as an .npz file without pickles."""
        header = json.dumps({"settings": dict(self.settings), "figures": dict(self.figures)}).encode()
        arrays: dict[str, Any] = {"header": np.frombuffer(header, dtype=np.uint8)}
        for part, fitted in self.parts.items():
            arrays |= {f"positions.{part}": np.array(fitted.positions), f"rows.{part}": fitted.rows}
            if fitted.image_coefficients is not None:
                arrays[f"image.{part}"] = fitted.image_coefficients
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> FittedSampler:
        """Read what `to_bytes` returned. Raises `SamplerError` if it is damaged."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                if sum(entry.file_size for entry in packed.infolist()) > _MAX_BYTES:
                    raise ValueError(f"it unpacks to more than {_MAX_BYTES} bytes")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                header = json.loads(arrays["header"].tobytes())
                _SETTINGS(header["settings"], "settings")
                names = [name.partition(".")[2] for name in arrays if name.startswith("rows.")]
                parts = {name: _part(arrays, name) for name in names}
            number(0, 1000)(header["figures"]["fitted"]["p10"], "figures.fitted.p10")
        except Exception as error:  # for corrupt bytes numpy and zipfile raise many types
            raise SamplerError(f"Cannot read a fitted sampler: it is damaged ({error}).") from None
        return cls(settings=header["settings"], figures=header["figures"], parts=parts)


def _part(arrays: Mapping[str, Any], name: str) -> FittedRows:
    positions, rows, image = arrays[f"positions.{name}"], arrays[f"rows.{name}"], None
    if f"image.{name}" in arrays:
        image = arrays[f"image.{name}"]
    shapes = rows.ndim == 3 and positions.shape == (rows.shape[1] - 1,) and rows.shape[2] > positions.size > 0
    if not shapes or (image is not None and image.shape != rows.shape[:2]):
        raise ValueError("the shapes of its arrays do not match")
    if positions.dtype.kind != "i" or positions[0] != 0 or (np.diff(positions) <= 0).any():
        raise ValueError("its calls are not in ascending order from 0")
    if any(
        each.dtype != np.float64 or not np.isfinite(each).all() for each in (rows, *([] if image is None else [image]))
    ):
        raise ValueError("it has numbers that are not finite")
    return FittedRows(positions=tuple(map(int, positions)), rows=rows, image_coefficients=image)


def guidance_basis(scale: float, bounds: tuple[float, float], count: int) -> Doubles:
    """Return the first `count` Legendre polynomials of the guidance scale, mapped from its bounds to [-1, 1]."""
    low, high = bounds
    x = 0.0 if high == low else (2 * scale - low - high) / (high - low)
    return np.asarray(np.polynomial.legendre.legvander(np.array([x]), count - 1)[0], dtype=np.float64)


def part_of(schedule_range: ScheduleRange) -> str | None:
    """Return the name of a range's starting point, or None for a range that no fit covers."""
    hands_over = schedule_range.begin is not None or schedule_range.end is not None
    if hands_over or schedule_range.is_custom or schedule_range.origin == "latents":
        return None
    return "noise" if schedule_range.origin == "noise" else f"image.{schedule_range.skipped}"


def fit_key(fingerprint: str, scheduler_key: str, steps: int, calls: int, loras: Any) -> str:
    """Return the key of a fit: the model, the scheduler's spec, its steps, the calls, and the active LoRAs."""
    content = {"model": fingerprint, "scheduler": scheduler_key, "steps": steps, "calls": calls, "loras": list(loras)}
    return str(digest_of(content | {"format": FORMAT}))


class FittedSamplers:
    """The fits of one model: those of its plan, then those in the cache."""

    def __init__(self, fingerprint: str, folder: Path | None) -> None:
        """Take the model's fingerprint, and the plan's `samplers` folder."""
        self._fingerprint, self._folder = fingerprint, folder

    def find(self, spec: SchedulerSpec, steps: int, calls: int, loras: Any = ()) -> FittedSampler | None:
        """Return a fit, or None. Raises `SamplerError` if it is damaged."""
        if spec.by_hand:
            return None
        key = fit_key(self._fingerprint, spec.key(), steps, calls, loras)
        if self._folder is not None and (path := self._folder / f"{key}{SUFFIX}").exists():
            fit = FittedSampler.from_bytes(path.read_bytes())
            if fit.key != key:
                raise SamplerError(f"The fitted sampler {path} is damaged: its settings are those of another one.")
            return fit
        stored = FITS.read(key)
        return None if stored is None else FittedSampler.from_bytes(bytes(stored))

    def all(self, spec: SchedulerSpec, steps: int, loras: Any = ()) -> Iterator[FittedSampler]:
        """Yield the fits of a schedule, the fewest calls first."""
        for calls in range(1, 2 * steps):
            if (fit := self.find(spec, steps, calls, loras)) is not None:
                yield fit
