"""The models of a configuration: its catalog, and the engine that runs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...loading import load
from ...pipeline import Pipeline
from ..catalog import ModelCatalog, loras_in
from ..engine import Engine
from .config import Model, ServeConfig


def engine_of(config: ServeConfig) -> Engine:
    """Return the engine of a configuration, whose models are not open yet."""
    return Engine(catalog_of(config, load, config.memory_bytes), config)


def catalog_of(config: ServeConfig, load: Callable[..., Pipeline], memory_bytes: int | None = None) -> ModelCatalog:
    """Return the models and LoRAs of a configuration. `load` opens a model, as `calotype.load` does."""
    loras = {} if config.lora_folder is None else loras_in(config.lora_folder.expanduser())
    loaders = {name: partial(load, **_arguments(model, config)) for name, model in config.models.items()}
    return ModelCatalog(loaders, loras, memory_bytes)


def _arguments(model: Model, config: ServeConfig) -> dict[str, Any]:
    backends = [name.strip() for name in config.backend.split(",") if name.strip()]
    shared: dict[str, Any] = {"backend": backends[0] if len(backends) == 1 else backends, "offline": config.offline}
    shared["precision"] = config.precision
    if config.controlnet:
        shared["controlnet"] = list(config.controlnet)
    return {**shared, **({"model": model} if isinstance(model, str) else model)}
