"""diffusers: eager PyTorch, and torch.compile of U-Net and VAE decoder (settings: {"compile": true}).

Channels-last, in fp32, bf16, and on a GPU fp16. Stable Diffusion 1, 2 and XL, text to image, with ControlNets. On a
GPU, `parts` are filled only if `synchronizes` is set, because each part needs a synchronization. `serve.py` describes a
job and a `Peer`; `compiled.py` describes the use of torch.compile.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGES = ("diffusers", "torch", "transformers", "accelerate", "numpy")
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Peer:
    """One pipeline of diffusers."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}
        self.synchronizes = False
        self._pipe: Any = None
        self._job: Mapping[str, Any] = {}
        self._images: list[Any] = []

    def unsupported_reason(self, job: Mapping[str, Any]) -> str | None:
        kind = json.loads((Path(job["model"]) / "model_index.json").read_text())["_class_name"]
        precision, device = job["precision"], job["device"]
        if kind not in _PIPELINES:
            return f"this suite runs diffusers with {' and '.join(_PIPELINES)}, not with {kind}"
        if precision not in _DTYPES:
            return f"diffusers computes in {', '.join(_DTYPES)}; {precision} needs another library"
        if device == "cpu" and precision == "fp16":
            return "PyTorch's fp16 on a CPU is slower than fp32; use bf16 on a CPU"
        import diffusers
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            return "PyTorch sees no NVIDIA GPU here"
        if not hasattr(diffusers, job["scheduler"]["class"]):
            return f"diffusers {diffusers.__version__} has no {job['scheduler']['class']}"
        return None

    def load(self, job: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        self._job = job
        torch.set_num_threads(job["threads"])
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # fp32 must be exact; matrix products are exact by default
        self._pipe = _open(job)
        _draw_in_float32(self._pipe)
        self._images = _control_images(job)
        report: dict[str, Any] = {"build_s": None}
        if job["settings"].get("compile"):
            compiled = _sibling("compiled")
            compiled.apply(self._pipe, job["device"])
            self._time_parts()
            report = compiled.build(lambda: self._generate_short(), job)
        else:
            self._time_parts()
        return {
            "threads": torch.get_num_threads(),
            "artifact_bytes": sum(_weights_bytes(Path(f)) for f in (job["model"], *job["controlnets"])),
            "versions": dict(_versions()),
            **report,
        }

    def generate(self, prompts: Sequence[str], negative: str | None, seeds: Sequence[int]) -> np.ndarray[Any, Any]:
        self.parts = {}
        return self._generate(prompts, negative, seeds, self._job["steps"])

    def device_peak_bytes(self) -> int | None:
        import torch

        return torch.cuda.max_memory_allocated() if self._job["device"] == "cuda" else None

    def _generate(self, prompts: Sequence[str], negative: str | None, seeds: Sequence[int], steps: int) -> Any:
        import torch

        job, more = self._job, {}
        if self._images:
            more["image"] = self._images if len(self._images) > 1 else self._images[0]
        images = self._pipe(
            prompt=list(prompts),
            negative_prompt=None if negative is None else [negative] * len(prompts),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            num_inference_steps=steps,
            guidance_scale=job["guidance"],
            height=job["height"],
            width=job["width"],
            output_type="pil",
            **more,
        ).images
        return np.stack([np.asarray(image) for image in images])

    def _generate_short(self) -> None:
        """Run twice with two steps: the first call compiles, the second captures graphs."""
        for _ in range(2):
            self._generate(["a"] * self._job["batch"], None, range(self._job["batch"]), 2)

    def _time_parts(self) -> None:
        pipe = self._pipe
        for name in ("text_encoder", "text_encoder_2", "unet", "controlnet"):
            if getattr(pipe, name, None) is not None:
                module = getattr(pipe, name)
                module.forward = self._timed(name, module.forward)
        pipe.vae.decode = self._timed("vae_decoder", pipe.vae.decode)

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        import torch

        on_gpu = self._job["device"] == "cuda"

        def timed(*args: Any, **kwargs: Any) -> Any:
            if on_gpu and not self.synchronizes:
                return call(*args, **kwargs)
            if on_gpu:
                torch.cuda.synchronize()
            began = time.perf_counter()
            out = call(*args, **kwargs)
            if on_gpu:
                torch.cuda.synchronize()
            self.parts.setdefault(name, []).append(time.perf_counter() - began)
            return out

        return timed


def _versions() -> Iterator[tuple[str, str]]:
    """Yield the versions of installed packages: a machine with a GPU may have fewer than the requirements."""
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _open(job: Mapping[str, Any]) -> Any:
    """Return the pipeline with the job's scheduler on the job's device."""
    import diffusers
    import torch

    dtype, more = getattr(torch, _DTYPES[job["precision"]]), {}
    kind = json.loads((Path(job["model"]) / "model_index.json").read_text())["_class_name"]
    if job["controlnets"]:
        kind = kind.replace("Pipeline", "ControlNetPipeline")
        nets = [diffusers.ControlNetModel.from_pretrained(f, dtype=dtype) for f in job["controlnets"]]
        more["controlnet"] = nets if len(nets) > 1 else nets[0]
    if "XL" in kind:
        more["add_watermarker"] = False
    else:
        more |= {"safety_checker": None, "requires_safety_checker": False}
    pipe = getattr(diffusers, kind).from_pretrained(job["model"], dtype=dtype, **more)
    scheduler = job["scheduler"]
    pipe.scheduler = getattr(diffusers, scheduler["class"]).from_config(scheduler["config"])
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, *([pipe.controlnet] if job["controlnets"] else [])):
        part.to(memory_format=torch.channels_last)
    return pipe.to(job["device"])


def _draw_in_float32(pipe: Any) -> None:
    """Draw noise in float32 and round it: torch.randn returns other numbers in bf16 and fp16."""
    import torch
    from diffusers.utils.torch_utils import randn_tensor

    def draw(shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None) -> Any:
        return randn_tensor(shape, generator, device, torch.float32, layout).to(dtype)

    for owner in (type(pipe), type(pipe.scheduler)):
        sys.modules[owner.__module__].randn_tensor = draw  # type: ignore[attr-defined]


def _control_images(job: Mapping[str, Any]) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(np.load(path)) for path in job["control_images"]]


def _weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _sibling(name: str) -> Any:
    """Import another file of this folder, which is not on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
