"""From a prompt to images: text, noise, steps, pixels. One pipeline for every family and task.

Knows the order of the work. `backends` runs the networks, and `sampling` computes the schedule.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends import COMPILED, ON_GPU, BackendSelection, LoadedComponent, open_component
from .cuda.device import free_bytes
from .errors import Cancelled, InputError
from .errors.validation import with_known_names
from .graph.capacity import annotate_out_of_memory
from .graph.inputs import GraphInputs
from .graph.runner import GraphPipelineManager
from .images.arrays import as_list, batch, load_image_array
from .images.png import GeneratedImage, image_from_pixels, to_uint8, to_unit_range
from .lora.lora import Lora, LoraLike
from .lora.manager import LoraManager
from .plan.plan import Plan, PlannedComponent
from .report.metadata import ResolvedCall, build_report, png_metadata
from .report.report import Report
from .request.diffusers_names import KnownAttributes
from .request.request import Job, parse_request, resolve
from .sampling.cache import SchedulerSpec, sampler_for
from .sampling.matrix import Sampler, SamplerRun
from .sampling.noise import BatchNoise
from .stages.conditioning import Encoded, condition, tokenizers_of
from .stages.initial_latents import prepare_latents
from .stages.loop import denoise
from .stages.unet import Denoisers
from .stages.vae import Codec, VaeTiling
from .system import forks
from .system.lru_cache import LruCache
from .system.memory import available_bytes, check_memory, peak_bytes
from .system.trace import Stopwatch, traced

Floats = NDArray[np.float32]
_TORCH_BACKENDS = ("eager", "cuda", *COMPILED)  # PyTorch's profiler sees their work

_MAX_PROMPTS = 64  # encoded prompts in the cache: 0.2 MB for each chunk of Stable Diffusion 1, 0.6 MB of XL
_MAX_SCHEDULES = 32


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of a call: the images (or arrays, by `output_type`), their seeds, and the report."""

    images: Any  # list[GeneratedImage], float32 [N, H, W, 3] in [0, 1], or latents float32 [N, C, h, w]
    seeds: tuple[int, ...]
    report: Report


@dataclass(frozen=True, kw_only=True)
class Event:
    """End of one step. The last event of a stream carries the `result`.

    `preview()` decodes the images that this step predicts. It costs one run of the VAE decoder. Call it before you take
    the next event.
    """

    step: int
    total: int
    preview: Callable[[], list[GeneratedImage]]
    result: Result | None = None


