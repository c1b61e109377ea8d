"""Fit samplers to a model: the order of the work, from prompts to stored samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np

from calotype.errors import InputError, SamplerError
from calotype.files.cache import FITS
from calotype.files.digest import digest_of
from calotype.generator import ImageGenerator
from calotype.plan.plan import Plan
from calotype.sampling.compile import compile_sampler
from calotype.sampling.fewer_calls import best_forecast, spread_positions
from calotype.sampling.fitted import FORMAT, FittedRows, FittedSampler, FittedSamplers
from calotype.sampling.matrix import SamplerMatrix
from calotype.sampling.schedule_range import FULL_SCHEDULE, ScheduleRange
from calotype.sampling.schedulers import spec_from
from calotype.stages.fewer_calls import digests_of

from ..quality.prompts import knows_captions_only, prompts_from
from ..steps.progress import Display, Progress, Stage
from .compare import PLAIN, HeldOut, psnr_each, rivals
from .positions import Positions, search
from .runs import Floats, Runs, Trace
from .solve import fit_rows
from .spec import FitSpec

FITTER = 1  # increase when the same spec gives other rows
GUIDANCE = 5.0  # where figures are measured, if the range has it
SCALES, DEGREE = 6, 2  # guidance scales of the calibration prompts, and the degree of the rows as polynomials of it
IMAGE_PROMPTS, IMAGE_DEGREE, IMAGE_POWER = 8, 1, 1.6
SEARCH_PROMPTS, TRIALS = 16, 6  # of the search for the calls to keep
STRENGTH = 0.6  # where image-to-image is measured
FEW, FEW_HELD_OUT = 4, 2  # prompts for a slow model
FAST_PIXELS = 256**2  # of an image, from which on a model is slow
_LEFT_ALONE = ("LCMScheduler", "TCDScheduler")
_CALIBRATION_SEED, _HELD_OUT_SEED = 1_000_000, 2_000_000


def fit_samplers(
    plan: Plan, generator: ImageGenerator, spec: FitSpec, display: Display | None = None
) -> list[FittedSampler]:
    """Fit samplers to a loaded model, and store them for its calls.

    Args:
        plan: The plan of the model.
        generator: Its networks, with the active LoRAs.
        spec: The scheduler, the steps, and the numbers of calls.
        display: Shows the progress.

    Returns:
        One sampler for each number of calls, with its held-out figures.

    Raises:
        InputError: A value of `spec` is invalid.
        SamplerError: The scheduler is not a matrix or has no calls to spare; or a rival with as many calls is closer to
            the full schedule than the fit.
    """
    fitter = _Fitter(plan, generator, spec)
    settings = {calls: fitter.settings(calls) for calls in spec.counts}
    cache = FittedSamplers(plan.fingerprint, None)
    samplers: dict[int, FittedSampler] = {}
    for calls, each in settings.items():
        stored = cache.find(fitter.scheduler, spec.steps, calls, each["loras"])
        if stored is not None and stored.settings == each:
            samplers[calls] = stored
    missing = [calls for calls in settings if calls not in samplers]
    if missing:
        stages = [Stage(name="record the schedule", guess_s=12)]
        for calls in missing:
            stages += [Stage(name=f"{each} {calls} calls", guess_s=s) for each, s in fitter.guesses().items()]
        with display or Display() as shown, generator.loras.lock_weights():
            progress = Progress(stages, shown)
            with progress.stage("record the schedule"):
                fitter.record()
            for calls in missing:
                samplers[calls] = fitter.fit(calls, settings[calls], progress)
                FITS.write(samplers[calls].key, samplers[calls].to_bytes())
    return [samplers[calls] for calls in spec.counts]


class _Fitter:
    """The recorded schedule of one spec, and the fits to it."""

    def __init__(self, plan: Plan, generator: ImageGenerator, spec: FitSpec) -> None:
        self._plan, self._generator, self._spec = plan, generator, spec
        self.scheduler = spec_from(spec.scheduler, plan.scheduler)
        if self.scheduler.class_name in _LEFT_ALONE or _is_distilled(plan):
            self._refuse("a sampler of few steps has no calls to spare")
        if self.scheduler.by_hand:
            self._refuse(f"only its object describes it: {self.scheduler.by_hand}")
        self._full = self._compile(FULL_SCHEDULE)
        if (most := max(spec.counts)) >= self._full.calls:
            message = f"calls must be less than the {self._full.calls} of {self.scheduler.name}, got {most}."
            raise InputError(message, argument="calls", got=most)
        demo = any(map(knows_captions_only, plan.tokenizers.values()))
        self._prompts = prompts_from(spec.prompts, demo=demo, calibration=spec.calibration, held_out=spec.held_out)
        low, high = spec.guidance
        self._scale = float(np.clip(GUIDANCE, low, high))
        self._held_out: HeldOut | None = None
        self._slow = int(np.prod(_size_of(spec, plan))) >= FAST_PIXELS

    def settings(self, calls: int) -> dict[str, Any]:
        """Return what a fit depends on, as plain data."""
        spec, (height, width) = self._spec, _size_of(self._spec, self._plan)
        return {
            "format": FORMAT,
            "fitter": FITTER,
            "fingerprint": self._plan.fingerprint,
            "scheduler": self.scheduler.name,
            "scheduler_key": self.scheduler.key(),
            "steps": spec.steps,
            "calls": calls,
            "guidance": list(spec.guidance),
            "guided": self._scale > 1 and bool(self._plan.prompting.states),
            "loras": list(digests_of(self._generator.loras.loras)),
            "height": height,
            "width": width,
            "prompts": digest_of([self._prompts.calibration, self._prompts.held_out]),
            "images": spec.images,
            "unchecked": spec.unchecked,
        }

    def guesses(self) -> dict[str, float]:
        """Return the stages of one fit with the seconds of the demonstration model."""
        checks = {} if self._spec.unchecked else {"compare": 15}
        images = {"image-to-image": 25} if self._spec.images is not False and not self._plan.inpaints else {}
        return {"fit": 20, **images, **checks}

    def record(self) -> None:
        """Run the full schedule over the calibration prompts."""
        self._calibration = self._prompts.calibration[:FEW] if self._slow else self._prompts.calibration
        self._runs = self._runs_over(self._calibration, _CALIBRATION_SEED, self._scales(len(self._calibration)))
        self._reference = self._runs.play(self._full)

    def _scales(self, count: int) -> list[float]:
        """Return a guidance scale for each calibration prompt: the range is covered, whatever their number."""
        low, high = self._spec.guidance
        nodes = np.linspace(low, high, min(SCALES, count)) if high > low else np.array([low])
        return [float(nodes[i % len(nodes)]) for i in range(count)]

    def fit(self, calls: int, settings: Mapping[str, Any], progress: Progress) -> FittedSampler:
        """Fit and measure one sampler. Raises `SamplerError` if a rival is closer."""
        figures: dict[str, Any] = {"fitted": {"p10": 0.0}}
        with progress.stage(f"fit {calls} calls"):
            parts = {"noise": self._from_noise(calls, progress)}
        if not self._spec.unchecked:
            with progress.stage(f"compare {calls} calls"):
                figures = self._measure(FittedSampler(settings=settings, figures={}, parts=parts), calls, progress)
        images = not self._slow if self._spec.images is None else self._spec.images
        if images and not self._plan.inpaints:
            with progress.stage(f"image-to-image {calls} calls"):
                from_images = self._from_images(calls, progress)
                fitted = FittedSampler(settings=settings, figures={}, parts=from_images)
                if self._spec.unchecked or self._holds_for_images(fitted, calls, figures, progress):
                    parts |= from_images
        return FittedSampler(settings=settings, figures=figures, parts=parts)

    def _from_noise(self, calls: int, progress: Progress) -> FittedRows:
        positions = spread_positions(self._full.calls, calls)
        if not self._slow:
            positions = self._searched(calls, progress)
        return self._rows(self._runs, self._reference, positions)[0]

    def _searched(self, calls: int, progress: Progress) -> Positions:
        """Return the best calls to keep, judged by some of the prompts."""
        prompts = self._calibration[:SEARCH_PROMPTS]
        runs = self._runs_over(prompts, _CALIBRATION_SEED, self._scales(len(prompts)))
        reference = self._reference.first(len(prompts))
        expected = runs.decode(reference.latents)

        def score(positions: Positions) -> float:
            _, latents = self._rows(runs, reference, positions)
            mean = float(np.mean(psnr_each(runs.decode(latents), expected)))
            progress.step(f"calls {', '.join(map(str, positions))}: {mean:.1f} dB")
            return mean

        return search(self._full.calls, calls, score, TRIALS)

    def _rows(self, runs: Runs, reference: Trace, positions: Positions) -> tuple[FittedRows, Floats]:
        degree = min(DEGREE, len(runs.groups()) - 1)
        return fit_rows(runs, self._full, reference, positions, self._spec.guidance, degree)

    def _from_images(self, calls: int, progress: Progress) -> dict[str, FittedRows]:
        """Fit the schedules from an image of every strength. The images are those of other prompts."""
        parts, count = {}, min(IMAGE_PROMPTS, len(self._calibration))
        clean = np.roll(self._reference.latents, 1, axis=0)[:count]
        for skipped in range(self._spec.steps):
            part = self._compile(ScheduleRange(origin="image", skipped=skipped))
            kept = spread_positions(part.calls, max(1, round(calls * part.calls / self._full.calls)), IMAGE_POWER)
            progress.step(f"{part.calls} calls in {len(kept)}")
            strength = min(1.0, (self._spec.steps - skipped + 0.5) / self._spec.steps)  # rounded down to a step
            prompts, scales = self._calibration[:count], self._scales(count)
            runs = self._runs_over(prompts, _CALIBRATION_SEED, scales, part, clean=clean, strength=strength)
            degree = min(IMAGE_DEGREE, len(runs.groups()) - 1)
            parts[f"image.{skipped}"], _ = fit_rows(runs, part, runs.play(part), kept, self._spec.guidance, degree)
        return parts

    def _measure(self, fitted: FittedSampler, calls: int, progress: Progress) -> dict[str, Any]:
        """Return the figures over the held-out prompts. Raises `SamplerError` if a rival is closer."""
        prompts = self._prompts.held_out[:FEW_HELD_OUT] if self._slow else self._prompts.held_out
        if self._held_out is None:
            self._held_out = HeldOut(self._runs_over(prompts, _HELD_OUT_SEED), self._full)
        figures: dict[str, Any] = {"prompts": len(prompts), "guidance": self._scale, "rivals": {}}
        figures["fitted"] = self._held_out.figures(fitted.matrix(self._full, "noise", self._scale))
        progress.note(f"fitted to {calls} calls: {_text(figures['fitted'])}")
        plain = PLAIN[:1] if self._slow else PLAIN
        for name, rival in rivals(self._spec.scheduler, plain, self._plan.scheduler, self._full, calls):
            figures["rivals"][name] = self._held_out.figures(rival)
            progress.step(f"{name}: {_text(figures['rivals'][name])}")
        name, best = max(figures["rivals"].items(), key=lambda item: item[1]["p10"])
        progress.note(f"the closest rival, {name}: {_text(best)}")
        if best["p10"] >= figures["fitted"]["p10"]:
            message = (
                f"The fit to {calls} calls is not better than {name} with {calls} calls: nine of ten held-out images "
                f"reach {figures['fitted']['p10']:.1f} dB, with {name} {best['p10']:.1f} dB. Use {name}, or more calls."
            )
            raise SamplerError(message, scheduler=self.scheduler.name, steps=self._spec.steps)
        return figures

    def _holds_for_images(self, fitted: FittedSampler, calls: int, figures: dict[str, Any], progress: Progress) -> bool:
        """Measure one strength, and return whether the fit is closer than the same sampler with as many calls."""
        part = self._from_image(self._spec.steps)
        fewer = max(1, round(calls * self._spec.steps / self._full.calls))
        name, rival = "the same sampler", None
        with suppress(SamplerError):  # it cannot make so few steps
            rival = self._from_image(fewer)
        prompts = self._prompts.held_out[:IMAGE_PROMPTS]
        clean = np.roll(self._reference.latents, 2, axis=0)[: len(prompts)]
        prompts = prompts[: len(clean)]
        runs = self._runs_over(prompts, _HELD_OUT_SEED, (), part, clean=clean, strength=STRENGTH)
        held_out = HeldOut(runs, part)
        sampler = fitted.matrix(part, f"image.{self._spec.steps - int(self._spec.steps * STRENGTH)}", self._scale)
        if rival is None:
            name, rival = "forecast", best_forecast(part, sampler.calls)
        got, best = held_out.figures(sampler), held_out.figures(rival)
        progress.note(f"strength {STRENGTH:g}: {_text(got)}; {name}: {_text(best)}")
        figures["image_to_image"] = {"strength": STRENGTH, "fitted": got, name: best}
        return got["p10"] > best["p10"]

    def _from_image(self, steps: int) -> SamplerMatrix:
        """Return the schedule from an image at the strength that is measured."""
        return self._compile(ScheduleRange(origin="image", skipped=steps - int(steps * STRENGTH)), steps)

    def _runs_over(
        self,
        prompts: Sequence[str],
        seed: int,
        scales: Sequence[float] = (),
        part: SamplerMatrix | None = None,
        *,
        clean: Any = None,
        strength: float = 1,
    ) -> Runs:
        spec = self._spec
        arguments: dict[str, Any] = {"steps": spec.steps, "scheduler": self.scheduler}
        arguments |= {"height": spec.height, "width": spec.width}
        if clean is not None:
            arguments["strength"] = strength
        if self._plan.inpaints:  # everything is generated anew
            height, width = _size_of(spec, self._plan)
            arguments |= {"image": np.full((height, width, 3), 0.5, np.float32), "mask_image": np.ones((height, width))}
        return Runs(
            self._plan,
            self._generator,
            prompts,
            range(seed, seed + len(prompts)),
            arguments,
            scales or [self._scale] * len(prompts),
            draws=(part or self._full).draws,
            clean=clean,
        )

    def _compile(self, schedule_range: ScheduleRange, steps: int | None = None) -> SamplerMatrix:
        config, steps = self._plan.scheduler, steps or self._spec.steps
        sampler = compile_sampler(self._spec.scheduler, steps, base_config=config, schedule_range=schedule_range)
        if not isinstance(sampler, SamplerMatrix):
            self._refuse(str(sampler.reason))
        return sampler

    def _refuse(self, reason: str) -> NoReturn:
        raise SamplerError(
            f"Cannot fit a sampler to {self.scheduler.name}: {reason}.",
            scheduler=self.scheduler.name,
            steps=self._spec.steps,
        )


def _size_of(spec: FitSpec, plan: Plan) -> tuple[int, int]:
    """Return height and width in pixels."""
    return spec.height or plan.profile.height.opt, spec.width or plan.profile.width.opt


def _is_distilled(plan: Plan) -> bool:
    """Return whether the U-Net takes the guidance scale as an input, as distilled ones do."""
    return any(binding.name == "timestep_cond" for binding in plan.components["unet"].inputs)


def _text(figures: Mapping[str, float]) -> str:
    return f"median {figures['median']:.1f} dB, p10 {figures['p10']:.1f} dB, worst {figures['worst']:.1f} dB"
