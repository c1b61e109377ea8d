"""A loaded component of a plan: it opens with the first backend that works, and may switch to another one later."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from ..cuda.device import is_full
from ..errors import BackendError, Cancelled, DeviceFullError, InputError, NotFiniteError, first_line
from ..plan.bindings import check_arrays
from ..plan.plan import Artifact, PlannedComponent
from ..system import forks
from ..system.trace import span
from ..weights.delta import NO_DELTAS, WeightDeltas
from .base import Array, Arrays, Runner, SupportsWeightUpdates
from .registry import ON_GPU, BackendSelection, backend_of

_RANKS = {"fp32": 3, "bf16": 2, "fp16": 1}  # by range, and then by digits; all others: 0


class LoadedComponent:
    """A component with the runner that was chosen for it, and the reason. Threads may share it.

    If the outputs are not finite, the component switches for good to the next artifact of a higher precision. If a
    backend of a list fails at its first run, the component switches to the next backend. `retried` then says so.
    """

    def __init__(self, component: PlannedComponent, choice: BackendSelection) -> None:
        """Open with the first backend of the choice that works. Raise `BackendError` if none does."""
        self.component = component
        self._title = component.name.replace("_", " ").replace("unet", "U-Net").replace("vae", "VAE")
        self.retried: tuple[str, ...] = ()
        self.last_shapes: Mapping[str, tuple[int, ...]] = {}  # of the inputs that `check` last accepted
        self._choice = choice
        self._deltas = NO_DELTAS
        self._switching = forks.Lock()
        self._inherited = False  # does the runner belong to the process that forked this one?
        self._skipped: Mapping[str, str] = {}  # backend -> why it was skipped
        self._ran: Runner | None = None  # the runner that has worked
        self.runner: Runner
        with forks.running():
            self._open(_candidates(component, choice), choice.skipped)
        forks.track(self)

    def after_fork(self) -> None:
        """Mark the runner as inherited: its threads do not exist in a forked child."""
        self._inherited = True

    def reopen_after_fork(self) -> None:
        """Open a new runner in a forked child. Raise `BackendError` if the device or a library cannot be used there."""
        forks.check()
        if not self._inherited:
            return
        with self._switching:
            if not self._inherited:  # another thread has done it
                return
            if self.runner.backend in ON_GPU:
                raise BackendError(
                    f"{self.runner.backend} cannot run in a process that was forked from one that uses the GPU. "
                    "Start processes with spawn: multiprocessing.get_context('spawn').",
                    backend=self.runner.backend,
                    component=self.component.name,
                )
            forks.keep(self.runner)
            self._open(_candidates(self.component, self._choice), self._choice.skipped)
            self._ran, self._inherited = None, False

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Check the inputs against the bindings, run, and return the outputs by name.

        Raises:
            InputError: the inputs do not fit the bindings.
            BackendError: the backend failed.
            NotFiniteError: the outputs are not finite, and no artifact of a higher precision works.
        """
        self.check(inputs)
        return self.run_with_fallback(lambda runner: runner(inputs), lambda: inputs)

    def check(self, inputs: Arrays) -> None:
        """Raise `InputError` unless the inputs fit the bindings; else store their shapes in `last_shapes`."""
        check_arrays(self.component.name, self.component.inputs, inputs)
        self.last_shapes = {name: array.shape for name, array in inputs.items()}

    def run_with_fallback(
        self, run: Callable[[Runner], dict[str, Array]], inputs: Callable[[], Arrays]
    ) -> dict[str, Array]:
        """Call `run` with the runner and return its outputs; switch to another runner where it fails.

        Args:
            run: runs the component.
            inputs: returns the inputs of that run; called only if the outputs are not finite.

        Raises:
            BackendError: the backend failed.
            NotFiniteError: the inputs or the outputs are not finite, and no artifact of a higher precision works.
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
            if all_finite(outputs):
                return outputs
            if not all_finite(inputs()):
                raise self._not_finite(runner, f"the {self._title} got inputs that are not finite.")
            self._raise_precision(runner)

    @property
    def memory_bytes(self) -> int:
        """The memory of its weights and buffers; the size of its file where the backend does not count."""
        counted = self.runner.memory_bytes
        return _file_bytes(self.artifact.path) if counted is None else counted

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each weight that can change. Raise `BackendError` if the runner supports no updates."""
        return self._updatable(self.runner).shapes()

    def update_weights(self, deltas: WeightDeltas) -> None:
        """Update the weights, as `SupportsWeightUpdates.update_weights`. A later runner gets the same update."""
        with self._switching:
            self._updatable(self.runner).update_weights(deltas)
            self._deltas = deltas

    def _open(self, candidates: Iterator[tuple[str, Artifact | str]], skipped: Mapping[str, str]) -> None:
        """Take the first candidate that opens."""
        reasons = self._skipped = dict(skipped)
        for name, artifact in candidates:
            if isinstance(artifact, str):  # the reason why the backend has no artifact
                reasons[name] = artifact
                continue
            try:
                runner = backend_of(name).open(self.component, artifact)
                if self._deltas:
                    self._updatable(runner).update_weights(self._deltas)
            except BackendError as failed:
                reasons[f"{name} {artifact.precision}" if name in reasons else name] = str(failed)
                continue
            before = self._choice.requested[: self._choice.requested.index(name)]
            ahead = {n: reason for n, reason in reasons.items() if n not in self._choice.skipped or n in before}
            self.runner, self.artifact = runner, artifact
            source = "requested" if self._choice.explicit else "first of auto's list that runs"
            self.precision_reason = str(artifact.check.get("precision_reason", ""))
            self.why = "; ".join([source, *(f"not {n}: {reason}" for n, reason in ahead.items())])
            return
        message = "; ".join(f"{n}: {reason}" for n, reason in reasons.items())
        (only, *others) = self._choice.requested
        raise BackendError(
            f"no backend could open the {self.component.name}. {message}",
            backend=None if others else only,
            component=self.component.name,
        )

    def _hand_over(self, failed: Runner, error: Exception) -> None:
        """Switch to the next artifact in the order of the choice after the backend failed at its first run.

        Raises:
            BackendError: the backend is the only one in the list, worked before, or ran out of memory; or no other
                backend works.
        """
        reason = first_line(error)
        with self._switching:
            if self.runner is not failed:  # another thread has done it
                return
            data = {"backend": failed.backend, "component": self.component.name}
            message = f"{failed.backend} failed on the {self.component.name}: {reason}"
            full = isinstance(error, MemoryError) or is_full(reason)
            if self._ran is failed or full or len(self._choice.requested) == 1:
                raise BackendError(message, **data) from error
            current = failed.backend, self.artifact
            candidates = itertools.dropwhile(lambda each: each != current, _candidates(self.component, self._choice))
            next(candidates, None)
            try:
                self._open(candidates, {**self._skipped, failed.backend: f"failed at its first run: {reason}"})
            except BackendError as other:
                raise BackendError(f"{message}; {other}", **data) from error
            self.retried += (
                f"{self._title}: {failed.backend} failed at its first run ({reason}); {self.runner.backend} took over",
            )

    def _raise_precision(self, failed: Runner) -> None:
        """Replace a runner whose outputs are not finite. Raise `NotFiniteError` if no higher precision works."""
        with self._switching:
            if self.runner is not failed:  # another thread has done it
                return
            name = self._title
            message = f"the {name} gave numbers that are not finite in {failed.precision} ({failed.backend})"
            if _rank(failed.precision) == _rank("fp32"):
                raise self._not_finite(failed, f"{message}: its weights are damaged.")
            try:
                higher = _candidates(self.component, self._choice, above=failed)
                self._open(higher, {f"{failed.backend} {failed.precision}": "its numbers are not finite"})
            except BackendError as other:
                raise self._not_finite(
                    failed,
                    f"{message}, and no artifact of a higher precision can run ({other}). Build a plan whose {name} is "
                    "bf16, or one with a second artifact: calotype build MODEL --precision bf16, or with --fallback.",
                ) from None
            now = self.runner.precision
            now += "" if self.runner.backend == failed.backend else f" by {self.runner.backend}"
            self.retried += (f"{name}: numbers not finite in {failed.precision}, retried in {now}",)

    def _not_finite(self, runner: Runner, message: str) -> NotFiniteError:
        return NotFiniteError(
            message, backend=runner.backend, component=self.component.name, precision=runner.precision
        )

    def _updatable(self, runner: Runner) -> SupportsWeightUpdates:
        if isinstance(runner, SupportsWeightUpdates):
            return runner
        raise BackendError(
            f"{runner.backend} cannot change the weights of the {self._title} in this version. Build a plan with the "
            "LoRA in it (calotype build MODEL --lora FILE), or use cuda, onnxruntime, openvino or eager.",
            backend=runner.backend,
            component=self.component.name,
        )


