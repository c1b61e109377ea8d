"""Fitted samplers as bytes: what is read is what was written, and damaged or hostile bytes raise `SamplerError`."""

import io
import json
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calotype.errors import SamplerError
from calotype.sampling.compile import compile_sampler
from calotype.sampling.fitted import FORMAT, FittedSampler, FittedSamplers, part_of
from calotype.sampling.schedule_range import FULL_SCHEDULE, ScheduleRange
from calotype.sampling.schedulers import spec_from
from tests.helpers.fits import rows_of, store

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FINGERPRINT = "a" * 64
FROM_IMAGE = ScheduleRange(origin="image", skipped=2, preserves_unmasked=True)
OPTIONS = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def full(schedule_range=FULL_SCHEDULE, name="euler-a"):
    return compile_sampler(name, 6, base_config=CONFIG, schedule_range=schedule_range)


def sampler(**changes):
    spec = spec_from("euler-a", CONFIG)
    known = {"format": FORMAT, "fingerprint": FINGERPRINT, "scheduler": "euler-a", "scheduler_key": spec.key()}
    known |= {"steps": 6, "calls": 3, "guidance": [2.0, 8.0], "guided": True, "loras": [], "height": 64, "width": 96}
    parts = {"noise": rows_of(full(), 3), "image.2": rows_of(full(FROM_IMAGE), 2)}
    return FittedSampler(settings=known | changes, figures={"fitted": {"p10": 41.5}}, parts=parts)


DATA = sampler().to_bytes()


def arrays_with(**changes):
    """Return the bytes of the sampler with some arrays replaced, or left out for None."""
    with np.load(io.BytesIO(DATA)) as arrays:
        content = {name: arrays[name] for name in arrays} | changes
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in content.items() if array is not None})
    return file.getvalue()


def header(**changes):
    stored = {"settings": dict(sampler().settings), "figures": {"fitted": {"p10": 41.5}}} | changes
    return np.frombuffer(json.dumps(stored).encode(), dtype=np.uint8)


def test_what_is_read_is_what_was_written():
    expected, got = sampler(), FittedSampler.from_bytes(DATA)
    assert (got.settings, got.figures, got.key, got.p10) == (expected.settings, expected.figures, expected.key, 41.5)
    assert set(got.parts) == {"noise", "image.2"}
    for name, part in expected.parts.items():
        assert got.parts[name].positions == part.positions
        np.testing.assert_array_equal(got.parts[name].rows, part.rows)
    assert got.parts["noise"].image_coefficients is None
    np.testing.assert_array_equal(got.parts["image.2"].image_coefficients, expected.parts["image.2"].image_coefficients)


def test_rows_are_polynomials_of_the_guidance_scale():
    fit, rows = sampler(), sampler().parts["noise"].rows
    at = {scale: fit.matrix(full(), "noise", scale).rows for scale in (2.0, 5.0, 8.0)}
    np.testing.assert_allclose(at[5.0], rows[0])
    np.testing.assert_allclose(at[8.0], rows[0] + rows[1])
    np.testing.assert_allclose(at[2.0], rows[0] - rows[1])


def test_one_scale_needs_no_polynomial():
    np.testing.assert_allclose(
        sampler(guidance=[5.0, 5.0]).matrix(full(), "noise", 5.0).rows, sampler().parts["noise"].rows[0]
    )


def test_the_area_that_a_mask_preserves_follows_the_full_schedule():
    expected = full(FROM_IMAGE)
    got = sampler().matrix(expected, "image.2", 5.0)
    np.testing.assert_array_equal(got.masked_rows, expected.masked_rows[[*got.positions, expected.calls]])
    np.testing.assert_array_equal(got.timesteps, expected.timesteps[list(got.positions)])
    assert (got.full_calls, got.draws) == (expected.calls, expected.draws)
    assert got.image_coefficients.shape == (got.calls + 1,)


def test_rows_of_another_schedule_raise():
    with pytest.raises(SamplerError, match="damaged"):
        sampler().matrix(full(name="euler"), "noise", 5.0)  # no draws
    with pytest.raises(SamplerError, match="damaged"):
        sampler().matrix(full(ScheduleRange(origin="image", skipped=4)), "image.2", 5.0)


@OPTIONS
@given(st.integers(0, len(DATA)))
def test_truncated_bytes_raise(length):
    if length < len(DATA):
        with pytest.raises(SamplerError, match="damaged"):
            FittedSampler.from_bytes(DATA[:length])


