"""ControlNets and T2I-Adapters: run each active one, and sum their outputs; zeros while none is active.

ControlNets run at every step, T2I-Adapters once an image. Knows the plan's components by their bindings. Does not know
steps, prompts or backends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..backends import LoadedComponent
from ..backends.session import DenoisingSession, NetworkCall, NetworkCalls
from ..plan.bindings import Binding
from ..plan.controls.t2i_adapter import IMAGE, STATE
from ..plan.networks import controlnets_of, t2i_adapters_of
from ..plan.plan import Plan
from ..request.controls import AdapterInput, ControlInput
from ..request.resolved import ResolvedRequest
from ..sampling.matrix import Sampler
from ..system.lru_cache import LruCache
from .generation import Generation

Floats = NDArray[np.float32]
Network = Callable[..., Mapping[str, Floats]]

_KEPT_BYTES = 64 << 20  # an image of 512 x 512 takes 10 MB for Stable Diffusion 1, one of 1024 x 1024 27 MB for XL


def residuals_of(plan: Plan) -> list[Binding]:
    """Return the inputs of the U-Net to which ControlNets add; empty for a plan without ControlNets."""
    return [b for b in plan.components["unet"].inputs if "additional_residual" in b.name]


def no_residuals(plan: Plan, request: ResolvedRequest, rows: int) -> dict[str, Floats]:
    """Return these inputs while no ControlNet is active: zeros. There are `rows` rows for each image.

    # [N, C, h, w], of clips [N, F, C, h, w]
    """
    count, frames = len(request.seeds) * rows, 1 if request.clip is None else request.clip.frames
    sizes = plan.profile.sizes(batch=count, height=request.height, width=request.width, frames=frames)
    return {b.name: np.zeros(b.shape(sizes), np.float32) for b in residuals_of(plan)}


def span_of(sampler: Sampler, call: int) -> tuple[float, float]:
    """Return where a call begins and ends, as fractions of the calls of the full schedule."""
    place = call if sampler.positions is None else sampler.positions[call]
    total = sampler.full_calls or len(sampler.timesteps)
    return place / total, (place + 1) / total


def is_group(controls: Sequence[ControlInput]) -> bool:
    """Return whether a ControlNet-Union sees several images: then it has an effect whatever their scales."""
    return len({control.net for control in controls}) < len(controls)


class ControlNets:
    """The ControlNets of one batch. The U-Net calls them at every step."""

    def __init__(
        self,
        plan: Plan,
        call: Generation,
        component: Callable[[str], LoadedComponent],
        conditioning: Mapping[str, Floats],
        *,
        rows: int,
    ) -> None:
        """Prepare the ControlNets that the call uses; `component` returns one by its name.

        `conditioning` are the other inputs of the U-Net, with `rows` rows for each image. As in
        diffusers, start and end are fractions of the U-Net calls.
        """
        self._residuals = [b.name for b in residuals_of(plan)]
        self._frames = call.request.clip.frames if call.request.clip else None
        self._count = len(call.request.seeds)
        self._components, self._sampler = plan.components, call.sampler
        self._copies = rows if rows > 2 else 1  # a session repeats the sample for two halves itself
        self._conditioning, self._component, self._rows = conditioning, component, rows
        self._nets: list[tuple[str, list[ControlInput]]] = []
        for number, name in enumerate(controlnets_of(plan.components)):
            inputs = [control for control in call.request.controls if control.net == number]
            if len(inputs) > 1 or inputs[0].scale != 0:
                self._nets.append((name, inputs))
        self._sessions: dict[tuple[str, tuple[bool, ...]], DenoisingSession] = {}
        self._zeros = no_residuals(plan, call.request, rows)

    def calls(self, call: int, sample: Floats) -> NetworkCalls[dict[str, Floats]]:
        """Yield the calls of the active ControlNets, and return the U-Net's residual inputs by name.  # [N, C, h, w]"""
        sums: list[Floats] = []
        sample = np.concatenate([sample] * self._copies)
        if self._frames is not None:  # a ControlNet takes the frames as images
            sample = np.ascontiguousarray(sample.swapaxes(1, 2).reshape(-1, sample.shape[1], *sample.shape[3:]))
        start, end = span_of(self._sampler, call)
        for name, controls in self._nets:
            active = tuple(control.start <= start and end <= control.end for control in controls)
            # As in diffusers, a ControlNet-Union with several images runs at every step, if at scale 0.
            if any(active) or len(controls) > 1:
                outputs = yield NetworkCall(self._session(name, controls, active), call, sample, {})
                residuals = [outputs[b.name] for b in self._components[name].outputs]
                if self._frames is not None:
                    residuals = [each.reshape(-1, self._frames, *each.shape[1:]) for each in residuals]
                sums = [a + b for a, b in zip(sums, residuals, strict=True)] if sums else residuals
        return dict(zip(self._residuals, sums, strict=True)) if sums else self._zeros

    def _session(self, name: str, controls: Sequence[ControlInput], active: tuple[bool, ...]) -> DenoisingSession:
        """Return the session of a network in which these of its images count."""
        if (name, active) not in self._sessions:
            rows = self._rows
            scales = [control.scale * counts for control, counts in zip(controls, active, strict=True)]
            images = [np.concatenate([control.images] * rows) for control in controls]
            conditioning = self._conditioning
            if self._frames is not None:
                images = [np.concatenate([*control.images] * (rows * self._count)) for control in controls]
                conditioning = {n: each.repeat(self._frames, axis=0) for n, each in conditioning.items()}
            component = self._components[name]
            arrays = {"controlnet_cond": images[0], "conditioning_scale": np.full(len(images[0]), scales[0])}
            if any(b.name == "control_type" for b in component.inputs):
                arrays = _union_arrays(component.inputs, controls, images, scales)
            arrays = {**conditioning, **{n: array.astype(np.float32) for n, array in arrays.items()}}
            inputs = {b.name: arrays[b.name] for b in component.inputs if b.name in arrays}
            session = DenoisingSession(self._component(name), inputs, self._sampler.timesteps, guided=rows == 2)
            self._sessions[name, active] = session
        return self._sessions[name, active]


