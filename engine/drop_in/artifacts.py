"""The opened artifacts of one module: one for each set of inputs, with the weights that the module has now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backends import BackendSelection, LoadedComponent, open_component
from ..backends.component import all_finite
from ..errors import BackendError, NotFiniteError
from ..plan.family import Component
from .kinds import Kind, config_of, profile_of
from .reading.calls import Call, Unsupported
from .reading.encoders import CONVOLUTIONS, convolution_of
from .structure import Structure
from .weights import State, deltas_between, digest_of_weights, save_weights


@dataclass
class _Opened:
    """An artifact: the checksums of the weights that it was traced with, and the state that its weights have."""

    loaded: LoadedComponent
    traced: Mapping[str, int]
    state: State | None


class Artifacts:
    """Opens the artifacts of a module, and changes their weights. The caller holds a lock."""

    def __init__(self, kind: Kind, choice: BackendSelection, precision: str) -> None:
        self._kind, self._choice, self._precision = kind, choice, precision
        self._opened: dict[Any, _Opened] = {}

    @property
    def loaded(self) -> tuple[LoadedComponent, ...]:
        """The opened artifacts."""
        return tuple(each.loaded for each in self._opened.values())

    def precision_of(self, call: Call) -> str:
        """Return the precision of the artifact that ran a call."""
        opened = self._opened.get((call.name, call.inputs))
        return "fp32" if opened is None else opened.loaded.runner.precision

    def ready(self, call: Call, owner: Any, structure: Structure, state: State) -> LoadedComponent:
        """Return the artifact for a call, with these weights. It is traced and opened if there is none yet.

        Raises:
            Unsupported: the weights cannot be those of an artifact.
            CalotypeError: it cannot be traced or opened, or its weights cannot be changed.
        """
        key = call.name, call.inputs
        opened = self._opened.get(key)
        if opened is not None and opened.state == state:
            return opened.loaded
        if opened is None or not self._updated(opened, structure, state):
            self._opened.pop(key, None)
            opened = self._open(call, owner, structure, state)
            if state.adapters and not self._updated(opened, structure, state):
                raise BackendError("the adapters cannot become weights of the artifact")
            self._opened[key] = opened
        opened.state = state
        return opened.loaded

    def clear(self) -> None:
        """Let go of all artifacts."""
        self._opened = {}

    def _updated(self, opened: _Opened, structure: Structure, state: State) -> bool:
        """Change the weights of an artifact, and return whether that was possible."""
        prefix = f"{self._kind.part}." if self._kind.part else ""
        opened.state = None  # if this fails midway, the weights are unknown
        try:
            deltas = deltas_between(structure, opened.traced, state, opened.loaded.shapes(), prefix)
            if deltas is None:
                return False
            opened.loaded.update_weights(deltas)
        except BackendError:
            if state.adapters:
                raise
            return False
        return True

    def _open(self, call: Call, owner: Any, structure: Structure, state: State) -> _Opened:
        if not all_finite(call.arrays):  # a precision is checked on them
            raise NotFiniteError(f"the {call.name} got inputs that are not finite.", component=call.name)
        # The exporter turns a module into an artifact, as it does for the sources of `load`.
        from calotype.export import ModuleSource, prepare_module

        config, tensors = config_of(owner, self._kind), self._tensors(owner, structure)
        without = convolution_of(owner, self._kind.part) if self._kind.part else None
        if without is not None and "diffusers" in self._choice.forms:  # a graph is divided after its trace
            if "use_quant_conv" not in config:
                raise Unsupported(f"{self._choice.names[0]} cannot compute a part of a {config['_class_name']}")
            config |= {"use_quant_conv": False, "use_post_quant_conv": False}
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(CONVOLUTIONS)}
            without = None
        component = Component(name=call.name, inputs=call.inputs, outputs=call.outputs, config=_plain(config))

        def write(folder: Path) -> None:
            (folder / "config.json").write_text(json.dumps(config, default=str))
            stem = "diffusion_pytorch_model" if "_class_name" in config else "model"
            save_weights(tensors, folder / f"{stem}.safetensors")

        source = ModuleSource(model=type(owner).__name__, digest=digest_of_weights(tensors), write=write)
        profile = profile_of(call.name, config)
        planned = prepare_module(
            component,
            source,
            profile,
            self._choice,
            precision=self._precision,
            inputs=call.arrays,
            without=without,
        )
        return _Opened(loaded=open_component(planned, self._choice), traced=dict(state.sums), state=None)

    def _tensors(self, owner: Any, structure: Structure) -> dict[str, Tensor]:
        """Return the weights that the class of the module has, without adapters."""
        part = self._kind.part
        if not part:
            return dict(structure.tensors())
        # An autoencoder is saved with both of its networks, because its class has both.
        own = {f"{part}.{name}": tensor for name, tensor in structure.tensors()}
        state, parts = owner.state_dict(), ("encoder.", "decoder.", *CONVOLUTIONS)
        return own | {name: t for name, t in state.items() if name.startswith(parts) and name not in own}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(config, default=str))
    return plain
