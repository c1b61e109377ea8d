"""The schema of a scheduler configuration, which may come from a stranger's file.

diffusers does not check it: a `num_train_timesteps` or a `solver_order` of a billion fills the memory. Knows no
scheduler: a class that rejects its configuration raises its own error.
"""

from __future__ import annotations

from typing import Any

from ..errors.schema import Check, figure, integer, list_of, mapping_of, mismatch, nullable, text

_LARGEST = 100_000  # limit of any count or size; models are trained with 1000 timesteps
_SEED = "noise_sampler_seed"
_ENTRIES = list_of(lambda value, where: _plain(value, where), max_length=_LARGEST)
_NAME = text(r"\w{1,100}", "an identifier")
_FIELDS: dict[str, Check] = {
    "_class_name": text(r"[A-Za-z]\w{0,99}", "the name of a scheduler class"),
    "num_train_timesteps": integer(1, _LARGEST),
    "trained_betas": nullable(list_of(figure, min_length=1, max_length=_LARGEST)),
    _SEED: nullable(integer(0, 2**63 - 1)),
}


def check_scheduler_config(config: Any, where: str) -> None:
    """Check that a configuration is plain data of modest size. Raises `SchemaError` that names the field."""
    mapping_of(lambda value, where: None, _NAME)(config, where)
    for name, value in config.items():
        _FIELDS.get(name, _value)(value, f"{where}.{name}")


def _value(value: Any, where: str) -> None:
    if isinstance(value, list):
        _ENTRIES(value, where)
    else:
        _plain(value, where)


def _plain(value: Any, where: str) -> None:
    """Check for null, true, false, short text or a number. Integers must be small, because some of them are sizes."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        mismatch(where, value, f"at most {_LARGEST}")
    if not (value is None or isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= 1000)):
        mismatch(where, value, "a number, true, false, null, short text, or a list of these")
