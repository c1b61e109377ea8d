"""`calotype.load`: open a model, whatever it is given as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calotype.backends import choose
from calotype.pipeline import Pipeline
from calotype.plan import is_plan, read_plan


def load(model: str | Path = "demo", *, backend: str | Sequence[str] = "auto") -> Pipeline:
    """Open a model.

    Args:
        model: "demo" (the model that ships with Calotype), a plan's folder, a folder in diffusers' layout, or a hub id.
        backend: "auto", a name, or a list of names in order of preference. A backend asked for by name works or raises.

    Raises:
        SourceError: the model cannot be read; BackendError: no backend of those asked for can run.
    """
    choice = choose(backend)
    if is_plan(model):
        return Pipeline(read_plan(Path(model).expanduser()), choice)
    # The one arrow from the runtime to the exporter: a source that is no plan yet becomes one.
    from calotype.export import prepare

    return Pipeline(prepare(model, forms=choice.forms), choice)
