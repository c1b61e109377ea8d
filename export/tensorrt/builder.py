"""A graph becomes a TensorRT engine: typed by the graph, for the sizes of a profile; whoever watches may stop it.

The library is an argument: `tensorrt` 11, which builds for the GPU that is here, or `tensorrt_rtx`, which builds for
GPUs that are named, on any machine. Networks are strongly typed (there is no other kind any more): the precision is the
graph's own, as `lower` and `quantize` made it. Knows nothing of plans or the store; running an engine is
`calotype.backends.tensorrt.runner`'s work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.backends.tensorrt.library import create_log
from calotype.errors import BuildError, first_line
from calotype.plan.bindings import Binding
from calotype.plan.profile import Profile

from .options import HARDWARE, EngineOptions
from .watch import Phase, Watcher, monitor_of

__all__ = ["Built", "EngineOptions", "Phase", "build_engine", "shapes_of"]

Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, Shape, Shape]]  # tensor -> its least, usual and most

# Both halves of guidance go through these in one call; text encoders get the negative prompts with the prompts.
_DOUBLED = ("unet", "controlnet", "text_encoder")


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine, and what the next build may reuse (empty where the library keeps nothing)."""

    engine: bytes
    timing_cache: bytes


def shapes_of(component: str, inputs: Sequence[Binding], profile: Profile, *, chunks: int = 1) -> Shapes:
    """The sizes of every input over a profile, for prompts of one to so many chunks of text.

    A batch of a profile counts pictures; where guidance doubles it, the least is one picture without guidance. A text
    encoder gets each chunk as a row of its batch, a denoiser all of them one after the other.
    """
    halves = 2 if component.startswith(_DOUBLED) else 1

    rows = chunks if component.startswith("text_encoder") else 1

    def sizes(end: str, times: int, parts: int = 1) -> dict[str, int]:
        batch, height, width = (getattr(r, end) for r in (profile.batch, profile.height, profile.width))
        return profile.sizes(batch=batch * times, height=height, width=width, chunks=parts)

    low, usual, high = sizes("min", 1), sizes("opt", halves), sizes("max", halves * rows, chunks)
    return {b.name: (b.shape(low), b.shape(usual), b.shape(high)) for b in inputs}


def build_engine(
    trt: Any,
    graph: Path,
    profiles: Sequence[Shapes],
    options: EngineOptions | None = None,
    *,
    timing_cache: bytes = b"",
    watch: Callable[[Phase], bool] | None = None,
) -> Built:
    """Build `graph` for `profiles`, the preferred one first. `watch` sees every step, and ends the build with False.

    Raises:
        BuildError: there is no GPU to build for, or the library refuses the graph, a profile or an option.
        Cancelled: `watch` ended it.
    """
    options = options or EngineOptions()
    _check_gpu(trt, options)
    log, watcher = create_log(trt), Watcher(watch)
    try:
        builder = trt.Builder(log)
        network, config = builder.create_network(0), builder.create_builder_config()  # no flag: all are strongly typed
        parser = trt.OnnxParser(network, log)  # owns weights that the network points to
        _parse(parser, graph)
        _configure(trt, config, options)
        for shapes in profiles:
            _add_profile(builder, network, config, shapes)
        cached = _use_cache(trt, config, timing_cache)
        config.progress_monitor = monitor_of(trt, watcher)
        engine = builder.build_serialized_network(network, config)
        timings = bytes(config.get_timing_cache().serialize()) if cached else b""
    except BuildError:
        raise
    except Exception as failed:  # bindings raise RuntimeError, TypeError and AttributeError
        watcher.check(graph)
        raise BuildError(f"{_name(trt)} cannot build {graph}: {log.last_error or first_line(failed)}") from failed
    watcher.check(graph)
    if engine is None:
        raise BuildError(f"{_name(trt)} cannot build {graph}: {log.last_error or 'it says nothing of why'}")
    return Built(engine=bytes(engine), timing_cache=timings)


