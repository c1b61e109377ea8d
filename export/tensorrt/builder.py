"""Build a TensorRT engine from a graph, for the sizes of a profile. A callback can stop the build.

The library is an argument: `tensorrt` 11, which builds for this machine's GPU, or `tensorrt_rtx`, which builds for any
listed GPUs on any machine. Networks are strongly typed (the library has no other kind): the graph sets the precision,
as `lower` and `quantize` made it. This module does not know plans or the store; `calotype.backends.tensorrt.runner`
runs engines.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calotype.backends.tensorrt.library import create_log
from calotype.errors import BuildError, Cancelled, first_line
from calotype.plan.bindings import Binding
from calotype.plan.profile import Profile

from .options import HARDWARE, EngineOptions

Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, Shape, Shape]]  # tensor -> its min, opt and max

# These get all parts of the guidance in one call; text encoders get the negative prompts with the prompts.
_MULTIPLIED = ("unet", "controlnet", "text_encoder")


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine, and timings for the next build (empty if the library keeps none)."""

    engine: bytes
    timing_cache: bytes


def shapes_of(component: str, inputs: Sequence[Binding], profile: Profile, *, chunks: int = 1) -> Shapes:
    """Return the shapes of every input over a profile, for prompts of 1 to `chunks` chunks of text.

    The batch of a profile counts images. Guidance multiplies the batch by the profile's rows; the smallest is one image
    without guidance. A text encoder gets each chunk as a row of its batch, a denoiser gets them as one sequence.
    """
    halves = profile.rows if component.startswith(_MULTIPLIED) else 1
    rows = chunks if component.startswith("text_encoder") else 1

    # The decoder takes one clip, or a part of it: as one row, or as one for each frame.
    clips = component == "vae_decoder" and profile.frames is not None
    each = clips and not any("frames" in binding.dims for binding in inputs)

    def sizes(end: str, times: int, images: tuple[int, int], parts: int = 1) -> dict[str, int]:
        batch, height, width = (getattr(r, end) for r in (profile.batch, profile.height, profile.width))
        frames = 1 if profile.frames is None or (clips and end == "min") else getattr(profile.frames, end)
        batch = (frames if each else 1) if clips else batch
        more: dict[str, Any] = {"chunks": parts, "images": images, "frames": frames}
        return profile.sizes(batch=batch * times, height=height, width=width, **more)

    groups, tokens = profile.images
    low, usual = sizes("min", 1, (1, 1)), sizes("opt", halves, (1, max(1, tokens // 4)))
    high = sizes("max", halves * rows, (groups, tokens), chunks)
    return {b.name: (b.shape(low), b.shape(usual), b.shape(high)) for b in inputs}


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of a build and its finished steps. `inside` is the enclosing phase; None for the outermost."""

    name: str
    inside: str | None
    done: int
    of: int


def build_engine(
    trt: Any,
    graph: Path,
    profiles: Sequence[Shapes],
    options: EngineOptions | None = None,
    *,
    timing_cache: bytes = b"",
    watch: Callable[[Phase], bool] | None = None,
) -> Built:
    """Build an engine of `graph` for `profiles`, the preferred one first.

    Args:
        timing_cache: timings of an earlier build.
        watch: called at every step of the build; it cancels the build by returning False.

    Raises:
        BuildError: there is no GPU to build for, or the library rejects the graph, a profile or an option.
        Cancelled: `watch` returned False.
    """
    options = options or EngineOptions()
    _check_gpu(trt, options)
    log, monitor = create_log(trt), _monitor(trt, watch)
    try:
        builder = trt.Builder(log)
        network, config = builder.create_network(0), builder.create_builder_config()  # always strongly typed
        parser = trt.OnnxParser(network, log)  # owns the weights of the network
        _parse(trt, parser, graph)
        _configure(trt, config, options)
        for shapes in profiles:
            _add_profile(trt, builder, network, config, shapes)
        cached = _use_cache(trt, config, timing_cache)
        config.progress_monitor = monitor
        engine = builder.build_serialized_network(network, config)
        timings = bytes(config.get_timing_cache().serialize()) if cached else b""
    except BuildError:
        raise
    except Exception as error:  # bindings raise RuntimeError, TypeError and AttributeError
        monitor.raise_if_ended(graph)
        raise _refused(trt, f"{_name(trt)} cannot build {graph}: {log.last_error or first_line(error)}") from error
    monitor.raise_if_ended(graph)
    if engine is None:
        raise _refused(trt, f"{_name(trt)} cannot build {graph}: {log.last_error or 'the library gives no reason'}")
    return Built(engine=bytes(engine), timing_cache=timings)


def _check_gpu(trt: Any, options: EngineOptions) -> None:
    """Check the GPU before creating objects of the library: without a GPU they may end the process."""
    cross_compiles = _name(trt) == "tensorrt_rtx"
    if options.targets and not cross_compiles:
        raise _refused(
            trt,
            f"{_name(trt)} cannot build for {', '.join(map(str, options.targets))}: it builds only for this machine's "
            "GPU. Leave targets out, or build with tensorrt_rtx.",
        )
    import torch

    if not (cross_compiles and options.targets) and not torch.cuda.is_available():
        raise _refused(
            trt,
            f"{_name(trt)} builds for this machine's GPU, and this machine has no GPU. "
            "Build on the machine that will run the engine, or use tensorrt_rtx with targets such as 89.",
        )


def _name(trt: Any) -> str:
    return str(trt.__name__)


def _refused(trt: Any, message: str) -> BuildError:
    return BuildError(message, backend=_name(trt).replace("_", "-"))


def _parse(trt: Any, parser: Any, graph: Path) -> None:
    if not graph.is_file():
        raise _refused(trt, f"cannot find the graph {graph}. Trace the component first.")
    if parser.parse_from_file(str(graph)):
        return
    errors = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        node, kind = error.node_name(), error.node_operator()
        errors.append(f"{f'node {node} ({kind}): ' if kind else ''}{first_line(RuntimeError(error.desc()))}")
    raise _refused(trt, f"TensorRT cannot read {graph}: {'; '.join(dict.fromkeys(errors[:3])) or 'not an ONNX graph'}")


def _configure(trt: Any, config: Any, options: EngineOptions) -> None:
    for name in ("refit", "weight_streaming", "version_compatible"):
        if getattr(options, name):
            config.set_flag(getattr(trt.BuilderFlag, name.upper()))
    if options.hardware is not None:
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[options.hardware])
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 in the graph means float32
    config.max_aux_streams = 0  # a captured graph cannot contain auxiliary streams
    if options.targets:
        config.num_compute_capabilities = len(options.targets)
        for i, target in enumerate(options.targets):
            config.set_compute_capability(_capability(trt, target), i)


def _capability(trt: Any, target: int) -> Any:
    """Return the library's value for a GPU. Raise `BuildError` if it does not know the GPU, such as Hopper (90)."""
    capability = getattr(trt.ComputeCapability, f"SM{target}", None)
    if capability is None:
        known = sorted(n[2:] for n in dir(trt.ComputeCapability) if n.startswith("SM"))
        raise _refused(trt, f"{_name(trt)} cannot build for target {target}; expected one of {', '.join(known)}.")
    return capability


def _add_profile(trt: Any, builder: Any, network: Any, config: Any, shapes: Shapes) -> None:
    optimization = builder.create_optimization_profile()
    inputs = {network.get_input(i).name for i in range(network.num_inputs)}
    if inputs != set(shapes):
        raise _refused(trt, f"the profile has {sorted(shapes)}; expected the graph's inputs {sorted(inputs)}.")
    for name, ends in shapes.items():
        try:
            optimization.set_shape(name, *ends)
        except Exception as error:
            raise _refused(trt, _invalid_sizes(shapes, first_line(error))) from error
    if config.add_optimization_profile(optimization) < 0:
        raise _refused(trt, _invalid_sizes(shapes, "expected min <= opt <= max, within the graph's own sizes"))


def _invalid_sizes(shapes: Shapes, reason: str) -> str:
    sizes = ", ".join(f"{name} {':'.join(str(list(end)) for end in ends)}" for name, ends in shapes.items())
    return f"TensorRT rejects the sizes {sizes}: {reason}."


def _use_cache(trt: Any, config: Any, cached: bytes) -> bool:
    """Load timings of an earlier build if they match this library and GPU, else start with an empty cache."""
    if _name(trt) == "tensorrt_rtx":  # it does not use timings
        return False
    for content in (cached, b"") if cached else (b"",):
        try:
            cache = config.create_timing_cache(content)
        except Exception:  # damaged, or from another version: measure again
            continue
        if cache is not None and config.set_timing_cache(cache, False):
            return True
    return False


def _monitor(trt: Any, watch: Callable[[Phase], bool] | None) -> Any:
    """Return a progress monitor of the library that calls `watch` at every step, until it returns False or raises.

    The library calls it from its own threads. An exception must not reach the library, so it is kept until the build
    has ended.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._phases: dict[str, Phase] = {}
            self._failed: BaseException | None = None
            self._ended = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._report(Phase(name=phase_name, inside=parent_phase, done=0, of=num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            phase = self._phases.get(phase_name, Phase(name=phase_name, inside=None, done=0, of=step + 1))
            self._report(replace(phase, done=step + 1))
            return not self._ended

        def phase_finish(self, phase_name: str) -> None:  # perhaps before its last step
            with self._lock:
                self._phases.pop(phase_name, None)

        def raise_if_ended(self, graph: Path) -> None:
            if self._failed is not None:
                raise self._failed
            if self._ended:
                raise Cancelled(f"the build of {graph} was cancelled.")

        def _report(self, phase: Phase) -> None:
            with self._lock:
                self._phases[phase.name] = phase
                if watch is None or self._ended:
                    return
                try:
                    self._ended = watch(phase) is False
                except BaseException as error:  # KeyboardInterrupt too: it would be lost inside the library
                    self._failed, self._ended = error, True

    return Monitor()
