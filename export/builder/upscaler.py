"""Turn an upscaler's file into a component with its artifacts: one ONNX with dynamic sizes, checked against PyTorch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from calotype.backends import COMPILED
from calotype.plan.bindings import Binding
from calotype.plan.networks import Component
from calotype.plan.profile import Profile, Range
from calotype.system.memory import Load
from calotype.upscaling.planned import PlannedUpscaler

from ..steps.versions import versions
from ..tensorrt.engines import default_profile
from .prepare import planned

_TILE = 256  # pixels: the usual side of an engine
_LARGEST = 4096


def prepare_upscaler(path: Path, *, forms: Collection[str] = ("onnx",)) -> PlannedUpscaler:
    """Return the upscaler of a file. The first use traces it into the store.

    Args:
        path: a `.safetensors` or `.pth` file.
        forms: "onnx", "diffusers", or backends that compile engines.

    Raises:
        SourceError: the file is missing, damaged, or another network.
    """
    versions()  # raises if torch is not installed
    from ..sources.upscaler import NAME, read_upscaler, scale_of

    source, config = read_upscaler(path)
    scale, unshuffle = int(scale_of(config)), int(config.get("unshuffle", 1))
    enlarged = ("batch", 3, f"height_times_{scale}", f"width_times_{scale}")
    component = Component(
        name=NAME,
        inputs=(Binding(name="sample", dtype="float32", dims=("batch", 3, "height", "width")),),
        outputs=(Binding(name="enlarged", dtype="float32", dims=enlarged),),
        config=config,
    )
    side = Range(min=unshuffle, opt=_TILE, max=_LARGEST)
    profile = Profile(batch=Range(min=1, opt=1, max=1), height=side, width=side, multiple=unshuffle, factor=1)
    if set(forms) & set(COMPILED):
        profile = default_profile(profile)
    width, growth = int(config["width"]), int(config.get("growth", 0))
    widths = (width + 4 * growth) // unshuffle**2, width * scale**2 if growth else 3 * scale**2
    return PlannedUpscaler(
        component=planned(component, source, profile, forms),
        scale=scale,
        profile=profile,
        load=Load(pixels=1, width=max(widths), squared=False, guided=False),
        digest=source.digests[NAME].partition(":")[0],
    )
