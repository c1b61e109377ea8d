"""Models of the Hugging Face hub: only what a model is made of is fetched, and offline nothing is asked for at all.

Knows the hub's client, `huggingface_hub`, whose cache is used and filled. What the files must be is `source`'s to say.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calotype.errors import SourceError, first_line
from calotype.errors.printable import printable
from calotype.files.json_file import read_json
from calotype.text.tokenizer import tokenizer_files

from .weight_files import PICKLES, weight_files

_INDEX, _CONFIG = "model_index.json", "config.json"
_SETTINGS = ("tokenizer", "tokenizer_2", "scheduler")
_WEIGHTS = {  # folder -> how its files of weights begin
    **dict.fromkeys(("text_encoder", "text_encoder_2"), "model"),
    **dict.fromkeys(("unet", "vae", "vqvae"), "diffusion_pytorch_model"),
}
_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # no room, no right: it is not the hub


def from_hub(hub_id: str, *, offline: bool) -> Path:
    """The folder of a model, a ControlNet or an autoencoder in the hub's cache, fetched first where it is not there.

    `offline`, as HF_HUB_OFFLINE=1, makes no connection. Where the hub cannot be reached, what the cache has is taken,
    and that is said. Raises `SourceError`.
    """
    try:
        from huggingface_hub import HfApi, constants, errors, snapshot_download
    except ImportError:
        raise SourceError(
            f"there is no folder {hub_id}; to have it from the hub, pip install 'calotype[build]'."
        ) from None
    if offline or constants.HF_HUB_OFFLINE:
        if (folder := _cached(hub_id)) is None:
            raise SourceError(
                f"there is no folder {hub_id}, the hub's cache {constants.HF_HUB_CACHE} has no model of that name, and "
                "offline nothing is fetched; load it once without offline (and without HF_HUB_OFFLINE)."
            )
        return folder
    try:
        files = [each.rfilename for each in HfApi().model_info(hub_id).siblings or ()]
        return Path(snapshot_download(hub_id, allow_patterns=needed(hub_id, files)))
    except errors.GatedRepoError:
        raise SourceError(
            f"{hub_id} is gated: ask for access on its page at the hub, then log in with: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise SourceError(
            f"there is no folder {hub_id}, and the hub has no model of that name (for a private one log in with: "
            "hf auth login)."
        ) from None
    except SourceError:
        raise
    except Exception as failed:  # the hub's client and its HTTP library raise kinds of their own
        if isinstance(failed, OSError) and failed.errno in _DISKS:
            raise SourceError(
                f"{hub_id} cannot be kept in the hub's cache {constants.HF_HUB_CACHE} ({failed.strerror}); make room "
                "there, or name another folder as HF_HUB_CACHE."
            ) from None
        why = first_line(failed)
        if (folder := _cached(hub_id)) is None or not _is_whole(folder):
            part = " (the cache has a part of it)" if folder else ""
            raise SourceError(f"there is no folder {hub_id}{part}, and it cannot be had from the hub: {why}") from None
        line = f"calotype: the hub cannot be asked ({why}); taking {hub_id} as the cache has it"
        print(printable(line), file=sys.stderr)
        return folder


def _cached(hub_id: str) -> Path | None:
    """The model's folder in the cache, as far as it was fetched; no connection is made."""
    from huggingface_hub import try_to_load_from_cache

    for name in (_INDEX, _CONFIG):
        found: Any = try_to_load_from_cache(hub_id, name)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _is_whole(folder: Path) -> bool:
    """Has a folder of the cache all that its index speaks of, as far as it is read here?"""
    try:
        if not (folder / _INDEX).is_file():
            return bool(weight_files(folder, _WEIGHTS["unet"]))
        index = read_json(folder / _INDEX, "the list of parts")
        parts = [name for name in (*_WEIGHTS, *_SETTINGS) if index.get(name) not in (None, [None, None])]
        for part in set(parts) & set(_WEIGHTS):
            read_json(folder / part / _CONFIG, "a part's config")
            weight_files(folder / part, _WEIGHTS[part])
        for part in set(parts) & set(_SETTINGS):
            if part == "scheduler":
                read_json(folder / part / "scheduler_config.json", "the scheduler's config")
            else:
                tokenizer_files(folder / part)
    except SourceError:
        return False
    return True


def needed(hub_id: str, files: Sequence[str]) -> list[str]:
    """Of a repository's files those that are read here: configs, vocabularies, and one set of weights for each network.

    Weights in full precision, or in fp16 where there are no others. Raises `SourceError` where there is no model.
    """
    if _INDEX in files:
        settings = [f for f in files if f.split("/")[0] in _SETTINGS and f.count("/") == 1 and _is_text(f)]
        networks = [folder for folder in _WEIGHTS if f"{folder}/{_CONFIG}" in files]
        configs = [f"{folder}/{_CONFIG}" for folder in networks]
        weights = [f for folder in networks for f in _weights(hub_id, files, f"{folder}/{_WEIGHTS[folder]}")]
        return [_INDEX, *settings, *configs, *weights]
    if _CONFIG in files:  # a network alone: a ControlNet or an autoencoder
        return [_CONFIG, *_weights(hub_id, files, _WEIGHTS["unet"])]
    single = [f for f in files if f.endswith(".safetensors")]
    if single:
        raise SourceError(
            f"{hub_id} is no folder in diffusers' layout; it holds {_some(single)}. Fetch the checkpoint that you want "
            f"(hf download {hub_id} {single[0]}) and name the file."
        )
    pickled = [f for f in files if Path(f).suffix in PICKLES]
    if pickled:
        raise SourceError(_pickled(hub_id, pickled))
    raise SourceError(f"{hub_id} holds no model: {_INDEX} and {_CONFIG} are not among its {len(files)} files.")


def _is_text(name: str) -> bool:
    return name.endswith((".json", ".txt"))


def _weights(hub_id: str, files: Sequence[str], stem: str) -> list[str]:
    """One set of safetensors: whole or in shards."""
    for variant in ("", ".fp16"):
        whole, index = f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json"
        if whole in files:
            return [whole]
        if index in files:
            shard = re.compile(re.escape(f"{stem}{variant}") + r"-\d+-of-\d+\.safetensors")
            return [index, *(f for f in files if shard.fullmatch(f))]
    folder = stem.rpartition("/")[0]
    pickled = [f for f in files if f.rpartition("/")[0] == folder and Path(f).suffix in PICKLES]
    if pickled:
        raise SourceError(_pickled(hub_id, pickled))
    raise SourceError(f"{hub_id} has no {stem}.safetensors; weights are read from safetensors.")


def _pickled(hub_id: str, pickled: Sequence[str]) -> str:
    return (
        f"{hub_id} holds {_some(pickled)}, pickles, which can run any code when they are opened, so they are not "
        "fetched. Load the model with diffusers where you trust it, save it with save_pretrained, and name that folder."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
