"""Turn a source into a plan: describe its components, and take their artifacts from the store or make them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calotype.backends import COMPILED, BackendSelection
from calotype.errors import BuildError, CheckError
from calotype.plan.family import Component, Family, family_of
from calotype.plan.plan import Artifact, Plan, PlannedComponent
from calotype.plan.profile import Profile
from calotype.weights.precisions import Precisions

from ..onnx.trace_step import trace_guess_s, trace_step, traced
from ..sources.ip_adapter.read import add_ip_adapters
from ..sources.lora import fuse
from ..sources.motion_adapter.read import add_motion_adapter
from ..sources.source import Source, read_source
from ..sources.t2i_adapter.read import add_t2i_adapters
from ..sources.textual_inversion import add_embeddings
from ..steps.progress import OpeningProgress, Stage
from ..tensorrt.engines import default_profile, engines_for
from .precision_choice import PrecisionChoice


def prepare(
    model: str | Path,
    *,
    controlnets: Sequence[str | Path] = (),
    vae: str | Path | None = None,
    unet: str | Path | None = None,
    ip_adapters: Sequence[str | Path] = (),
    image_encoder: str | Path | None = None,
    t2i_adapters: Sequence[str | Path] = (),
    motion_adapter: str | Path | None = None,
    style_aligned: bool = False,
    pag: bool = False,
    words: Sequence[str | Path] = (),
    offline: bool = False,
    forms: Collection[str] = ("onnx",),
) -> Plan:
    """Return the plan of a model with its ControlNets, autoencoder and learned embeddings.

    Each component has its artifacts in the requested forms, and its eager reference. The first use of a model traces
    it into the store (tens of seconds for the demonstration model); later uses read it from there.

    Args:
        model: a folder in diffusers' layout, a checkpoint file, a hub id, or "demo".
        ip_adapters: files of IP-Adapters, with the folder of their `image_encoder`.
        t2i_adapters: the T2I-Adapters, as folders, files or hub ids.
        motion_adapter: motion modules, as a folder, a file or a hub id.
        style_aligned: give the U-Net the input for images of one style.
        pag: give it the inputs for perturbed attention guidance.
        words: textual-inversion files.
        forms: "onnx", "diffusers", or backends that compile engines.

    Raises:
        SourceError: the model cannot be read.
    """
    parts: dict[str, Any] = {"controlnets": controlnets, "ip_adapters": ip_adapters, "image_encoder": image_encoder}
    parts |= {"t2i_adapters": t2i_adapters, "motion_adapter": motion_adapter}
    parts |= {"style_aligned": style_aligned, "pag": pag}
    source, family = _described(model, vae=vae, unet=unet, words=words, offline=offline, forms=forms, **parts)
    components = {c.name: planned(c, source, family.profile, forms) for c in family.components.values()}
    return plan_of(source, family, components)


@dataclass(frozen=True, kw_only=True)
class LazyPlan:
    """A plan without the traces that the store lacks; `component` makes them."""

    plan: Plan
    components: dict[str, PlannedComponent]  # those of the plan
    source: Source
    family: Family
    forms: Collection[str]
    traced: dict[str, PlannedComponent]  # with float32 artifacts; the others are traced at their first use
    choice: BackendSelection | None = None
    precisions: Precisions = field(default_factory=Precisions)
    progress: OpeningProgress = field(default_factory=OpeningProgress)

    def opening(self, names: Sequence[str]) -> AbstractContextManager[None]:
        """Show a bar on a terminal while these components are opened, if that takes long."""
        missing = [name for name in names if name not in self.traced]
        guesses = {f"trace {name}": trace_guess_s(self.source.weights_count(name)) for name in missing}
        if self._precision is not None and (unchecked := self._precision.unchecked(names)):
            guesses["check precision"] = 10 + sum(4e-8 * self.source.weights_count(name) for name in unchecked)
        return self.progress.over([Stage(name=name, guess_s=guess) for name, guess in guesses.items()])

    def component(self, name: str) -> PlannedComponent:
        """Return a component with all its artifacts, traced at the call, in the precision that is chosen for it.

        Raises:
            SourceError: the model's files are missing or have changed.
            BuildError: it has no artifact in a requested precision.
        """
        component = self.float32(name) if self._precision is None else self._precision.of(name)
        self.components[name] = component  # the plan then says what runs
        return component

    def float32(self, name: str) -> PlannedComponent:
        """Return a component with its float32 artifacts, traced at the call. Raises as `component`."""
        if name in self.traced:
            return self.traced[name]
        described = self.family.components[name]
        if not trace_step(described, self.source).is_stored:
            self.source.check_unchanged(name)
        component = planned(described, self.source, self.family.profile, self.forms, self.progress)
        self.traced[name] = component
        return component

    @property
    def described(self) -> Mapping[str, Component]:
        """The components by name."""
        return self.family.components

    def errors(
        self, name: str, precision: str, choice: BackendSelection, reference: BackendSelection
    ) -> Mapping[str, float]:
        """Compare components with float32 on the inputs of small images, as `precision_trial.errors_of`."""
        from .precision_trial import errors_of  # with the exporter's libraries, which a model without a check lacks

        return errors_of(self, name, precision, choice, reference)

    @functools.cached_property
    def _precision(self) -> PrecisionChoice | None:
        """What chooses the precisions; None without backends."""
        return None if self.choice is None else PrecisionChoice(self.precisions, self.choice, self)


def prepare_lazily(
    model: str | Path,
    *,
    forms: Collection[str] = ("onnx",),
    choice: BackendSelection | None = None,
    precisions: Precisions | None = None,
    **parts: Any,
) -> LazyPlan:
    """Return the plan of `prepare` without traces: each is made when its component is opened.

    A trace that is in the store is in the plan. Engines (`COMPILED`) are all built immediately.

    Args:
        model: as for `prepare`, as `forms` and the other arguments.
        choice: the backends that compute the components in other precisions than float32; None for none.
        precisions: what they compute in.

    Raises:
        InputError: `precisions` names a component that the model lacks.
        BuildError: a component has no int8 in the cache. Else as `prepare`.
    """
    source, family = _described(model, forms=forms, **parts)
    precisions = precisions or Precisions()
    precisions.check_components(family.components)
    later: set[str] = set()
    if set(forms) == {"onnx"}:
        later = {name for name, each in family.components.items() if not trace_step(each, source).is_stored}
    components = {
        name: reference(c, source) if name in later else planned(c, source, family.profile, forms)
        for name, c in family.components.items()
    }
    plan = plan_of(source, family, components)
    lazy = LazyPlan(
        plan=plan,
        components=components,
        source=source,
        family=family,
        forms=forms,
        traced={name: component for name, component in components.items() if name not in later},
        choice=choice,
        precisions=precisions,
    )
    if lazy._precision is not None:
        lazy._precision.check_built()
    return lazy


def _described(
    model: str | Path,
    *,
    controlnets: Sequence[str | Path] = (),
    vae: str | Path | None = None,
    unet: str | Path | None = None,
    ip_adapters: Sequence[str | Path] = (),
    image_encoder: str | Path | None = None,
    t2i_adapters: Sequence[str | Path] = (),
    motion_adapter: str | Path | None = None,
    style_aligned: bool = False,
    pag: bool = False,
    words: Sequence[str | Path] = (),
    offline: bool = False,
    forms: Collection[str],
) -> tuple[Source, Family]:
    source = source_with(
        model,
        controlnets=controlnets,
        vae=vae,
        unet=unet,
        ip_adapters=ip_adapters,
        image_encoder=image_encoder,
        t2i_adapters=t2i_adapters,
        motion_adapter=motion_adapter,
        style_aligned=style_aligned,
        pag=pag,
        words=words,
        offline=offline,
    )
    family = family_of(source.configs)
    if set(forms) & set(COMPILED):
        family = replace(family, profile=default_profile(family.profile))
    return source, family


def source_with(
    model: str | Path,
    *,
    controlnets: Sequence[str | Path],
    vae: str | Path | None,
    unet: str | Path | None,
    ip_adapters: Sequence[str | Path],
    image_encoder: str | Path | None,
    t2i_adapters: Sequence[str | Path],
    motion_adapter: str | Path | None,
    style_aligned: bool = False,
    pag: bool = False,
    loras: Sequence[str | Path] = (),
    words: Sequence[str | Path],
    offline: bool,
) -> Source:
    """Return the source of a model with all its parts, and with LoRAs in its weights. Raises `SourceError`."""
    source = read_source(model, controlnets, vae, unet=unet, offline=offline)
    source = add_ip_adapters(source, ip_adapters, image_encoder, offline=offline)
    source = add_t2i_adapters(source, t2i_adapters, offline=offline)
    source = add_motion_adapter(source, motion_adapter, offline=offline)
    source = source.with_self_attention(style_aligned=style_aligned, pag=pag)
    return add_embeddings(fuse(source, loras) if loras else source, words)


def plan_of(source: Source, family: Family, components: dict[str, PlannedComponent]) -> Plan:
    """Return the source's plan with these components."""
    return Plan(
        model=source.model,
        family=family.name,
        fingerprint=source.fingerprint,
        profile=family.profile,
        components=components,
        scheduler=_scheduler_of(source, family),
        tokenizers=source.tokenizers,
        prompting=family.prompting,
        scaling_factor=family.scaling_factor,
        latents_mean=family.latents_mean,
        latents_std=family.latents_std,
        loads=family.loads,
        image_input=family.image_input,
        image_prompts=family.image_prompts,
        depth_estimator=source.depth_estimator,
    )


