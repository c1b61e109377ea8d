"""The fields of model configs that the bindings are computed from, with their types and limits.

A config may come from a stranger. `checked` rejects a value of another type or size and names its file and field, so
that later code can rely on the values. Does not check fields against each other (`family`) or against the weights
(`network_check`). The limits are far above every published model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import SourceError
from ..errors.schema import Check, SchemaError, integer, list_of, mapping_of, mismatch, nullable, number, one_of, text
from .controls.t2i_adapter import TYPES
from .image_prompts.layers import KINDS
from .video.model import is_video
from .video.motion import has_motion


class Fields(dict[str, Any]):
    """A config whose error for a missing field names the file and the field."""

    def __init__(self, file: str, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.file = file

    def __missing__(self, field: str) -> Any:
        message = f"{self.file} has no {field}. Use the config of the same model as the weights."
        raise SourceError(message, path=self.file, field=field)


def _per_level(check: Check) -> Check:
    """Return a check for one value for all levels, or a list with one for each level."""
    several = list_of(check, 1, _LEVELS)
    return lambda value, where: (several if isinstance(value, (list, tuple)) else check)(value, where)


_LEVELS, _LAYERS = 16, 256
_MAX_COUNT = 100_000  # models are trained with 1000 timesteps
_SIZE, _COUNT = integer(1, 1 << 16), integer(1, _MAX_COUNT)
_SIZES, _NAMES = list_of(_SIZE, 1, _LEVELS), list_of(text(), 1, _LEVELS)
_NUMBERS = list_of(number(-1e12, 1e12), max_length=_MAX_COUNT)
_TEXT: Mapping[str, Check] = {
    "num_hidden_layers": integer(1, _LAYERS),
    "max_position_embeddings": integer(3, 4096),  # start token, one word, end token
    "hidden_size": _SIZE,
    "vocab_size": integer(1, 1 << 24),
    "projection_dim": nullable(_SIZE),
}
_BLOCKS: Mapping[str, Check] = {
    "block_out_channels": _SIZES,
    "down_block_types": _NAMES,
    "up_block_types": _NAMES,
    "layers_per_block": _per_level(integer(1, _LAYERS)),
    "in_channels": _SIZE,
    "out_channels": _SIZE,
}
_PER_LEVEL = ("down_block_types", "up_block_types", "layers_per_block", "attention_head_dim", "num_attention_heads")
_UNET: Mapping[str, Check] = {
    **_BLOCKS,
    "sample_size": integer(1, 4096),  # 32768 pixels with an autoencoder
    "attention_head_dim": nullable(_per_level(_SIZE)),
    "num_attention_heads": nullable(_per_level(_SIZE)),
    "cross_attention_dim": _SIZE,
    "downsample_padding": integer(0, 1),
    "time_cond_proj_dim": nullable(_SIZE),
    "addition_time_embed_dim": nullable(_SIZE),
    "projection_class_embeddings_input_dim": nullable(_SIZE),
    "num_class_embeds": nullable(_SIZE),
}
_VIDEO: Mapping[str, Check] = {
    **_UNET,
    "sample_size": nullable(integer(1, 4096)),
    "num_frames": integer(1, 4096),
    "addition_time_embed_dim": _SIZE,
    "projection_class_embeddings_input_dim": _SIZE,
}
_MOTION: Mapping[str, Check] = {**_UNET, "motion_max_seq_length": integer(1, 4096)}
_VISION: Mapping[str, Check] = {
    "num_hidden_layers": integer(1, _LAYERS),
    "hidden_size": _SIZE,
    "image_size": integer(1, 4096),
    "patch_size": integer(1, 4096),
    "num_channels": integer(3, 3),
    "projection_dim": _SIZE,
}
_CONTROLNET: Mapping[str, Check] = {
    **{name: field for name, field in _UNET.items() if name != "sample_size"},
    "conditioning_channels": _SIZE,
    "conditioning_embedding_out_channels": _SIZES,
    **dict.fromkeys(("num_control_type", "num_trans_channel", "num_trans_head", "num_proj_channel"), _SIZE),
    "num_trans_layer": integer(1, _LAYERS),
}
_IP_ADAPTER: Mapping[str, Check] = {
    "kind": one_of(*KINDS),
    "tokens": _SIZE,
    "cross_attention_dim": _SIZE,
    "widths": list_of(_SIZE, 1, 4 * _LAYERS),
    "image_embeds": list_of(_SIZE, 1, 2),
}
_T2I_ADAPTER: Mapping[str, Check] = {
    "in_channels": _SIZE,
    "channels": _SIZES,
    "num_res_blocks": integer(1, _LAYERS),
    "downscale_factor": integer(1, 1024),
    "adapter_type": one_of(*TYPES),
}
_VAE: Mapping[str, Check] = {
    **_BLOCKS,
    "encoder_block_out_channels": _SIZES,
    "decoder_block_out_channels": _SIZES,
    "num_encoder_blocks": _SIZES,
    "num_decoder_blocks": _SIZES,
    "upsampling_scaling_factor": integer(2, 2),
    "latent_channels": _SIZE,
    "vq_embed_dim": nullable(_SIZE),
    "scaling_factor": number(1e-12, 1e12),
    "latents_mean": nullable(_NUMBERS),
    "latents_std": nullable(_NUMBERS),
}
_SCHEDULER: Mapping[str, Check] = {
    "_class_name": text(r"[A-Za-z]\w{0,99}", "the name of a scheduler class"),
    "num_train_timesteps": _COUNT,
    "noise_sampler_seed": nullable(integer(0, 2**63 - 1)),
    "solver_order": integer(1, 16),
    "steps_offset": integer(0, 1000),
    "trained_betas": nullable(_NUMBERS),
    "beta_start": number(1e-12, 1e12),
    "beta_end": number(1e-12, 1e12),
}


def checked(name: str, folder: str, config: Mapping[str, Any]) -> Fields:
    """Check the config of a network or of the scheduler.

    Args:
        name: text_encoder, unet, controlnet_1, vae, scheduler, low_res_scheduler, ...
        folder: the folder's name, for errors.
        config: the content of the file.

    Raises:
        SourceError: a field has a wrong type or size.
    """
    file = f"{folder}/{'scheduler_config' if name.endswith('scheduler') else 'config'}.json"
    kinds = {"text": _TEXT, "unet": _UNET, "controlnet": _CONTROLNET, "vae": _VAE, "scheduler": _SCHEDULER}
    kinds |= {"image": _VISION, "low": _SCHEDULER, "ip": _IP_ADAPTER, "t2i": _T2I_ADAPTER}
    checks = dict(kinds.get(name.split("_")[0], {}))
    if name == "unet" and (is_video(config) or has_motion(config)):
        checks = dict(_VIDEO if is_video(config) else _MOTION)
    if name == "text_encoder_2":
        checks["projection_dim"] = _SIZE
    for field, check in checks.items():
        value = config.get(field)
        try:
            if field in config:
                check(value, f"{file}: {field}")
        except SchemaError as error:
            raise SourceError(f"{error}.", path=file, field=field) from None
        if field in _PER_LEVEL and isinstance(value, (list, tuple)) and "block_out_channels" in config:
            levels = len(config["block_out_channels"])
            if len(value) != levels:
                message = f"{file}: {field} has {len(value)} entries; expected {levels}, one per block_out_channels."
                raise SourceError(message, path=file, field=field)
    return Fields(file, config)


def check_scheduler_config(config: Any, where: str) -> None:
    """Check that a scheduler's configuration is plain data of modest size. Raises `SchemaError` that names the field.

    diffusers does not check it: a `num_train_timesteps` or a `solver_order` of a billion fills the memory. A class that
    rejects its configuration raises its own error.
    """
    mapping_of(lambda value, where: None, text(r"\w{1,100}", "an identifier"))(config, where)
    for name, value in config.items():
        check = _PLAIN_LIST if isinstance(value, list) else _plain
        _SCHEDULER.get(name, check)(value, f"{where}.{name}")


def _plain(value: Any, where: str) -> None:
    """Check for null, true, false, short text or a number. Integers must be small, because some of them are sizes."""
    if isinstance(value, int) and abs(value) > _MAX_COUNT:
        mismatch(where, value, f"at most {_MAX_COUNT}")
    if not (value is None or isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= 1000)):
        mismatch(where, value, "a number, true, false, null, short text, or a list of these")


_PLAIN_LIST = list_of(_plain, max_length=_MAX_COUNT)
