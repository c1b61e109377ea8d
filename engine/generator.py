"""From a prompt to images: text, noise, steps, pixels. The order of the work, for every family and task.

`stages` are the parts of the work, `backends` runs the networks, and `sampling` computes the schedule.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .backends.compatibility import version_drift_note
from .backends.components import CLOSED, Components
from .backends.session import NetworkCall, NetworkCalls, Outputs, run_for
from .cuda.device import free_bytes
from .errors import BackendError, Cancelled, DeviceFullError
from .graph.capacity import with_fitting_size
from .graph.runner import GraphPipelineManager
from .images.png import GeneratedImage, to_uint8, to_unit_range
from .lora.manager import LoraManager, scaled
from .lora.prompt_tags import PromptTags
from .plan.plan import Plan
from .report.metadata import build_result, to_images
from .report.progress import with_progress
from .report.result import Event, Result, joined
from .request.callback import REASON as CALLBACK
from .request.images import SOFT_MASK
from .request.prompts import tokenizers_of
from .request.resolved import ResolvedRequest, resolve
from .request.video.memory import check_clip_memory
from .sampling.cache import BuiltSampler, SamplerCache
from .sampling.matrix import SamplerRun
from .sampling.schedulers import takes_eta
from .stages.batches import parts_of
from .stages.conditions import with_image, with_perturbed
from .stages.controls import AdapterFeatures, no_residuals
from .stages.denoise_inputs import DenoiseInputs, prepare
from .stages.fewer_calls import FewerCalls
from .stages.generation import Generation
from .stages.hires import second_pass
from .stages.image_prompts import ImagePrompter
from .stages.loop import guidance_of, step
from .stages.prompt_encoder import PromptEncoder
from .stages.step_callback import StepCallback
from .stages.style.reference import StyleInputs, alone, inputs_of_reference, style_reference
from .stages.unet import Unet
from .stages.vae import Codec
from .system import forks
from .system.memory import available_bytes, check_memory, peak_bytes
from .upscaling.load import UpscalerCache

Floats = NDArray[np.float32]
Work: TypeAlias = "Generator[NetworkCall | Event, Outputs | None, None]"


class ImageGenerator:
    """The stages of a loaded model in their order. Threads may share it."""

    def __init__(self, plan: Plan, components: Components) -> None:
        self._plan, self._components = plan, components
        self.codec = Codec(plan, components, lambda: free_bytes() if components.on_gpu else None)
        self.loras = LoraManager(plan, components)
        self.prompt_tags: PromptTags | None = None  # set by `load(lora_folder=)`
        self._tokenizers, self._version_note = tokenizers_of(plan), version_drift_note(plan)
        self._prompts = PromptEncoder(plan, components)
        self._image_prompts = ImagePrompter(plan, components)
        self._features = AdapterFeatures(plan, components)
        self._samplers = SamplerCache(plan.scheduler, plan.samplers)
        self._fewer_calls = FewerCalls(plan, self._samplers)
        self._graph = GraphPipelineManager(plan, components)
        self._upscalers = UpscalerCache(components.choice)

    def start(self, prompt: Any, arguments: Mapping[str, Any], stop: threading.Event) -> Generation:
        """Check a call before its work. Raises `InputError` and `SamplerError`."""
        forks.check()
        if self._components.is_closed:
            raise BackendError(CLOSED)
        if self.prompt_tags is not None:
            prompt = self.prompt_tags.apply(prompt, self.loras)
        resolved = resolve(prompt, arguments, self._plan, self._tokenizers)
        if not self._components.on_gpu:  # a GPU keeps no attention scores, and raises when it is full
            largest = resolved.hires or resolved
            size = {"height": largest.height, "width": largest.width}
            loads = [load for load in self._plan.loads if load.guided]  # the VAE splits its work to fit
            batch = self._plan.profile.batches(len(resolved.seeds))[0]
            if resolved.clip is not None:
                more: dict[str, Any] = {"free": available_bytes(), "scores": not self._components.runs_eagerly}
                more |= {"clips": batch, "rows": resolved.rows, **size}
                check_clip_memory(self._plan, resolved.clip, **more)
            else:
                need = peak_bytes(loads, batch=batch * resolved.rows, **size, guided=False)
                check_memory(need, available_bytes())
        notes = [] if self._version_note is None else [self._version_note]
        with forks.running():
            spec, sampler = self._sampler(resolved, notes)
        call = Generation(request=resolved, spec=spec, sampler=sampler, stop=stop, notes=notes)
        if resolved.calls is not None or resolved.min_psnr is not None:
            with forks.running():
                self._fewer_calls(call, scaled(self.loras.loras, resolved.lora_scale))
        if resolved.lora_scale != 1 and not self.loras.loras:
            call.notes.append("lora_scale has no effect: no LoRA is active")
        if resolved.hires is not None:
            call.upscaler = self._upscalers(resolved.hires.upscaler)
            call.second = self._second(call)
        return call

    def close(self) -> None:
        """Close all networks after the running calls, and drop what is kept for later ones."""
        with self.loras.closing():
            self._components.close()
            self._graph = GraphPipelineManager(self._plan, self._components)
            self._upscalers = UpscalerCache(self._components.choice)
            self._prompts.clear()
            self._image_prompts.clear()
            self._features.clear()

    @property
    def prompt_bytes(self) -> int:
        """The bytes of the encoded prompts and images that are kept."""
        return self._prompts.kept_bytes + self._image_prompts.kept_bytes + self._features.kept_bytes

    def _sampler(self, request: ResolvedRequest, notes: list[str]) -> BuiltSampler:
        """Return the compiled sampler of a request. An eta that its scheduler lacks changes nothing, and is noted."""
        schedule_range = request.schedule_range
        if schedule_range.eta and not takes_eta(request.scheduler, self._plan.scheduler):
            notes.append("eta has no effect: only ddim and tcd take it")
            schedule_range = replace(schedule_range, eta=0.0)
        reason = CALLBACK if request.callback is not None else SOFT_MASK if request.soft_mask else ""
        if reason:
            return self._samplers.running_itself(request.scheduler, request.steps, schedule_range, reason)
        return self._samplers(request.scheduler, request.steps, schedule_range)

    def _second(self, call: Generation) -> Generation:
        """Return the second pass of `hires`, which makes all calls of its schedule."""
        request = call.request.second_pass()
        with forks.running():
            spec, sampler = self._sampler(request, [])
        if call.calls is not None:
            call.notes.append("the second pass ran all calls of its schedule (hires)")
        return Generation(
            request=request, spec=spec, sampler=sampler, stop=call.stop, notes=call.notes, earlier=call.sampler.calls
        )

    def generate(self, call: Generation) -> Result:
        """Run a call to its end: as one CUDA graph where possible, else step by step."""
        events = self.stream(call, as_graph=True)
        *_, last = with_progress(events) if call.request.progress else events
        assert last.result is not None
        return last.result

    def stream(self, call: Generation, *, as_graph: bool = False) -> Iterator[Event]:
        """Run a call, and yield an event after each step of each batch. The last one has the result.

        Args:
            call: what `start` returned.
            as_graph: run all steps as one CUDA graph where possible, with one event.

        Raises:
            Cancelled: `call.stop` is set.
            BackendError: a backend failed; DeviceFullError: the GPU is full; NotFiniteError: numbers are not finite.
        """
        with self.loras.lock_weights(call.request.lora_scale) as call.loras:
            parts = self.parts(call)
            yield from self._alone(parts[0], as_graph) if len(parts) == 1 else self._of_all(parts, as_graph)

    def parts(self, call: Generation, largest: int | None = None) -> list[Generation]:
        """Return the batches of a call, of at most `largest` images, with the LoRAs that `lock_weights` has set."""
        for each in call.passes:
            each.loras = call.loras
        return parts_of(call, self._plan.profile, largest)

    def work(self, call: Generation, *, as_graph: bool = False) -> Work:
        """Yield each call of a network in the steps, which takes its outputs, and an event after each step.

        The caller holds `loras.lock_weights`. Arguments and errors are those of `stream`.
        """
        try:
            yield from self._work(call, as_graph)
        except DeviceFullError as full:
            raise with_fitting_size(full, self._plan, call.passes[-1].request) from None

    def _alone(self, call: Generation, as_graph: bool) -> Iterator[Event]:
        """Run the work of one batch, and yield its events."""
        outputs: Outputs | None = None
        with closing(self.work(call, as_graph=as_graph)) as work:
            while True:
                with forks.running():
                    try:
                        item = work.send(outputs)
                    except StopIteration:
                        return
                    outputs = run_for(work, item) if isinstance(item, NetworkCall) else None
                if isinstance(item, Event):
                    yield item

    def _of_all(self, parts: Sequence[Generation], as_graph: bool) -> Iterator[Event]:
        """Run the batches of a call one after another, as one stream."""
        results: list[Result] = []
        total = sum(part.total for part in parts)
        for i, part in enumerate(parts):
            done = i * part.total
            try:
                for event in self._alone(part, as_graph):
                    results += [] if event.result is None else [event.result]
                    result = joined(results) if len(results) == len(parts) else None
                    yield replace(event, step=done + event.step, total=total, result=result)
            except Cancelled as ended:
                step = done + (ended.step or 0)
                raise Cancelled(f"cancelled after {step} of {total} steps.", step=step, total=total) from None

    def _work(self, call: Generation, as_graph: bool) -> Work:
        if call.stop.is_set():
            raise Cancelled(f"cancelled after 0 of {call.total} steps.", step=0, total=call.total)
        for each in call.passes:
            inputs = prepare(self._plan, each.request, self.codec, each.watch)
            call.notes += [inputs.tiling.note] if inputs.tiling.note else []
            last = each is call.passes[-1]
            if last and as_graph and self._components.on_gpu and self._graph.on_device:
                pixels = self._graph(each, inputs)
                if pixels is not None:
                    yield Event(step=call.total, total=call.total, preview=list, result=self._result(call, pixels))
                    return
            run = each.sampler.run(inputs.noise, inputs.draw, seeds=each.request.seeds, original=inputs.source)
            unet, guidance = self.denoiser(each, inputs), guidance_of(each)
            if each.request.style is not None and each.request.style.image is not None:
                yield from self._set_reference(each, inputs, unet)
            callback = None if each.request.callback is None else StepCallback(each, unet)
            for i in range(each.sampler.calls):
                with each.watch.stage("steps"):
                    yield from step(unet.calls, guidance, each, run, i)
                if callback is not None:
                    callback(i, run)

                def decode(run: SamplerRun = run, i: int = i, inputs: DenoiseInputs = inputs) -> list[GeneratedImage]:
                    pixels = to_uint8(self.codec.decode(run.preview(i), inputs.tiling))
                    return to_images(self._plan, call, pixels, self._components.opened)

                result = None
                if run.ended:
                    result = self._end(call, each, run.latents(), inputs)
                yield Event(step=each.earlier + i + 1, total=call.total, preview=decode, result=result)
                if run.ended:  # a callback may end a run before its last call
                    break

    def _end(self, call: Generation, ended: Generation, latents: Floats, inputs: DenoiseInputs) -> Result | None:
        """Return the result of the last pass; after the first of two, hand the enlarged image to the second."""
        if ended is call.passes[-1]:
            with ended.watch.stage("decode"):
                output = self._output(ended, latents, inputs)
            return self._result(call, output)
        hires = call.request.hires
        assert call.second is not None
        assert hires is not None
        upscale = None if call.upscaler is None else call.upscaler.upscale_pixels
        with call.second.watch.stage("enlarge"):
            call.second.request = second_pass(call.second.request, hires, latents, self.codec, inputs.tiling, upscale)
        return None

    def denoiser(self, call: Generation, inputs: DenoiseInputs) -> Unet:
        """Return the U-Net with the call's text. Runs the text encoders."""
        with call.watch.stage("text"):
            conditioning = with_perturbed(call.request, self._prompts(call.request, call.loras))
            conditioning |= inputs.micro_conditioning
            if self._plan.image_input is not None:
                conditioning = with_image(self._plan, call.request, conditioning)
            conditioning |= self._image_prompts(call.request) | self._features(call.request)
        return Unet(self._plan, call, self._components, conditioning, inputs.extra_channels)

    def _set_reference(self, call: Generation, inputs: DenoiseInputs, unet: Unet) -> NetworkCalls[None]:
        """Invert the style image of a call, and give its U-Net the reference."""
        plan, request = self._plan, alone(call.request)
        with call.watch.stage("style"):
            text = self._prompts(request, call.loras)
            reads = StyleInputs(
                unet=self._components("unet"),
                inputs=inputs_of_reference(unet.conditioning, text, len(call.request.seeds)),
                residuals=no_residuals(plan, request, 1),
                has_mask=plan.inpaints,
                stops=call.stop.is_set,
            )
            timesteps = call.sampler.timesteps
            unet.reference = yield from style_reference(
                call.request, plan.scheduler, timesteps, self.codec.encode, reads
            )

    def _output(self, call: Generation, latents: Floats, inputs: DenoiseInputs) -> NDArray[Any]:
        """Return the latents, or pixels: float32 in [0, 1] or uint8, [B, H, W, 3]."""
        if call.request.output_type == "latent":
            return latents
        pixels = self.codec.decode(latents, inputs.tiling)
        return to_uint8(pixels) if call.request.output_type == "pil" else to_unit_range(pixels)

    def _result(self, call: Generation, output: NDArray[Any]) -> Result:
        upscaler = () if call.upscaler is None else (call.upscaler.component,)
        return build_result(self._plan, call, output, (*self._components.opened, *upscaler))
