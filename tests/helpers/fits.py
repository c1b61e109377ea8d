"""Fitted samplers that no fit made: the rows of forecasts, under the settings that a look-up expects."""

import numpy as np

from calotype.files.cache import FITS
from calotype.sampling.cache import sampler_for
from calotype.sampling.fewer_calls import forecast, spread_positions
from calotype.sampling.fitted import FORMAT, FittedRows, FittedSampler
from calotype.sampling.schedule_range import FULL_SCHEDULE, ScheduleRange
from calotype.sampling.schedulers import spec_from


def rows_of(full, calls):
    """Return the rows of a forecast as those of a fit, which grow with the guidance scale."""
    base = forecast(full, spread_positions(full.calls, calls))
    rows, image = base.rows, base.image_coefficients
    return FittedRows(
        positions=base.positions,
        rows=np.stack([rows, 0.1 * rows]),
        image_coefficients=None if image is None else np.stack([image, 0.1 * image]),
    )


def fit_for(plan, *, scheduler="euler", steps=4, calls=2, p10=40.0, skipped=(1,), **settings):
    """Return a fit from noise, and from images after the first `skipped` steps."""
    spec = spec_from(scheduler, plan.scheduler)
    ranges = {"noise": FULL_SCHEDULE}
    ranges |= {f"image.{n}": ScheduleRange(origin="image", skipped=n) for n in skipped}
    parts = {}
    for name, each in ranges.items():
        full = sampler_for(scheduler, plan.scheduler, steps, None, each).sampler
        parts[name] = rows_of(full, min(calls, full.calls))
    known = {
        "format": FORMAT,
        "fingerprint": plan.fingerprint,
        "scheduler": spec.name,
        "scheduler_key": spec.key(),
        "steps": steps,
        "calls": calls,
        "guidance": [2.0, 9.0],
        "guided": True,
        "loras": [],
        "height": 128,
        "width": 128,
    }
    return FittedSampler(settings=known | settings, figures={"fitted": {"p10": p10}}, parts=parts)


def store(fit):
    """Put a fit into the cache, where calls find it, and return it."""
    FITS.write(fit.key, fit.to_bytes())
    return fit
