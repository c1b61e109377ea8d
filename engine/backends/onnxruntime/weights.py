"""New values for the initializers of an ONNX file: what its weights are with patches added to them."""

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
    """Of every linear layer and convolution, by the layer's name in the model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stored = weights_of(path)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Layer -> its weight's shape."""
        return {name: stored.shape for name, stored in self._stored.items()}

    def check(self, patches: WeightDeltas) -> None:
        """`BackendError` where one of these weights cannot be changed, with what to do."""
        for parameter in patches.patches:
            stored = self._of(parameter)
            if stored.refused:
                raise BackendError(
                    f"{parameter} cannot be changed, for {stored.refused}: build the plan with the LoRA in it "
                    "(calotype build MODEL --lora FILE), or in fp32, fp16 or bf16."
                )

    def changed(self, patches: WeightDeltas) -> Iterator[tuple[Stored, NDArray[np.generic]]]:
        """Each changed weight, as the file would have it; one at a time. Every other is the file's own."""
        for parameter, patch in patches.patches.items():
            stored = self._of(parameter)
            yield stored, stored.put(patch(stored.read()))

    @contextmanager
    def given(self, ort: Any, options: Any, patches: WeightDeltas) -> Iterator[None]:
        """Inside, a session of ONNX Runtime made with these options has the changed weights, and copies them."""
        changed = list(self.changed(patches))
        values = [ort.OrtValue.ortvalue_from_numpy(value) for _, value in changed]  # of memory that is numpy's
        if changed:
            options.add_external_initializers([stored.initializer for stored, _ in changed], values)
        yield

    def _of(self, parameter: str) -> Stored:
        return self._stored[parameter.removesuffix(".weight")]
