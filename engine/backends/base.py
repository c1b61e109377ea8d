"""What every backend provides: a record of itself, runners over named arrays, and denoising sessions.

This module knows no backend and does not choose one.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..plan.plan import Artifact, PlannedComponent
from ..weights.delta import WeightDeltas

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Tensors: TypeAlias = "Mapping[str, Tensor]"
Values = TypeVar("Values")  # arrays on the host, or tensors on the device


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A backend, as its module describes it.

    Attributes:
        form: the form of artifact that it opens.
        precisions: the precisions of artifacts that it runs.
        computes: the precisions in which it computes a model's own weights without a build, the fastest first.
        packages: the distributions that it runs on, the one to install first. The first that is installed counts.
        unavailable: returns why it cannot run on this machine and the command that fixes it, or None if it can.
        unsupported: returns why this machine cannot compute in a precision, or None. Call it only if it is available.
        hardware: returns what the result of a precision depends on, besides the backend's version.
        open: opens an artifact of a component. Raises `BackendError` if it cannot. Call it only if it is available.
    """

    name: str
    form: str
    precisions: tuple[str, ...]
    computes: tuple[str, ...] = ("fp32",)
    packages: tuple[str, ...] = ()
    unavailable: Callable[[], str | None]
    unsupported: Callable[[str], str | None] = lambda precision: None
    hardware: Callable[[], str] = platform.machine
    open: Callable[[PlannedComponent, Artifact], Runner]


def missing_packages(extra: str, *modules: str) -> str | None:
    """Return which modules are not installed and the command that installs them, or None if all are."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return (
        f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed (pip install 'calotype[{extra}]')"
    )


class Session(Protocol[Values]):
    """The calls of one network for one batch. A backend may compute what does not depend on the step only once."""

    def __call__(self, call: int, sample: Values, changing: Mapping[str, Values], /) -> dict[str, Values]:
        """Run one call and return all outputs by name.

        Args:
            call: the number of the call, from 0.
            sample: the latents.  # [B, C, h, w]
            changing: other inputs that change at every call.  # [B, ...], or [2B, ...] with guidance, as the outputs
        """
        ...


class ReadyCall(NamedTuple):
    """A call of a session of a runner. The calls of several batches may run together."""

    session: Session[Array]
    call: int  # its number, from 0
    sample: Array  # [B, C, h, w]
    changing: Arrays  # [N, ...]
    inputs: Callable[[], dict[str, Array]]  # all of the network  # [N, ...]

    def run(self) -> dict[str, Array]:
        """Run it alone, and return all outputs by name."""
        return self.session(self.call, self.sample, self.changing)


class Runner(Protocol):
    """A loaded component. Threads may share a runner."""

    backend: str
    precision: str
    notes: tuple[str, ...] = ()  # for reports

    @property
    def memory_bytes(self) -> int | None:
        """The memory of its weights and buffers; None where it is not counted."""
        return None

    @property
    def width(self) -> int:
        """How many images `run_together` runs faster than one after another."""
        return 2

    def __call__(self, inputs: Arrays, /) -> dict[str, Array]:
        """Return all outputs by name. The caller has checked the inputs against the bindings."""
        ...

    def session(
        self, constants: Arrays, timesteps: NDArray[np.float32], *, guided: bool, cache_interval: int
    ) -> Session[Array]:
        """Return a session with the arguments of `DenoisingSession`: here one that runs the full network each time."""
        if cache_interval > 1:
            raise InputError(
                f"cache_interval={cache_interval} needs the openvino backend in fp32, bf16 or int8: the U-Net runs on "
                f"{self.backend} in {self.precision}. Remove it, or load with backend='openvino'.",
                argument="cache_interval",
                got=cache_interval,
            )

        def run(call: int, sample: Array, changing: Arrays) -> dict[str, Array]:
            return self(inputs_of_call(constants, timesteps[call], sample, changing, guided=guided))

        return run

    def run_together(self, calls: Sequence[ReadyCall]) -> list[dict[str, Array]]:
        """Return the outputs of each call: here those of one run, which has the rows of all.

        The shapes of the inputs may only differ in the rows.
        """
        inputs = [each.inputs() for each in calls]
        ends = np.cumsum([len(each["sample"]) for each in inputs])[:-1]
        outputs = self({name: np.concatenate([each[name] for each in inputs]) for name in inputs[0]})
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
        return [{name: arrays[i] for name, arrays in parts.items()} for i in range(len(calls))]


def inputs_of_call(
    constants: Arrays, timestep: np.float32, sample: Array, changing: Arrays, *, guided: bool
) -> dict[str, Array]:
    """Return all inputs of one call of a network. With guidance both halves of the batch have the same sample."""
    rows = np.concatenate([sample, sample]) if guided else sample
    return {"sample": rows, "timestep": np.full(len(rows), timestep, np.float32), **constants, **changing}


@runtime_checkable
class SupportsWeightUpdates(Protocol):
    """A runner whose weights can be changed: by new initializers, by new constants, by a refit, or in place."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the weight's shape of every linear layer and convolution, by the layer's name in the model."""
        ...

    def update_weights(self, deltas: WeightDeltas) -> None:
        """Set each weight that has a delta to its original value plus the delta, and all others to their originals.

        The original values come back bit for bit. The caller makes sure that nothing runs meanwhile.

        Raises:
            BackendError: the update failed. The runner cannot be used again until an update succeeds.
        """
        ...


class DeviceNetwork(Protocol):
    """A network as a function of tensors on the device, for graphs of the full pipeline. It does not wait."""

    dtype: torch.dtype  # of its float inputs
    channels_last: bool = False  # whether it computes on images in this format; outputs may have either

    def __call__(self, inputs: Tensors, /) -> dict[str, Tensor]:
        """Launch the network on the current stream and return all outputs by name."""
        ...

    def session(self, constants: Tensors, timesteps: Tensor) -> Session[Tensor]:
        """Return a session whose samples have all rows: here one that runs the full network.  # timesteps [calls, N]"""

        def run(call: int, sample: Tensor, changing: Tensors) -> dict[str, Tensor]:
            return self({"sample": sample, "timestep": timesteps[call], **constants, **changing})

        return run


@runtime_checkable
class SupportsGraphs(Protocol):
    """A runner on a GPU whose network can be captured. A change of weights that graphs do not see makes a new one."""

    network: DeviceNetwork
