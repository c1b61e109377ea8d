"""The sampler matrix: a full schedule as one small table of numbers.

A scheduler of latent diffusion is linear in the initial noise, the network's outputs and the noise it draws. Its
compiled form (see `calotype.sampling.compile`) contains the weights of these terms in the network's input at every
call, and in the final latents:

    input[i] = sum_j rows[i, j] * history[j]        history = [noise, output_0, output_1, ..., draw_0, draw_1, ...]
    latents  = sum_j rows[calls, j] * history[j]

A schedule that starts from an image has one more coefficient for each row: the weight of the image's clean latents. If
a mask preserves part of the image, a second row gives the values there: the clean latents with the noise of that call.

This file only needs numpy. It does not know what a scheduler is, what the network is, or where noise comes from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import SamplerError

Latents: TypeAlias = NDArray[np.float32]  # [B, C, H, W]
Draw: TypeAlias = Callable[[], Latents]
"""Return the next standard-normal noise of the latents' shape. The noise of image i only depends on seed i."""


InpaintMask: TypeAlias = "NDArray[np.bool_] | NDArray[np.float32]"  # [B, 1, H, W]


def is_soft(inpaint_mask: InpaintMask | None) -> bool:
    """Tell whether a mask is the share of the steps that generate the image anew, in [0, 1]."""
    return inpaint_mask is not None and inpaint_mask.dtype != np.bool_


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceLatents:
    """The images that a run starts from.

    Attributes:
        latents: Their clean latents. [B, C, H, W].
        inpaint_mask: True where the image is generated anew; None means everywhere. bool [B, 1, H, W]. Or float32: the
            share of the steps that generate it anew, the last ones (Levin and Fried 2023, arXiv 2306.00950).
    """

    latents: Latents
    inpaint_mask: InpaintMask | None = None

    def repainted(self, done: float) -> NDArray[np.bool_]:
        """Return where the image is generated anew, after a share `done` of the steps.  # -> bool [B, 1, H, W]"""
        assert self.inpaint_mask is not None
        if self.inpaint_mask.dtype == np.bool_:
            return self.inpaint_mask.astype(np.bool_, copy=False)
        return (self.inpaint_mask > 0) & (self.inpaint_mask >= np.float32(1 - done))


