"""The models that a server offers by name, and their LoRAs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import InputError
from ..pipeline import Pipeline

Loader = Callable[[], Pipeline]


class ModelCatalog:
    """Models by name, each opened at its first use. Threads may share it."""

    def __init__(self, models: Mapping[str, Pipeline | Loader]) -> None:
        """Take loaded pipelines, or functions that load one."""
        if not models:
            raise InputError("a catalog needs at least one model.", argument="models")
        self._models = dict(models)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models; the first is the default."""
        return tuple(self._models)

    def check_name(self, name: str | None) -> str:
        """Return the name of a model; that of the default for None. Raises `InputError` for an unknown one."""
        if name is None:
            return self.names[0]
        if name not in self._models:
            expected = ", ".join(self.names)
            message = f"there is no model {name!r:.80}; expected one of {expected}."
            raise InputError(message, argument="model", got=name, expected=expected)
        return name

    def loaded(self, name: str) -> Pipeline | None:
        """Return a model if it is open."""
        model = self._models[name]
        return model if isinstance(model, Pipeline) else None

    def open(self, name: str) -> Pipeline:
        """Return a model, opened if it is not. Raises the errors of `calotype.load`."""
        model = self._models[name]
        if not isinstance(model, Pipeline):
            model = self._models[name] = model()
        return model
