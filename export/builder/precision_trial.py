"""Compare a component in a lower precision with float32 on the inputs that it gets in a real run.

The model generates small images of held-out prompts in float32, on the same backend. Each component's calls are
recorded, and run again in the lower precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Protocol

import numpy as np

from calotype.backends import BackendSelection, open_component
from calotype.backends.precision import computed_in
from calotype.errors import NotFiniteError
from calotype.files.cache import only_reading
from calotype.pipeline import Pipeline
from calotype.plan.family import Family
from calotype.plan.networks import t2i_adapters_of
from calotype.plan.plan import Plan, PlannedComponent

from ..onnx.capture import Arrays, Call, ImageSet, Tape, Tapes, control_types, embedding_sizes, evenly, generate_images
from ..onnx.check import KEPT_CALLS, relative_l2
from ..quality.prompts import knows_captions_only, no_prompts, prompts_for
from ..sources.source import Source
from .preflight import recorded_frames, small_size

_IMAGES, _STEPS = 2, 4
_PIXELS = 128  # of each side: errors of rounding do not depend on it
_OPTIONAL = ("controlnet", "t2i_adapter", "ip_adapter", "image_encoder", "vae_encoder")


class Model(Protocol):
    """A model that is loaded: its description, and each component in float32."""

    @property
    def plan(self) -> Plan:
        """The plan, whose components have at least a reference."""
        ...

    @property
    def source(self) -> Source:
        """The model's files."""
        ...

    @property
    def family(self) -> Family:
        """The model's components."""
        ...

    def float32(self, name: str) -> PlannedComponent:
        """Return a component with its float32 artifacts, traced if necessary."""
        ...


def errors_of(
    model: Model, name: str, precision: str, choice: BackendSelection, reference: BackendSelection
) -> dict[str, float]:
    """Return the largest relative L2 difference from float32 of a component, and of all that are recorded with it.

    Args:
        name: the component.
        precision: the lower precision.
        choice: the backend that computes in it.
        reference: the backend that computes in float32.

    Raises:
        CalotypeError: the model cannot run in float32, or the component cannot run in the precision.
    """
    names = [name] if name.startswith(_OPTIONAL) and not _used(model, name) else _required(model)
    for each in names:
        model.float32(each)
    with only_reading():
        recorded = _record(model, names, reference)
        errors = {n: error_of(model.float32(n), precision, choice, recorded[n]) for n in names if recorded[n]}
    return errors


def _used(model: Model, name: str) -> bool:
    """Return whether every call uses an optional component."""
    takes = model.family.image_input
    return (name == "vae_encoder" and takes is not None and takes.encodes) or (
        name == "image_encoder" and model.plan.sees
    )


def _required(model: Model) -> list[str]:
    return [n for n in model.family.components if not n.startswith(_OPTIONAL) or _used(model, n)]


def _record(model: Model, names: Iterable[str], reference: BackendSelection) -> dict[str, list[Call]]:
    """Generate images, and return the calls of each of these components."""
    requested = set(names)

    def opens(component: PlannedComponent) -> Callable[[Arrays], Arrays]:
        full = [a for a in model.float32(component.name).artifacts if a.precision == "fp32"]
        loaded = open_component(component.with_artifacts(*full), reference)
        return lambda inputs: loaded(**inputs)

    tapes = {n: Tape(c, (), records=True, opens=opens) for n, c in model.plan.components.items()}
    images = _images(model, requested)
    with closing(Pipeline(model.plan, Tapes(model.plan, tapes), opens=False)) as pipe:
        for i in range(_IMAGES):
            generate_images(pipe, images.arguments(i))
    if "vae_encoder" in requested and not tapes["vae_encoder"].calls:
        for call in list(tapes["vae_decoder"].calls):
            tapes["vae_encoder"](sample=call.outputs["sample"].clip(-1, 1))
    return {each: evenly(tapes[each].calls, KEPT_CALLS) for each in requested}


def _images(model: Model, requested: Iterable[str]) -> ImageSet:
    family, takes = model.family, model.family.image_input
    if family.prompting.states:
        captions = knows_captions_only(model.source.folder / "tokenizer")
        prompts = prompts_for(demo=captions, file=None, calibration=0, held_out=_IMAGES).held_out
    else:
        prompts = no_prompts(model.source.model, file=None, calibration=0, held_out=_IMAGES).held_out
    height, width = small_size(family.profile, _PIXELS)
    requested = list(requested)
    steers = {kind: any(name.startswith(kind) for name in requested) for kind in ("controlnet", "t2i_adapter")}
    adapted = any(name.startswith(("ip_adapter", "image_encoder")) for name in requested)
    return ImageSet(
        prompts=prompts,
        steps=_STEPS,
        height=height,
        width=width,
        controls=control_types(family) if steers["controlnet"] else (),
        adapters=len(t2i_adapters_of(family.components)) if steers["t2i_adapter"] else 0,
        prompted=embedding_sizes(family) if adapted else (),
        takes=takes.kind if takes else None,
        enlarges=takes.enlarges if takes else 1,
        frames=recorded_frames(family.profile),
    )


def error_of(component: PlannedComponent, precision: str, choice: BackendSelection, calls: Iterable[Call]) -> float:
    """Return the largest relative L2 difference of a component from float32; infinite if an output is not finite."""
    halves = [computed_in(a, precision) for a in component.artifacts if a.precision == "fp32"]
    opened = open_component(component.with_artifacts(*halves), choice)
    worst = 0.0
    for call in calls:
        try:
            got = opened(**call.inputs)
        except NotFiniteError:
            return float("inf")
        worst = max(worst, *(relative_l2(got[name], expected) for name, expected in call.outputs.items()))
    return worst if np.isfinite(worst) else float("inf")