def open_component(component: PlannedComponent, choice: BackendSelection) -> LoadedComponent:
    """Open with the first backend of the choice that works. `why` has the reasons against the others."""
    return LoadedComponent(component, choice)


def _candidates(
    component: PlannedComponent, choice: BackendSelection, *, above: Runner | None = None
) -> Iterator[tuple[str, Artifact | str]]:
    """Yield what may be opened, in order: a backend, with an artifact for it or the reason why it has none.

    The order is that of the choice, and within a backend that of the plan. `above` limits the artifacts to precisions
    higher than this runner's, and the backends to its own and those after it.
    """
    names = choice.names if above is None else choice.names[choice.names.index(above.backend) :]
    lowest = 0 if above is None else _rank(above.precision) + 1
    for backend in map(backend_of, names):
        of_form = [a for a in component.artifacts if a.form == backend.form]
        usable = [a for a in of_form if a.precision in backend.precisions and _rank(a.precision) >= lowest]
        for artifact in usable:
            other = artifact.check.get("others", {}).get(backend.name, {})
            # It crashes; or, for auto only, its outputs are not close enough.
            skip = other.get("refused") and (other.get("crashes") or not choice.explicit)
            yield backend.name, str(other["refused"]) if skip else artifact
        if not of_form:
            missing = f"the plan has no {backend.form} artifact of the {component.name}"
            yield backend.name, component.refused.get(backend.form, missing)
        elif not usable:
            available, expected = ", ".join(a.precision for a in of_form), ", ".join(backend.precisions)
            what = f"the {backend.form} artifacts of the {component.name}"
            yield backend.name, f"the plan has {what} in {available}; expected one of {expected}"


def _file_bytes(path: Path) -> int:
    """Return the size of a folder, or of a file with its external data, whose name starts with that of the file."""
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _rank(precision: str) -> int:
    return _RANKS.get(precision.partition("+")[0], 0)


def all_finite(arrays: Arrays) -> bool:
    """Return whether all floats are finite. A finite sum has finite terms; else check each, as sums may overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return all(
            np.isfinite(np.add.reduce(a, None)) or np.isfinite(a).all() for a in arrays.values() if a.dtype.kind == "f"
        )