class Pipeline(KnownAttributes):
    """A loaded model. Several threads may call it; `cancel` ends the running calls."""

    plan: Plan

    def __init__(
        self, plan: Plan, choice: BackendSelection, planned: Callable[[str], PlannedComponent] | None = None
    ) -> None:
        """`planned` returns a component with its artifacts when it is opened; the default is the plan's components."""
        self.plan = plan
        self._choice = choice
        self._planned = planned or plan.components.__getitem__
        self._opened: dict[str, LoadedComponent] = {}
        self._opening = forks.Lock()
        self._guard = forks.Lock()
        self._active: weakref.WeakSet[threading.Event] = weakref.WeakSet()
        self._tokenizers = tokenizers_of(plan)
        self._codec = Codec(plan, self.component, lambda: free_bytes() if self._on_gpu else None)
        self._denoiser = Denoisers(plan, self.component)
        self._graph_pipeline = GraphPipelineManager(plan, self._tokenizers, self.component)
        self._adapters = LoraManager(plan, self.component)
        self._prompt_cache: LruCache[Encoded] = LruCache(_MAX_PROMPTS)
        self._prompt_cache_loras: tuple[Lora, ...] = ()  # the LoRAs with which they were encoded
        self._samplers: LruCache[tuple[SchedulerSpec, Sampler]] = LruCache(_MAX_SCHEDULES)
        for name in (*plan.tokenizers, "unet", "vae_decoder"):  # the first call that needs another component opens it
            if name in plan.components:
                self.component(name)

    def __call__(self, prompt: Any = None, **arguments: Any) -> Result:
        """Generate images. The arguments are those of `Request`; only an unconditional model takes no prompt.

        Returns:
            The images, their seeds, and the report.

        Raises:
            InputError: an argument is wrong; SamplerError: the scheduler cannot run; Cancelled: `cancel` was called.
        """
        work, stop = self._start(prompt, arguments)
        notes: tuple[str, ...] = ()
        if self._graph_pipeline.on_device:
            with self._adapters.lock_weights() as loras:
                result, notes = self._run_graph(replace(work, loras=loras), stop)
            if result is not None:
                return result
        *_, last = self._run(work, stop, notes)
        assert last.result is not None
        return last.result

    def stream(self, prompt: Any = None, **arguments: Any) -> Iterator[Event]:
        """Generate images step by step: yield one `Event` a step. Closing the stream between two steps ends the work.

        The call itself checks the arguments, before the first event.
        """
        return self._run(*self._start(prompt, arguments))

    def profile(self, path: str | Path, prompt: Any = None, **arguments: Any) -> Result:
        """Generate images as a call does, and write a Chrome trace (JSON) of the work to `path`.

        If PyTorch runs a component, the trace contains its operators and GPU kernels. Raises what a call raises, and
        `InputError` if the file cannot be written.
        """
        by_torch = any(o.runner.backend in _TORCH_BACKENDS for o in tuple(self._opened.values()))
        with traced(Path(path), by_torch=by_torch):
            return self(prompt, **arguments)

    @property
    def _on_gpu(self) -> bool:
        return "unet" in self._opened and self._opened["unet"].runner.backend in ON_GPU

    def _start(self, prompt: Any, arguments: Mapping[str, Any]) -> tuple[ResolvedCall, threading.Event]:
        """Resolve a call's arguments; the event is what `cancel` sets."""
        forks.check()
        stop = threading.Event()
        with self._guard:
            self._active.add(stop)  # as long as the work holds it
        job = resolve(parse_request(prompt, arguments), self.plan)
        size = {"height": job.height, "width": job.width}
        loads = [load for load in self.plan.loads if load.guided]  # the VAE splits its work to fit
        if not self._on_gpu:  # a GPU keeps no attention scores, and raises when it is full
            check_memory(peak_bytes(loads, batch=len(job.seeds), **size, guided=job.guided), available_bytes())
        with forks.running():
            spec, sampler = self._sampler(job)
        tiling = self._codec.tiling(len(job.seeds), job.height, job.width)
        return ResolvedCall(job=job, spec=spec, sampler=sampler, tiling=tiling), stop

    def cancel(self) -> None:
        """End every running call and stream at its next step, with `Cancelled`. Any thread may call it."""
        with self._guard:
            for stop in self._active:
                stop.set()

    def component(self, name: str) -> LoadedComponent:
        """Return the component with its runner. Its first use traces it if necessary, and opens it.

        Raises:
            SourceError: it cannot be traced from the model's files; BackendError: no backend opens it.
        """
        opened = self._opened.get(name)
        if opened is None:
            with self._opening:  # open components stay usable: a trace takes seconds
                opened = self._opened.get(name)
                if opened is None:
                    opened = self._opened[name] = open_component(self._planned(name), self._choice)
        opened.reopen_after_fork()
        return opened

    @with_known_names({})
    def set_lora(self, lora: LoraLike = None) -> None:
        """Replace the active LoRAs with these; None restores the model's own weights.

        Does what `load_lora_weights`, `set_adapters` and `unload_lora_weights` do in diffusers, without a new build or
        export. It waits for running calls (`cancel` ends them), and later calls wait for it. If it fails, it restores
        the LoRAs before it; if that fails too, calls raise until `set_lora` succeeds.

        Args:
            lora: a .safetensors file of diffusers, peft or kohya, or a folder as diffusers saves a LoRA; "FILE:0.8",
                (FILE, 0.8) or {FILE: 0.8} for a weight other than 1, from -10 to 10; or a list of these, whose deltas
                are added. A file of weight 0 is not used.

        Raises:
            SourceError: a file is missing, is not a LoRA, or has a tensor (the error names it) that the model lacks.
            BackendError: the backend cannot change these weights.
            InputError: this thread has an open stream.
        """
        self._adapters.set(lora)

    @property
    def loras(self) -> tuple[tuple[str, float], ...]:
        """The active LoRAs, as (file, weight)."""
        return tuple((str(lora.path), lora.weight) for lora in self._adapters.loras)

    @with_known_names({})
    def encode(self, image: Any, *, tile: int | None = None, sliced: bool = False) -> Floats:
        """Encode one image, or several of one size, as latents of the U-Net.  # -> float32 [B, C, h, w]

        Args:
            image: the values of `Request.image`; sizes are rounded down to a multiple of the VAE's factor (8 pixels).
            tile: side of a tile in pixels; by default, as much at once as fits into the free memory.
            sliced: encode one image at a time.

        Raises:
            InputError: the image or the tile is invalid.
        """
        images = [load_image_array("image", each) for each in as_list(image)]
        if not images:
            raise InputError("image must be an image, or a list of images that is not empty.")
        factor = self.plan.profile.factor
        height, width = (max(side // factor, 1) * factor for side in images[0].shape[:2])
        pixels = batch(images, len(images), height, width)
        return self._codec.encode(pixels, tiling=self._codec.tiling_from(sliced, tile))

    @with_known_names({})
    def decode(
        self, latents: Floats, *, output_type: str = "pil", tile: int | None = None, sliced: bool = False
    ) -> Any:
        """Decode latents [B, C, h, w] of the U-Net to PIL images, or for "np" to float32 [B, H, W, 3] in [0, 1].

        `tile` and `sliced` are as in `encode`. Raises `InputError`.
        """
        tiling = self._codec.tiling_from(sliced, tile)
        if output_type not in ("pil", "np"):
            raise InputError(f"output_type must be pil or np, got {output_type!r}.")
        is_array, channels = isinstance(latents, np.ndarray), self._codec.channels
        is_batch = is_array and latents.ndim == 4 and latents.shape[1] == channels and 0 not in latents.shape
        if not is_batch or latents.dtype.kind not in "biuf":
            got = f"{latents.dtype} {list(latents.shape)}" if is_array else type(latents).__name__
            raise InputError(f"latents must be an array [B, {channels}, h, w] of numbers, got {got}.")
        pixels = self._codec.decode(latents, tiling)
        return to_unit_range(pixels) if output_type == "np" else [image_from_pixels(p, {}) for p in to_uint8(pixels)]

    def _run_graph(self, work: ResolvedCall, stop: threading.Event) -> tuple[Result | None, tuple[str, ...]]:
        """Run the call as one graph. Return the result, or None and a note with the reason against it."""
        if stop.is_set():
            raise Cancelled(f"cancelled after 0 of {work.sampler.calls} steps.")
        watch, draw = Stopwatch(), self._noise(work.job)

        def graph_inputs() -> GraphInputs:
            with watch.stage("encode") if work.job.task.image is not None else nullcontext():
                ready = prepare_latents(self.plan, work.job, self._codec, draw, work.tiling)
            return GraphInputs(job=work.job, sampler=work.sampler, ready=ready, draw=draw)

        untiled = work.tiling == VaeTiling()
        pixels, notes = self._graph_pipeline.run(work.job, work.sampler, graph_inputs, watch, untiled=untiled)
        if pixels is None:
            return None, notes
        images = self._to_images(work, pixels)
        return Result(images=images, seeds=work.job.seeds, report=self._report(work, watch, notes)), notes

    def _run(self, work: ResolvedCall, stop: threading.Event, earlier_notes: tuple[str, ...] = ()) -> Iterator[Event]:
        with self._adapters.lock_weights() as loras:
            events = self._generate(replace(work, loras=loras), stop, earlier_notes)
            while True:
                with forks.running():
                    event = next(events, None)
                if event is None:
                    return
                yield event

    def _generate(self, work: ResolvedCall, stop: threading.Event, earlier_notes: tuple[str, ...]) -> Iterator[Event]:
        watch, sampler, job = Stopwatch(), work.sampler, work.job
        with annotate_out_of_memory(self.plan, job):
            with watch.stage("text"):
                cache = self._prompts(work.loras)
                conditioning, notes = condition(self.plan, self._tokenizers, self.component, job, cache)
            draw = self._noise(job)
            with watch.stage("encode") if job.task.image is not None else nullcontext():
                ready = prepare_latents(self.plan, job, self._codec, draw, work.tiling)
            run = sampler.run(ready.noise, draw, seeds=job.seeds, original=ready.original)
            steps = denoise(
                self._denoiser(job, sampler, conditioning, ready.extra_channels), sampler, run, conditioning, stop
            )
            for i in range(sampler.calls):
                with watch.stage("steps"):
                    next(steps)
                if i + 1 < sampler.calls:
                    yield self._event(work, run, i)
            with watch.stage("decode"):
                images = self._output(work, run.latents())
        report = self._report(work, watch, (*notes, *earlier_notes))
        yield self._event(work, run, sampler.calls - 1, Result(images=images, seeds=work.job.seeds, report=report))

    def _prompts(self, loras: tuple[Lora, ...]) -> LruCache[Encoded]:
        """Return the cache of prompts encoded with these LoRAs. All calls that run at one time have the same LoRAs."""
        with self._guard:
            if loras is not self._prompt_cache_loras:
                self._prompt_cache.clear()
                self._prompt_cache_loras = loras
        return self._prompt_cache

    def _sampler(self, job: Job) -> tuple[SchedulerSpec, Sampler]:
        part = job.task.schedule_range

        def find() -> tuple[SchedulerSpec, Sampler]:
            return sampler_for(job.scheduler, self.plan.scheduler, job.steps, self.plan.samplers, part)

        name = job.scheduler.to_json() if isinstance(job.scheduler, SchedulerSpec) else job.scheduler
        if name is None or isinstance(name, str):
            return self._samplers((type(job.scheduler), name, job.steps, part), find)
        return find()  # an object may have changed since its last call

    def _noise(self, job: Job) -> BatchNoise:
        sizes = self.plan.profile.sizes(batch=len(job.seeds), height=job.height, width=job.width)
        _, *shape = self.plan.latents.shape(sizes)
        return BatchNoise(job.seeds, (shape[0], shape[1], shape[2]))

    def _event(self, work: ResolvedCall, run: SamplerRun, i: int, result: Result | None = None) -> Event:
        def preview() -> list[GeneratedImage]:
            return self._decode_images(work, run.preview(i))

        return Event(step=i + 1, total=work.sampler.calls, preview=preview, result=result)

    def _output(self, work: ResolvedCall, latents: Floats) -> Any:
        if work.job.output_type == "latent":
            return latents
        if work.job.output_type == "np":
            return to_unit_range(self._codec.decode(latents, work.tiling))
        return self._decode_images(work, latents)

    def _decode_images(self, work: ResolvedCall, latents: Floats) -> list[GeneratedImage]:
        return self._to_images(work, to_uint8(self._codec.decode(latents, work.tiling)))

    def _to_images(self, work: ResolvedCall, pixels: NDArray[np.uint8]) -> list[GeneratedImage]:
        backend = self.component("unet").runner.backend
        return [image_from_pixels(p, png_metadata(self.plan, work, i, backend)) for i, p in enumerate(pixels)]

    def _report(self, work: ResolvedCall, watch: Stopwatch, notes: tuple[str, ...]) -> Report:
        return build_report(self.plan, work, tuple(self._opened.values()), watch.seconds, notes)
