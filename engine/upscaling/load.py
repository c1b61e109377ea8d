"""`load_upscaler`: open a file of ESRGAN, Real-ESRGAN or its compact network on the first backend that can run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..backends import BackendSelection, choose, open_component
from ..errors import InputError
from ..errors.validation import with_known_names
from . import RESAMPLINGS
from .upscaler import Upscaler


@with_known_names({})
def load_upscaler(file: str | Path, *, backend: str | Sequence[str] = "auto") -> Upscaler:
    """Load a network that makes images larger: RRDBNet (ESRGAN, Real-ESRGAN) or the compact network of Real-ESRGAN.

    The first use of a file traces it to ONNX into the cache.

    Args:
        file: A `.safetensors` or `.pth` file. Width, depth and scale are read from its weights; a `.pth` is opened
            with torch's `weights_only=True`, which runs no code of the file.
        backend: As for `load`.

    Returns:
        The upscaler. Call it with an image.

    Raises:
        SourceError: The file is missing, damaged, or another network.
        BackendError: No requested backend can run.
        InputError: `file` is not a path.
    """
    if not isinstance(file, (str, Path)) or not str(file):
        message = f"file must be the path of an upscaler, got {file!r:.80}."
        raise InputError(message, argument="file", got=file)
    return open_upscaler(Path(file).expanduser(), choose(backend))


class UpscalerCache:
    """The upscalers of a pipeline, each opened at its first use on the pipeline's backends."""

    def __init__(self, choice: BackendSelection) -> None:
        self._choice = choice
        self._opened: dict[tuple[str, float], Upscaler] = {}

    def __call__(self, upscaler: Upscaler | str | Path) -> Upscaler | None:
        """Return the upscaler of a file; None for a resampling, which needs no network. Raises as `load_upscaler`."""
        if isinstance(upscaler, Upscaler) or upscaler in RESAMPLINGS:
            return upscaler if isinstance(upscaler, Upscaler) else None
        path = Path(upscaler).expanduser()
        key = str(path), path.stat().st_mtime if path.is_file() else 0.0
        if key not in self._opened:
            self._opened[key] = open_upscaler(path, self._choice)
        return self._opened[key]


def open_upscaler(path: Path, choice: BackendSelection) -> Upscaler:
    """Open an upscaler with the first backend of a choice. Raises `SourceError` and `BackendError`."""
    from calotype.export import prepare_upscaler  # traces the file, as `load` does with a model

    planned = prepare_upscaler(path, forms=choice.forms)
    return Upscaler(path, planned, open_component(planned.component, choice))
