"""A component of a plan, opened with the first backend that can; another artifact or backend may take over later."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cuda.device import is_full
from ..errors import BackendError, Cancelled, DeviceFullError, InputError, NotFiniteError, first_line
from ..plan.bindings import check_arrays
from ..plan.plan import Artifact, PlannedComponent
from ..system import forks
from ..system.trace import span
from ..weights.delta import NO_DELTAS, WeightDeltas
from .base import Arrays, Runner, SupportsWeightUpdates
from .registry import ON_GPU, BackendSelection, backend_module, form_of

_RANKS = {"fp32": 3, "bf16": 2, "fp16": 1}  # by the numbers that they can hold, and then by their digits; the rest: 0


class LoadedComponent:
    """A component with the runner that was chosen for it, and why. Threads may share it.

    Where the numbers that come out are not finite, the next artifact of a higher precision takes over, for good. Where
    a backend of a list fails at its first run, the next one does. `retried` then says so.
    """

    def __init__(self, component: PlannedComponent, choice: BackendSelection) -> None:
        """Open with the first backend of the choice that can. Raises `BackendError` where none does."""
        self.component = component
        self.retried: tuple[str, ...] = ()
        self.shapes_given: Mapping[str, tuple[int, ...]] = {}  # of the inputs that were checked last
        self._choice = choice
        self._patches = NO_DELTAS
        self._switching = forks.Lock()
        self._of_the_parent = False  # is the runner one of a process that this one was forked from?
        self._skipped: Mapping[str, str] = {}  # backend -> why another was taken
        self._ran: Runner | None = None  # the runner that has worked
        self.runner: Runner
        with forks.running():
            self._open(_candidates(component, choice), choice.skipped)
        forks.track(self)

    def after_fork(self) -> None:
        """The runner's threads are not in this process."""
        self._of_the_parent = True

    def reopen_after_fork(self) -> None:
        """Open anew in a forked child. Raises `BackendError` where the device or a library cannot be used in one."""
        forks.check()
        if not self._of_the_parent:
            return
        with self._switching:
            if not self._of_the_parent:  # another thread has done it
                return
            if self.runner.backend in ON_GPU:
                raise BackendError(
                    f"{self.runner.backend} cannot be used in a process that was forked from one that uses the GPU; "
                    "start processes by spawn: multiprocessing.get_context('spawn')."
                )
            forks.keep(self.runner)
            self._open(_candidates(self.component, self._choice), self._choice.skipped)
            self._ran, self._of_the_parent = None, False

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Check the inputs against the bindings, then run.

        Raises:
            BackendError: the backend failed; NotFiniteError: its numbers are not finite, and nothing better is there.
        """
        self.check(inputs)
        return self.run_with_fallback(lambda runner: runner(inputs), lambda: inputs)

    def check(self, inputs: Arrays) -> None:
        """Raise `InputError` unless these are the component's inputs; `shapes_given` are then theirs."""
        check_arrays(self.component.name, self.component.inputs, inputs)
        self.shapes_given = {name: array.shape for name, array in inputs.items()}

    def run_with_fallback(
        self, run: Callable[[Runner], dict[str, NDArray[Any]]], inputs: Callable[[], Arrays]
    ) -> dict[str, NDArray[Any]]:
        """What `run` makes of the runner, with every failure as ours; `inputs` says what it was given.

        Raises:
            BackendError: the backend failed; NotFiniteError: its numbers are not finite, and nothing better is there.
        """
        self.reopen_after_fork()
        while True:
            runner = self.runner
            try:
                with span(self.component.name), forks.running():
                    outputs = run(runner)
            except (InputError, DeviceFullError, Cancelled, NotFiniteError):
                raise
            except Exception as failed:  # each library raises its own kinds
                self._hand_over(runner, failed)
                continue
            self._ran = runner
            if _finite(outputs):
                return outputs
            if not _finite(inputs()):
                raise NotFiniteError(f"the {_display_name(self.component)} was given numbers that are not finite.")
            self._raise_precision(runner)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Layer -> its weight's shape, of those that `adapt` changes. Raises `BackendError` where none can be."""
        return _adaptable(self.runner, self.component).shapes()

    def update_weights(self, patches: WeightDeltas) -> None:
        """Update the weights, as `SupportsWeightUpdates.update_weights`; an artifact that takes over gets the same."""
        with self._switching:
            _adaptable(self.runner, self.component).update_weights(patches)
            self._patches = patches

    def _open(self, candidates: Iterator[tuple[str, Artifact | str]], skipped: Mapping[str, str]) -> None:
        """Take the first candidate that opens."""
        told = self._skipped = dict(skipped)
        for name, artifact in candidates:
            if isinstance(artifact, str):  # the reason why there is none
                told[name] = artifact
                continue
            try:
                runner: Runner = backend_module(name).open_runner(self.component, artifact)
                if self._patches:
                    _adaptable(runner, self.component).update_weights(self._patches)
            except BackendError as failed:
                told[f"{name} {artifact.precision}" if name in told else name] = str(failed)
                continue
            before = self._choice.requested[: self._choice.requested.index(name)]
            ahead = {n: why for n, why in told.items() if n not in self._choice.skipped or n in before}
            self.runner, self.artifact, self.why = runner, artifact, _reason_text(self._choice, ahead)
            return
        said = "; ".join(f"{n}: {why_not}" for n, why_not in told.items())
        raise BackendError(f"no backend could open the {self.component.name}. {said}")

    def _hand_over(self, failed: Runner, error: Exception) -> None:
        """Open the next artifact in the order of the choice where the backend fails at its first run.

        Raises:
            BackendError: the backend was named alone, worked before, or ran out of memory; or nothing else can run.
        """
        reason = first_line(error)
        with self._switching:
            if self.runner is not failed:  # another thread has done it
                return
            told = f"{failed.backend} failed on the {self.component.name}: {reason}"
            full = isinstance(error, MemoryError) or is_full(reason)
            if self._ran is failed or full or len(self._choice.requested) == 1:
                raise BackendError(told) from error
            here = failed.backend, self.artifact
            candidates = itertools.dropwhile(lambda each: each != here, _candidates(self.component, self._choice))
            next(candidates, None)
            try:
                self._open(candidates, {**self._skipped, failed.backend: f"failed at its first run: {reason}"})
            except BackendError as none:
                raise BackendError(f"{told}; {none}") from error
            self.retried += (
                f"{_display_name(self.component)}: {failed.backend} failed at its first run ({reason}); "
                f"{self.runner.backend} took over",
            )

    def _raise_precision(self, failed: Runner) -> None:
        """Replace the runner whose numbers are not finite. Raises `NotFiniteError` where nothing higher can run."""
        with self._switching:
            if self.runner is not failed:  # another thread has done it
                return
            called = _display_name(self.component)
            try:
                higher = _candidates(self.component, self._choice, above=failed)
                self._open(higher, {f"{failed.backend} {failed.precision}": "its numbers are not finite"})
            except BackendError as none:
                raise NotFiniteError(_not_finite_message(called, failed, str(none))) from None
            now = self.runner.precision
            now += "" if self.runner.backend == failed.backend else f" by {self.runner.backend}"
            self.retried += (f"{called}: numbers not finite in {failed.precision}, retried in {now}",)


