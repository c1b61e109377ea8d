"""OpenVINO GenAI's Text2ImagePipeline on the CPU, in fp32, bf16, and with int8 weights.

`convert.py` converts the model once; the result stays in the job's cache under a key of the model's content. GenAI
takes one prompt a call, so it generates a batch one image after another. `serve.py` describes a job and a `Peer`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGES = ("openvino", "openvino-genai", "openvino-tokenizers", "optimum-intel", "nncf", "diffusers", "torch")
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_PARTS = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": None}  # int8: OpenVINO's own choice for 8-bit weights
_SCHEDULERS = (
    "DDIMScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
)
# diffusers' defaults for missing values; GenAI has other defaults.
_DEFAULTS = {
    "DDIMScheduler": {"beta_schedule": "linear"},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "linspace"},
    "EulerDiscreteScheduler": {"beta_schedule": "linear", "timestep_spacing": "linspace"},
}
_OTHER_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_SAMPLE_BYTES, _STRIDE_BYTES = 1 << 16, 1 << 22


class Peer:
    """One pipeline of GenAI."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}
        self.synchronizes = False
        self._pipe: Any = None
        self._job: Mapping[str, Any] = {}

    def unsupported_reason(self, job: Mapping[str, Any]) -> str | None:
        kind = json.loads((Path(job["model"]) / "model_index.json").read_text())["_class_name"]
        scheduler, precision = job["scheduler"], job["precision"]
        if job["controlnets"]:
            return "GenAI's Text2ImagePipeline does not support ControlNets"
        if job["device"] != "cpu":
            return f"OpenVINO runs on CPUs and Intel GPUs, not on {job['device']}"
        if kind not in _PIPELINES:
            return f"this suite runs GenAI with {' and '.join(_PIPELINES)}, not with {kind}"
        if precision not in _HINTS:
            return f"this suite runs GenAI in {', '.join(_HINTS)}, not in {precision}"
        if precision == "bf16" and not _has_bf16():
            return "this processor has no bf16; OpenVINO would compute in fp32"
        if scheduler["class"] not in _SCHEDULERS:
            return f"GenAI has no {scheduler['class']}; it has {', '.join(_SCHEDULERS)}"
        if any(scheduler["config"].get(flag) for flag in _OTHER_SIGMAS):
            return f"GenAI's {scheduler['class']} does not support Karras, exponential or beta sigmas"
        return None

    def load(self, job: Mapping[str, Any]) -> dict[str, Any]:
        self._job = job
        form = "int8" if job["precision"] == "int8" else "fp32"
        folder, built = _converted(Path(job["model"]), form, Path(job["cache"]))
        import openvino_genai as genai

        pipe = genai.Text2ImagePipeline(folder)
        pipe.set_scheduler(genai.Scheduler.from_config(_written(job["scheduler"], Path(job["cache"]))))
        pipe.reshape(1, job["height"], job["width"], float(job["guidance"]))
        pipe.compile("CPU", **_settings(job))
        self._pipe = pipe
        genai.TorchGenerator(0)  # its first use imports PyTorch, which belongs to loading
        return {
            "threads": job["threads"],
            "artifact_bytes": sum(path.stat().st_size for path in folder.rglob("openvino_model.*")),
            "versions": {name: metadata.version(name) for name in _PACKAGES},
            # With 8-bit weights OpenVINO computes in bf16 on processors that have it, not in 8 bits.
            "precisions": dict.fromkeys(_PARTS, "bf16" if job["precision"] == "int8" else job["precision"]),
            "notes": _notes(job),
            **built,
        }

    def generate(self, prompts: Sequence[str], negative: str | None, seeds: Sequence[int]) -> np.ndarray[Any, Any]:
        self.parts = {}
        return np.concatenate([self._generate(p, negative, s) for p, s in zip(prompts, seeds, strict=True)])

    def device_peak_bytes(self) -> int | None:
        return None

    def _generate(self, prompt: str, negative: str | None, seed: int) -> np.ndarray[Any, Any]:
        import openvino_genai as genai

        job, more = self._job, {}
        if negative is not None and job["guidance"] > 1:  # without guidance, GenAI rejects it and diffusers ignores it
            more["negative_prompt"] = negative
        image = self._pipe.generate(
            prompt,
            generator=genai.TorchGenerator(seed),
            num_inference_steps=job["steps"],
            guidance_scale=float(job["guidance"]),
            height=job["height"],
            width=job["width"],
            **more,
        )
        self._take_parts()
        return np.array(image.data)

    def _take_parts(self) -> None:
        metrics = self._pipe.get_performance_metrics()
        spent = {name: [ms / 1000] for name, ms in metrics.get_text_encoder_infer_duration().items()}
        spent["unet"] = [us / 1e6 for us in metrics.raw_metrics.unet_inference_durations]
        spent["vae_decoder"] = [metrics.get_vae_decoder_infer_duration() / 1000]
        for name, seconds in spent.items():
            self.parts.setdefault(name, []).extend(seconds)


