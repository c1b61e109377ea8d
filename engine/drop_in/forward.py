"""The `forward` of an accelerated module: runs an artifact where it can stand for the module, else the module itself.

It replaces `forward` on the module object. The class, the attributes and the weights stay. Copies and pickles of the
module get the plain `forward` of their class.
"""

from __future__ import annotations

import inspect
import sys
import threading
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import BackendSelection
from ..errors import BuildError, CalotypeError, DeviceFullError, InputError, NotFiniteError
from ..system import forks
from .artifacts import Artifacts
from .differences import difference, limit_of
from .kinds import Kind
from .reading.calls import Call, Unsupported, as_tensors
from .report import ModuleReport
from .structure import Structure, inspect_module
from .weights import State, counters, state_of

_CHECKS = 64  # the checks that a report keeps

_eager_only: ContextVar[bool] = ContextVar("eager_only", default=False)


@contextmanager
def eager_only() -> Iterator[None]:
    """Run all accelerated modules in eager PyTorch inside of this block and this thread."""
    token = _eager_only.set(True)
    try:
        yield
    finally:
        _eager_only.reset(token)


class Forward:
    """The `forward` of one accelerated module. Threads may share it."""

    def __init__(
        self, name: str, owner: nn.Module, kind: Kind, choice: BackendSelection, *, precision: str, verify: bool
    ) -> None:
        self.name, self.kind, self.choice = name, kind, choice
        self.precision, self.verify = precision, verify
        # The module holds this object: references back would keep its memory until the garbage collector runs.
        self._owner, self._module = weakref.ref(owner), weakref.ref(getattr(owner, kind.part) if kind.part else owner)
        self.own = self.module.__dict__.get("forward")  # of another library, which replaced it before
        if getattr(self.own, "__func__", None) is type(self.module).forward:  # a pickled module, or a removed hook
            self.own = None
        self.active = True
        self.__signature__ = inspect.signature(self.original)
        self.__name__, self.__doc__ = "forward", getattr(self.original, "__doc__", None)
        self.compiled_calls = 0
        self.updates = 0
        self.reasons: Counter[str] = Counter()
        self.checks: dict[str, float] = {}
        self._artifacts = Artifacts(kind, choice, precision)
        self._lock = forks.Lock(threading.RLock)
        self._local = threading.local()
        self._seen: tuple[list[Any], Structure, State] | None = None
        self._refused: dict[Any, str] = {}
        self._verified: set[Any] = set()
        self._refusal: str | None = None  # of all calls

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph of torch.compile breaks here
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module's own `forward` returns for these arguments."""
        if not self.active or _eager_only.get():
            return self.original(*args, **kwargs)
        try:
            self._check_mode(args, kwargs)
            return self._compiled(args, kwargs)
        except Unsupported as reason:
            with self._lock:
                self.reasons[str(reason)] += 1
        return self.original(*args, **kwargs)

    def __reduce__(self) -> Any:
        return _plain_forward, (self.module,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.module))
        return self if copied is None else _plain_forward(copied)

    def install(self) -> None:
        """Replace the module's `forward`."""
        self.module.forward = self

    def remove(self) -> None:
        """Put the module's own `forward` back. A library that wrapped this one calls on, and gets eager results."""
        self.active = False
        if self.module.__dict__.get("forward") is self:
            if self.own is None:
                del self.module.__dict__["forward"]
            else:
                self.module.forward = self.own
        if self.module.__dict__.get("_old_forward") is self:  # the package accelerate has put a hook around it
            self.module._old_forward = self.original
        with self._lock:
            self._artifacts.clear()
            self._seen = None

    def refuse(self, reason: str) -> None:
        """Run all later calls in eager PyTorch."""
        self._refusal = reason

    @property
    def module(self) -> nn.Module:
        """The accelerated module."""
        module = self._module()
        assert module is not None  # it holds this object
        return module

    @property
    def owner(self) -> nn.Module | None:
        """What `kind` describes: the module, or the autoencoder that it is a part of; None after its end."""
        return self._owner()

    @property
    def original(self) -> Callable[..., Any]:
        """The module's own `forward`."""
        return self.own if self.own is not None else types.MethodType(type(self.module).forward, self.module)

    @property
    def is_exact(self) -> bool:
        """Whether eager's weights and all artifacts are in float32."""
        module = self._module()
        types = set() if module is None else {p.dtype for p in module.parameters() if p.dtype.is_floating_point}
        precisions = {each.runner.precision for each in self._artifacts.loaded}
        return types <= {torch.float32, torch.float64} and precisions <= {"fp32"}

    def report(self, name: str) -> ModuleReport:
        """Return what ran where, and why, under this name."""
        loaded = self._artifacts.loaded
        backend = self.choice.names[0] if not self.reasons else "eager"  # of a network that was not called yet
        running = loaded[-1] if loaded and self.compiled_calls else None
        if running is not None:
            backend = running.runner.backend
        notes = [note for each in loaded for note in (*each.runner.notes, *each.retried)]
        return ModuleReport(
            name=name,
            class_name=type(self.module).__name__,
            backend=backend,
            precision=running.runner.precision if running else None,
            precision_reason=running.precision_reason if running else "",
            compiled_calls=self.compiled_calls,
            eager_calls=sum(self.reasons.values()),
            reasons=dict(self.reasons),
            checks=dict(self.checks),
            updates=self.updates,
            notes=tuple(dict.fromkeys(notes)),
        )

    def _check_mode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise `Unsupported` if PyTorch records this call: for gradients, or to compile or export it."""
        if self._refusal is not None:
            raise Unsupported(self._refusal)
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            raise Unsupported("PyTorch compiles or traces this call")
        if self.own is not None:
            raise Unsupported(f"its forward was replaced before ({getattr(self.own, '__qualname__', 'a function')})")
        if torch.is_grad_enabled():
            tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
            if any(t.requires_grad for t in (*tensors, *self.module.parameters())):
                raise Unsupported("gradients are recorded; use torch.no_grad()")

    def _compiled(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            bound = self.__signature__.bind(*args, **kwargs)
        except TypeError as wrong:
            raise Unsupported(str(wrong)) from None  # eager raises it
        bound.apply_defaults()
        owner = self.owner
        if owner is None:
            raise Unsupported("the autoencoder that it is a part of was deleted")
        call = self.kind.read(owner, bound.arguments)
        with self._lock:
            structure, state = self._state(call, owner)
            if self.module.training and structure.random:
                raise Unsupported(f"it is in training mode, with dropout in {structure.random}; call eval()")
            if state.adapters and not call.lora_scale:
                raise Unsupported("the scale of LoRAs is 0, after which diffusers resets their weights")
            key = call.inputs, state.key
            if key in self._refused:
                raise Unsupported(self._refused[key])
            result = self._run(call, owner, structure, state, key)
            if self.verify and key not in self._verified:
                self._check(call, result, key, args, kwargs)
            self.compiled_calls += 1
        return result

    def _run(self, call: Call, owner: nn.Module, structure: Structure, state: State, key: Any) -> Any:
        try:
            loaded = self._artifacts.ready(call, owner, structure, state)
            return call.finish(as_tensors(loaded(**call.arrays)))
        except (InputError, NotFiniteError, DeviceFullError) as failed:  # of this call
            raise Unsupported(str(failed)) from failed
        except (CalotypeError, Unsupported) as failed:  # of these weights
            if self.precision == "int8" and isinstance(failed, BuildError):
                raise
            self._refused[key] = str(failed)
            raise Unsupported(str(failed)) from failed

    def _state(self, call: Call, owner: nn.Module) -> tuple[Structure, State]:
        """Return the structure and the state of the module now.

        The weights are read in full unless this call goes on with an image: its timestep is not above the last one.
        """
        last = getattr(self._local, "timestep", None)
        self._local.timestep = call.timestep
        goes_on = last is not None and call.timestep is not None and call.timestep <= last
        if goes_on and self._seen is not None:
            numbers, structure, state = self._seen
            if (not state.adapters or state.scale == call.lora_scale) and numbers == counters(structure):
                return structure, state
        before, self._seen = self._seen, None
        structure = inspect_module(owner, self.kind.part)
        state = state_of(structure, call.lora_scale)
        self.updates += before is not None and before[2] != state
        self._seen = counters(structure), structure, state
        return structure, state

    def _check(self, call: Call, result: Any, key: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Compare an output with eager's. Raise `Unsupported` if it differs too much."""
        expected = self.original(*args, **kwargs)
        error = difference(result, expected)
        dtype = next((p.dtype for p in self.module.parameters()), torch.float32)
        limit = limit_of(dtype, self._artifacts.precision_of(call))
        if len(self.checks) < _CHECKS:
            self.checks[f"{call.name} {len(self.checks)}"] = error
        if not error <= limit:
            reason = f"it differs from eager by {error:.1e} (at most {limit:.0e} is expected)"
            self._refused[key] = reason
            print(f"calotype: the {self.name} stays in eager PyTorch: {reason}", file=sys.stderr)
            raise Unsupported(reason)
        self._verified.add(key)


def _plain_forward(module: nn.Module) -> Any:
    return types.MethodType(type(module).forward, module)
