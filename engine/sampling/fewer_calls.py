"""Samplers with fewer network calls than steps, as matrices: rows over some of the calls of a full schedule.

A call that is left out needs a replacement for its output. A forecast is a fixed mix of earlier outputs (`forecast`);
a fit (`calotype.export.fit`) solves for the mix that imitates the full schedule best. Both give a `SamplerMatrix`.

This file only needs numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import SamplerError
from .matrix import SamplerMatrix

Variable = Literal["output", "clean"]
FORECAST_POWER = 1.0  # see `best_forecast`
Doubles = NDArray[np.float64]


def spread_positions(steps: int, calls: int, power: float = 1.4) -> tuple[int, ...]:
    """Return which calls of a full schedule to keep: call i at `(steps - 1) * (i / (calls - 1)) ** power`, rounded.

    A power above 1 keeps more of the early calls, which decide the composition.

    Args:
        steps: Network calls of the full schedule.
        calls: Network calls to keep, from 1 to `steps`.
        power: 1 spreads them evenly.

    Raises:
        SamplerError: `calls` is out of range.
    """
    if not 1 <= calls <= steps:
        raise SamplerError(f"Invalid calls: got {calls}; expected 1 to {steps}.", steps=steps)
    exact = (steps - 1) * (np.arange(calls) / max(calls - 1, 1)) ** power
    positions = np.rint(exact).astype(int)
    for i in range(1, calls):  # no call twice
        positions[i] = max(positions[i], positions[i - 1] + 1)
    return tuple(int(p) for p in np.minimum(positions, np.arange(steps - calls, steps)))


def with_rows(
    full: SamplerMatrix, positions: Sequence[int], rows: Doubles, image_coefficients: Doubles | None, name: str
) -> SamplerMatrix:
    """Return a sampler that runs the calls at `positions` of a full schedule with these rows.

    Args:
        full: The full schedule. The area that a mask preserves follows its rows.
        positions: Its calls that run, ascending, the first of which is 0. [calls].
        rows: Mixes of the noise, the outputs of these calls and all draws of the full schedule.
            [calls + 1, 1 + calls + draws].
        image_coefficients: The weights of the image's clean latents in each row, if the schedule starts from one.
            [calls + 1].
        name: The name in reports.
    """
    kept = list(positions)
    if image_coefficients is None:  # a mask preserves part of an image, and the schedule starts from noise
        image_coefficients = np.zeros(len(rows))
    return SamplerMatrix(
        name=name,
        timesteps=full.timesteps[kept],
        rows=rows,
        preview=full.preview[kept],
        image_coefficients=None if full.image_coefficients is None else image_coefficients,
        masked_rows=None if full.masked_rows is None else full.masked_rows[[*kept, full.calls]],
        positions=tuple(kept),
        full_calls=full.calls,
    )


def forecast(
    full: SamplerMatrix, positions: Sequence[int], *, order: int = 1, variable: Variable = "output"
) -> SamplerMatrix:
    """Return a sampler in which the outputs of the calls left out are extrapolated from those before.

    Hold (order 0) is what feature caches do with outputs; orders 1 and 2 are Lagrange's extrapolation in the index of
    the call.

    Args:
        full: The full schedule.
        positions: Its calls that run, ascending, the first of which is 0.
        order: The degree of the polynomial through the latest outputs.
        variable: "output" extrapolates the network's outputs; "clean" the estimates of the clean latents, which
            multistep solvers of data prediction mix.

    Raises:
        SamplerError: The positions are not calls of the schedule in ascending order from 0.
    """
    kept = list(positions)
    if not kept or kept[0] != 0 or sorted(set(kept)) != kept or kept[-1] >= full.calls:
        message = f"Invalid positions: got {kept[:40]}; expected ascending calls from 0, below {full.calls}."
        raise SamplerError(message, scheduler=full.name)
    steps, calls, draws = full.calls, len(kept), full.draws
    image = full.image_coefficients if full.image_coefficients is not None else np.zeros(steps + 1)
    width = 1 + calls + draws + 1  # noise, outputs that are computed, draws, clean latents
    outputs, clean = np.zeros((steps, width)), np.zeros((steps, width))
    states = np.zeros((steps + 1, width))
    for i in range(steps + 1):
        states[i] = full.rows[i, 1 : 1 + steps] @ outputs  # later outputs have no weight
        states[i, 0] += full.rows[i, 0]
        states[i, 1 + calls : -1] += full.rows[i, 1 + steps :]
        states[i, -1] += image[i]
        if i == steps:
            break
        a, b = full.preview[i]
        if i in kept:
            outputs[i, 1 + kept.index(i)] = 1
        else:
            before = [k for k in kept if k < i][-1 - order :]
            weights = _extrapolation(before, i)
            outputs[i] = weights @ outputs[before]
            if variable == "clean" and b:
                outputs[i] = (weights @ clean[before] - a * states[i]) / b
        clean[i] = a * states[i] + b * outputs[i]
    rows = states[[*kept, steps]]
    name = f"{full.name} with forecasts"
    return with_rows(full, kept, rows[:, :-1], rows[:, -1], name)


def _extrapolation(places: Sequence[int], at: int) -> Doubles:
    """Return the weights of Lagrange's polynomial through `places` at `at`.  # [len(places)]"""
    x = np.array(places, dtype=np.float64)
    factors = (at - x[None, :]) / np.where(np.eye(x.size, dtype=bool), 1, x[:, None] - x[None, :])
    np.fill_diagonal(factors, 1)
    return np.asarray(factors.prod(axis=1), dtype=np.float64)


def best_forecast(full: SamplerMatrix, calls: int) -> SamplerMatrix:
    """Return the forecast that `calls_from="forecast"` uses: linear in the outputs, over evenly spread calls.

    Of orders 1 and 2, outputs and clean latents, and powers 1, 1.25 and 1.5, it came closest to Euler with 20 steps in
    10 calls of the demonstration model. Other schedules were not compared.

    Args:
        full: The full schedule.
        calls: Network calls to keep, from 1 to those of the full schedule.
    """
    return forecast(full, spread_positions(full.calls, calls, FORECAST_POWER))
