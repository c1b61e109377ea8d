"""A source becomes a plan: its components described, and the artifacts asked for found in the store or made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from calotype.backends import COMPILED
from calotype.errors import BuildError, CheckError
from calotype.errors.printable import printable
from calotype.plan.family import Component, Family, family_of
from calotype.plan.plan import Artifact, Plan, PlannedComponent
from calotype.plan.profile import Profile

from ..onnx.trace_step import trace_key, traced
from ..sources.source import Source, read_source
from ..sources.textual_inversion import add_embeddings
from ..store.store import has
from ..tensorrt.engines import engines_for, modest


def prepare(
    model: str | Path,
    *,
    controlnets: Sequence[str | Path] = (),
    vae: str | Path | None = None,
    words: Sequence[str | Path] = (),
    offline: bool = False,
    forms: Collection[str] = ("onnx",),
) -> Plan:
    """The plan of a model with its ControlNets, autoencoder and learned words, in the forms asked for and eager.

    The first use of a model traces it into the store (tens of seconds for the demonstration model); the next finds it
    there. Raises `SourceError`.
    """
    source, family = _described(model, controlnets=controlnets, vae=vae, words=words, offline=offline, forms=forms)
    components = {c.name: _planned(c, source, family.profile, forms) for c in family.components.values()}
    return plan_of(source, family, components)


def prepare_lazily(
    model: str | Path, *, forms: Collection[str] = ("onnx",), **parts: Any
) -> tuple[Plan, Callable[[str], PlannedComponent]]:
    """The plan as `prepare` makes it, without the traces that text-to-image does not need; and what makes those.

    The plan has such a component with its eager reference alone, unless its trace is in the store. The second result
    gives any component by name with all its artifacts, traced at the call. It raises `SourceError` where the model's
    files are gone or were changed meanwhile. Engines (`COMPILED`) are all built at once.
    """
    source, family = _described(model, forms=forms, **parts)
    later = _later(family, source) if set(forms) == {"onnx"} else frozenset()

    def component(name: str) -> PlannedComponent:
        if name not in later:
            return plan.components[name]
        described = family.components[name]
        if not has(trace_key(described, source)):
            source.check_unchanged(name)
        return _planned(described, source, family.profile, forms)

    components = {
        name: reference(c, source) if name in later else _planned(c, source, family.profile, forms)
        for name, c in family.components.items()
    }
    plan = plan_of(source, family, components)
    return plan, component


def _later(family: Family, source: Source) -> frozenset[str]:
    """The components that are traced at their first use."""
    first = {*source.tokenizers, "unet", "vae_decoder", *(["vae_encoder"] if family.inpaints else [])}
    return frozenset(n for n, c in family.components.items() if n not in first and not has(trace_key(c, source)))


def _described(
    model: str | Path,
    *,
    controlnets: Sequence[str | Path] = (),
    vae: str | Path | None = None,
    words: Sequence[str | Path] = (),
    offline: bool = False,
    forms: Collection[str],
) -> tuple[Source, Family]:
    source = add_embeddings(read_source(model, controlnets, vae, offline=offline), words)
    family = family_of(source.configs)
    if set(forms) & set(COMPILED):
        family = replace(family, profile=modest(family.profile))
    return source, family


def plan_of(source: Source, family: Family, components: dict[str, PlannedComponent]) -> Plan:
    """The source's plan with these components."""
    return Plan(
        model=source.model,
        family=family.name,
        fingerprint=source.fingerprint,
        profile=family.profile,
        components=components,
        # Where pixels are denoised, what their scheduler does not say is clipped, as its class has it.
        scheduler={**({} if family.prompting.states else {"clip_sample": True}), **source.configs["scheduler"]},
        tokenizers=source.tokenizers,
        prompting=family.prompting,
        scaling_factor=family.scaling_factor,
        latents_mean=family.latents_mean,
        latents_std=family.latents_std,
        loads=family.loads,
    )


def reference(component: Component, source: Source) -> PlannedComponent:
    """The component with its eager reference alone: the source's own weights."""
    weights = source.weights_folder(component.name)
    return PlannedComponent(
        name=component.name,
        inputs=component.inputs,
        outputs=component.outputs,
        artifacts=(Artifact(form="diffusers", path=weights, precision="fp32", check={}),),
        refused={},
    )


def _planned(component: Component, source: Source, profile: Profile, forms: Collection[str]) -> PlannedComponent:
    eager = reference(component, source)
    engines = next((engines_for(form, profile) for form in forms if form in COMPILED), None)
    if "onnx" not in forms and engines is None:
        return eager
    if not has(trace_key(component, source)):
        print(printable(f"calotype: tracing the {component.name} of {source.model} (once)"), file=sys.stderr)
    try:
        graph = traced(component, source, profile)
        if engines is None:
            return eager.with_artifacts(graph, *eager.artifacts)
        print(f"calotype: building the engine of the {component.name} for {engines.backend}", file=sys.stderr)
        return eager.with_artifacts(engines.of(eager, graph), *eager.artifacts)
    except CheckError as failed:
        return eager.with_refusal("onnx", str(failed))
    except BuildError as failed:
        return eager.with_refusal(engines.backend if engines is not None else "onnx", str(failed))