def _scheduler_of(source: Source, family: Family) -> dict[str, Any]:
    """Return the scheduler's config, as the U-Net needs it."""
    config = dict(source.configs["scheduler"])
    if family.takes("latents"):  # its output times -1 is a velocity (`calotype.stages.conditions`)
        config["prediction_type"] = "v_prediction"
    # A model that denoises pixels clips samples unless its scheduler says otherwise: the class's own default.
    return config if family.prompting.states or family.sees else {"clip_sample": True, **config}


def reference(component: Component, source: Source) -> PlannedComponent:
    """Return the component with only its eager reference: the source's own weights."""
    name, inputs, outputs = component.name, component.inputs, component.outputs
    weights = Artifact(form="diffusers", path=source.weights_folder(name), precision="fp32", check={})
    return PlannedComponent(name=name, inputs=inputs, outputs=outputs, artifacts=(weights,), refused={})


def planned(
    component: Component,
    source: Source,
    profile: Profile,
    forms: Collection[str],
    progress: OpeningProgress | None = None,
) -> PlannedComponent:
    """Return a component with its reference and its artifact in the first of the forms that is built."""
    eager = reference(component, source)
    engines = next((engines_for(form, profile) for form in forms if form in COMPILED), None)
    if "onnx" not in forms and engines is None:
        return eager
    shown: AbstractContextManager[None] = nullcontext()
    if not trace_step(component, source).is_stored:
        line = f"calotype: tracing the {component.name} of {source.model} (once)"
        shown = (progress or OpeningProgress()).stage(f"trace {component.name}", line)
    try:
        with shown:
            graph = traced(component, source, profile)
        if engines is None:
            return eager.with_artifacts(graph, *eager.artifacts)
        print(f"calotype: building the engine of the {component.name} for {engines.backend}", file=sys.stderr)
        return eager.with_artifacts(engines.of(eager, graph), *eager.artifacts)
    except CheckError as failed:
        return eager.with_refusal("onnx", str(failed))
    except BuildError as failed:
        return eager.with_refusal(engines.backend if engines is not None else "onnx", str(failed))
