"""Calotype as a contender: the worker that `peers/serve.py` serves, with the same protocol as every peer.

A job with a plan opens it as a user would. A job without one opens the model itself (the backends eager and fake). For
the fake backend, `settings` contain planted faults: {"sleep_ms": {"unet": 5}, "error": 0.1}.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import calotype
from calotype.backends import ON_GPU, LoadedComponent
from calotype.backends.base import Runner, Session
from calotype.images.arrays import load_image_array
from calotype.sampling.fitted import FittedSamplers
from calotype.sampling.schedulers import SchedulerSpec
from calotype.system import threads
from calotype.system.switches import DISABLE_VARIABLE

Arrays = Mapping[str, NDArray[Any]]


class Peer:
    """See `PeerLike` in peers/serve.py."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}
        self.synchronizes = False
        self._calls = 0

    def unsupported_reason(self, job: Mapping[str, Any]) -> str | None:
        """Return None: the build of the plan finds out what cannot run."""
        return None

    def load(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Open the plan or the model, with the U-Net, the decoder and the text encoders."""
        self._settings = job["settings"]
        os.environ[DISABLE_VARIABLE] = ",".join(self._settings.get("without", ()))
        source = job["plan"] or job["model"]
        controlnets = () if job["plan"] else job["controlnets"]
        precision = "auto" if job["plan"] else "fp32"  # a plan has its own; only float32 has none
        self._pipe = calotype.load(source, backend=job["backend"], precision=precision, controlnet=controlnets)
        self._arguments = _arguments(job) | self._settings.get("arguments", {})
        if "calls" in self._arguments:
            _fit(self._pipe, self._arguments, judged=job["judged"])
        self._ballast = np.ones(self._settings.get("hold_mib", 0) << 17)
        opened = {n: self._pipe.component(n) for n in self._pipe.plan.components if n != "vae_encoder"}
        self._runners = {
            component: (component.runner, _Timed(component.runner, name, self.parts, self._settings))
            for name, component in opened.items()
        }
        self._may_capture_graph = job["backend"] in ON_GPU  # an image may be one graph, without parts to time
        return {
            "notes": list(dict.fromkeys(note for component in opened.values() for note in component.runner.notes)),
            "threads": threads.available(),
            "artifact_bytes": sum(p.stat().st_size for p in _files(opened.values())),
            "versions": {},  # those of the run: the interpreter is the same
            "precisions": {name: component.runner.precision for name, component in opened.items()},
        }

    def generate(self, prompts: Sequence[str], negative: str | None, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Return uint8 [B, H, W, 3]."""
        self.parts.clear()
        for component, (bare, timed) in self._runners.items():
            component.runner = bare if self._may_capture_graph and not self.synchronizes else timed
        self._calls += 1
        if self._calls == self._settings.get("die_at"):
            os.kill(os.getpid(), signal.SIGSEGV)
        result = self._pipe(list(prompts), negative_prompt=negative, seed=list(seeds), **self._arguments)
        return np.stack([np.asarray(image) for image in result.images])

    def device_peak_bytes(self) -> int | None:
        """Return PyTorch's own count: our GPU backends allocate through it."""
        torch = sys.modules.get("torch")  # do not import it only for this: a plan on a CPU does not need it
        return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_initialized() else None


class _Timed(Runner):
    """A runner with a timer; on the fake backend also with faults."""

    def __init__(self, runner: Runner, name: str, parts: dict[str, list[float]], settings: Mapping[str, Any]) -> None:
        self._runner, self._name, self._parts = runner, name, parts
        self._sleep_s = settings.get("sleep_ms", {}).get(name, 0) / 1e3
        self._error = settings.get("error", 0.0) if name == "vae_decoder" else 0.0
        self.backend, self.precision, self.notes = runner.backend, runner.precision, runner.notes

    def session(
        self, constants: Arrays, timesteps: NDArray[np.float32], *, guided: bool, cache_interval: int
    ) -> Session[NDArray[Any]]:
        """Return the runner's session with a timer around each call."""
        if type(self._runner).session is Runner.session:  # its calls are those of the full network
            return super().session(constants, timesteps, guided=guided, cache_interval=cache_interval)
        calls = self._runner.session(constants, timesteps, guided=guided, cache_interval=cache_interval)

        def timed(call: int, sample: NDArray[Any], changing: Arrays) -> dict[str, NDArray[Any]]:
            began = time.perf_counter()
            outputs = calls(call, sample, changing)
            self._parts.setdefault(self._name, []).append(time.perf_counter() - began)
            return outputs

        return timed

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        began = time.perf_counter()
        outputs: dict[str, NDArray[Any]] = self._runner(inputs)
        if self._error:
            noise = np.random.default_rng(0).standard_normal(outputs["sample"].shape, dtype=np.float32)
            outputs = {"sample": outputs["sample"] + np.float32(self._error) * noise}
        if self._sleep_s:
            time.sleep(self._sleep_s)
        self._parts.setdefault(self._name, []).append(time.perf_counter() - began)
        return outputs


def _arguments(job: Mapping[str, Any]) -> dict[str, Any]:
    scheduler = job["scheduler"]
    spec = SchedulerSpec(name=scheduler["name"], class_name=scheduler["class"], config=scheduler["config"])
    arguments = {name: job[name] for name in ("height", "width", "steps")}
    arguments |= {"guidance_scale": job["guidance"], "scheduler": spec}
    images = [load_image_array("control_image", np.load(path)) for path in job["control_images"]]
    return arguments | ({"control_image": images if len(images) > 1 else images[0]} if images else {})


def _fit(pipe: calotype.Pipeline, arguments: Mapping[str, Any], *, judged: bool) -> None:
    """Fit the sampler of a job if none is stored. Random weights give words no meaning, so one prompt is enough."""
    calls, spec, steps = (arguments[name] for name in ("calls", "scheduler", "steps"))
    if FittedSamplers(pipe.plan.fingerprint, pipe.plan.samplers).find(spec, steps, calls) is not None:
        return
    options: dict[str, Any] = {"scheduler": spec, "steps": steps}
    options |= {name: arguments[name] for name in ("height", "width")}
    if not judged:
        scale = arguments["guidance_scale"]
        options |= {"guidance": (scale, scale), "calibration": 1, "images": False, "unchecked": True}
    pipe.fit(calls, **options)


def _files(opened: Iterable[LoadedComponent]) -> set[Path]:
    """Return the files of the opened artifacts."""
    paths = [component.artifact.path for component in opened]
    files = [p for path in paths for p in (path.glob("*") if path.is_dir() else path.parent.glob(f"{path.name}*"))]
    return {p for p in files if p.is_file()}
