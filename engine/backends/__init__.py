"""Ways to execute a network: a backend opens an artefact, a runner runs it over named arrays."""

from .component import Opened, open_component
from .registry import COMPILED, NAMES, ON_GPU, Choice, choose, form_of, unavailable

__all__ = ["COMPILED", "NAMES", "ON_GPU", "Choice", "Opened", "choose", "form_of", "open_component", "unavailable"]