class SamplerRun(ABC):
    """One run of a batch through a schedule: `input(i)`, the network, `push(i, output)`, for each i.

    Each method raises `SamplerError` if it is called out of this order.
    """

    def __init__(self, calls: int, shape: tuple[int, ...], original: SourceLatents | None) -> None:
        self._calls, self._shape, self._original = calls, shape, original
        self._pushed = 0

    def input(self, i: int) -> Latents:
        """Return the network's input at call i, the next call to push. float32 [B, C, H, W]; may be changed."""
        self._check_order(i == self._pushed < self._calls, f"input({i})")
        return self._input(i)

    def push(self, i: int, output: Latents) -> None:
        """Store the network's output for input i, after guidance. [B, C, H, W], the shape of the noise."""
        self._check_order(i == self._pushed < self._calls, f"push({i})")
        check_shape("network output", output.shape, self._shape)
        self._push(i, output)
        self._pushed += 1

    def latents(self) -> Latents:
        """Return the final latents, after the last call. float32 [B, C, H, W]."""
        self._check_order(self._pushed == self._calls, "latents()")
        return self._latents()

    @property
    def calls(self) -> int:
        """The number of calls of the network."""
        return self._calls

    @property
    def ended(self) -> bool:
        """Whether the last call was pushed."""
        return self._pushed == self._calls

    def preview(self, i: int) -> Latents:
        """Return the clean latents as estimated at call i, the last one pushed. float32 [B, C, H, W]."""
        self._check_order(0 <= i == self._pushed - 1, f"preview({i})")
        return self._preview(i)

    def _check_order(self, in_order: bool, call: str) -> None:
        if not in_order:
            pushed = self._pushed
            raise SamplerError(f"Cannot call {call} now: {pushed} outputs were pushed so far. Call the steps in order.")

    @abstractmethod
    def _input(self, i: int) -> Latents: ...

    @abstractmethod
    def _push(self, i: int, output: Latents) -> None: ...

    @abstractmethod
    def _latents(self) -> Latents: ...

    @abstractmethod
    def _preview(self, i: int) -> Latents: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler(ABC):
    """A schedule that is ready to run: a `SamplerMatrix`, or a `SchedulerSampler` for non-linear schedulers.

    Attributes:
        name: The name in reports.
        timesteps: The network's timestep at each call. float64 [calls], in training timesteps, may be fractional.
        preview: The clean latents as estimated at call i are `a * input + b * output`. float64 [calls, 2].
        reason: The reason for the report why the scheduler is not a matrix; None for a matrix.
        positions: The place of each call in the schedule of `full_calls` calls that it stands for, if it has fewer.
        full_calls: The calls of that schedule.
    """

    name: str
    timesteps: NDArray[np.float64]
    preview: NDArray[np.float64]
    reason: str | None = None
    positions: tuple[int, ...] | None = None
    full_calls: int | None = None

    @property
    def calls(self) -> int:
        """The number of network calls. Some schedulers call the network more than once in a step."""
        return int(self.timesteps.size)

    def run(
        self, noise: Latents, draw: Draw, *, seeds: Sequence[int] | None = None, original: SourceLatents | None = None
    ) -> SamplerRun:
        """Start a batch.

        Args:
            noise: Standard-normal noise, [B, C, H, W].
            draw: Returns the noise of the scheduler's draws, in their order.
            seeds: One for each image, for schedulers that draw noise without `draw`. By default a hash of each image's
                noise, so that the same noise gives the same image. A matrix ignores them.
            original: The images to start from, if the schedule starts from images.

        Raises:
            SamplerError: The schedule starts from images and `original` is None, or the other way round; or a shape
                does not match.
        """
        takes, takes_mask = self._takes()
        if (original is not None) != takes:
            expected = "start from an image, and original is None" if takes else "take an image: it starts from noise"
            raise SamplerError(f"This schedule {'must' if takes else 'does not'} {expected}.", scheduler=self.name)
        if original is not None:
            check_shape("image's latents", original.latents.shape, noise.shape)
            if original.inpaint_mask is not None and not takes_mask:
                raise SamplerError("This schedule was not compiled for a mask.", scheduler=self.name)
            if is_soft(original.inpaint_mask) and isinstance(self, SamplerMatrix):
                raise SamplerError("This schedule was not compiled for a soft mask.", scheduler=self.name)
        return self._start(noise, draw, seeds, original)

    @abstractmethod
    def _takes(self) -> tuple[bool, bool]:
        """Return whether a run starts from images, and whether a mask may preserve part of them."""

    @abstractmethod
    def _start(
        self, noise: Latents, draw: Draw, seeds: Sequence[int] | None, original: SourceLatents | None
    ) -> SamplerRun: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplerMatrix(Sampler):
    """A compiled scheduler. The arrays are copied, checked and made read-only.

    Attributes:
        rows: Row i mixes the network's input at call i, as `scale_model_input` returns it; the last row mixes the final
            latents. Columns: the initial standard-normal noise, the network's outputs after guidance, and the noise
            draws in the scheduler's order. float64 [calls + 1, 1 + calls + draws].
        image_coefficients: The weight of the image's clean latents in each row; None if the schedule starts from
            noise only. float64 [calls + 1].
        masked_rows: The values in the area that a mask preserves, in place of each row: `a * noise + b * clean`; None
            if the matrix was not compiled for masks. float64 [calls + 1, 2].

    Raises:
        SamplerError: The shapes of the arrays do not match, a number is not finite, or a row uses a later output.
    """

    rows: NDArray[np.float64]
    image_coefficients: NDArray[np.float64] | None = None
    masked_rows: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        for field in ("timesteps", "rows", "preview", "image_coefficients", "masked_rows"):
            if getattr(self, field) is None:
                continue
            array = np.array(getattr(self, field), dtype=np.float64)
            if not np.isfinite(array).all():
                self._fail(f"The schedule of {self.name} has numbers in {field} that are not finite.")
            array.setflags(write=False)
            object.__setattr__(self, field, array)
        calls = self.timesteps.size
        image, masked = self.image_coefficients, self.masked_rows
        match = self.timesteps.ndim == 1 and calls > 0 and self.preview.shape == (calls, 2) and self.rows.ndim == 2
        match = match and (image is None or image.shape == (calls + 1,))
        match = match and (masked is None or (masked.shape == (calls + 1, 2) and image is not None))
        if not match or self.rows.shape[0] != calls + 1 or self.rows.shape[1] < 1 + calls:
            shapes = f"{self.timesteps.shape}, {self.rows.shape}, {self.preview.shape}"
            self._fail(f"The shapes of {self.name}'s matrix do not match: {shapes}.")
        if np.triu(self.rows[:calls, 1 : 1 + calls]).any():
            self._fail(f"The matrix of {self.name} uses a later output of the network.")

    def _fail(self, message: str) -> NoReturn:
        raise SamplerError(message, scheduler=self.name)

    @property
    def draws(self) -> int:
        """The number of noise draws after the initial noise."""
        return int(self.rows.shape[1]) - 1 - self.calls

    def _takes(self) -> tuple[bool, bool]:
        return self.image_coefficients is not None, self.masked_rows is not None

    def _start(
        self, noise: Latents, draw: Draw, seeds: Sequence[int] | None, original: SourceLatents | None
    ) -> MatrixRun:
        return MatrixRun(self, noise, draw, original)


