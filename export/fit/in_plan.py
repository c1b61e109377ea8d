"""Fit the samplers of a plan that is being built. Runs in a child process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calotype.backends import choose
from calotype.backends.components import Components
from calotype.generator import ImageGenerator
from calotype.plan.plan import read_plan
from calotype.sampling.fitted import SUFFIX

from .fit import fit_samplers
from .spec import fit_spec_from


def fit_in_plan(*, plan: str, backend: str, fits: Sequence[str], prompts: str | None) -> dict[str, Any]:
    """Write fitted samplers to the plan's `samplers` folder.

    Args:
        plan: The folder of the unfinished plan.
        backend: The backend that runs it.
        fits: Texts for `fit_spec_from`.
        prompts: A file with one prompt per line, or None.

    Returns:
        The held-out figures of each fit.
    """
    unsealed = read_plan(Path(plan), sealed=False)
    generator = ImageGenerator(unsealed, Components(unsealed, choose(backend)))
    figures = {}
    for text in fits:
        spec = replace(fit_spec_from(text), prompts=None if prompts is None else Path(prompts))
        for fitted in fit_samplers(unsealed, generator, spec):
            (Path(plan) / "samplers" / f"{fitted.key}{SUFFIX}").write_bytes(fitted.to_bytes())
            figures[text] = dict(fitted.figures)
    return {"figures": figures}
