"""ONNX Runtime's TensorRT provider: the peer of `optimum`, in an environment with TensorRT 10. Supports fp16."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def _optimum() -> Any:
    path = Path(__file__).parent.parent / "optimum" / "peer.py"
    spec = importlib.util.spec_from_file_location("optimum_peer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Peer(_optimum().Peer):  # type: ignore[misc]
    """One pipeline of Optimum, on TensorRT by default."""

    PROVIDER = "TensorrtExecutionProvider"
