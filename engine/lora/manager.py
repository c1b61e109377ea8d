"""The LoRAs in force: set, changed and removed while a model is loaded, between pictures.

Knows the order: read and fit all files, wait for the pictures under way, change network by network, try each one. How a
backend changes weights is behind `backends`; where a change fails, all networks are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..backends import LoadedComponent
from ..backends.base import Arrays, Runner
from ..errors import BackendError, SourceError
from ..plan.bindings import random_inputs
from ..plan.plan import Plan
from ..system.rwlock import ReadWriteLock
from ..weights.delta import NO_DELTAS, WeightDeltas
from .lora import Lora, LoraLike, Shapes, components_in, parse_loras, weight_deltas_of

_IDS = 64  # token ids below this are in every vocabulary
_SEEN = 1e-3  # what is added to a weight moves what comes out, in any precision, if it is as large as this


@dataclass(frozen=True, kw_only=True)
class _Own:
    """What a network gave when its weights were its own."""

    runner: Runner
    given: Arrays
    got: Arrays


class LoraManager:
    """What is added to a pipeline's networks. Threads may share it."""

    def __init__(self, plan: Plan, component: Callable[[str], LoadedComponent]) -> None:
        self._plan, self._component = plan, component
        self._gate = ReadWriteLock()
        self._loras: tuple[Lora, ...] = ()
        self._patches: Mapping[str, WeightDeltas] = {}
        self._own: dict[str, _Own] = {}
        self._broken: set[str] = set()  # networks that could neither be changed nor put back

    @property
    def loras(self) -> tuple[Lora, ...]:
        """Those in force, in the order in which they are added."""
        return self._loras

    @contextmanager
    def held(self) -> Iterator[tuple[Lora, ...]]:
        """For as long as a picture is painted: the LoRAs that are in force, and stay so.

        Raises `BackendError` where a change failed and could not be taken back.
        """
        with self._gate.read():
            if self._broken:
                told = " and the ".join(sorted(self._broken))
                raise BackendError(
                    f"a change of LoRAs failed and the {told} could not be put back; set_lora again, or load anew."
                )
            yield self._loras

    def set(self, given: LoraLike) -> None:
        """These LoRAs and no others. Raises `SourceError`, `BackendError`; all is then as it was, or `held` says no."""
        loras = parse_loras(given)
        patches = weight_deltas_of(loras, self._shapes(loras)) if loras else {}
        with self._gate.write():
            self._change(patches)
            self._loras, self._patches = loras, patches
            self._broken.clear()

    def _shapes(self, loras: Sequence[Lora]) -> dict[str, Shapes]:
        """Of the networks that the files have tensors for, and the U-Net, which tells families apart."""
        if not self._plan.tokenizers:
            raise SourceError(f"{self._plan.model} is no Stable Diffusion, and takes no LoRA.")
        wanted = {"unet"}.union(*map(components_in, loras))
        return {name: self._component(name).shapes() for name in (*self._plan.tokenizers, "unet") if name in wanted}

    def _change(self, patches: Mapping[str, WeightDeltas]) -> None:
        """Network by network; one that is to have what it has is left alone."""
        done = []
        try:
            for name in sorted({*patches, *self._patches, *self._broken}):
                wanted, there = patches.get(name, NO_DELTAS), self._patches.get(name, NO_DELTAS)
                if name in self._broken:
                    self._component(name).update_weights(NO_DELTAS)
                    self._update_weights(name, wanted, NO_DELTAS)
                elif wanted.key != there.key:
                    done.append(name)
                    self._update_weights(name, wanted, there)
        except BaseException:
            for name in done:
                self._put_back(name)
            raise

    def _put_back(self, name: str) -> None:
        """Never raises: what is told is why the change failed."""
        try:
            self._component(name).update_weights(self._patches.get(name, NO_DELTAS))
        except BaseException:
            self._broken.add(name)

    def _update_weights(self, name: str, wanted: WeightDeltas, there: WeightDeltas) -> None:
        """Change one network and try it: with LoRAs it computes something else, and without them what it did before.

        Raises `BackendError` where the backend says that it changed the weights, and it did not.
        """
        opened = self._component(name)
        if not there:
            given = self._try_on(name, opened)
            got = opened(**given)
            self._own[name] = _Own(runner=opened.runner, given=given, got=got)
        opened.update_weights(wanted)
        own = self._own[name]
        got = opened(**own.given)
        if opened.runner is not own.runner:  # another artifact has taken over: there is nothing to hold it against
            return
        told = opened.runner.backend
        same = all(np.array_equal(got[output], array) for output, array in own.got.items())
        if same and wanted and max(patch.largest() for patch in wanted.patches.values()) > _SEEN:
            raise BackendError(f"{told} took the LoRAs, and the {name} computes what it did without them.")
        if not same and not wanted:
            raise BackendError(f"{told} took the LoRAs away, and the {name} is not what it was; load it anew.")

    def _try_on(self, name: str, opened: LoadedComponent) -> Arrays:
        """Inputs of the shapes of the last whole call, for which backends have compiled; else small ones."""
        bindings, small = self._plan.components[name].inputs, self._small()
        return random_inputs(bindings, {b.name: b.shape(small) for b in bindings} | dict(opened.shapes_given), _IDS)

    def _small(self) -> dict[str, int]:
        """Twice the multiple: in less, a level of the U-Net may be a single place, which torch refuses."""
        profile = self._plan.profile
        height, width = (min(max(r.low, 2 * profile.multiple), r.high) for r in (profile.height, profile.width))
        return profile.sizes(batch=profile.batch.low, height=height, width=width)
