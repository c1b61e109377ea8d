"""The check of a plan's IP-Adapters: their tensors, and the inputs of the U-Net for their images. Knows plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors.schema import SchemaError, list_of, mismatch, nullable, one_of, record, text
from .layers import ADAPTER, BIAS, KINDS, MASK, SCALE, STATES

Fields = Mapping[str, Any]
Dims = Sequence[Any]

_OF_IMAGES = re.compile(rf"{STATES}|{BIAS}|{SCALE}|{MASK}(_\d{{1,4}})?")
_GROUPED = ("batch", "image_groups")


_PLACE = text(r"(down|up|mid)\.\d{1,3}\.\d{1,3}", "the place of an attention, for example down.1.0")
check_image_prompting = nullable(
    record({"layers": list_of(_PLACE, 1, 1000), "kinds": list_of(one_of(*KINDS), max_length=100)})
)


def image_inputs(components: Fields) -> dict[str, Dims]:
    """Return the U-Net's inputs for image prompts, name -> dimensions, and check them. Raises `SchemaError`."""
    got = {b["name"]: b["dims"] for b in components["unet"]["inputs"] if _OF_IMAGES.fullmatch(b["name"])}
    if not got:
        return {}
    where = "components.unet.inputs"
    width, layers = (got.get(name, [0])[-1] for name in (STATES, SCALE))
    expected: dict[str, Dims] = {
        STATES: (*_GROUPED, "image_tokens", width if isinstance(width, int) else "a width"),
        BIAS: (*_GROUPED, "image_tokens"),
        SCALE: (*_GROUPED, layers if isinstance(layers, int) else "a number of layers"),
    }
    for name in got:
        if name.startswith(MASK):
            suffix = name.removeprefix(MASK)
            expected[name] = (*_GROUPED, f"latent_height{suffix}", f"latent_width{suffix}")
    for name, dims in expected.items():
        if list(got.get(name, [])) != list(dims):
            mismatch(f"{where}.{name}", got.get(name), f"[{', '.join(map(str, dims))}]")
    if not any(name.startswith(MASK) for name in got):
        raise SchemaError(where, f"has no {MASK}")
    return got


def check_ip_adapters(data: Fields) -> None:
    """Check that each adapter makes the keys and values that the U-Net takes. Raises `SchemaError`."""
    components, prompting = data["components"], data.get("image_prompts")
    inputs = image_inputs(components)
    names = [name for name in components if name.startswith(ADAPTER)]
    if bool(inputs) != (prompting is not None):
        raise SchemaError("image_prompts", f"and the U-Net's inputs differ: {sorted(inputs)}")
    if prompting is not None and (len(prompting["kinds"]), len(prompting["layers"])) != (len(names), inputs[SCALE][-1]):
        mismatch("image_prompts", prompting, f"{len(names)} kinds, and {inputs[SCALE][-1]} layers")
    if names and not inputs:
        raise SchemaError("components.unet.inputs", f"has no {STATES}, and the plan has an {names[0]}")
    for name in names:
        where, sides = f"components.{name}", components[name]
        (taken,) = sides["inputs"] if len(sides["inputs"]) == 1 else ({"name": "", "dims": []},)
        if taken["name"] != "image_embeds" or not all(isinstance(dim, int) for dim in taken["dims"][1:]):
            mismatch(f"{where}.inputs", sides["inputs"], "one tensor image_embeds of fixed sizes")
        (output,) = sides["outputs"] if len(sides["outputs"]) == 1 else ({"name": "", "dims": []},)
        dims = output["dims"]
        if len(dims) != 3 or not isinstance(dims[1], int) or dims[2] != inputs[STATES][-1]:
            mismatch(f"{where}.outputs", dims, f"one tensor [batch, tokens, {inputs[STATES][-1]}]")
