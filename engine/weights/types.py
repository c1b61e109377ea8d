"""The types in which a network's weights may be stored: floats, which every backend starts from.

A library turns any number into a float without a word, so integers that are quantized weights would make noise, not an
error. Knows the names that tools for quantization give their tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError

# fp8 without scales is a float like the others: each number stands for itself.
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_BUFFERS = ("position_ids", "num_batches_tracked", "num_updates")  # counters, which no network computes with
_QUANTIZED = {  # how the name of a tensor ends that only quantized weights have -> what wrote it
    ".SCB": "bitsandbytes in int8",
    ".absmax": "bitsandbytes in 4 bits",
    ".quant_map": "bitsandbytes in 4 bits",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    "scaled_fp8": "ComfyUI in scaled fp8",
    ".scale_weight": "ComfyUI in scaled fp8",
    ".comfy_quant": "ComfyUI",
    ".weight_scale": "a tool that keeps a scale for each weight",
    "._scale": "quanto",
}
_MEND = (
    "Calotype reads float weights (fp32, fp16, bf16, fp8 without scales). Take the model's float weights; "
    "`calotype build --precision int8` quantizes them"
)


def check_types(path: Path, types: Mapping[str, str]) -> None:
    """`SourceError` unless the tensors of a file, name -> type, are float weights."""
    for name in types:
        tool = next((tool for end, tool in _QUANTIZED.items() if name.endswith(end)), None)
        if tool or ".quant_state." in name:
            raise SourceError(f"{path} holds weights quantized by {tool or 'bitsandbytes'} ({name}); {_MEND}.")
    for name, kind in types.items():
        if kind not in FLOATS and not name.endswith(_BUFFERS):
            raise SourceError(f"{path} stores {name} as {kind}, which is not a float type; {_MEND}.")


def check_not_quantized(file: Path, config: Mapping[str, Any]) -> None:
    """`SourceError` where a config says that the weights beside it are quantized."""
    if settings := config.get("quantization_config"):
        method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
        raise SourceError(f"{file}: quantization_config says weights quantized by {method!r:.80}; {_MEND}.")
