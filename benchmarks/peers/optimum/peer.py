"""Optimum's ONNX Runtime pipelines on a plan's folder, which they read as it lies there.

settings {"provider": "CPUExecutionProvider" | "CUDAExecutionProvider" | "TensorrtExecutionProvider"}; the first where
nothing is said. ONNX Runtime falls back to its CPU provider with no more than a log line, so every session is asked
what it runs on. The graphs are fp32; TensorRT alone can lower them (fp16) by itself. A job and a `Peer` are described
in `serve.py`; `paint.py` beside this is another program's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

_CPU, _TENSORRT = "CPUExecutionProvider", "TensorrtExecutionProvider"
_PACKAGES = ("optimum", "optimum-onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt-cu13", "diffusers", "torch")
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_PARTS = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")


class Peer:
    """One pipeline of Optimum."""

    PROVIDER = _CPU  # where the settings name none

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}
        self.waits = False
        self._pipe: Any = None
        self._job: Mapping[str, Any] = {}

    def cannot(self, job: Mapping[str, Any]) -> str | None:
        provider, precision = self._provider(job), job["precision"]
        if job["controlnets"]:
            return "Optimum's ONNX Runtime pipelines know no ControlNets"
        if job["plan"] is None:
            return "it runs ONNX files, and there is no plan in Optimum's layout for this model"
        kind = json.loads((Path(job["plan"]) / "model_index.json").read_text())["_class_name"]
        if kind not in _PIPELINES:
            return f"this suite has Optimum paint with {' and '.join(_PIPELINES)}, not with {kind}"
        if precision != "fp32" and (precision, provider) != ("fp16", _TENSORRT):
            return f"the graphs that it is given are fp32, and {provider} does not make {precision} of them"
        if (provider == _CPU) != (job["device"] == "cpu"):
            needs = "runs on the CPU" if provider == _CPU else "needs an NVIDIA GPU"
            return f"{provider} {needs}, and this run is on {job['device']}"
        return _cannot_here(provider, job["scheduler"]["class"])

    def load(self, job: Mapping[str, Any]) -> dict[str, Any]:
        from optimum import onnxruntime

        self._job = job
        plan, provider = Path(job["plan"]), self._provider(job)
        kind = json.loads((plan / "model_index.json").read_text())["_class_name"]
        self._pipe = getattr(onnxruntime, f"ORT{kind}").from_pretrained(
            plan,
            provider=provider,
            provider_options=_provider_options(provider, job),
            session_options=_session_options(job["threads"]),
        )
        self._take_scheduler()
        taken = {name: getattr(self._pipe, name) for name in _PARTS if getattr(self._pipe, name, None) is not None}
        for name, part in taken.items():
            if provider not in part.session.get_providers():
                raise RuntimeError(f"ONNX Runtime did not take {provider} for {name}: {part.session.get_providers()}")
            part.forward = self._timed(name, part.forward)
        return {
            "threads": job["threads"],
            "artifact_bytes": sum(path.stat().st_size for name in taken for path in (plan / name).iterdir()),
            "versions": _versions(),
        }

    def paint(self, prompts: Sequence[str], negative: str | None, seeds: Sequence[int]) -> np.ndarray[Any, Any]:
        import torch

        job, self.parts = self._job, {}
        images = self._pipe(
            prompt=list(prompts),
            negative_prompt=None if negative is None else [negative] * len(prompts),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            num_inference_steps=job["steps"],
            guidance_scale=job["guidance"],
            height=job["height"],
            width=job["width"],
            output_type="pil",
        ).images
        return np.stack([np.asarray(image) for image in images])

    def device_peak_bytes(self) -> int | None:
        return None  # ONNX Runtime does not tell of its arena

    def _provider(self, job: Mapping[str, Any]) -> str:
        said: str = job["settings"].get("provider", self.PROVIDER)
        return said

    def _take_scheduler(self) -> None:
        import diffusers

        scheduler = self._job["scheduler"]
        self._pipe.scheduler = getattr(diffusers, scheduler["class"]).from_config(scheduler["config"])
        self._pipe.set_progress_bar_config(disable=True)

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Answers lie on the host, or are waited for by ONNX Runtime: no need to synchronize."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            out = call(*args, **kwargs)
            self.parts.setdefault(name, []).append(time.perf_counter() - began)
            return out

        return timed


def _cannot_here(provider: str, scheduler: str) -> str | None:
    import diffusers
    import onnxruntime
    import torch

    if not hasattr(diffusers, scheduler):
        return f"the diffusers {diffusers.__version__} that Optimum works with has no {scheduler}"
    if provider not in onnxruntime.get_available_providers():
        return f"the ONNX Runtime in this environment was built without {provider}"
    if provider != _CPU and not torch.cuda.is_available():
        return f"{provider} needs an NVIDIA GPU, and there is none here"
    return None


def _session_options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return options


def _provider_options(provider: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """TensorRT builds an engine for the sizes of the first picture, which it keeps for the next process."""
    if provider != _TENSORRT:
        return {} if provider == _CPU else {"use_tf32": "0"}  # fp32 is to be what it says
    import tensorrt  # noqa: F401  its libraries are then in memory, where ONNX Runtime finds them

    half = job["precision"] == "fp16"
    return {"trt_engine_cache_enable": True, "trt_engine_cache_path": job["cache"], "trt_fp16_enable": half}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
