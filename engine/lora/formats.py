"""The layouts that LoRA files come in, read by the names of their tensors.

diffusers' and peft's (`unet.mid_block.attentions.0.proj_in.lora_A.weight`), diffusers' older ones (`.lora.down.weight`,
`attn1.processor.to_q_lora.down.weight`), kohya's (`lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`), and
kohya's for Stable Diffusion XL, where the U-Net's blocks have the names of Stability AI's own code
(`lora_unet_middle_block_1_proj_in`). Knows names alone, no numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_PARTS = {"A": "down", "B": "up", "alpha": "alpha"}
_ENDING = re.compile(
    r"(?:\.lora_(?P<peft>[AB])(?:\.[^.]+)?\.weight"
    r"|\.lora_(?P<kohya>down|up|mid)\.weight"
    r"|(?:\.lora|\.lora_linear_layer|_lora)\.(?P<older>down|up)\.weight"
    r"|\.(?P<alpha>alpha))$"
)
_FLAT = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
_DOTTED = ("unet.", "text_encoder.", "text_encoder_2.")
_OF_OLDER_ENCODERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

# What is trained in such files besides, and is no pair of matrices that are added.
_OTHERS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "hada_w": "a LoHa",
    "lokr_w": "a LoKr",
    "oft_": "an OFT",
    "lora_B.bias": "a LoRA with biases",
    ".diff_b": "a difference of biases",
    ".diff": "a difference of whole weights",
}


@dataclass(frozen=True, kw_only=True)
class TensorTarget:
    """Where a tensor belongs: a network, one of its layers as the file calls it, and its part in the product."""

    component: str
    layer: str
    part: str  # down, up, mid or alpha


def tensor_target(key: str) -> TensorTarget | None:
    """None for a name of no layout known here."""
    ending = _ENDING.search(key)
    if ending is None:
        return None
    stem = key[: ending.start()].removeprefix("base_model.model.")
    said = ending["peft"] or ending["kohya"] or ending["older"] or ending["alpha"]
    part = _PARTS.get(said, said)
    for prefix, component in _FLAT.items():
        if stem.startswith(prefix):
            return TensorTarget(component=component, layer=_bare(stem.removeprefix(prefix), "_"), part=part)
    prefix = next((p for p in _DOTTED if stem.startswith(p)), "")  # the oldest files are of a U-Net, and do not say so
    component = prefix.rstrip(".") or "unet"
    layer = _bare(stem.removeprefix(prefix).replace(".processor.", "."), ".")
    return TensorTarget(component=component, layer=_modern(component, layer), part=part)


def kind_of(key: str) -> str | None:
    """What the file is, where this tensor says that it is something else than a LoRA."""
    return next((kind for mark, kind in _OTHERS.items() if mark in key), None)


def _bare(layer: str, dot: str) -> str:
    """Without the level that text encoders have in some versions of transformers."""
    return layer.removeprefix(f"text_model{dot}")


def _modern(component: str, layer: str) -> str:
    stem, _, last = layer.rpartition(".")
    if component == "unet":
        return f"{layer}.0" if last == "to_out" else layer
    return f"{stem}.{_OF_OLDER_ENCODERS.get(last, last)}"


def layers_by_name(layers: Iterable[str], component: str) -> Mapping[str, str]:
    """What a file may call them -> the layers: by their dotted names, kohya's flat ones, and Stability AI's."""
    listed = list(layers)
    names = {layer: layer for layer in listed} | {layer.replace(".", "_"): layer for layer in listed}
    if component != "unet":
        return names
    depth = len({layer.split(".")[3] for layer in listed if layer.startswith("down_blocks.0.resnets.")})
    others = {_stability(layer, depth, listed): layer for layer in listed}
    return {**{name.replace(".", "_"): layer for name, layer in others.items() if name}, **names}


_WHOLE = {
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
    """The layer's name in Stability AI's code, of a U-Net with `depth` resnets a level; None for one without."""
    if layer in _WHOLE:
        return _WHOLE[layer]
    found = re.match(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)", layer)
    if found is None:
        return None
    side, level, kind, index, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    rest = _IN_RESNETS.get(rest, rest) if kind == "resnets" else rest
    second = int(kind == "attentions")  # in its block, after the resnet
    if side is None:
        return f"middle_block.{2 * index + second}.{rest}"
    if side == "down":
        first = 1 + level * (depth + 1)
        return (
            f"input_blocks.{first + depth}.0.op"
            if kind == "downsamplers"
            else f"input_blocks.{first + index}.{second}.{rest}"
        )
    first = level * (depth + 1)
    if kind == "upsamplers":
        after = 1 + any(each.startswith(f"up_blocks.{level}.attentions.") for each in layers)
        return f"output_blocks.{first + depth}.{after}.conv"
    return f"output_blocks.{first + index}.{second}.{rest}"