def _settings(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return OpenVINO's settings. Pinning is faster, but fewer threads than cores would all use the first cores."""
    hint = _HINTS[job["precision"]]
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job["threads"],
        "ENABLE_CPU_PINNING": job["threads"] == os.cpu_count(),
        **({"INFERENCE_PRECISION_HINT": hint} if hint else {}),
    }


def _full_config(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    return {**_DEFAULTS.get(scheduler["class"], {}), **scheduler["config"]}


def _notes(job: Mapping[str, Any]) -> list[str]:
    notes = ["GenAI truncates pixels and does not round them: half a level darker, 51 dB at best"]
    if job["batch"] > 1:
        notes.append("GenAI generates a batch one image after another")
    config = _full_config(job["scheduler"])
    last = config.get("num_train_timesteps", 1000) - 1
    if config.get("timestep_spacing") == "linspace" and last % max(1, job["steps"] - 1):
        notes.append("GenAI rounds timesteps to integers; diffusers does not")
    return notes


def _has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _written(scheduler: Mapping[str, Any], cache: Path) -> Path:
    """Write the scheduler's config to a file, without the infinities that GenAI cannot read."""
    kept = {k: v for k, v in _full_config(scheduler).items() if not (isinstance(v, float) and not math.isfinite(v))}
    text = json.dumps({**kept, "_class_name": scheduler["class"]}, sort_keys=True)
    path = cache / f"scheduler-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    path.write_text(text)
    return path


def _converted(model: Path, form: str, cache: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the model's IR, with the seconds and the date of its conversion."""
    converter = Path(__file__).with_name("convert.py")
    versions = [*(metadata.version(name) for name in _PACKAGES), converter.read_text()]
    key = hashlib.sha256(json.dumps([_content(model), form, versions]).encode()).hexdigest()[:16]
    folder, record = cache / f"ir-{key}", cache / f"ir-{key}" / "converted.json"
    if record.exists():
        return folder, json.loads(record.read_text())
    fresh = cache / f".making-ir-{key}-{os.getpid()}"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, converter, model, fresh, form], stdout=sys.stderr, check=False)
    if done.returncode:
        shutil.rmtree(fresh, ignore_errors=True)
        raise RuntimeError(f"optimum-intel cannot convert the model (status {done.returncode}); its output is above")
    built_s = time.perf_counter() - began
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    (fresh / record.name).write_text(json.dumps({"build_s": built_s, "build_when": when}))
    try:
        fresh.rename(folder)
    except OSError:  # another worker was first
        shutil.rmtree(fresh, ignore_errors=True)
    return folder, {"build_s": built_s, "build_when": ""}


def _content(model: Path) -> str:
    """Return a SHA-256 of names and contents. Weights are sampled every 4 MiB, to keep the load time short."""
    digest = hashlib.sha256()
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(model)} {size}\n".encode())
        with path.open("rb") as file:
            for start in range(0, size, _STRIDE_BYTES):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES if path.suffix == ".safetensors" else _STRIDE_BYTES))
    return digest.hexdigest()
