"""The stored types of weights: floats, which every backend starts from.

Libraries silently convert integers to floats, so quantized weights would give noise and not an error. Knows the tensor
names of quantization tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError

# fp8 without scales is a float type like the others: no further factor applies to its numbers.
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_BUFFERS = ("position_ids", "num_batches_tracked", "num_updates")  # counters that no network computes with
_QUANTIZED = {  # the end of a tensor's name that only quantized weights have -> the tool that wrote it
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
_ADVICE = (
    "Calotype reads float weights (fp32, fp16, bf16, fp8 without scales). Use the model's float weights; "
    "`calotype build --precision int8` quantizes them"
)


def check_types(path: Path, types: Mapping[str, str]) -> None:
    """Check that the tensors of a file (name -> type) are float weights. Raises `SourceError`."""
    for name in types:
        tool = next((tool for end, tool in _QUANTIZED.items() if name.endswith(end)), None)
        if tool or ".quant_state." in name:
            message = f"{path} holds weights quantized by {tool or 'bitsandbytes'} ({name}). {_ADVICE}."
            raise SourceError(message, path=path, field=name)
    for name, kind in types.items():
        if kind not in FLOATS and not name.endswith(_BUFFERS):
            message = f"{path} stores {name} as {kind}, which is not a float type. {_ADVICE}."
            raise SourceError(message, path=path, field=name)


def check_not_quantized(file: Path, config: Mapping[str, Any]) -> None:
    """Check that a config does not declare quantized weights. Raises `SourceError`."""
    if settings := config.get("quantization_config"):
        method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
        message = f"{file}: quantization_config declares weights quantized by {method!r:.80}. {_ADVICE}."
        raise SourceError(message, path=file, field="quantization_config")
