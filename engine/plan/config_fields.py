"""The fields of model configs that the bindings are computed from, with their types and limits.

A config may come from a stranger. `checked` rejects a value of another type or size and names its file and field, so
that later code can rely on the values. Does not check fields against each other (`family`) or against the weights
(`network_check`). The limits are far above every published model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SourceError

_LEVELS = 16
_SIDE = 4096  # limit of sample_size: 32768 pixels with an autoencoder
_WIDTH = 1 << 16
_LAYERS = 256


class Fields(dict[str, Any]):
    """A config whose error for a missing field names the file and the field."""

    def __init__(self, file: str, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.file = file

    def __missing__(self, field: str) -> Any:
        raise SourceError(f"{self.file} has no {field}. Use the config of the same model as the weights.")


@dataclass(frozen=True, kw_only=True)
class _Int:
    """An integer. With `each` also a list of integers, one per level."""

    min: int = 1
    max: int = _WIDTH
    each: bool = False
    optional: bool = False

    def takes(self, value: Any) -> bool:
        if self.each and isinstance(value, (list, tuple)):
            return 0 < len(value) <= _LEVELS and all(self._takes_one(v) for v in value)
        return self._takes_one(value) or (self.optional and value is None)

    def _takes_one(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.min <= value <= self.max

    def __str__(self) -> str:
        return f"an integer from {self.min} to {self.max}" + (", or one per level" if self.each else "")


@dataclass(frozen=True, kw_only=True)
class _Ints:
    """A list of integers, one per level."""

    def takes(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and _Int(each=True).takes(value)

    def __str__(self) -> str:
        return f"a list of 1 to {_LEVELS} integers from 1 to {_WIDTH}"


@dataclass(frozen=True, kw_only=True)
class _Names:
    """A list of names, one per level."""

    def takes(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and 0 < len(value) <= _LEVELS and all(isinstance(v, str) for v in value)

    def __str__(self) -> str:
        return f"a list of 1 to {_LEVELS} names"


@dataclass(frozen=True, kw_only=True)
class _Number:
    """A finite number above 0. With `each` a list of finite numbers of any sign."""

    each: bool = False
    optional: bool = False

    def takes(self, value: Any) -> bool:
        if self.optional and value is None:
            return True
        if self.each:
            return isinstance(value, (list, tuple)) and all(_is_finite(v) for v in value)
        return _is_finite(value) and value > 0

    def __str__(self) -> str:
        return "a list of finite numbers" if self.each else "a finite number above 0"


def _is_finite(value: Any) -> bool:
    """Tell whether a value is a finite number. An integer that no float can hold is not."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


_Field = _Int | _Ints | _Names | _Number

_TEXT: Mapping[str, _Field] = {
    "num_hidden_layers": _Int(max=_LAYERS),
    "max_position_embeddings": _Int(min=3, max=4096),  # start token, one word, end token
    "hidden_size": _Int(),
    "vocab_size": _Int(max=1 << 24),
    "projection_dim": _Int(optional=True),
}
_BLOCKS: Mapping[str, _Field] = {
    "block_out_channels": _Ints(),
    "down_block_types": _Names(),
    "up_block_types": _Names(),
    "layers_per_block": _Int(max=_LAYERS, each=True),
    "in_channels": _Int(),
    "out_channels": _Int(),
}
_PER_LEVEL = ("down_block_types", "up_block_types", "layers_per_block", "attention_head_dim", "num_attention_heads")
_UNET: Mapping[str, _Field] = {
    **_BLOCKS,
    "sample_size": _Int(max=_SIDE),
    "attention_head_dim": _Int(each=True, optional=True),
    "num_attention_heads": _Int(each=True, optional=True),
    "cross_attention_dim": _Int(),
    "downsample_padding": _Int(min=0, max=1),
    "time_cond_proj_dim": _Int(optional=True),
    "addition_time_embed_dim": _Int(optional=True),
    "projection_class_embeddings_input_dim": _Int(optional=True),
}
_CONTROLNET: Mapping[str, _Field] = {
    **{name: field for name, field in _UNET.items() if name != "sample_size"},
    "conditioning_channels": _Int(),
    "conditioning_embedding_out_channels": _Ints(),
}
_VAE: Mapping[str, _Field] = {
    **_BLOCKS,
    "encoder_block_out_channels": _Ints(),
    "decoder_block_out_channels": _Ints(),
    "num_encoder_blocks": _Ints(),
    "num_decoder_blocks": _Ints(),
    "upsampling_scaling_factor": _Int(min=2, max=2),
    "latent_channels": _Int(),
    "vq_embed_dim": _Int(optional=True),
    "scaling_factor": _Number(),
    "latents_mean": _Number(each=True, optional=True),
    "latents_std": _Number(each=True, optional=True),
}
_SCHEDULER: Mapping[str, _Field] = {
    "num_train_timesteps": _Int(max=100_000),
    "solver_order": _Int(max=16),
    "steps_offset": _Int(min=0, max=1000),
    "trained_betas": _Number(each=True, optional=True),
    "beta_start": _Number(),
    "beta_end": _Number(),
}


def checked(name: str, folder: str, config: Mapping[str, Any]) -> Fields:
    """Check the config of a network or of the scheduler.

    Args:
        name: text_encoder, unet, controlnet_1, vae, scheduler, ...
        folder: the folder's name, for errors.
        config: the content of the file.

    Raises:
        SourceError: a field has a wrong type or size.
    """
    file = f"{folder}/{'scheduler_config' if name == 'scheduler' else 'config'}.json"
    for field, kind in _fields_of(name).items():
        if field in config and not kind.takes(config[field]):
            raise SourceError(f"{file}: {field} is {config[field]!r:.80}; expected {kind}.")
        if field in _PER_LEVEL and isinstance(config.get(field), (list, tuple)) and "block_out_channels" in config:
            levels, count = len(config["block_out_channels"]), len(config[field])
            if count != levels:
                raise SourceError(
                    f"{file}: {field} has {count} entries; expected {levels}, one per block_out_channels."
                )
    return Fields(file, config)


def _fields_of(name: str) -> Mapping[str, _Field]:
    kinds = {"text": _TEXT, "unet": _UNET, "controlnet": _CONTROLNET, "vae": _VAE, "scheduler": _SCHEDULER}
    fields = kinds.get(name.split("_")[0], {})
    return {**fields, "projection_dim": _Int()} if name == "text_encoder_2" else fields
