"""The models that a server offers by name, and their LoRAs. It opens models when a job needs them.

Models that no job uses are closed, the least recently used first, while the open ones exceed the memory budget.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CalotypeError, InputError, first_line
from ..lora.prompt_tags import without_tags
from ..pipeline import Pipeline

Loader = Callable[[], Pipeline]
Loras = tuple[tuple[Path, float], ...]
Opened = Callable[[str, Pipeline | CalotypeError], None]
_SUFFIX = ".safetensors"


class ModelCatalog:
    """Models by name, each opened at its first use, and LoRAs by name. Threads may share it."""

    def __init__(
        self,
        models: Mapping[str, Pipeline | Loader],
        loras: Mapping[str, Path] | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Take loaded pipelines, or functions that load one, and the files of LoRAs.

        Args:
            models: Models by name; the first is the default. A pipeline belongs to the catalog from now on.
            loras: LoRA files by the names that jobs use; by default those in the `lora_folder` of the pipelines.
            memory_bytes: The memory that open models may take, as `Pipeline.memory` counts it; None is no limit. Only
                models that were passed as functions are closed.
        """
        if not models:
            raise InputError("a catalog needs at least one model.", argument="models")
        self._models, self._memory_bytes = dict(models), memory_bytes
        self._open = {name: model for name, model in models.items() if isinstance(model, Pipeline)}
        tags = [pipe._generator.prompt_tags for pipe in self._open.values()]
        folders = [each.folder for each in tags if each is not None]
        named = {name: file for folder in folders for name, file in loras_in(folder).items()}
        self._loras = named if loras is None else dict(loras)
        for name, pipe in self._open.items():
            _check_makes_images(name, pipe)
        self._own = {name: _own_loras(pipe) for name, pipe in self._open.items()}
        self._guard, self._opening = threading.Lock(), {name: threading.Lock() for name in models}
        self._used_at = dict.fromkeys(models, 0.0)
        self._holds: Counter[str] = Counter()
        self._loading: set[str] = set()

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

    def lora_files(self, loras: Sequence[tuple[str, float]]) -> Loras:
        """Return the files of LoRAs with their weights. Raises `InputError` for an unknown name."""
        for name, _ in loras:
            if name not in self._loras:
                expected = ", ".join(self._loras) or "none: the server has no LoRAs"
                message = f"there is no LoRA {name!r:.80}; expected one of {expected:.500}."
                raise InputError(message, argument="loras", got=name, expected=expected)
        return tuple((self._loras[name], weight) for name, weight in loras)

    def without_tags(self, prompt: Any) -> tuple[Any, Loras]:
        """Return a prompt without tags such as `<lora:NAME:0.8>`, and the files that they name.

        Raises:
            InputError: A name or a weight is unknown, or the prompts of one call name different LoRAs.
        """
        if not self._loras:
            return prompt, ()
        bare, named = without_tags(prompt)
        return bare, self.lora_files(named)

    def own_loras(self, name: str) -> Loras:
        """Return the LoRAs that an open model was loaded with."""
        return self._own.get(name, ())

    def loaded(self, name: str) -> Pipeline | None:
        """Return a model if it is open."""
        return self._open.get(name)

    def open(self, name: str) -> Pipeline:
        """Return a model, opened if it is not. Raises the errors of `calotype.load`."""
        with self._opening[name]:
            pipe, loader = self._open.get(name), self._models[name]
            if pipe is None:
                assert not isinstance(loader, Pipeline)
                pipe = loader()
                _check_makes_images(name, pipe)
                self._own[name] = _own_loras(pipe)
                self._open[name] = pipe
            self._used_at[name] = time.monotonic()
        self._close_unused(name)
        return pipe

    def open_later(self, name: str, opened: Opened) -> None:
        """Open a model in a thread of its own, and call `opened` with it, or with the error. Does it once at a time."""
        with self._guard:
            if name in self._loading:
                return
            self._loading.add(name)

        def load() -> None:
            result: Pipeline | CalotypeError
            try:
                result = self.open(name)
            except CalotypeError as failed:
                result = failed
            except Exception as failed:
                result = CalotypeError(f"internal error: {first_line(failed)}")
            with self._guard:
                self._loading.discard(name)
            opened(name, result)

        threading.Thread(target=load, name=f"calotype-load-{name}", daemon=True).start()

    def hold(self, name: str) -> None:
        """Keep a model open for a job."""
        with self._guard:
            self._holds[name] += 1

    def release(self, name: str) -> None:
        """End what `hold` began."""
        with self._guard:
            self._holds[name] -= 1
            self._used_at[name] = time.monotonic()

    def width(self, name: str) -> int:
        """Return how many images an open model runs together faster than one after another."""
        return self._open[name].component("unet").runner.width

    def on_gpu(self, name: str) -> bool:
        """Return whether an open model runs on a GPU."""
        return self._open[name]._components.on_gpu

    def _close_unused(self, newest: str) -> None:
        """Close models that no job uses, until the open ones fit the budget."""
        if self._memory_bytes is None:
            return
        with self._guard:
            sizes = {name: _estimated_bytes(pipe) for name, pipe in self._open.items()}
            for name in sorted(sizes, key=self._used_at.__getitem__):
                if sum(sizes.values()) <= self._memory_bytes:
                    break
                if name != newest and not self._holds[name] and not isinstance(self._models[name], Pipeline):
                    self._open.pop(name).close()
                    del sizes[name]


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


def _check_makes_images(name: str, pipe: Pipeline) -> None:
    """Raise `InputError` for a model of videos: a server's jobs, files and APIs are those of images."""
    if pipe.plan.makes_clips:
        message = f"{name} makes videos, and a server makes images. Use calotype.load, or calotype generate."
        raise InputError(message, argument="model", got=name)


def _own_loras(pipe: Pipeline) -> Loras:
    """Return the LoRAs of a pipeline. From now on, those that prompts name are set by the engine."""
    pipe._generator.prompt_tags = None
    return tuple((lora.path, lora.weight) for lora in pipe._generator.loras.loras)


def _estimated_bytes(pipe: Pipeline) -> int:
    return sum(size for name, size in pipe.memory().items() if name != "process")
