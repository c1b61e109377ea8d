"""The sampler matrix: a whole schedule as one small table of numbers.

A scheduler of latent diffusion is linear in the initial noise, the network's outputs and the noise it draws. Its
compiled form (`calotype.sampling.compile` makes it) says which mix of these is the network's input at every call, and
which mix is the picture:

    input[i] = sum_j rows[i, j] * history[j]        history = [noise, output_0, output_1, ..., draw_0, draw_1, ...]
    latents  = sum_j rows[calls, j] * history[j]

Where it sets out from a picture, each row has a coefficient for the picture's clean latents as well; where a mask keeps
part of them, a second row says what stands there: the clean latents with the noise of that call.

This file needs numpy alone. It does not know what a scheduler is, what the network is, or where noise comes from.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import SamplerError

__all__ = ["Draw", "Latents", "MatrixRun", "Sampler", "SamplerMatrix", "SamplerRun", "SourceLatents"]

Latents: TypeAlias = NDArray[np.float32]  # [B, C, H, W]
Draw: TypeAlias = Callable[[], Latents]
"""Hands out standard-normal noise of the latents' shape, the next at every call; picture i's from seed i alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceLatents:
    """The picture that a run sets out from.

    Attributes:
        latents: its clean latents. [B, C, H, W].
        repaint: where it is painted over; None is everywhere. bool [B, 1, H, W].
    """

    latents: Latents
    inpaint_mask: NDArray[np.bool_] | None = None


class SamplerRun(Protocol):
    """One batch of pictures on its way through a schedule: `input(i)`, the network, `push(i, output)`, for each i."""

    def input(self, i: int) -> Latents:
        """What the network is given at call i, which is the next to be pushed. float32 [B, C, H, W], the caller's."""

    def push(self, i: int, output: Latents) -> None:
        """Take what the network answered to input i, after guidance. [B, C, H, W]."""

    def latents(self) -> Latents:
        """The final latents, once every call was pushed. float32 [B, C, H, W]."""

    def preview(self, i: int) -> Latents:
        """The clean latents as they look from call i, the last one pushed. float32 [B, C, H, W]."""


