"""New values for the initializers of an ONNX file: its weights with deltas added."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ...weights.delta import WeightDeltas
from ...weights.onnx import Stored, weights_of


class OnnxWeights:
    """The weights of every linear layer and convolution, by the layer's name in the model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stored = weights_of(path)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each layer's weight shape."""
        return {name: stored.shape for name, stored in self._stored.items()}

    def check(self, deltas: WeightDeltas) -> None:
        """Raise `BackendError` if one of these weights cannot be changed."""
        for parameter in deltas.patches:
            stored = self._of(parameter)
            if stored.refused:
                raise BackendError(
                    f"{parameter} cannot be changed, for {stored.refused}: build the plan with the LoRA in it "
                    "(calotype build MODEL --lora FILE), or in fp32, fp16 or bf16."
                )

    def changed(self, deltas: WeightDeltas) -> Iterator[tuple[Stored, NDArray[np.generic]]]:
        """Yield each changed weight in the file's type and layout."""
        for parameter, delta in deltas.patches.items():
            stored = self._of(parameter)
            yield stored, stored.put(delta(stored.read()))

    @contextmanager
    def override_initializers(self, ort: Any, options: Any, deltas: WeightDeltas) -> Iterator[None]:
        """Make an ONNX Runtime session that opens with these options inside the block copy the changed weights."""
        changed = list(self.changed(deltas))
        values = [ort.OrtValue.ortvalue_from_numpy(value) for _, value in changed]  # share numpy's memory
        if changed:
            options.add_external_initializers([stored.initializer for stored, _ in changed], values)
        yield

    def _of(self, parameter: str) -> Stored:
        return self._stored[parameter.removesuffix(".weight")]
