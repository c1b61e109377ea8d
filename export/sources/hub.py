"""Fetch models from the Hugging Face hub: only the files that are read here, and no connection in offline mode.

Uses the cache of the client, `huggingface_hub`. `source` checks the files.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from calotype.errors import SourceError, first_line
from calotype.errors.printable import printable
from calotype.files.json_file import read_json
from calotype.text.tokenizer import tokenizer_files

from .parts import NETWORKS, SETTINGS, TOKENIZERS, stem_of
from .weight_files import PICKLES, weight_files

_INDEX, _CONFIG = "model_index.json", "config.json"
_SETTINGS = (*TOKENIZERS.values(), *SETTINGS, "scheduler")
_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # errors of the local disk, not of the hub


# An address of the hub: OWNER/NAME, and "tree", "blob" or "resolve" with a revision and a path. `Path` drops a slash.
_URL = re.compile(
    r"(?:https?:/{1,2})?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)"
    r"(?:/(tree|blob|resolve)/([^/?#]+)(?:/([^?#]*))?)?/?(?:[?#].*)?",
    re.IGNORECASE | re.ASCII,
)
_NO_MODELS = ("datasets", "spaces", "docs", "papers", "collections", "blog", "api")


def from_url(url: str, *, offline: bool) -> Path | None:
    """Return the folder of a model, or the `.safetensors` file, at an address of the hub. None if it is no address.

    Raises:
        SourceError: the address is not that of a model at the hub, or as `from_hub`.
    """
    if not re.match(r"\w+:/|(?:www\.)?(?:huggingface\.co|hf\.co)/", url, re.IGNORECASE):
        return None
    match = _URL.fullmatch(url)
    if match is None or match[1].partition("/")[0].lower() in _NO_MODELS:
        message = f"{url[:300]} is not the address of a model at the Hugging Face hub. Download the file, and pass it."
        raise SourceError(message, path=url[:300])
    hub_id, kind = match[1], match[2]
    revision, file = (None if part is None else unquote(part).rstrip("/") for part in (match[3], match[4]))
    if file and kind == "tree":
        raise SourceError(f"{url[:300]} is a folder inside {hub_id}. Pass {hub_id} itself.", path=hub_id)
    if file and not file.endswith(".safetensors"):
        _refuse_pickles(hub_id, [file])
        file = None  # the page of a config: the model is meant
    return _file(hub_id, revision, file, offline) if file else from_hub(hub_id, revision=revision, offline=offline)


def _file(hub_id: str, revision: str | None, file: str, offline: bool) -> Path:
    try:
        from huggingface_hub import constants, hf_hub_download

        offline = offline or constants.HF_HUB_OFFLINE
        return Path(hf_hub_download(hub_id, file, revision=revision, local_files_only=offline))
    except Exception as failed:  # the client is missing, or has its own error types
        place = "its cache lacks" if offline else "the hub did not deliver"
        raise SourceError(f"{place} {file} of {hub_id}: {first_line(failed)}", path=hub_id) from None


def from_hub(hub_id: str, *, offline: bool, revision: str | None = None) -> Path:
    """Return the folder of a model, a ControlNet or an autoencoder in the hub's cache, and fetch it if it is missing.

    `offline` (or HF_HUB_OFFLINE=1) makes no connection. If the hub cannot be reached, the cached files are used, with a
    message on stderr.

    Raises:
        SourceError: the hub has no such model, or it is neither cached nor reachable.
    """
    try:
        from huggingface_hub import HfApi, constants, errors, snapshot_download
    except ImportError:
        raise SourceError(
            f"there is no folder {hub_id}. To fetch models from the hub, pip install 'calotype[build]'.", path=hub_id
        ) from None
    if offline or constants.HF_HUB_OFFLINE:
        if (folder := _cached(hub_id, revision)) is None:
            raise SourceError(
                f"there is no folder {hub_id}, and the hub's cache {constants.HF_HUB_CACHE} has no such model. "
                "Offline mode fetches nothing: load the model once without offline (and without HF_HUB_OFFLINE).",
                path=hub_id,
            )
        return folder
    try:
        files = [each.rfilename for each in HfApi().model_info(hub_id, revision=revision).siblings or ()]
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=needed(hub_id, files)))
    except errors.GatedRepoError:
        raise SourceError(
            f"{hub_id} is gated. Request access on its page at the hub, then log in with: hf auth login", path=hub_id
        ) from None
    except errors.RepositoryNotFoundError:
        raise SourceError(
            f"there is no folder {hub_id}, and the hub has no such model. For private models, log in: hf auth login",
            path=hub_id,
        ) from None
    except SourceError:
        raise
    except Exception as failed:  # the client and its HTTP library have their own error types
        if isinstance(failed, OSError) and failed.errno in _DISKS:
            raise SourceError(
                f"cannot write {hub_id} to the hub's cache {constants.HF_HUB_CACHE} ({failed.strerror}). Free space "
                "there, or set HF_HUB_CACHE to another folder.",
                path=constants.HF_HUB_CACHE,
            ) from None
        if (folder := _cached(hub_id, revision)) is None or not _is_complete(folder):
            part = " (the cache has a part of it)" if folder else ""
            raise SourceError(
                f"there is no folder {hub_id}{part}, and the hub did not deliver it: {first_line(failed)}", path=hub_id
            ) from None
        line = f"calotype: cannot reach the hub ({first_line(failed)}); using {hub_id} from the cache"
        print(printable(line), file=sys.stderr)
        return folder


def _cached(hub_id: str, revision: str | None) -> Path | None:
    """Return the model's folder in the cache, which may be incomplete. Makes no connection."""
    from huggingface_hub import try_to_load_from_cache

    for name in (_INDEX, _CONFIG):
        path: Any = try_to_load_from_cache(hub_id, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None


def _is_complete(folder: Path) -> bool:
    """Return whether a cached folder has all files of its index that are read here."""
    try:
        if not (folder / _INDEX).is_file():
            return bool(weight_files(folder, stem_of("unet")))
        index = read_json(folder / _INDEX, "the list of parts")
        for part in (name for name, value in index.items() if value not in (None, [None, None])):
            if NETWORKS.fullmatch(part):
                read_json(folder / part / _CONFIG, "a part's config")
                weight_files(folder / part, stem_of(part))
            elif part == "scheduler":
                read_json(folder / part / "scheduler_config.json", "the scheduler's config")
            elif part in _SETTINGS:
                tokenizer_files(folder / part)
    except SourceError:
        return False
    return True


def needed(hub_id: str, files: Sequence[str]) -> list[str]:
    """Select the files that are read here: configs, vocabularies, and one set of weights for each network.

    The weights are in full precision, or in fp16 if a repository has no others. Raises `SourceError` for a repository
    without a model.
    """
    if _INDEX in files:
        names = [f"{folder}/*{ending}" for folder in _SETTINGS for ending in (".json", ".txt")]
        settings = [f for f in files if f.count("/") == 1 and any(fnmatch(f, name) for name in names)]
        networks = [f.removesuffix(f"/{_CONFIG}") for f in files if f.endswith(f"/{_CONFIG}")]
        networks = [folder for folder in networks if NETWORKS.fullmatch(folder)]
        configs = [f"{folder}/{_CONFIG}" for folder in networks]
        weights = [f for folder in networks for f in _weights(hub_id, files, f"{folder}/{stem_of(folder)}")]
        return [_INDEX, *settings, *configs, *weights]
    if _CONFIG in files:  # a single network: a ControlNet or an autoencoder
        return [_CONFIG, *_weights(hub_id, files, stem_of("unet"))]
    if single := [f for f in files if f.endswith(".safetensors")]:
        raise SourceError(
            f"{hub_id} is not in diffusers' layout; it holds {_some(single)}. Download one checkpoint "
            f"(hf download {hub_id} {single[0]}) and pass the file.",
            path=hub_id,
        )
    _refuse_pickles(hub_id, files)
    message = f"{hub_id} holds no model: its {len(files)} files include neither {_INDEX} nor {_CONFIG}."
    raise SourceError(message, path=hub_id)


def _weights(hub_id: str, files: Sequence[str], stem: str) -> list[str]:
    """Select one set of safetensors: a single file, or an index and its shards."""
    for variant in ("", ".fp16"):
        single, index = f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json"
        if single in files:
            return [single]
        if index in files:
            shard = re.compile(re.escape(f"{stem}{variant}") + r"-\d+-of-\d+\.safetensors")
            return [index, *(f for f in files if shard.fullmatch(f))]
    folder = stem.rpartition("/")[0]
    _refuse_pickles(hub_id, [f for f in files if f.rpartition("/")[0] == folder])
    message = f"{hub_id} has no {stem}.safetensors; only weights in safetensors are read."
    raise SourceError(message, path=hub_id)


def _refuse_pickles(hub_id: str, files: Sequence[str]) -> None:
    if pickled := [f for f in files if Path(f).suffix in PICKLES]:
        raise SourceError(
            f"{hub_id} holds {_some(pickled)}. Pickles can run any code when they are opened, so they are not fetched. "
            "If you trust the model, load it with diffusers, save it with save_pretrained, and pass that folder.",
            path=hub_id,
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
