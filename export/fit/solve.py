"""Fit the rows of a sampler by least squares, one row after the other.

Row k is chosen so that the state before call k is closest to the state of the full schedule at that place, over all
prompts and guidance scales. Its columns are the noise and the outputs of the calls before, which ran on states that the
rows before gave: so a row also corrects their errors. The unknowns are the difference from a forecast, with a ridge, so
that little data leaves the forecast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calotype.sampling.fewer_calls import forecast, with_rows
from calotype.sampling.fitted import FittedRows, guidance_basis
from calotype.sampling.matrix import SamplerMatrix

from .runs import Floats, Runs, Trace

Doubles = NDArray[np.float64]
RIDGE = 1e-6  # of the mean square of a column


class RowSolver:
    """Normal equations of one row: coefficients [columns, degree + 1] over all guidance scales."""

    def __init__(self, degree: int) -> None:
        self._count = degree + 1
        self._left: list[Doubles] = []
        self._right: list[Doubles] = []

    def add(self, basis: Doubles, columns: Doubles, target: Doubles) -> None:
        """Add the equations of one guidance scale.

        Args:
            basis: The polynomials of the guidance scale. [degree + 1].
            columns: What the row mixes. [columns, numbers].
            target: What the mix should be. [numbers].
        """
        self._left.append(np.asarray(np.kron(columns @ columns.T, np.outer(basis, basis)), dtype=np.float64))
        self._right.append(np.asarray(np.kron(columns @ target, basis), dtype=np.float64))

    def solve(self) -> Doubles:
        """Return the coefficients of smallest error.  # [columns, degree + 1]"""
        left, right = np.sum(self._left, axis=0), np.sum(self._right, axis=0)
        ridge = RIDGE * float(np.diag(left)[:: self._count].mean()) * np.eye(len(left))
        return np.asarray(np.linalg.solve(left + ridge, right).reshape(-1, self._count), dtype=np.float64)


def fit_rows(
    runs: Runs,
    full: SamplerMatrix,
    reference: Trace,
    positions: Sequence[int],
    bounds: tuple[float, float],
    degree: int,
) -> tuple[FittedRows, Floats]:
    """Fit a sampler that runs the calls at `positions` of a full schedule.

    Args:
        runs: The calibration prompts, each with its guidance scale.
        full: The full schedule.
        reference: Its run.
        positions: The calls that remain, ascending from 0.
        bounds: The range of guidance scales.
        degree: The degree of the rows as polynomials of the guidance scale.

    Returns:
        The rows, and the final latents that they give. [n, C, h, w].
    """
    kept, calls = list(positions), len(positions)
    base = forecast(full, kept)
    base_image = np.zeros(calls + 1) if base.image_coefficients is None else base.image_coefficients
    base_rows = np.concatenate([base.rows, base_image[:, None]], axis=1)
    rows = np.zeros((degree + 1, *base_rows.shape))
    rows[0] = base_rows
    groups = [(guidance_basis(scale, bounds, degree + 1), which) for scale, which in runs.groups().items()]
    network = runs.network(with_rows(full, kept, base.rows, base.image_coefficients, full.name))
    other = runs.columns()  # noise, draws, clean
    history = np.zeros((base_rows.shape[1], *runs.noise.shape), np.float32)
    history[0], history[1 + calls :] = other[0], other[1:]

    def mix(k: int) -> Floats:
        mixed = np.empty(runs.noise.shape, np.float32)
        for basis, which in groups:
            row = np.tensordot(basis, rows[:, k], 1)
            mixed[which] = np.einsum("j,j...->...", row, history[:, which], dtype=np.float64)
        return mixed

    for k in range(calls):
        history[1 + k] = network(k, mix(k))
        goal = reference.states[kept[k + 1] if k + 1 < calls else full.calls]
        solver, used = RowSolver(degree), _columns(full, kept, k + 1)
        for basis, which in groups:
            columns = history[:, which].reshape(len(history), -1).astype(np.float64)
            solver.add(basis, columns[used], goal[which].ravel() - base_rows[k + 1] @ columns)
        rows[:, k + 1, used] += solver.solve().T
    image = None if full.image_coefficients is None else rows[:, :, -1]
    return FittedRows(positions=tuple(kept), rows=rows[:, :, :-1], image_coefficients=image), mix(calls)


def _columns(full: SamplerMatrix, kept: Sequence[int], row: int) -> list[int]:
    """Return what a row may mix: the noise, the outputs before it, the draws before it, and the clean latents."""
    calls = len(kept)
    place = kept[row] if row < calls else full.calls
    drawn = np.flatnonzero(full.rows[: place + 1, 1 + full.calls :].any(axis=0))
    columns = [0, *range(1, 1 + row), *(1 + calls + int(draw) for draw in drawn)]
    return columns if full.image_coefficients is None else [*columns, 1 + calls + full.draws]