class Sampler(Protocol):
    """A schedule that is ready to run: a `SamplerMatrix`, or a `SchedulerSampler` where there can be no matrix."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def timesteps(self) -> NDArray[np.float64]:
        """What the network is told at each call. [calls]."""

    @property
    def calls(self) -> int:
        """How often the network is called; some schedulers call it more than once a step."""

    @property
    def reason(self) -> str | None:
        """Why there is no matrix, in words for the report; None where there is one."""

    def run(
        self, noise: Latents, draw: Draw, *, seeds: Sequence[int] | None = None, original: SourceLatents | None = None
    ) -> SamplerRun:
        """Start a batch from standard-normal noise [B, C, H, W], and from a picture where it was compiled for one.

        `seeds`, one a picture, go to schedulers which draw noise past `draw`; without them they are made from `noise`.
        """


_OF_PICTURES = ("clean", "kept")
_FIELDS = ("timesteps", "rows", "preview", *_OF_PICTURES)


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplerMatrix:
    """A compiled scheduler. The arrays are copied, checked and made read-only.

    Attributes:
        name: what reports call it.
        timesteps: what the network is told at each call. float64 [calls], in training timesteps, maybe fractional.
        rows: row i mixes the network's input at call i, as it comes out of `scale_model_input`; the last row mixes
            the final latents. Columns: the initial standard-normal noise, the network's outputs after guidance, the
            noise draws in the scheduler's order. float64 [calls + 1, 1 + calls + draws].
        preview: the clean latents as estimated at call i are `a * input + b * output`. float64 [calls, 2].
        clean: for each row, how much of a picture's clean latents is in it; None where it sets out from noise alone.
            float64 [calls + 1].
        kept: what stands where a mask keeps the picture, in place of each row: `a * noise + b * clean`; None where it
            was not compiled for masks. float64 [calls + 1, 2].

    Raises:
        SamplerError: the arrays do not fit together, are not finite, or a row needs an output that is yet to come.
    """

    name: str
    timesteps: NDArray[np.float64]
    rows: NDArray[np.float64]
    preview: NDArray[np.float64]
    clean: NDArray[np.float64] | None = None
    kept: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        for field in _FIELDS:
            if field in _OF_PICTURES and getattr(self, field) is None:
                continue
            array = np.array(getattr(self, field), dtype=np.float64)
            if not np.isfinite(array).all():
                raise SamplerError(f"The schedule of {self.name} has numbers in {field} that are not finite.")
            array.setflags(write=False)
            object.__setattr__(self, field, array)
        calls = self.timesteps.size
        fit = self.timesteps.ndim == 1 and calls > 0 and self.preview.shape == (calls, 2) and self.rows.ndim == 2
        fit = fit and (self.clean is None or self.clean.shape == (calls + 1,))
        fit = fit and (self.kept is None or (self.kept.shape == (calls + 1, 2) and self.clean is not None))
        if not fit or self.rows.shape[0] != calls + 1 or self.rows.shape[1] < 1 + calls:
            shapes = f"{self.timesteps.shape}, {self.rows.shape}, {self.preview.shape}"
            raise SamplerError(f"The arrays of {self.name}'s matrix do not fit together: {shapes}.")
        if np.triu(self.rows[:calls, 1 : 1 + calls]).any():
            raise SamplerError(f"The matrix of {self.name} needs an output of the network before it is there.")

    @property
    def calls(self) -> int:
        """How often the network is called."""
        return int(self.timesteps.size)

    @property
    def draws(self) -> int:
        """How often the scheduler draws noise after the initial one."""
        return int(self.rows.shape[1]) - 1 - self.calls

    @property
    def reason(self) -> None:
        """Always None: nothing stood in the way of a matrix."""
        return None

    def run(
        self, noise: Latents, draw: Draw, *, seeds: Sequence[int] | None = None, original: SourceLatents | None = None
    ) -> MatrixRun:
        """Start a batch from standard-normal noise [B, C, H, W]; a matrix has no use for the seeds.

        Raises:
            SamplerError: it sets out from a picture, and there is none, or the other way round.
        """
        check_original(original, takes=self.clean is not None, masked=self.kept is not None, shape=noise.shape)
        return MatrixRun(self, noise, draw, original)

    def to_bytes(self) -> bytes:
        """The matrix as a .npz file."""
        file = io.BytesIO()
        arrays = {field: getattr(self, field) for field in _FIELDS if getattr(self, field) is not None}
        np.savez(file, name=self.name, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> SamplerMatrix:
        """The matrix that `to_bytes` wrote.

        Raises:
            SamplerError: the bytes are damaged or something else.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                fields: dict[str, Any] = {
                    field: arrays[field] for field in _FIELDS if field in arrays or field not in _OF_PICTURES
                }
                name = str(arrays["name"])
        except Exception as error:  # damaged bytes make numpy and zipfile raise all sorts
            raise SamplerError("The stored sampler matrix is damaged; delete it and it is compiled anew.") from error
        return cls(name=name, **fields)


