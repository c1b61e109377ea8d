"""The formats of LoRA files and of LyCORIS' other adapters, recognized by the names of their tensors.

diffusers and peft (`unet.mid_block.attentions.0.proj_in.lora_A.weight`), older diffusers (`.lora.down.weight`,
`attn1.processor.to_q_lora.down.weight`), kohya (`lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`), and kohya
for Stable Diffusion XL, where the blocks of the U-Net have the names of Stability AI's code
(`lora_unet_middle_block_1_proj_in`). Knows only names, no values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_PARTS = {"A": "down", "B": "up", "lora_magnitude_vector": "magnitude"}
_ENDING = re.compile(
    r"(?:\.lora_(?P<peft>[AB])(?:\.[^.]+)?\.weight"
    r"|\.lora_(?P<kohya>down|up|mid)\.weight"
    r"|(?:\.lora|\.lora_linear_layer|_lora)\.(?P<older>down|up)\.weight"
    r"|\.(?P<alpha>alpha)"
    r"|\.(?P<lycoris>hada_[wt][12](?:_[ab])?|lokr_(?:w[12](?:_[ab])?|t2)|oft_blocks|rescale|dora_scale)"
    r"|\.(?P<magnitude>lora_magnitude_vector)(?:\.[^.]+)?(?:\.weight)?"
    r"|\.(?P<flat>on_input|diff|(?:[ab][12]\.)?weight))$"  # only with a flat name: others have parameters of such names
)
_FLAT = {
    **{"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"},
    "lycoris_": "unet",  # of LyCORIS without a trainer
}
_DOTTED = ("unet.", "text_encoder.", "text_encoder_2.")
# Of AnimateDiff's MotionLoRAs in the original layout: what diffusers calls the layers of motion modules.
_OF_MOTION = {".temporal_transformer.": ".", ".attention_blocks.0.": ".attn1.", ".attention_blocks.1.": ".attn2."}
_OF_OLDER_ENCODERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

# Marks of files whose updates are not read here.
_OTHERS = {
    "lora_B.bias": "a LoRA with biases",
    ".diff_b": "a difference of biases",
    "w_norm": "a difference of normalization layers",
    "b_norm": "a difference of normalization layers",
    ".lambda_layer": "a T-LoRA, which changes with the timestep",
    "oft_R": "an OFT in peft's layout",
    ".bm.weight": "a GLoRA in the Tucker form",
}


@dataclass(frozen=True, kw_only=True)
class TensorTarget:
    """The target of a tensor: a network, one of its layers by its name in the file, and the part of the product."""

    component: str
    layer: str
    part: str  # down, up, mid, alpha, magnitude, or LyCORIS' own name


def tensor_target(key: str) -> TensorTarget | None:
    """Parse the name of a tensor. Returns None for an unknown format."""
    ending = _ENDING.search(key)
    if ending is None:
        return None
    stem = key[: ending.start()].removeprefix("base_model.model.")
    mark = next(filter(None, ending.groups()))
    part = _PARTS.get(mark, mark)
    for prefix, component in _FLAT.items():
        if stem.startswith(prefix):
            return TensorTarget(component=component, layer=_bare(stem.removeprefix(prefix), "_"), part=part)
    if ending["flat"]:
        return None
    prefix = next((p for p in _DOTTED if stem.startswith(p)), "")  # the oldest files: no prefix, for a U-Net
    component = prefix.rstrip(".") or "unet"
    layer = _bare(stem.removeprefix(prefix).replace(".processor.", "."), ".")
    parent, _, last = layer.rpartition(".")
    for theirs, ours in _OF_MOTION.items():
        layer = layer.replace(theirs, ours)
    if component != "unet":
        layer = f"{parent}.{_OF_OLDER_ENCODERS.get(last, last)}"
    elif last == "to_out":
        layer = f"{layer}.0"
    return TensorTarget(component=component, layer=layer, part=part)


def kind_of(key: str) -> str | None:
    """Return the kind of a file that cannot be used, judged by the name of a tensor; else None."""
    return next((kind for mark, kind in _OTHERS.items() if mark in key), None)


def _bare(layer: str, dot: str) -> str:
    """Remove the prefix that text encoders have in some versions of transformers."""
    return layer.removeprefix(f"text_model{dot}")


def layers_by_name(layers: Iterable[str], component: str) -> Mapping[str, str]:
    """Return the layer for each name that a file may use: dotted, kohya's flat, and Stability AI's names."""
    listed = list(layers)
    names = {layer: layer for layer in listed} | {layer.replace(".", "_"): layer for layer in listed}
    if component != "unet":
        return names
    depth = len({layer.split(".")[3] for layer in listed if layer.startswith("down_blocks.0.resnets.")})
    others = {_stability(layer, depth, listed): layer for layer in listed}
    return {**{name.replace(".", "_"): layer for name, layer in others.items() if name}, **names}


_FULL_NAMES = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_IN_RESNETS = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _stability(layer: str, depth: int, layers: list[str]) -> str | None:
    """Return the name in Stability AI's code, for a U-Net with `depth` resnets per level; None if it has no name."""
    if layer in _FULL_NAMES:
        return _FULL_NAMES[layer]
    match = re.match(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)", layer)
    if match is None:
        return None
    side, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    rest = _IN_RESNETS.get(rest, rest) if kind == "resnets" else rest
    second = int(kind == "attentions")  # an attention is in the block of its resnet, after it
    if side is None:
        return f"middle_block.{2 * index + second}.{rest}"
    if side == "down":
        first = 1 + level * (depth + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + depth}.0.op"
        return f"input_blocks.{first + index}.{second}.{rest}"
    first = level * (depth + 1)
    if kind == "upsamplers":
        after = 1 + any(each.startswith(f"up_blocks.{level}.attentions.") for each in layers)
        return f"output_blocks.{first + depth}.{after}.conv"
    return f"output_blocks.{first + index}.{second}.{rest}"
