"""Models without weights: their sizes and tokenizers check a job's arguments where no worker is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ...backends import choose
from ...loading import load
from ...pipeline import Pipeline
from ...plan.plan import Plan, is_plan, read_plan
from ..catalog import ModelCatalog
from ..command.config import ServeConfig
from ..command.models import catalog_of


def front_of(config: ServeConfig) -> ModelCatalog:
    """Return the catalog of a configuration, whose models check arguments and generate nothing."""
    return catalog_of(config, _load)


def _load(model: Any, **arguments: Any) -> Pipeline:
    if is_plan(model):
        return Pipeline(_without_artifacts(read_plan(Path(model).expanduser())), choose("fake"))
    return load(model, **{**arguments, "backend": "fake", "precision": "auto"})


def _without_artifacts(plan: Plan) -> Plan:
    """Return a plan whose artifacts are of the fake backend, which opens no file."""
    components = {
        name: replace(component, artifacts=(replace(component.artifacts[0], form="diffusers"),))
        for name, component in plan.components.items()
    }
    return replace(plan, components=components)
