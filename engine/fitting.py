"""`Pipeline.fit`: the export's step that fits samplers, for a model that is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .generator import ImageGenerator
from .plan.plan import Plan
from .sampling.fitted import FittedSampler


class Fitting:
    """A pipeline that fits samplers with fewer network calls to its model."""

    plan: Plan
    _generator: ImageGenerator

    def fit(self, calls: int | Sequence[int] = 10, **options: Any) -> list[FittedSampler]:
        """Fit samplers with fewer network calls to this model with its LoRAs, and keep them for later calls.

        Args:
            calls: The network calls of one sampler, or of several.
            **options: Other fields of `FitSpec`: scheduler, steps, guidance, prompts.

        Returns:
            One sampler for each number of calls, with the figures of its images.

        Raises:
            InputError: An option is invalid.
            SamplerError: The scheduler cannot be fitted, or another sampler with as many calls is better.
        """
        from calotype.export import FitSpec, fit_samplers

        return fit_samplers(self.plan, self._generator, FitSpec(calls=calls, **options))
