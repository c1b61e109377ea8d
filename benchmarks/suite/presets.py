"""Presets: named cases with their contenders, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from calotype.backends.openvino.rewrites import PIECES

from .cases import Case
from .contenders import Contender, contender


def _in(maker: str, *precisions: str) -> tuple[str, ...]:
    return tuple(f"{maker}:{precision}" for precision in precisions)


def _by(names: tuple[str, ...]) -> tuple[Contender, ...]:
    return tuple(map(contender, names))


_QUICK = (
    *_in("calotype:openvino", "bf16", "fp32"),
    "calotype:onnxruntime:fp32",
    *_in("diffusers", "fp32", "bf16"),
    "optimum:fp32",
    *_in("openvino-genai", "fp32", "bf16"),
)
_CPU = (
    *_in("calotype:openvino", "auto", "bf16", "fp32"),
    *_in("calotype:onnxruntime", "auto", "fp32"),
    "calotype:eager:fp32",
    *_in("diffusers", "fp32", "bf16"),
    *_in("torch-compile", "fp32", "bf16"),
    "optimum:fp32",
    *_in("openvino-genai", "fp32", "bf16", "int8"),
    "stable-diffusion.cpp:fp16",
)

_BF16 = "calotype:openvino:bf16"
# The gain of each optimization: all of them, all but one, none.
_ABLATION = (_BF16, *(f"{_BF16}:without={piece}" for piece in PIECES), f"{_BF16}:without=all")
_APPROXIMATE = (
    _BF16,
    "calotype:openvino:auto",
    *(f"{_BF16}:cache_interval={n}" for n in (2, 3, 5)),
    *(f"{_BF16}:guidance_interval={span}" for span in ("0-0.5", "0.2-0.8")),
    "calotype:openvino:auto:cache_interval=2",
)

_FITTED = (
    *(f"calotype:openvino:{p}{v}" for v in ("", ":calls=12", ":calls=10", ":calls=8") for p in ("fp32", "bf16")),
    f"{_BF16}:cache_interval=2",
    *_in("openvino-genai", "fp32", "bf16"),
)
# With random weights only the speed counts: the fit is not measured.
_FITTED_LARGE = (_BF16, f"{_BF16}:calls=10", "openvino-genai:bf16")

# Full-size networks with random weights have no data to calibrate int8 on.
_LARGE = tuple(n for n in _CPU if not n.endswith(":auto") and n != "calotype:eager:fp32")
_GPU = (
    "calotype:tensorrt:fp16",
    *_in("calotype:cuda", "fp16", "bf16"),
    "calotype:onnxruntime-cuda:fp16",
    *_in("diffusers", "fp16", "bf16"),
    "torch-compile:fp16",
    "onnxruntime-cuda:fp32",
    "tensorrt:fp16",
)
# Contenders of the cases with targets: our fastest, and the two peers that the targets name.
_AIMED = ("calotype:tensorrt:fp16", "calotype:cuda:fp16", "diffusers:fp16", "torch-compile:fp16")


def usual(case: Case) -> tuple[Contender, ...]:
    """Return the default contenders of a case."""
    return _by(_GPU if case.device == "cuda" else _CPU if case.judged else _LARGE)


_DEMO = Case(contenders=_by(_CPU))
_SD15 = Case(
    model="sd15", height=512, width=512, steps=2, guidance=7.5, prompts=2, rounds=6, budget_s=0, contenders=_by(_LARGE)
)
_TURBO = replace(_SD15, model="sd-turbo", steps=1, guidance=0.0)
_SD15_GPU = Case(model="sd15", height=512, width=512, device="cuda", guidance=7.5, contenders=_by(_GPU))
_SDXL_RUNNERS = _by((*_AIMED, "calotype:tensorrt:fp8"))
_SDXL_GPU = replace(_SD15_GPU, model="sdxl", height=1024, width=1024, guidance=5.0, contenders=_SDXL_RUNNERS)
_TURBO_GPU = replace(_SD15_GPU, model="sd-turbo-taesd", steps=1, guidance=0.0, contenders=_by(_AIMED))
# `scripts.gpu_close` measures what no image shows: the decoder by itself, and the host's time.
_ON_GPU = (
    _SD15_GPU,
    replace(_SDXL_GPU, steps=30),
    _TURBO_GPU,
    replace(_SDXL_GPU, steps=20, batch=8, prompts=8),
    replace(_SD15_GPU, batch=8, prompts=16),
    replace(_SD15_GPU, controlnets=("random",)),
    replace(_SD15_GPU, model="sd21", height=768, width=768),
    replace(_TURBO_GPU, model="sd-turbo"),
)
_ON_CPU = (_DEMO, replace(_DEMO, batch=8, prompts=16, budget_s=90), replace(_SD15, height=256, width=256, budget_s=60))

PRESETS: Mapping[str, tuple[Case, ...]] = {
    "quick": (replace(_DEMO, rounds=12, budget_s=20, contenders=_by(_QUICK)),),
    "cpu": _ON_CPU,
    "ablation": (
        replace(_DEMO, contenders=_by(_ABLATION)),
        replace(_SD15, steps=8, prompts=1, contenders=_by(_ABLATION)),  # one step hides what a schedule shares
    ),
    "approximate": (replace(_DEMO, contenders=_by(_APPROXIMATE)),),
    "fitted": (
        replace(_DEMO, contenders=_by(_FITTED)),
        replace(_SD15, steps=20, prompts=1, contenders=_by(_FITTED_LARGE)),
    ),
    "gpu": _ON_GPU,
    "full": (
        *_ON_CPU,
        _SD15,
        _TURBO,
        replace(_SD15, height=256, width=256, controlnets=("random",)),
        replace(_SD15, model="sd21", height=256, width=256),
        replace(_SD15, model="sdxl", height=512, width=512, rounds=6),
        *_ON_GPU,
    ),
}
