"""The active LoRAs: set, changed and removed on a loaded model, between generations.

Knows the order: read and match all files, wait for running generations, update and test one network after the other.
Restores all networks if an update fails. `backends` know how to update weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from ..backends import LoadedComponent
from ..backends.base import Arrays, Runner
from ..errors import BackendError, SourceError
from ..plan.bindings import random_inputs
from ..plan.plan import Plan
from ..system.rwlock import ReadWriteLock
from ..weights.delta import NO_DELTAS, WeightDeltas
from .lora import Lora, LoraLike, Shapes, components_in, parse_loras, weight_deltas_of

_IDS = 64  # every vocabulary has the token ids below this
_VISIBLE = 1e-3  # an update of this magnitude changes the outputs in any precision


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """The outputs of a network with its original weights."""

    runner: Runner
    inputs: Arrays
    outputs: Arrays


def scaled(loras: Sequence[Lora], scale: float) -> tuple[Lora, ...]:
    """Return LoRAs with their weights multiplied."""
    return tuple(lora if scale == 1 else replace(lora, weight=lora.weight * scale) for lora in loras)


class LoraManager:
    """The weight updates of a pipeline's networks. Thread-safe."""

    def __init__(self, plan: Plan, component: Callable[[str], LoadedComponent]) -> None:
        self._plan, self._component = plan, component
        self._gate = ReadWriteLock()
        self._loras: tuple[Lora, ...] = ()
        self._scale = 1.0  # of the weights that the networks have now
        self._patches: Mapping[str, WeightDeltas] = {}
        self._references: dict[str, _Reference] = {}
        self._broken: set[str] = set()  # networks that could neither be updated nor restored

    @property
    def loras(self) -> tuple[Lora, ...]:
        """The active LoRAs, in the order in which they are added."""
        return self._loras

    @contextmanager
    def lock_weights(self, scale: float = 1.0) -> Iterator[tuple[Lora, ...]]:
        """Keep the weights unchanged during a generation, with all LoRAs scaled. Yields the active LoRAs.

        Raises:
            BackendError: an update failed, and its networks could not be restored.
            InputError: the scale differs from that of an open stream of this thread.
        """
        with self._scaled_to(scale):
            if self._broken:
                names = " and ".join(sorted(self._broken))
                raise BackendError(
                    f"cannot generate: a LoRA update failed and {names} could not be restored. Call set_lora again, or "
                    "load the model again.",
                    component=min(self._broken),
                )
            yield scaled(self._loras, scale)

    def set(self, loras: LoraLike) -> None:
        """Replace the active LoRAs.

        Raises:
            SourceError: a file cannot be read, or does not fit the model.
            BackendError: an update failed. The weights are restored, or `lock_weights` raises.
        """
        self._set(parse_loras(loras), 1.0)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Wait for running generations, and keep later ones away meanwhile. Drops the references to the networks.

        Raises:
            InputError: This thread has an open stream.
        """
        with self._gate.write():
            self._references.clear()
            yield

    def _set(self, loras: tuple[Lora, ...], scale: float) -> None:
        """Update the networks, and wait for running generations. Raises as `set`."""
        patches = weight_deltas_of(scaled(loras, scale), self._shapes(loras)) if loras else {}
        with self._gate.write():
            self._change(patches)
            self._loras, self._scale, self._patches = loras, scale, patches
            self._broken.clear()

    @contextmanager
    def _scaled_to(self, scale: float) -> Iterator[None]:
        """Hold the weights for reading while the LoRAs have a scale."""
        while True:
            with self._gate.read():
                loras = self._loras
                if not loras or self._scale == scale:
                    yield
                    return
            self._set(loras, scale)  # another thread may change them before this one reads: then once more

    def _shapes(self, loras: Sequence[Lora]) -> dict[str, Shapes]:
        """Return the shapes of the networks that the files target, and of the U-Net, which identifies the family."""
        if not self._plan.tokenizers:
            message = f"{self._plan.model} is not a Stable Diffusion model and does not support LoRAs."
            raise SourceError(message, path=self._plan.model)
        targets = {"unet"}.union(*map(components_in, loras))
        return {name: self._component(name).shapes() for name in (*self._plan.tokenizers, "unet") if name in targets}

    def _change(self, patches: Mapping[str, WeightDeltas]) -> None:
        """Update network by network. Skips networks whose updates do not change."""
        done = []
        try:
            for name in sorted({*patches, *self._patches, *self._broken}):
                new, current = patches.get(name, NO_DELTAS), self._patches.get(name, NO_DELTAS)
                if name in self._broken:
                    self._component(name).update_weights(NO_DELTAS)
                    self._update_weights(name, new, NO_DELTAS)
                elif new.key != current.key:
                    done.append(name)
                    self._update_weights(name, new, current)
        except BaseException:
            for name in done:
                self._restore(name)
            raise

    def _restore(self, name: str) -> None:
        """Restore the weights of a network. Never raises, so that the error of the update stays visible."""
        try:
            self._component(name).update_weights(self._patches.get(name, NO_DELTAS))
        except BaseException:
            self._broken.add(name)

    def _update_weights(self, name: str, new: WeightDeltas, current: WeightDeltas) -> None:
        """Update one network and test it: LoRAs must change its outputs, and no LoRAs must restore them.

        Raises `BackendError` if the backend did not update the weights, contrary to its report.
        """
        component = self._component(name)
        if not current:
            inputs = self._test_inputs(name, component)
            outputs = component(**inputs)
            self._references[name] = _Reference(runner=component.runner, inputs=inputs, outputs=outputs)
        component.update_weights(new)
        reference = self._references[name]
        got = component(**reference.inputs)
        if component.runner is not reference.runner:  # a fallback to another artifact: its outputs are not comparable
            return
        backend = component.runner.backend
        same = all(np.array_equal(got[output], array) for output, array in reference.outputs.items())
        if same and new and max(patch.largest() for patch in new.patches.values()) > _VISIBLE:
            message = f"{backend} did not apply the LoRAs: the outputs of {name} did not change."
            raise BackendError(message, backend=backend, component=name)
        if not same and not new:
            message = f"{backend} did not remove the LoRAs: the outputs of {name} differ. Load the model again."
            raise BackendError(message, backend=backend, component=name)

    def _test_inputs(self, name: str, component: LoadedComponent) -> Arrays:
        """Return inputs with the shapes of the last call, for which backends have compiled, or else small ones."""
        bindings, profile = self._plan.components[name].inputs, self._plan.profile
        # Twice the multiple: below, torch may reject a U-Net level of a single pixel.
        height, width = (min(max(r.min, 2 * profile.multiple), r.max) for r in (profile.height, profile.width))
        small = profile.sizes(batch=profile.batch.min, height=height, width=width)
        return random_inputs(bindings, {b.name: b.shape(small) for b in bindings} | dict(component.last_shapes), _IDS)
