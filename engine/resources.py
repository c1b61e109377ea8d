"""What a loaded model holds, and how it gives it back."""

from __future__ import annotations

import gc
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .backends.components import Components
from .generator import ImageGenerator
from .system.memory import proc_bytes, trim_heap

if TYPE_CHECKING:
    from typing import Self


class Resources:
    """A pipeline that can be closed, and tells the memory that it holds."""

    _components: Components
    _generator: ImageGenerator

    def close(self) -> None:
        """Give back the memory, threads and files of the model. Waits for running calls; later calls raise.

        A pipeline is also closed at the end of `with calotype.load(...) as pipe:`.

        Raises:
            InputError: This thread has an open stream.
        """
        self._generator.close()
        gc.collect()
        trim_heap()

    def memory(self) -> dict[str, int]:
        """Return the bytes that this pipeline holds, by what holds them.

        Returns:
            For each open component its weights and working memory, as its backend counts or estimates them; "prompts",
            the encoded prompts that are kept; and "process", the resident memory of the process with all libraries.
        """
        held = {each.component.name: each.memory_bytes for each in self._components.opened}
        resident = proc_bytes(Path("/proc/self/status"), "VmRSS")
        process = {} if resident is None else {"process": resident}
        return held | {"prompts": self._generator.prompt_bytes} | process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