def _adaptable(runner: Runner, component: PlannedComponent) -> SupportsWeightUpdates:
    if isinstance(runner, SupportsWeightUpdates):
        return runner
    raise BackendError(
        f"{runner.backend} cannot change the weights of the {_display_name(component)} in this version; build a plan "
        "with the LoRA in it (calotype build MODEL --lora FILE), or take cuda, onnxruntime, openvino or eager."
    )


def open_component(component: PlannedComponent, choice: BackendSelection) -> LoadedComponent:
    """Open with the first backend of the choice that can; the reasons of the others are in `why`."""
    return LoadedComponent(component, choice)


def _candidates(
    component: PlannedComponent, choice: BackendSelection, *, above: Runner | None = None
) -> Iterator[tuple[str, Artifact | str]]:
    """What may be opened, in order: a backend, and an artifact for it or the reason why there is none.

    The order is that of the choice, and for each backend that of the plan. `above` a runner are the artifacts of a
    higher precision than its own, from its own backend on.
    """
    names = choice.names if above is None else choice.names[choice.names.index(above.backend) :]
    lowest = 0 if above is None else _rank(above.precision) + 1
    for name in names:
        of_form = [a for a in component.artifacts if a.form == form_of(name)]
        fit = [a for a in of_form if a.precision in backend_module(name).PRECISIONS and _rank(a.precision) >= lowest]
        yield from ((name, _unless_refused(choice, name, artifact)) for artifact in fit)
        if not fit:
            yield name, _lacking(component, name, of_form)


def _unless_refused(choice: BackendSelection, name: str, artifact: Artifact) -> Artifact | str:
    """The artifact; or why the backend is passed over: by auto where its numbers differ, by all where it crashes."""
    other = artifact.check.get("others", {}).get(name, {})
    refused = other.get("refused")
    return artifact if not refused or (choice.explicit and not other.get("crashes")) else str(refused)


def _lacking(component: PlannedComponent, name: str, of_form: Sequence[Artifact]) -> str:
    form, runs = form_of(name), ", ".join(backend_module(name).PRECISIONS)
    if of_form:
        held = ", ".join(a.precision for a in of_form)
        return f"the plan holds {form} artifacts of the {component.name} in {held}; wanted is another of {runs}"
    return component.refused.get(form, f"the plan holds no {form} artifact of the {component.name}")


def _rank(precision: str) -> int:
    return _RANKS.get(precision.partition("+")[0], 0)


def _finite(arrays: Arrays) -> bool:
    """A finite sum has finite terms; where it is none, the terms may still be: they are looked at one by one."""
    with np.errstate(over="ignore", invalid="ignore"):
        return all(
            np.isfinite(np.add.reduce(a, None)) or np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f"
        )


def _display_name(component: PlannedComponent) -> str:
    """As people say it: "U-Net", "VAE decoder", "text encoder"."""
    return component.name.replace("_", " ").replace("unet", "U-Net").replace("vae", "VAE")


def _not_finite_message(called: str, runner: Runner, why: str) -> str:
    told = f"the {called} gave numbers that are not finite in {runner.precision} ({runner.backend})"
    if _rank(runner.precision) == _rank("fp32"):
        return f"{told}: its weights are damaged."
    return (
        f"{told}, and nothing of a higher precision can run ({why}). Make a plan whose {called} is bf16, or that "
        "keeps a second artifact for this: calotype build MODEL --precision bf16, or with --fallback."
    )


def _reason_text(choice: BackendSelection, skipped: Mapping[str, str]) -> str:
    asked = "asked for" if choice.explicit else "first of auto's list that runs"
    return "; ".join([asked, *(f"not {n}: {reason}" for n, reason in skipped.items())])