class MatrixRun(SamplerRun):
    """One run of a batch through a `SamplerMatrix`: the numpy reference for the backends' kernels.

    Sums are in float64: at a high sigma large terms cancel, and float32 would lose digits of the latents. Noise is
    drawn when a row first needs it.
    """

    def __init__(self, matrix: SamplerMatrix, noise: Latents, draw: Draw, original: SourceLatents | None) -> None:
        super().__init__(matrix.calls, noise.shape, original)
        self._matrix, self._draw = matrix, draw
        self._history = np.empty((matrix.rows.shape[1], noise.size), dtype=np.float32)  # [1 + calls + draws, B*C*H*W]
        self._history[0] = noise.ravel()
        self._drawn = 0

    def _input(self, i: int) -> Latents:
        return self._masked(i, self._mix(self._matrix.rows[i], self._image_coefficient(i)))

    def _push(self, i: int, output: Latents) -> None:
        self._history[1 + i] = output.ravel()

    def _latents(self) -> Latents:
        self._draw_until(self._matrix.draws)  # as diffusers: a caller's generator advances by draws of weight 0 too
        return self._input(-1)

    def _draw_until(self, draws: int) -> None:
        while self._drawn < draws:
            drawn = self._draw()
            check_shape("noise draw", drawn.shape, self._shape)
            self._history[1 + self._matrix.calls + self._drawn] = drawn.ravel()
            self._drawn += 1

    def _preview(self, i: int) -> Latents:
        input_weight, output_weight = self._matrix.preview[i]
        row = input_weight * self._matrix.rows[i]
        row[1 + i] += output_weight
        return self._masked(-1, self._mix(row, input_weight * self._image_coefficient(i)))

    def _image_coefficient(self, i: int) -> float:
        return 0.0 if self._matrix.image_coefficients is None else float(self._matrix.image_coefficients[i])

    def _masked(self, i: int, mixed: Latents) -> Latents:
        """Insert the image with the noise of call i where the mask preserves it.  # [B, C, H, W]"""
        original = self._original
        if original is None or original.inpaint_mask is None or self._matrix.masked_rows is None:
            return mixed
        noise_weight, clean_weight = self._matrix.masked_rows[i]
        noise = self._history[0].reshape(self._shape)
        preserved = noise_weight * noise.astype(np.float64) + clean_weight * original.latents.astype(np.float64)
        return np.where(original.inpaint_mask, mixed, preserved).astype(np.float32)

    def _mix(self, row: NDArray[np.float64], image_coefficient: float) -> Latents:
        columns = np.flatnonzero(row)
        total = np.zeros(self._history.shape[1], dtype=np.float64)
        if columns.size:
            first, last = int(columns[0]), int(columns[-1])
            self._draw_until(last - self._matrix.calls)
            used = slice(first, last + 1) if columns.size == last + 1 - first else columns  # a slice avoids a copy
            # einsum adds in the same order for every number: an image does not depend on the rest of its batch.
            np.einsum("j,jn->n", row[used], self._history[used], out=total, dtype=np.float64)
        if image_coefficient and self._original is not None:
            total += image_coefficient * self._original.latents.ravel().astype(np.float64)
        return total.astype(np.float32).reshape(self._shape)


def check_shape(label: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise a `SamplerError` if the shapes differ."""
    if got != expected:
        raise SamplerError(f"Invalid shape of the {label}: got {list(got)}; expected {list(expected)}.")
