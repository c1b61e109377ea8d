"""The check of a plan's ControlNets and T2I-Adapters: their tensors, and those of the U-Net that belong to them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors.schema import mismatch
from .t2i_adapter import IMAGE, STATE

Fields = Mapping[str, Any]
Dims = Sequence[Any]

_LATENTS = ("latent_height", "latent_width")
_PIXELS = ("height", "width")
_RESIDUAL = re.compile(r"down_block_additional_residual\.\d{1,3}|mid_block_additional_residual")
UNION_INPUTS = ("control_task", "control_type", "condition_scale")  # of a ControlNet-Union only
_STATE = re.compile(rf"{STATE}\.\d{{1,3}}")


def residual_inputs(unet: Mapping[str, Dims]) -> dict[str, Dims]:
    """Return the inputs of a U-Net to which ControlNets add.  # name -> dimensions"""
    return {name: dims for name, dims in unet.items() if _RESIDUAL.fullmatch(name)}


def adapter_inputs(unet: Mapping[str, Dims]) -> dict[str, Dims]:
    """Return the inputs of a U-Net for the features of T2I-Adapters.  # name -> dimensions"""
    return {name: dims for name, dims in unet.items() if _STATE.fullmatch(name)}


def check_controlnets(components: Fields, channels: int, nets: Sequence[str]) -> None:
    """Check that each ControlNet has the inputs of the U-Net and outputs the residuals that the U-Net adds."""
    unet = {b["name"]: b["dims"] for b in components["unet"]["inputs"]}
    clips = unet.get("sample", ["", ""])[2:3] == ["frames"]  # the U-Net's are those of clips, a ControlNet's of images
    residuals = [*residual_inputs(unet).values()]
    if any((list(dims[1:2]) == ["frames"]) != clips for dims in residuals):
        mismatch("components.unet.inputs", residuals, "residuals with frames, if the sample has frames")
    added = [[dim for dim in dims if dim != "frames"] for dims in residuals]
    _check_maps(added)
    if bool(nets) != bool(added):
        mismatch("components", sorted(components), "a ControlNet if and only if the U-Net has residual inputs")
    for name in nets:
        where = f"components.{name}"
        shared = ("timestep", "encoder_hidden_states", "text_embeds", "time_ids")
        inputs: dict[str, Dims] = {n: unet[n] for n in shared if n in unet}
        inputs |= {"sample": map_of(channels), "controlnet_cond": ("batch", 3, *_PIXELS)}
        inputs |= _union_inputs(components[name]["inputs"])
        check_only(components[name]["inputs"], f"{where}.inputs", {**inputs, "conditioning_scale": ("batch",)})
        outputs = components[name]["outputs"]
        if [b["dims"] for b in outputs] != added or any(b["dtype"] != "float32" for b in outputs):
            mismatch(f"{where}.outputs", [b["dims"] for b in outputs], "the residual inputs of the U-Net")


def _union_inputs(inputs: Iterable[Fields]) -> dict[str, Dims]:
    """Return the inputs of a ControlNet-Union that another ControlNet lacks, or that have another shape there."""
    types = next((b["dims"][-1] for b in inputs if b["name"] == "control_type"), None)
    if not isinstance(types, int):
        return {}
    groups = ("batch", "image_groups")
    return {
        "controlnet_cond": (*groups, 3, *_PIXELS),
        "control_task": (*groups, types),
        "control_type": ("batch", types),
        "condition_scale": groups,
    }


def check_t2i_adapters(components: Fields, adapters: Sequence[str]) -> None:
    """Check that each T2I-Adapter takes an image and outputs the features that the U-Net adds."""
    added = adapter_inputs({b["name"]: b["dims"] for b in components["unet"]["inputs"]})
    _check_maps(added.values())
    if bool(adapters) != bool(added):
        mismatch("components", sorted(components), f"a T2I-Adapter if and only if the U-Net has inputs {STATE}")
    for name in adapters:
        where, inputs = f"components.{name}", components[name]["inputs"]
        gray = [b["dims"][1:2] for b in inputs] == [[1]]
        check_only(inputs, f"{where}.inputs", {IMAGE: ("batch", 1 if gray else 3, *_PIXELS)})
        outputs = {b["name"]: b["dims"] for b in components[name]["outputs"]}
        more = {f"{STATE}.{i}": outputs.get(f"{STATE}.{i}", ()) for i in range(len(added), len(outputs))}
        check_only(components[name]["outputs"], f"{where}.outputs", added | more)


def _check_maps(inputs: Iterable[Dims]) -> None:
    for dims in inputs:
        levels = [re.sub(r"_\d+$", "", str(dim)) for dim in dims[2:]]
        if len(dims) != 4 or not isinstance(dims[1], int) or levels != list(_LATENTS):
            mismatch("components.unet.inputs", dims, "maps [batch, C, latent_height_N, latent_width_N]")


def map_of(channels: int, *clip: str) -> tuple[Any, ...]:
    """Return the dimensions of a tensor of the latents' size; `clip` counts the frames of a clip."""
    return "batch", *clip, channels, *_LATENTS


def check_only(bindings: Iterable[Fields], where: str, expected: Mapping[str, Dims], dtype: str = "float32") -> None:
    """Check for exactly the tensors with these names, dimensions and type."""
    got = {b["name"]: b for b in bindings}
    if set(got) != set(expected):
        mismatch(where, sorted(got), f"the tensors {', '.join(sorted(expected))}")
    for name, dims in expected.items():
        if list(got[name]["dims"]) != list(dims) or got[name]["dtype"] != dtype:
            shape = f"{got[name]['dtype']} {got[name]['dims']}"
            mismatch(f"{where}.{name}", shape, f"{dtype} [{', '.join(map(str, dims))}]")
