"""From a prompt to pictures: text, noise, steps, pixels. One pipeline for every family and task.

Knows the order of the work; what runs each network is behind `backends`, what a schedule is behind `sampler`.
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
_OF_TORCH = ("eager", "cuda", *COMPILED)  # backends whose work PyTorch's profiler sees

_PROMPTS = 64  # whose encoding is remembered: 0.2 MB for each chunk of Stable Diffusion 1, 0.6 MB of XL
_SCHEDULES = 32


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a call gives: the pictures (or arrays, by `output_type`), their seeds, and the report."""

    images: Any  # list[Picture], float32 [N, H, W, 3] in [0, 1], or latents float32 [N, C, h, w]
    seeds: tuple[int, ...]
    report: Report


@dataclass(frozen=True, kw_only=True)
class Event:
    """One step is done. The last event of a stream carries the `result`.

    `preview()` decodes the clean pictures as they look from this step; it costs one run of the VAE decoder, and is to
    be called before the stream goes on.
    """

    step: int
    total: int
    preview: Callable[[], list[GeneratedImage]]
    result: Result | None = None


class Pipeline(KnownAttributes):
    """A loaded model. Calls may come from several threads; `cancel` ends those that are under way."""

    plan: Plan

    def __init__(
        self, plan: Plan, choice: BackendSelection, planned: Callable[[str], PlannedComponent] | None = None
    ) -> None:
        """`planned` gives a component with its artifacts when it is opened; without it the plan has them all."""
        self.plan = plan
        self._choice = choice
        self._planned = planned or plan.components.__getitem__
        self._opened: dict[str, LoadedComponent] = {}
        self._opening = forks.Lock()
        self._guard = forks.Lock()
        self._under_way: weakref.WeakSet[threading.Event] = weakref.WeakSet()
        self._tokenizers = tokenizers_of(plan)
        self._codec = Codec(plan, self.component, lambda: free_bytes() if self._on_gpu else None)
        self._denoiser = Denoisers(plan, self.component)
        self._whole = GraphPipelineManager(plan, self._tokenizers, self.component)
        self._adapters = LoraManager(plan, self.component)
        self._texts: LruCache[Encoded] = LruCache(_PROMPTS)
        self._texts_of: tuple[Lora, ...] = ()  # the LoRAs that were in force when they were encoded
        self._samplers: LruCache[tuple[SchedulerSpec, Sampler]] = LruCache(_SCHEDULES)
        for name in (*plan.tokenizers, "unet", "vae_decoder"):  # others are opened by the first picture that needs them
            if name in plan.components:
                self.component(name)

    def __call__(self, prompt: Any = None, **arguments: Any) -> Result:
        """Make pictures; the arguments are those of `Request`, and only a model without text goes without a prompt.

        Raises `InputError`, `SamplerError`, `Cancelled`."""
        work, stop = self._begun(prompt, arguments)
        notes: tuple[str, ...] = ()
        if self._whole.on_device:
            with self._adapters.held() as loras:
                result, notes = self._at_once(replace(work, loras=loras), stop)
            if result is not None:
                return result
        *_, last = self._run(work, stop, notes)
        assert last.result is not None
        return last.result

    def stream(self, prompt: Any = None, **arguments: Any) -> Iterator[Event]:
        """The same work step by step: one `Event` a step. Closing the stream between two steps abandons the picture.

        The arguments are checked before the first event is asked for.
        """
        return self._run(*self._begun(prompt, arguments))

    def profile(self, path: str | Path, prompt: Any = None, **arguments: Any) -> Result:
        """Make pictures as a call does, and write when what was done to `path`: a Chrome trace, in JSON.

        Where PyTorch has a part, its operators and a GPU's kernels are in it too. Raises what a call raises, and
        `InputError` where the file cannot be written.
        """
        by_torch = any(o.runner.backend in _OF_TORCH for o in tuple(self._opened.values()))
        with traced(Path(path), by_torch=by_torch):
            return self(prompt, **arguments)

    @property
    def _on_gpu(self) -> bool:
        return "unet" in self._opened and self._opened["unet"].runner.backend in ON_GPU

    def _begun(self, prompt: Any, arguments: Mapping[str, Any]) -> tuple[ResolvedCall, threading.Event]:
        """All questions answered, and what `cancel` sets."""
        forks.check()
        stop = threading.Event()
        with self._guard:
            self._under_way.add(stop)  # for as long as the work lives
        job = resolve(parse_request(prompt, arguments), self.plan)
        size = {"height": job.height, "width": job.width}
        loads = [load for load in self.plan.loads if load.guided]  # the autoencoder's go in portions that fit
        if not self._on_gpu:  # which keeps no attention scores, and tells when it is full
            check_memory(peak_bytes(loads, batch=len(job.seeds), **size, guided=job.guided), available_bytes())
        with forks.running():
            spec, sampler = self._sampler(job)
        tiling = self._codec.tiling(len(job.seeds), job.height, job.width)
        return ResolvedCall(job=job, spec=spec, sampler=sampler, tiling=tiling), stop

    def cancel(self) -> None:
        """End every call and every stream under way at its next step, with `Cancelled`; from any thread."""
        with self._guard:
            for stop in self._under_way:
                stop.set()

    def component(self, name: str) -> LoadedComponent:
        """The component with its runner, opened at first use, and traced before that where nothing has needed it yet.

        Raises `SourceError` where it cannot be traced from the model's files, `BackendError` where no backend opens it.
        """
        opened = self._opened.get(name)
        if opened is None:
            with self._opening:  # others that are open are used meanwhile: a trace takes seconds
                opened = self._opened.get(name)
                if opened is None:
                    opened = self._opened[name] = open_component(self._planned(name), self._choice)
        opened.reopen_after_fork()
        return opened

    @with_known_names({})
    def set_lora(self, lora: LoraLike = None) -> None:
        """Paint with these LoRAs from now on, in place of those before; with None, with the model's own weights.

        What diffusers does in `load_lora_weights`, `set_adapters` and `unload_lora_weights`. Nothing is built or
        exported anew. It waits for the pictures under way (`cancel` ends them), and those asked for meanwhile wait for
        it. Where it fails, all is as it was; where that fails as well, pictures are refused until a call succeeds.

        Args:
            lora: a .safetensors file of diffusers, peft or kohya, or a folder as diffusers saves a LoRA; "FILE:0.8",
                (FILE, 0.8) or {FILE: 0.8} for a weight other than 1, from -10 to 10; or a list of these, all of which
                are added. A weight of 0 leaves a file out.

        Raises:
            SourceError: a file is missing, is no LoRA, or has a tensor without a place in the model, which is named;
            BackendError: the backend cannot change these weights; InputError: a stream of this thread is under way.
        """
        self._adapters.set(lora)

    @property
    def loras(self) -> tuple[tuple[str, float], ...]:
        """The LoRAs in force, as (file, weight)."""
        return tuple((str(lora.path), lora.weight) for lora in self._adapters.loras)

    @with_known_names({})
    def encode(self, image: Any, *, tile: int | None = None, sliced: bool = False) -> Floats:
        """A picture, or several of one size, to latents of the U-Net.  # -> float32 [B, C, h, w]

        Args:
            image: what `Request.image` takes, resized down to sizes that the autoencoder divides (8 pixels).
            tile: work in tiles of so many pixels a side; unsaid, as much at once as fits into the memory that is free.
            sliced: picture by picture.

        Raises:
            InputError: the picture or the tile is none.
        """
        pictures = [load_image_array("image", picture) for picture in as_list(image)]
        if not pictures:
            raise InputError("image must be a picture, or a list of pictures that is not empty.")
        factor = self.plan.profile.factor
        height, width = (max(side // factor, 1) * factor for side in pictures[0].shape[:2])
        pixels = batch(pictures, len(pictures), height, width)
        return self._codec.encode(pixels, tiling=self._codec.tiling_from(sliced, tile))

    @with_known_names({})
    def decode(
        self, latents: Floats, *, output_type: str = "pil", tile: int | None = None, sliced: bool = False
    ) -> Any:
        """Latents of the U-Net to pictures: PIL's, or "np": float32 [B, H, W, 3] in [0, 1].  # [B, C, h, w]

        `tile` and `sliced` are as in `encode`. Raises `InputError`.
        """
        tiling = self._codec.tiling_from(sliced, tile)
        if output_type not in ("pil", "np"):
            raise InputError(f"output_type must be pil or np, got {output_type!r}.")
        if (
            not isinstance(latents, np.ndarray)
            or latents.ndim != 4
            or latents.shape[1] != self._codec.channels
            or 0 in latents.shape
            or latents.dtype.kind not in "biuf"
        ):
            is_array = isinstance(latents, np.ndarray)
            got = f"{latents.dtype} {list(latents.shape)}" if is_array else type(latents).__name__
            raise InputError(f"latents are an array [B, {self._codec.channels}, h, w] of numbers; got {got}.")
        pixels = self._codec.decode(latents, tiling)
        return to_unit_range(pixels) if output_type == "np" else [image_from_pixels(p, {}) for p in to_uint8(pixels)]

    def _at_once(self, work: ResolvedCall, stop: threading.Event) -> tuple[Result | None, tuple[str, ...]]:
        """The result as one graph; or None, and the note that says why it is painted step by step."""
        if stop.is_set():
            raise Cancelled(f"cancelled after 0 of {work.sampler.calls} steps.")
        watch, draw = Stopwatch(), self._noise(work.job)

        def tiling_from() -> GraphInputs:
            with watch.stage("encode") if work.job.task.image is not None else nullcontext():
                ready = prepare_latents(self.plan, work.job, self._codec, draw, work.tiling)
            return GraphInputs(job=work.job, sampler=work.sampler, ready=ready, draw=draw)

        whole = work.tiling == VaeTiling()
        pixels, notes = self._whole.run(work.job, work.sampler, tiling_from, watch, whole=whole)
        if pixels is None:
            return None, notes
        return Result(
            images=self._drawn(work, pixels), seeds=work.job.seeds, report=self._report(work, watch, notes)
        ), notes

    def _run(self, work: ResolvedCall, stop: threading.Event, before: tuple[str, ...] = ()) -> Iterator[Event]:
        with self._adapters.held() as loras:
            events = self._painting(replace(work, loras=loras), stop, before)
            while True:
                with forks.running():
                    event = next(events, None)
                if event is None:
                    return
                yield event

    def _painting(self, work: ResolvedCall, stop: threading.Event, before: tuple[str, ...]) -> Iterator[Event]:
        watch, sampler, job = Stopwatch(), work.sampler, work.job
        with annotate_out_of_memory(self.plan, job):
            with watch.stage("text"):
                memory = self._memory(work.loras)
                conditioning, notes = condition(self.plan, self._tokenizers, self.component, job, memory)
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
        report = self._report(work, watch, (*notes, *before))
        yield self._event(work, run, sampler.calls - 1, Result(images=images, seeds=work.job.seeds, report=report))

    def _memory(self, loras: tuple[Lora, ...]) -> LruCache[Encoded]:
        """Of prompts, as these weights encode them: all pictures that are painted at one time have the same."""
        with self._guard:
            if loras is not self._texts_of:
                self._texts.clear()
                self._texts_of = loras
        return self._texts

    def _sampler(self, job: Job) -> tuple[SchedulerSpec, Sampler]:
        def find() -> tuple[SchedulerSpec, Sampler]:
            return sampler_for(
                job.scheduler, self.plan.scheduler, job.steps, self.plan.samplers, job.task.schedule_range
            )

        said = job.scheduler.to_json() if isinstance(job.scheduler, SchedulerSpec) else job.scheduler
        if said is None or isinstance(said, str):
            return self._samplers((type(job.scheduler), said, job.steps, job.task.schedule_range), find)
        return find()  # an object may have changed since

    def _noise(self, job: Job) -> BatchNoise:
        sizes = self.plan.profile.sizes(batch=len(job.seeds), height=job.height, width=job.width)
        _, *shape = self.plan.latents.shape(sizes)
        return BatchNoise(job.seeds, (shape[0], shape[1], shape[2]))

    def _event(self, work: ResolvedCall, run: SamplerRun, i: int, result: Result | None = None) -> Event:
        def preview() -> list[GeneratedImage]:
            return self._pictures(work, run.preview(i))

        return Event(step=i + 1, total=work.sampler.calls, preview=preview, result=result)

    def _output(self, work: ResolvedCall, latents: Floats) -> Any:
        if work.job.output_type == "latent":
            return latents
        if work.job.output_type == "np":
            return to_unit_range(self._codec.decode(latents, work.tiling))
        return self._pictures(work, latents)

    def _pictures(self, work: ResolvedCall, latents: Floats) -> list[GeneratedImage]:
        return self._drawn(work, to_uint8(self._codec.decode(latents, work.tiling)))

    def _drawn(self, work: ResolvedCall, pixels: NDArray[np.uint8]) -> list[GeneratedImage]:
        backend = self.component("unet").runner.backend
        return [image_from_pixels(p, png_metadata(self.plan, work, i, backend)) for i, p in enumerate(pixels)]

    def _report(self, work: ResolvedCall, watch: Stopwatch, notes: tuple[str, ...]) -> Report:
        return build_report(self.plan, work, tuple(self._opened.values()), watch.seconds, notes)
