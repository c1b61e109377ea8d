"""Changes to the records of backends."""

import importlib
from dataclasses import replace

import pytest

from calotype.backends import registry


def change_backend(monkeypatch: pytest.MonkeyPatch, name: str, **fields) -> None:
    """Replace fields of a backend's record until the test ends."""
    module = importlib.import_module(f"calotype.backends.{registry._MODULES[name]}")
    monkeypatch.setattr(module, "BACKEND", replace(module.BACKEND, **fields))
