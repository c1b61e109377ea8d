"""The LoRAs in force: set, changed and removed while a model is loaded, between pictures.

Knows the order: read and fit all files, wait for the pictures under way, change network by network, try each. How a
backend changes weights is behind `backends`; where a change fails, all networks are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from calotype.backends import Arrays, Opened, Runner
from calotype.errors import BackendError, SourceError
from calotype.gate import Gate
from calotype.lora import Given, Lora, Shapes, components_in, loras_from, patches_of
from calotype.patches import NONE, Patches
from calotype.plan import Plan

_IDS = 64  # token ids below this are in every vocabulary
_SEEN = 1e-3  # what is added to a weight moves what comes out, in any precision, if it is as large as this


class Adapters:
    """What is added to a pipeline's networks. Threads may share it."""

    def __init__(self, plan: Plan, component: Callable[[str], Opened]) -> None:
        self._plan, self._component = plan, component
        self._gate = Gate()
        self._loras: tuple[Lora, ...] = ()
        self._patches: Mapping[str, Patches] = {}
        self._own: dict[str, tuple[Runner, Arrays]] = {}  # what a network gave when its weights were its own

    @property
    def loras(self) -> tuple[Lora, ...]:
        """Those in force, in the order in which they are added."""
        return self._loras

    @contextmanager
    def held(self) -> Iterator[tuple[Lora, ...]]:
        """For as long as a picture is painted: the LoRAs that are in force, and stay so."""
        with self._gate.picture():
            yield self._loras

    def set(self, given: Given) -> None:
        """These LoRAs and no others. Raises `SourceError`, `BackendError`; all is then as it was."""
        loras = loras_from(given)
        patches = patches_of(loras, self._shapes(loras)) if loras else {}
        with self._gate.change():
            self._change(patches)
            self._loras, self._patches = loras, patches

    def _shapes(self, loras: Sequence[Lora]) -> dict[str, Shapes]:
        """Of the networks that the files have tensors for, and the U-Net, which tells families apart."""
        if not self._plan.tokenizers:
            raise SourceError(f"{self._plan.model} is no Stable Diffusion, and takes no LoRA.")
        wanted = {"unet"}.union(*map(components_in, loras))
        return {name: self._component(name).shapes() for name in (*self._plan.tokenizers, "unet") if name in wanted}

    def _change(self, patches: Mapping[str, Patches]) -> None:
        """Network by network; one that is to have what it has is left alone."""
        done = []
        try:
            for name in sorted({*patches, *self._patches}):
                wanted, there = patches.get(name, NONE), self._patches.get(name, NONE)
                if wanted.key != there.key:
                    done.append(name)
                    self._adapt(name, wanted, there)
        except BaseException:
            for name in done:
                self._component(name).adapt(self._patches.get(name, NONE))
            raise

    def _adapt(self, name: str, wanted: Patches, there: Patches) -> None:
        """Change one network and try it on a small input: with LoRAs it computes something else, without what it did.

        Raises `BackendError` where the backend says that it changed the weights, and it did not.
        """
        opened, given = self._component(name), self._small_input(name)
        if not there:
            self._own[name] = opened.runner, opened(**given)
        opened.adapt(wanted)
        got = opened(**given)
        runner, own = self._own[name]
        if opened.runner is not runner:  # another artefact has taken over: there is nothing to hold it against
            return
        same = all(np.array_equal(got[output], array) for output, array in own.items())
        if same and wanted and max(patch.largest() for patch in wanted.patches.values()) > _SEEN:
            raise BackendError(f"{runner.backend} took the LoRAs, and the {name} computes what it did without them.")
        if not same and not wanted:
            raise BackendError(
                f"{runner.backend} took the LoRAs away, and the {name} is not what it was; load it anew."
            )

    def _small_input(self, name: str) -> Arrays:
        profile = self._plan.profile
        # Twice the multiple: in the least of all, a level of the U-Net may be a single place, which torch refuses.
        height, width = (min(max(r.low, 2 * profile.multiple), r.high) for r in (profile.height, profile.width))
        sizes = profile.sizes(batch=profile.batch.low, height=height, width=width)
        draw = np.random.default_rng(0)
        arrays: dict[str, Any] = {}
        for binding in self._plan.components[name].inputs:
            shape = binding.shape(sizes)
            whole = binding.dtype == "int64"
            arrays[binding.name] = draw.integers(0, _IDS, shape) if whole else draw.standard_normal(shape, np.float32)
        return arrays