def _check_gpu(trt: Any, options: EngineOptions) -> None:
    """Before anything of the library is made: without a GPU its objects may end the process."""
    anywhere = _name(trt) == "tensorrt_rtx"
    if options.targets and not anywhere:
        raise BuildError(
            f"{_name(trt)} builds for the GPU that is here, not for {', '.join(map(str, options.targets))}; "
            "leave targets out, or build with tensorrt_rtx."
        )
    import torch

    if not (anywhere and options.targets) and not torch.cuda.is_available():
        raise BuildError(
            f"{_name(trt)} builds for the GPU that is here, and there is none; "
            "build on the machine that will run it, or with tensorrt_rtx and targets such as 89."
        )


def _name(trt: Any) -> str:
    return str(trt.__name__)


def _parse(parser: Any, graph: Path) -> None:
    if not graph.is_file():
        raise BuildError(f"there is no graph at {graph}; trace the component first.")
    if parser.parse_from_file(str(graph)):
        return
    told = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        node, kind = error.node_name(), error.node_operator()
        told.append(f"{f'node {node} ({kind}): ' if kind else ''}{first_line(RuntimeError(error.desc()))}")
    raise BuildError(f"TensorRT cannot read {graph}: {'; '.join(dict.fromkeys(told[:3])) or 'no ONNX graph'}")


def _configure(trt: Any, config: Any, options: EngineOptions) -> None:
    flags = {
        "REFIT": options.refit,
        "WEIGHT_STREAMING": options.weight_streaming,
        "VERSION_COMPATIBLE": options.version_compatible,
    }
    for name, wanted in flags.items():
        if wanted:
            config.set_flag(getattr(trt.BuilderFlag, name))
    if options.hardware is not None:
        level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[options.hardware])
        config.hardware_compatibility_level = level
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)  # what is float32 in the graph is meant to be
    config.max_aux_streams = 0  # further streams do not go into a captured graph
    if options.targets:
        config.num_compute_capabilities = len(options.targets)
        for i, target in enumerate(options.targets):
            config.set_compute_capability(_capability(trt, target), i)


def _capability(trt: Any, target: int) -> Any:
    """Raises `BuildError` for a GPU that the library does not know; Hopper (90) is one."""
    found = getattr(trt.ComputeCapability, f"SM{target}", None)
    if found is None:
        known = sorted(n[2:] for n in dir(trt.ComputeCapability) if n.startswith("SM"))
        raise BuildError(f"{_name(trt)} builds for {', '.join(known)}, not for {target}.")
    return found


def _add_profile(builder: Any, network: Any, config: Any, shapes: Shapes) -> None:
    optimization = builder.create_optimization_profile()
    given = {network.get_input(i).name for i in range(network.num_inputs)}
    if given != set(shapes):
        raise BuildError(f"the graph takes {sorted(given)}, and the profile is of {sorted(shapes)}.")
    for name, ends in shapes.items():
        try:
            optimization.set_shape(name, *ends)
        except Exception as failed:
            raise BuildError(_refused(shapes, first_line(failed))) from failed
    if config.add_optimization_profile(optimization) < 0:
        raise BuildError(_refused(shapes, "each size must be from the least to the most, and fit the graph's own"))


def _refused(shapes: Shapes, why: str) -> str:
    told = ", ".join(f"{name} {':'.join(str(list(end)) for end in ends)}" for name, ends in shapes.items())
    return f"TensorRT refuses the sizes {told} ({why})."


def _use_cache(trt: Any, config: Any, cached: bytes) -> bool:
    """Timings of an earlier build, where they are of this library and GPU; else an empty cache."""
    if _name(trt) == "tensorrt_rtx":  # it takes no timings
        return False
    for content in (cached, b"") if cached else (b"",):
        try:
            cache = config.create_timing_cache(content)
        except Exception:  # damaged, or another version's: timings can be taken again
            continue
        if cache is not None and config.set_timing_cache(cache, False):
            return True
    return False
