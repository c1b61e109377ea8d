"""Forecasts: a matrix of fewer calls does what extrapolating the outputs of the calls left out does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calotype.errors import SamplerError
from calotype.sampling.compile import compile_sampler
from calotype.sampling.fewer_calls import best_forecast, forecast, spread_positions
from calotype.sampling.matrix import SamplerMatrix, SourceLatents
from calotype.sampling.schedule_range import FULL_SCHEDULE, ScheduleRange

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (2, 4, 3, 5)
FROM_IMAGE = ScheduleRange(origin="image", skipped=2, preserves_unmasked=True)
CASES = [("euler", FULL_SCHEDULE), ("dpm++2m-karras", FULL_SCHEDULE), ("heun", FULL_SCHEDULE)]
CASES += [("euler-a", FULL_SCHEDULE), ("euler", FROM_IMAGE), ("euler-a", FROM_IMAGE)]


def compiled(name, schedule_range=FULL_SCHEDULE, steps=8):
    return compile_sampler(name, steps, base_config=CONFIG, schedule_range=schedule_range)


def hand_made(rows, preview):
    rows = np.array(rows, float)
    return SamplerMatrix(name="hand-made", timesteps=np.arange(len(rows) - 1)[::-1], rows=rows, preview=preview)


def network(sample, timestep):
    """Return something that depends on each number and on the timestep."""
    return np.tanh(sample) * (1 + timestep / 1000)


def noise(seed):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def result(sampler, call):
    """Run a sampler. `call(i, sample, outputs)` returns the output of call i."""
    draws, original = iter(map(noise, range(100, 200))), None
    if sampler.image_coefficients is not None:
        mask = noise(2)[:, :1] > 0
        original = SourceLatents(latents=noise(1), inpaint_mask=mask)
    run = sampler.run(noise(0), lambda: next(draws), original=original)
    outputs = []
    for i in range(sampler.calls):
        outputs.append(call(i, run.input(i), outputs))
        run.push(i, outputs[i])
    return run.latents()


def extrapolated(full, positions, order):
    """Run the full schedule, with polynomials in place of the network for the calls left out."""

    def call(i, sample, outputs):
        if i in positions:
            return network(sample, full.timesteps[i])
        before = [k for k in positions if k < i][-1 - order :]
        values = np.stack([outputs[k] for k in before]).reshape(len(before), -1)
        powers = np.polyfit(before, values, len(before) - 1)
        return sum(c * float(i) ** (len(before) - 1 - p) for p, c in enumerate(powers)).reshape(SHAPE).astype("f4")

    return result(full, call)


@pytest.mark.parametrize(("name", "schedule_range"), CASES)
def test_with_all_calls_it_is_the_full_schedule(name, schedule_range):
    full = compiled(name, schedule_range)
    got = forecast(full, range(full.calls))
    for field in ("timesteps", "rows", "preview", "image_coefficients", "masked_rows"):
        np.testing.assert_array_equal(getattr(got, field), getattr(full, field))
    assert (got.draws, got.full_calls) == (full.draws, full.calls)
    np.testing.assert_array_equal(best_forecast(full, full.calls).rows, full.rows)


@pytest.mark.parametrize(("name", "schedule_range"), CASES)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_it_extrapolates_the_outputs_of_the_calls_left_out(name, schedule_range, order):
    full = compiled(name, schedule_range)
    positions = spread_positions(full.calls, 4)
    fewer = forecast(full, positions, order=order)
    assert (fewer.calls, fewer.positions) == (4, positions)
    got = result(fewer, lambda i, sample, _: network(sample, fewer.timesteps[i]))
    np.testing.assert_allclose(got, extrapolated(full, positions, order), atol=2e-4, rtol=1e-4)


SUM = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]  # every state adds the latest output


def test_hold_and_a_line_on_a_matrix_made_by_hand():
    full = hand_made(SUM, np.ones((3, 2)))
    np.testing.assert_array_equal(forecast(full, [0, 2], order=0).rows, [[1, 0, 0], [1, 2, 0], [1, 2, 1]])
    np.testing.assert_array_equal(forecast(full, [0, 1], order=0).rows[-1], [1, 1, 2])
    np.testing.assert_array_equal(forecast(full, [0, 1], order=1).rows[-1], [1, 0, 3])


def test_clean_latents_are_extrapolated_in_place_of_outputs():
    full = hand_made([row[:3] for row in SUM[:3]], np.array([[1, -1], [1, -1]]))
    # clean = state - output: holding it gives output 1 = state 1 - (noise - output 0) = 2 * output 0
    np.testing.assert_allclose(forecast(full, [0], order=0, variable="clean").rows[-1], [1, 3])
    np.testing.assert_allclose(forecast(full, [0], order=0).rows[-1], [1, 2])


@pytest.mark.parametrize("positions", [[], [1, 2], [0, 0], [0, 2, 1], [0, 8], [0, -1]])
def test_wrong_positions_raise(positions):
    with pytest.raises(SamplerError, match="positions"):
        forecast(compiled("euler"), positions)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 1000), st.data())
def test_positions_are_distinct_calls_from_the_first_to_the_last(steps, data):
    calls = data.draw(st.integers(1, steps))
    positions = spread_positions(steps, calls, data.draw(st.floats(0.5, 4)))
    assert len(positions) == calls
    assert positions[0] == 0
    assert sorted(set(positions)) == list(positions)
    assert positions[-1] == (steps - 1 if calls > 1 else 0)


@pytest.mark.parametrize("calls", [0, -1, 9])
def test_a_wrong_number_of_calls_raises(calls):
    with pytest.raises(SamplerError, match="calls"):
        spread_positions(8, calls)