class MatrixRun:
    """One batch through a `SamplerMatrix`: the reference in numpy for what the backends do on their devices.

    Sums are made in float64: at a high sigma large terms cancel, and float32 would show it in the latents.

    Args:
        matrix: the compiled scheduler.
        noise: standard-normal noise, [B, C, H, W].
        draw: hands out the noise for the scheduler's draws; called in their order, when a row first needs one.
        original: the picture that it sets out from, where the matrix was compiled for one.
    """

    def __init__(
        self, matrix: SamplerMatrix, noise: Latents, draw: Draw, original: SourceLatents | None = None
    ) -> None:
        self._matrix = matrix
        self._draw = draw
        self._original = original
        self._shape = noise.shape
        self._history = np.empty((matrix.rows.shape[1], noise.size), dtype=np.float32)  # [1 + calls + draws, B*C*H*W]
        self._history[0] = noise.ravel()
        self._pushed = 0
        self._drawn = 0

    def input(self, i: int) -> Latents:
        """What the network is given at call i. float32 [B, C, H, W].

        Raises:
            SamplerError: i is not the next call.
        """
        check_step_order(i == self._pushed < self._matrix.calls, f"input({i})", self._pushed)
        return self._masked(i, self._mix(self._matrix.rows[i], self._clean(i)))

    def push(self, i: int, output: Latents) -> None:
        """Take what the network answered to input i, after guidance. [B, C, H, W].

        Raises:
            SamplerError: i is not the next call, or the shape is not that of the noise.
        """
        check_step_order(i == self._pushed < self._matrix.calls, f"push({i})", self._pushed)
        self._keep(1 + i, output, "output of the network")
        self._pushed += 1

    def latents(self) -> Latents:
        """The final latents. float32 [B, C, H, W].

        Raises:
            SamplerError: a call is still missing.
        """
        check_step_order(self._pushed == self._matrix.calls, "latents()", self._pushed)
        return self._masked(-1, self._mix(self._matrix.rows[-1], self._clean(-1)))

    def preview(self, i: int) -> Latents:
        """The clean latents as they look from call i. float32 [B, C, H, W].

        Raises:
            SamplerError: i is not the last call pushed.
        """
        check_step_order(0 <= i == self._pushed - 1, f"preview({i})", self._pushed)
        of_input, of_output = self._matrix.preview[i]
        row = of_input * self._matrix.rows[i]
        row[1 + i] += of_output
        return self._masked(-1, self._mix(row, of_input * self._clean(i)))

    def _clean(self, i: int) -> float:
        return 0.0 if self._matrix.clean is None else float(self._matrix.clean[i])

    def _masked(self, i: int, mixed: Latents) -> Latents:
        """Where the mask keeps the picture, the picture with the noise of call i.  # [B, C, H, W]"""
        original = self._original
        if original is None or original.inpaint_mask is None or self._matrix.kept is None:
            return mixed
        of_noise, of_clean = self._matrix.kept[i]
        noise = self._history[0].reshape(self._shape)
        kept = of_noise * noise.astype(np.float64) + of_clean * original.latents.astype(np.float64)
        return np.where(original.inpaint_mask, mixed, kept).astype(np.float32)

    def _mix(self, row: NDArray[np.float64], clean: float) -> Latents:
        columns = np.flatnonzero(row)
        total = np.zeros(self._history.shape[1], dtype=np.float64)
        if columns.size:
            first, last = int(columns[0]), int(columns[-1])
            self._draw_up_to(last - self._matrix.calls)
            taken = slice(first, last + 1) if columns.size == last + 1 - first else columns  # a slice is no copy
            # One after the other for every number alike: a picture is the same alone and among others.
            np.einsum("j,jn->n", row[taken], self._history[taken], out=total, dtype=np.float64)
        if clean and self._original is not None:
            total += clean * self._original.latents.ravel().astype(np.float64)
        return total.astype(np.float32).reshape(self._shape)

    def _draw_up_to(self, draws: int) -> None:
        while self._drawn < draws:
            self._keep(1 + self._matrix.calls + self._drawn, self._draw(), "draw of noise")
            self._drawn += 1

    def _keep(self, column: int, array: Latents, what: str) -> None:
        check_shape(what, array.shape, self._shape)
        self._history[column] = array.ravel()


def check_step_order(in_turn: bool, verb: str, pushed: int) -> None:
    """Raise a SamplerError that names the verb unless it is in turn."""
    if not in_turn:
        raise SamplerError(f"{verb} is out of turn: {pushed} outputs were pushed so far.")


def check_original(original: SourceLatents | None, *, takes: bool, masked: bool, shape: tuple[int, ...]) -> None:
    """Raise a SamplerError unless there is a picture where the schedule was compiled for one, of the noise's shape."""
    if (original is not None) != takes:
        raise SamplerError(f"This schedule {'sets out from a picture, and there is none' if takes else 'takes none'}.")
    if original is not None:
        check_shape("picture's latents", original.latents.shape, shape)
        if original.inpaint_mask is not None and not masked:
            raise SamplerError("This schedule was not compiled for a mask.")


def check_shape(what: str, got: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raise a SamplerError unless both shapes are the same."""
    if got != wanted:
        raise SamplerError(f"The {what} has shape {list(got)} where {list(wanted)} is wanted.")
