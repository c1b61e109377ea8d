"""Changed weights as constants of a network that OpenVINO has read but not compiled yet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ...weights.onnx import Stored


def replace_constants(openvino: Any, model: Any, changed: Iterable[tuple[Stored, NDArray[np.generic]]]) -> None:
    """Replace the constants of these ONNX initializers by constants with the new values.

    Raises:
        BackendError: the network has no such constant, or a new constant does not hold the new value.
    """
    constants = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
    for stored, value in changed:
        old = constants.get(stored.initializer)
        readers = [] if old is None else list(old.output(0).get_target_inputs())
        if old is None or not readers or tuple(old.shape) != value.shape:
            raise BackendError(f"OpenVINO has no constant {stored.initializer} of shape {list(value.shape)}.")
        kind = old.get_element_type()
        tensor = openvino.Tensor(kind, openvino.Shape(value.shape))
        tensor.data.view(value.dtype)[...] = value  # bfloat16, which numpy lacks, is copied as bits
        new = openvino.op.Constant(tensor)
        new.set_friendly_name(stored.initializer)
        if np.asarray(new.data).tobytes() != value.tobytes():
            raise BackendError(f"OpenVINO did not store the new value of {stored.initializer}.")
        for reader in readers:
            reader.replace_source_output(new.output(0))
