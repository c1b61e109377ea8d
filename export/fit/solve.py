"""Fit the rows of a sampler by least squares, one row after the other.

Row k is chosen so that the state before call k is closest to the state of the full schedule at that place, over all
prompts and guidance scales. Its columns are the noise and the outputs of the calls before, which ran on states that the
rows before gave: so a row also corrects their errors. The unknowns are the difference from a forecast, with a ridge, so
that little data leaves the forecast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

    def add(self, basis: Doubles, columns: Floats | Doubles, target: Doubles) -> None:
        """Add the equations of one guidance scale.

        Args:
            basis: The polynomials of the guidance scale. [degree + 1].
            columns: What the row mixes. [columns, numbers].
            target: What the mix should be. [numbers].
        """
        wide = columns.astype(np.float64)
        self._left.append(np.asarray(np.kron(wide @ wide.T, np.outer(basis, basis)), dtype=np.float64))
        self._right.append(np.asarray(np.kron(wide @ target, basis), dtype=np.float64))

    def solve(self) -> Doubles:
        """Return the coefficients of smallest error.  # [columns, degree + 1]"""
        left, right = np.sum(self._left, axis=0), np.sum(self._right, axis=0)
        ridge = RIDGE * float(np.diag(left)[:: self._count].mean()) * np.eye(len(left))
        return np.asarray(np.linalg.solve(left + ridge, right).reshape(-1, self._count), dtype=np.float64)


def fit_rows(
    runs: Runs,
    full: SamplerMatrix,
    references: Mapping[float, Trace],
    positions: Sequence[int],
    bounds: tuple[float, float],
    degree: int,
    weights: Doubles | None = None,
) -> FittedRows:
    """Fit a sampler that runs the calls at `positions` of a full schedule.

    Args:
        runs: The calibration prompts.
        full: The full schedule.
        references: Its runs, by guidance scale.
        positions: The calls that remain, ascending from 0.
        bounds: The range of guidance scales.
        degree: The degree of the rows as polynomials of the guidance scale.
        weights: The weight of each prompt's errors; None weighs all alike. [n].
    """
    kept, calls, draws = list(positions), len(positions), full.draws
    base = forecast(full, kept)
    base_image = np.zeros(calls + 1) if base.image_coefficients is None else base.image_coefficients
    order = _Columns(calls, draws, full)
    base_rows = np.concatenate([base.rows, base_image[:, None]], axis=1)
    rows = np.zeros((degree + 1, *base_rows.shape))
    rows[0] = base_rows
    basis = {scale: guidance_basis(scale, bounds, degree + 1) for scale in references}
    network = runs.network(with_rows(full, kept, base.rows, base.image_coefficients, full.name))
    other = runs.columns().reshape(1 + draws + 1, -1)  # noise, draws, clean
    history = {scale: np.zeros((base_rows.shape[1], other.shape[1]), np.float32) for scale in references}
    for each in history.values():
        each[0], each[1 + calls :] = other[0], other[1:]
    roots = np.ones(len(runs.noise)) if weights is None else np.sqrt(weights)
    roots = np.repeat(roots, other.shape[1] // len(roots))
    for k in range(calls):
        solver, used = RowSolver(degree), order.used(k + 1, kept)
        for scale, each in history.items():
            state = np.tensordot(basis[scale], rows[:, k], 1) @ each
            each[1 + k] = network(k, state.reshape(runs.noise.shape).astype(np.float32), scale).ravel()
            goal = references[scale].states[kept[k + 1] if k + 1 < calls else full.calls]
            solver.add(basis[scale], each[used] * roots, (goal.ravel() - base_rows[k + 1] @ each) * roots)
        rows[:, k + 1, used] += solver.solve().T
    image = None if full.image_coefficients is None else rows[:, :, -1]
    return FittedRows(positions=tuple(kept), rows=rows[:, :, :-1], image_coefficients=image)


def fit_image_rows(
    runs: Runs,
    full: SamplerMatrix,
    part: SamplerMatrix,
    references: Mapping[float, Trace],
    positions: Sequence[int],
    bounds: tuple[float, float],
    degree: int,
) -> FittedRows:
    """Fit a sampler that starts from an image, to the runs from noise: no network call is needed.

    Every state of such a schedule is a mix of its first state and the outputs after it. Runs from noise pass through
    states with as much noise, and their outputs stand for those of the fitted sampler.

    Args:
        runs: The calibration prompts.
        full: The full schedule from noise.
        part: The schedule from an image: the last calls of `full`.
        references: The runs of `full`, by guidance scale.
        positions: The calls of `part` that remain, ascending from 0.
        bounds: The range of guidance scales.
        degree: The degree of the rows as polynomials of the guidance scale.
    """
    kept, calls, start, draws = list(positions), len(positions), full.calls - part.calls, part.draws
    base = forecast(part, kept)
    assert base.image_coefficients is not None
    assert part.image_coefficients is not None
    first = np.array([part.rows[0, 0], part.image_coefficients[0]])  # the first state in noise and clean latents
    which = int(np.argmax(np.abs(first)))
    shares = np.stack([base.rows[:, 0], base.image_coefficients], axis=1)[:, which] / first[which]
    base_rows = np.concatenate([shares[:, None], base.rows[:, 1:]], axis=1)
    rows = np.zeros((degree + 1, *base_rows.shape))
    rows[0] = base_rows
    order = _Columns(calls, draws, part)
    drawn = runs.draws[full.draws - draws :].reshape(draws, runs.noise.size)
    for k in range(calls):
        solver, used = RowSolver(degree), [c for c in order.used(k + 1, kept) if c < base_rows.shape[1]]
        for scale, trace in references.items():
            outputs = trace.outputs[[start + place for place in kept]].reshape(calls, -1)
            columns = np.concatenate([trace.states[start].reshape(1, -1), outputs, drawn])
            goal = trace.states[start + kept[k + 1] if k + 1 < calls else full.calls]
            solver.add(
                guidance_basis(scale, bounds, degree + 1), columns[used], goal.ravel() - base_rows[k + 1] @ columns
            )
        rows[:, k + 1, used] += solver.solve().T
    image = rows[:, :, 0] * first[1]
    rows[:, :, 0] *= first[0]
    return FittedRows(positions=tuple(kept), rows=rows, image_coefficients=image)


class _Columns:
    """Which columns a row may mix: the noise, the outputs before it, the draws before it, and the clean latents."""

    def __init__(self, calls: int, draws: int, full: SamplerMatrix) -> None:
        self._calls, self._draws, self._full = calls, draws, full

    def used(self, row: int, kept: Sequence[int]) -> list[int]:
        """Return the columns of a row."""
        place = kept[row] if row < self._calls else self._full.calls
        drawn = np.flatnonzero(self._full.rows[: place + 1, 1 + self._full.calls :].any(axis=0))
        columns = [0, *range(1, 1 + row), *(1 + self._calls + int(d) for d in drawn)]
        if self._full.image_coefficients is not None:
            columns.append(1 + self._calls + self._draws)
        return columns
