"""The models that a server offers by name, and their LoRAs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from ..pipeline import Pipeline

Loader = Callable[[], Pipeline]
_SUFFIX = ".safetensors"


class ModelCatalog:
    """Models by name, each opened at its first use, and LoRAs by name. Threads may share it."""

    def __init__(self, models: Mapping[str, Pipeline | Loader], loras: Mapping[str, Path] | None = None) -> None:
        """Take loaded pipelines, or functions that load one, and the files of LoRAs.

        Args:
            models: Models by name; the first is the default.
            loras: LoRA files by the names that jobs use.
        """
        if not models:
            raise InputError("a catalog needs at least one model.", argument="models")
        self._models, self._loras = dict(models), dict(loras or {})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models; the first is the default."""
        return tuple(self._models)

    @property
    def loras(self) -> tuple[str, ...]:
        """The names of the LoRAs."""
        return tuple(self._loras)

    def check_name(self, name: str | None) -> str:
        """Return the name of a model; that of the default for None. Raises `InputError` for an unknown one."""
        if name is None:
            return self.names[0]
        if name not in self._models:
            expected = ", ".join(self.names)
            message = f"there is no model {name!r:.80}; expected one of {expected}."
            raise InputError(message, argument="model", got=name, expected=expected)
        return name

    def lora_files(self, loras: Sequence[tuple[str, float]]) -> tuple[tuple[Path, float], ...]:
        """Return the files of LoRAs with their weights. Raises `InputError` for an unknown name."""
        for name, _ in loras:
            if name not in self._loras:
                expected = ", ".join(self._loras) or "none: the server has no LoRAs"
                message = f"there is no LoRA {name!r:.80}; expected one of {expected:.500}."
                raise InputError(message, argument="loras", got=name, expected=expected)
        return tuple((self._loras[name], weight) for name, weight in loras)

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


def loras_in(folder: Path) -> dict[str, Path]:
    """Return the LoRA files of a folder and its subfolders by their names, which are those of the files.

    Raises:
        InputError: There is no such folder, or two files have one name.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}.", argument="lora_folder", got=str(folder))
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{_SUFFIX}")):
        if files.setdefault(path.stem, path) != path:
            message = f"{folder} has several LoRAs named {path.stem!r}. Rename one of them."
            raise InputError(message, argument="lora_folder", got=path.stem)
    return files