def _union_arrays(
    bindings: Sequence[Binding], controls: Sequence[ControlInput], images: Sequence[Floats], scales: Sequence[float]
) -> dict[str, Floats]:
    """Return the inputs of a ControlNet-Union: as in diffusers, the scale of one image multiplies the residuals, and
    scales of several multiply what each of them adds.  # images: G x [N, 3, H, W]"""
    types, rows = next(int(b.dims[-1]) for b in bindings if b.name == "control_type"), len(images[0])
    tasks = np.eye(types, dtype=np.float32)[[control.mode or 0 for control in controls]]
    one = len(controls) == 1
    inner, outer = ([1.0], scales[0]) if one else (scales, 1.0)
    return {
        "controlnet_cond": np.stack(images, axis=1),
        "control_task": np.tile(tasks, (rows, 1, 1)),
        "control_type": np.tile(tasks.sum(axis=0), (rows, 1)),
        "condition_scale": np.tile(np.array(inner, np.float32), (rows, 1)),
        "conditioning_scale": np.full(rows, outer, np.float32),
    }


class AdapterFeatures:
    """The T2I-Adapters of a plan, with a cache of the features of images. Threads may share it."""

    def __init__(self, plan: Plan, network: Callable[[str], Network]) -> None:
        """`network` returns a component by its name."""
        self._plan, self._network = plan, network
        self._names = t2i_adapters_of(plan.components)
        self._cache: LruCache[tuple[Floats, ...]] = LruCache(_KEPT_BYTES, lambda maps: sum(m.nbytes for m in maps))

    def clear(self) -> None:
        """Drop the features that are kept."""
        self._cache.clear()

    @property
    def kept_bytes(self) -> int:
        """The bytes of the features that are kept."""
        return sum(each.nbytes for maps in self._cache.values() for each in maps)

    def __call__(self, request: ResolvedRequest) -> dict[str, Floats]:
        """Return the features of all adapters times their scales, by the U-Net's inputs. Each image is encoded once.

        They are zeros without images, and there are none for a model without adapters.  # [N, C, h, w]

        Raises:
            BackendError: a backend failed; NotFiniteError: a network returned numbers that are not finite.
        """
        totals = [*no_features(self._plan, request, 1).values()]
        pairs = zip(self._names, request.adapters, strict=True) if request.adapters else ()
        for name, adapter in pairs:
            if adapter.scale == 0 or adapter.factor == 0:
                continue
            for row, image in enumerate(adapter.images):
                for total, feature in zip(totals, self._features(name, image), strict=True):
                    total[row] += np.float32(adapter.scale) * feature
        names = [b.name for b in states_of(self._plan)]
        return {name: np.concatenate([each] * request.rows) for name, each in zip(names, totals, strict=True)}

    def _features(self, name: str, image: Floats) -> tuple[Floats, ...]:
        def features() -> tuple[Floats, ...]:
            outputs = self._network(name)(**{IMAGE: image[None]})
            return tuple(outputs[b.name][0].astype(np.float32) for b in states_of(self._plan))

        return self._cache((name, image.shape, hashlib.sha256(image.tobytes()).digest()), features)


def states_of(plan: Plan) -> list[Binding]:
    """Return the inputs of the U-Net for the features of T2I-Adapters; empty for a plan without them."""
    return [b for b in plan.components["unet"].inputs if b.name.startswith(STATE)]


def no_features(plan: Plan, request: ResolvedRequest, rows: int) -> dict[str, Floats]:
    """Return these inputs while no T2I-Adapter is active: zeros. `rows` are those of each image.  # [N, C, h, w]"""
    sizes = plan.profile.sizes(batch=len(request.seeds) * rows, height=request.height, width=request.width)
    return {b.name: np.zeros(b.shape(sizes), np.float32) for b in states_of(plan)}


def has_features(adapters: tuple[AdapterInput, ...], sampler: Sampler, call: int) -> bool:
    """Return whether T2I-Adapters have an effect in a call: as in diffusers, in the first int(calls * factor)."""
    place = call if sampler.positions is None else sampler.positions[call]
    total = sampler.full_calls or len(sampler.timesteps)
    return any(each.scale and place < int(total * each.factor) for each in adapters)
