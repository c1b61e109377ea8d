"""The components of a loaded model, each opened at its first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from ..errors import BackendError
from ..plan.plan import Plan, PlannedComponent
from ..system import forks
from .component import LoadedComponent, open_component
from .registry import COMPILED, ON_GPU, BackendSelection

_TORCH_BACKENDS = ("eager", "cuda", *COMPILED)
CLOSED = "the pipeline is closed. Load the model again."


class Components:
    """The opened components of a plan. Threads may share it."""

    def __init__(
        self,
        plan: Plan,
        choice: BackendSelection,
        planned: Callable[[str], PlannedComponent] | None = None,
        opening: Callable[[Sequence[str]], AbstractContextManager[None]] | None = None,
    ) -> None:
        """Open nothing yet.

        Args:
            plan: the plan.
            choice: the backends.
            planned: returns a component with its artifacts when it is opened; the default is the plan's components.
            opening: shows the progress while several components are opened.
        """
        self._show_opening = opening or (lambda names: nullcontext())
        self.choice = choice
        self._planned = planned or plan.components.__getitem__
        self._opened: dict[str, LoadedComponent] = {}
        self._opening = forks.Lock()
        self._closed = False

    def __call__(self, name: str) -> LoadedComponent:
        """Return the component with its runner. Its first use traces it if necessary, and opens it.

        Raises:
            SourceError: it cannot be traced from the model's files; BackendError: no backend opens it.
        """
        if self._closed:
            raise BackendError(CLOSED)
        opened = self._opened.get(name)
        if opened is None:
            with self._opening:  # open components stay usable: a trace takes seconds
                opened = self._opened.get(name)
                if opened is None:
                    opened = self._opened[name] = open_component(self._planned(name), self.choice)
        opened.reopen_after_fork()
        return opened

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Let go of all components. The caller makes sure that none runs."""
        self._closed = True
        with self._opening:
            self._opened = {}

    def open_used(self, plan: Plan) -> None:
        """Open the components that every call uses. The first call that needs another one opens it."""
        encodes = ("vae_encoder",) if plan.image_input is not None and plan.image_input.encodes else ()
        # That of an IP-Adapter opens when a call has an image.
        sees = ("image_encoder",) if plan.sees else ()
        used = (*plan.tokenizers, *sees, "unet", "vae_decoder", *encodes)
        names = [name for name in used if name in plan.components]
        with self._show_opening(names):
            for name in names:
                self(name)

    @property
    def run_by_torch(self) -> bool:
        """Whether PyTorch runs an open component, so that its profiler sees the work."""
        return any(each.runner.backend in _TORCH_BACKENDS for each in self.opened)

    @property
    def opened(self) -> tuple[LoadedComponent, ...]:
        """The components that are open."""
        return tuple(self._opened.values())

    @property
    def runs_eagerly(self) -> bool:
        """Whether PyTorch runs the U-Net, which keeps no attention scores."""
        name = self._opened["unet"].runner.backend if "unet" in self._opened else self.choice.names[0]
        return name in _TORCH_BACKENDS

    @property
    def on_gpu(self) -> bool:
        """Whether the U-Net is open and runs on a GPU."""
        return "unet" in self._opened and self._opened["unet"].runner.backend in ON_GPU