@OPTIONS
@given(st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_are_read_or_raise(changes):
    data = bytearray(DATA)
    for at, value in changes:
        data[at] = value
    with suppress(SamplerError):
        fit = FittedSampler.from_bytes(bytes(data))
        for part, schedule_range in (("noise", FULL_SCHEDULE), ("image.2", FROM_IMAGE)):
            if part in fit.parts:
                fit.matrix(full(schedule_range), part, 5.0)


HOSTILE = {
    "calls that do not start at 0": {"positions.noise": np.array([1, 2, 3])},
    "calls in another order": {"positions.noise": np.array([0, 3, 2])},
    "calls that are fractions": {"positions.noise": np.array([0.0, 1.5, 2.0])},
    "no calls": {"positions.noise": np.zeros(0, int), "rows.noise": np.zeros((1, 1, 1))},
    "rows that are texts": {"rows.noise": np.full((1, 4, 9), "x")},
    "rows that are not finite": {"rows.noise": np.full((1, 4, 9), np.nan)},
    "rows of another shape": {"rows.noise": np.zeros((4, 9))},
    "more rows than calls": {"rows.noise": np.zeros((1, 9, 9))},
    "image weights of another shape": {"image.image.2": np.zeros((1, 9))},
    "no header": {"header": None},
    "a header that is no JSON": {"header": np.frombuffer(b"{", dtype=np.uint8)},
    "a header of brackets": {"header": np.frombuffer(b"[" * 100_000, dtype=np.uint8)},
    "a header without settings": {"header": header(settings={})},
    "another format": {"header": header(settings=dict(sampler().settings) | {"format": FORMAT + 1})},
    "a guidance of text": {"header": header(settings=dict(sampler().settings) | {"guidance": ["a", "b"]})},
    "no size": {"header": header(settings={k: v for k, v in sampler().settings.items() if k != "height"})},
    "no figures": {"header": header(figures={})},
    "a figure that is no number": {"header": header(figures={"fitted": {"p10": "much"}})},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_content_raises(name):
    with pytest.raises(SamplerError, match="damaged"):
        FittedSampler.from_bytes(arrays_with(**HOSTILE[name]))


def test_a_small_file_that_unpacks_to_much_raises():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("rows.noise.npy", bytes(65 << 20))
    assert len(file.getvalue()) < 1 << 20
    with pytest.raises(SamplerError, match="unpacks"):
        FittedSampler.from_bytes(file.getvalue())


def test_pickles_are_not_read():
    with pytest.raises(SamplerError, match="damaged"):
        FittedSampler.from_bytes(arrays_with(**{"rows.noise": np.array([print], dtype=object)}))


def test_a_range_of_a_handoff_has_no_part():
    assert part_of(FULL_SCHEDULE) == "noise"
    assert part_of(FROM_IMAGE) == "image.2"
    assert part_of(ScheduleRange(end=0.5)) is None
    assert part_of(ScheduleRange(origin="latents", begin=0.5)) is None


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))


def find(folder=None, *, fingerprint=FINGERPRINT, name="euler-a", steps=6, calls=3, loras=()):
    return FittedSamplers(fingerprint, folder).find(spec_from(name, CONFIG), steps, calls, loras)


def test_a_fit_is_found_under_all_that_it_depends_on(home):
    fit = store(sampler())
    assert find().key == fit.key
    others = {"fingerprint": "b" * 64, "name": "euler", "steps": 7, "calls": 2, "loras": (f"{'c' * 64}:1.0",)}
    for name, value in others.items():
        assert find(**{name: value}) is None, name


def test_the_fewest_calls_come_first(home):
    for calls in (5, 2, 3):
        store(sampler(calls=calls))
    fits = FittedSamplers(FINGERPRINT, None).all(spec_from("euler-a", CONFIG), 6)
    assert [fit.settings["calls"] for fit in fits] == [2, 3, 5]


def test_a_plans_fit_comes_first_and_must_be_the_one_of_its_name(home, tmp_path):
    fit = store(sampler())
    path = tmp_path / f"{fit.key}.fit"
    path.write_bytes(sampler(height=128).to_bytes())
    assert find(tmp_path).settings["height"] == 128
    path.write_bytes(sampler(calls=4).to_bytes())
    with pytest.raises(SamplerError, match="damaged"):
        find(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(SamplerError, match="damaged"):
        find(tmp_path)
