"""Optimum's ONNX Runtime pipelines on a plan's folder, which they read unchanged.

Settings: {"provider": "CPUExecutionProvider" | "CUDAExecutionProvider" | "TensorrtExecutionProvider"}; the default is
the first. ONNX Runtime falls back to its CPU provider with only a log line, so the peer checks the providers of every
session. The graphs are fp32; only TensorRT can lower them to fp16 itself. `serve.py` describes a job and a `Peer`.
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

    PROVIDER = _CPU  # the default of the settings

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}
        self.synchronizes = False
        self._pipe: Any = None
        self._job: Mapping[str, Any] = {}

    def unsupported_reason(self, job: Mapping[str, Any]) -> str | None:
        provider, precision = self._provider(job), job["precision"]
        if job["controlnets"]:
            return "Optimum's ONNX Runtime pipelines do not support ControlNets"
        if job["plan"] is None:
            return "it needs ONNX files, and this model has no plan in Optimum's layout"
        kind = json.loads((Path(job["plan"]) / "model_index.json").read_text())["_class_name"]
        if kind not in _PIPELINES:
            return f"this suite runs Optimum with {' and '.join(_PIPELINES)}, not with {kind}"
        if precision != "fp32" and (precision, provider) != ("fp16", _TENSORRT):
            return f"its graphs are fp32, and {provider} cannot run them in {precision}"
        if (provider == _CPU) != (job["device"] == "cpu"):
            needs = "runs on the CPU" if provider == _CPU else "needs an NVIDIA GPU"
            return f"{provider} {needs}, and this run is on {job['device']}"
        return _unsupported_here(provider, job["scheduler"]["class"])

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
                raise RuntimeError(
                    f"ONNX Runtime does not use {provider} for {name}: got {part.session.get_providers()}"
                )
            part.forward = self._timed(name, part.forward)
        return {
            "threads": job["threads"],
            "artifact_bytes": sum(path.stat().st_size for name in taken for path in (plan / name).iterdir()),
            "versions": _versions(),
        }

    def generate(self, prompts: Sequence[str], negative: str | None, seeds: Sequence[int]) -> np.ndarray[Any, Any]:
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
        return None  # ONNX Runtime does not report its arena

    def _provider(self, job: Mapping[str, Any]) -> str:
        provider: str = job["settings"].get("provider", self.PROVIDER)
        return provider

    def _take_scheduler(self) -> None:
        import diffusers

        scheduler = self._job["scheduler"]
        self._pipe.scheduler = getattr(diffusers, scheduler["class"]).from_config(scheduler["config"])
        self._pipe.set_progress_bar_config(disable=True)

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Time a call. Outputs are on the host, or ONNX Runtime has waited for them: no synchronization is needed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            out = call(*args, **kwargs)
            self.parts.setdefault(name, []).append(time.perf_counter() - began)
            return out

        return timed


def _unsupported_here(provider: str, scheduler: str) -> str | None:
    import diffusers
    import onnxruntime
    import torch

    if not hasattr(diffusers, scheduler):
        return f"diffusers {diffusers.__version__}, which Optimum uses, has no {scheduler}"
    if provider not in onnxruntime.get_available_providers():
        return f"the ONNX Runtime in this environment was built without {provider}"
    if provider != _CPU and not torch.cuda.is_available():
        return f"{provider} needs an NVIDIA GPU, and this machine has none"
    return None


def _session_options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return options


def _provider_options(provider: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provider's options. TensorRT builds an engine for the sizes of the first image, and caches it."""
    if provider != _TENSORRT:
        return {} if provider == _CPU else {"use_tf32": "0"}  # fp32 must be exact
    import tensorrt  # noqa: F401  loads its libraries, so that ONNX Runtime finds them

    half = job["precision"] == "fp16"
    return {"trt_engine_cache_enable": True, "trt_engine_cache_path": job["cache"], "trt_fp16_enable": half}


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
