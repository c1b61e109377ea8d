"""Read a model: a folder in diffusers' layout, a checkpoint in the original layout, "demo", or a hub id.

Autoencoders and ControlNets are read in the same ways. All checks of files happen here, before any library opens them:
a missing folder, a config that is not JSON, a pickle, a truncated weight file. The user's files are never changed. This
module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import calotype
from calotype.errors import SourceError
from calotype.errors.printable import printable
from calotype.files.cache import DIGESTS
from calotype.files.digest import digest_of, file_digest
from calotype.files.json_file import read_json
from calotype.plan.family import folder_of
from calotype.plan.image_prompts.perturbed import PERTURBED
from calotype.plan.image_prompts.style import MARK, no_style_reason
from calotype.plan.network_check import check_network, token_rows
from calotype.plan.networks import UNION_MARK, controlnets_of
from calotype.text.tokenizer import MARKS, check_token_ids, tokenizer_files
from calotype.weights.content import content_digest_of_files
from calotype.weights.safetensors import TensorFile
from calotype.weights.types import check_not_quantized, check_types

from .gguf_file import SUFFIX
from .hub import from_hub, from_url
from .misnamed import describe_other_folder, kind_of_file
from .parts import CLASSES, check_parts, other_model, parts_of, stem_of
from .single_file import open_checkpoint
from .single_file_components import find_taesd, open_component, open_taesd
from .weight_files import PICKLES, check_safetensors, pickles_in, refusal_of_pickle, weight_files

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# The fields of a model_index.json that change images.
_INDEX_FIELDS = (
    *("_class_name", "force_zeros_for_empty_prompt", "requires_aesthetics_score"),
    *("is_cosxl_edit", "max_noise_level"),
)
_KINDS = {  # argument -> its forms, and diffusers' class that reads it from one file
    "model": (
        "a model is a {}, a .safetensors or .gguf checkpoint, a plan, a hub id, or demo",
        "StableDiffusionPipeline",
    ),
    "vae": ("an autoencoder is a {}, a .safetensors file, or a hub id", "AutoencoderKL"),
    "unet": ("a U-Net is a {}, a .safetensors or .gguf file, or a hub id", "UNet2DConditionModel"),
    "controlnet": ("a ControlNet is a {}, a .safetensors file, a hub id, or demo-canny", "ControlNetModel"),
    "t2i_adapter": ("a T2I-Adapter is a {}, a .safetensors file, or a hub id", "T2IAdapter"),
    "motion_adapter": ("motion modules are a {}, a .safetensors file, a .ckpt file, or a hub id", "MotionAdapter"),
    "ip_adapter": ("an IP-Adapter is a .safetensors file, or its address at the hub", "IPAdapter"),
    "image_encoder": ("an image encoder is a {}", "CLIPVisionModelWithProjection"),
}
_SHIPPED = {"demo": "demo_model", "demo-canny": "demo_canny"}  # models that ship with Calotype -> folder


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model whose files are complete and valid."""

    model: str  # the name that the user passed
    folder: Path
    configs: Mapping[str, Mapping[str, Any]]  # per folder of weights, model_index and scheduler
    folders: Mapping[str, Path]  # name in diffusers' layout (unet, controlnet, ...) -> folder
    digests: Mapping[str, str]  # folder's name -> SHA-256 of its weights
    tokenizers: Mapping[str, Path]  # text encoder -> folder of its tokenizer
    depth_estimator: Path | None = None
    generated: frozenset[str] = frozenset()  # folders of the cache, whose digest is their key

    def with_parts(self, folders: Mapping[str, Path], configs: Mapping[str, Mapping[str, Any]]) -> Source:
        """Return the source with more networks: their folders and configs by component."""
        return replace(
            self,
            folders={**self.folders, **folders},
            configs={**self.configs, **configs},
            digests={**self.digests, **_digests_of(folders, configs, {})},
        )

    def with_self_attention(self, *, style_aligned: bool, pag: bool) -> Source:
        """Return the source with a U-Net whose self-attention takes inputs. Raises `SourceError` if it cannot.

        `style_aligned` is for images of one style, `pag` for perturbed attention guidance.
        """
        unet, options = self.configs["unet"], {"style_aligned": style_aligned, "pag": pag}
        name = next((name for name, is_on in options.items() if is_on), None)
        if name is None:
            return self
        reason = no_style_reason(unet) if self.tokenizers else "it takes no text"
        if reason is not None:
            message = f"the U-Net of {self.model} does not take {name}: {reason}. Omit {name}."
            raise SourceError(message, path=self.folder, field=name)
        marks = {mark: True for mark, is_on in {MARK: style_aligned, PERTURBED: pag}.items() if is_on}
        return replace(self, configs={**self.configs, "model_index": {**self.configs["model_index"], **marks}})

    def weights_folder(self, component: str) -> Path:
        """Return the folder of the component's config and weights."""
        return self.folders[folder_of(component)]

    def weights_digest(self, component: str) -> str:
        """Return a digest of the values of the component's weights, in whatever files and types they are.

        Raises:
            SourceError: the weights cannot be read, or changed since the model was read.
        """
        key = digest_of({"content of": self.digests[folder_of(component)]})
        if (kept := DIGESTS.read(key)) is not None:
            return bytes(kept).decode()
        digest = content_digest_of_files(map(TensorFile, self._files(component)))
        self.check_unchanged(component)
        DIGESTS.write(key, digest.encode())
        return digest

    def check_unchanged(self, component: str) -> None:
        """Raise `SourceError` if the component's weights changed since they were read."""
        if folder_of(component) in self.generated:
            return
        if _digest(self._files(component)) != self.digests[folder_of(component)]:
            folder = self.weights_folder(component)
            raise SourceError(
                f"the weights in {folder} were changed after the model was loaded. Load it again.", path=folder
            )

    def weights_count(self, component: str) -> int:
        """Return the number of values in the component's weight files, from their headers."""
        headers = map(check_safetensors, self._files(component))
        return sum(math.prod(shape) for header in headers for shape in header.shapes.values())

    def _files(self, component: str) -> list[Path]:
        return weight_files(self.weights_folder(component), stem_of(folder_of(component)))

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of configs, weights and tokenizers, on which images depend."""
        folders = self.tokenizers.values()
        files = [path for f in folders for path in (*tokenizer_files(f), *(f / name for name in MARKS))]
        vocabulary = [[path.name, file_digest(path)] for path in files if path.is_file()]
        content = json.dumps([self.configs, self.digests, vocabulary], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def read_source(
    model: str | Path,
    controlnets: Sequence[str | Path] = (),
    vae: str | Path | None = None,
    *,
    unet: str | Path | None = None,
    offline: bool = False,
) -> Source:
    """Find a model, its ControlNets, and an autoencoder and a U-Net that replace its own, and check their files.

    A network in one `.safetensors` or `.gguf` has no config: `single_file_components` completes it from the model, the
    scaling factor of an autoencoder included.

    Args:
        model: a folder, a `.safetensors` checkpoint, a hub id or its address, or "demo".
        controlnets: the ControlNets, in the same forms.
        vae: the autoencoder, in the same forms; None for the model's own.
        unet: the U-Net, in the same forms; None for the model's own.
        offline: make no connection for hub ids.

    Raises:
        SourceError: a file is missing, damaged, unsupported, or does not fit.
    """
    folder = find(model, offline=offline)
    index = _index(folder)
    parts = parts_of(folder, index)
    replaced = {name: other for name, other in {"unet": unet, "vae": vae}.items() if other is not None}
    if not parts.tokenizers and (controlnets or replaced):
        kind = f"{index.get('_class_name')!s:.80}"
        raise SourceError(
            f"{folder} holds a {kind}, which takes no ControlNet, no autoencoder and no U-Net.", path=folder
        )
    own = {name: read_json(path / "config.json", f"the {name}'s config") for name, path in parts.networks.items()}
    check_parts(folder, index, own)
    if parts.unused:
        print(printable(f"calotype: {model} has parts without a use here: {', '.join(parts.unused)}"), file=sys.stderr)
    folders = dict(parts.networks)
    folders |= {name: _network_folder(other, name, folders, offline) for name, other in replaced.items()}
    nets = [_network_folder(net, "controlnet", folders, offline) for net in controlnets] or parts.controlnets
    folders |= {f"controlnet_{i}" if i else "controlnet": net for i, net in enumerate(nets)}
    configs = {name: read_json(path / "config.json", f"the {name}'s config") for name, path in folders.items()}
    configs |= {name: _control_config(configs[name], folders[name]) for name in controlnets_of(configs)}
    for name in (*controlnets_of(configs), *replaced):
        classes = [each for each in CLASSES[name.partition("_")[0]] if each != "VQModel"]
        if (other := configs[name].get("_class_name")) not in classes:
            if folders[name] in parts.controlnets:
                raise other_model(folder, index, f"has a {other!s:.80} as {name}")
            raise SourceError(
                f"{folders[name]} holds a {other}; expected {' or '.join(classes)}.",
                path=folders[name],
                field="_class_name",
            )
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", "the scheduler's config")
    settings = {name: read_json(file, f"the {name}'s config") for name, file in parts.settings.items()}
    for vocabulary in parts.tokenizers.values():
        tokenizer_files(vocabulary)
    digests = _digests_of(folders, configs, parts.tokenizers)
    fields = {name: index[name] for name in _INDEX_FIELDS if name in index}
    return Source(
        model=str(model),
        folder=folder,
        configs={**configs, **settings, "scheduler": scheduler, "model_index": fields},
        folders=folders,
        digests=digests,
        tokenizers=parts.tokenizers,
        depth_estimator=parts.depth_estimator,
    )


def _control_config(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the config of a ControlNet. That of a published ControlNet-Union names another class."""
    headers = [check_safetensors(file) for file in weight_files(folder, stem_of("controlnet"))]
    tasks = next((header.shapes[UNION_MARK] for header in headers if UNION_MARK in header.shapes), None)
    if tasks is None or config.get("_class_name") not in CLASSES["controlnet"]:
        return dict(config)
    return {"num_control_type": tasks[0], **config, "_class_name": "ControlNetUnionModel"}


def _digests_of(
    folders: Mapping[str, Path], configs: Mapping[str, Mapping[str, Any]], tokenizers: Mapping[str, Path]
) -> dict[str, str]:
    """Check the files of networks, and return the SHA-256 of each one's weights, by the names of the networks.

    Raises:
        SourceError: weights are missing or damaged, or do not fit their config.
    """
    files = {name: weight_files(path, stem_of(name)) for name, path in folders.items()}  # headers before digests
    for name, path in folders.items():
        _check_network(name, path, configs[name], files[name], tokenizers.get(name))
    return {name: _digest(each) for name, each in files.items()}


def _check_network(
    name: str, folder: Path, config: Mapping[str, Any], files: Iterable[Path], tokenizer: Path | None
) -> None:
    """Raise `SourceError` unless the weights are floats, fit the config, and have an embedding for every token."""
    check_not_quantized(folder / "config.json", config)
    shapes: dict[str, Sequence[int]] = {}
    for file in files:
        header = check_safetensors(file)
        check_types(file, header.types)
        shapes |= header.shapes
    check_network(folder / "config.json", name, config, shapes)
    if tokenizer is not None:
        check_token_ids(tokenizer, token_rows(shapes) or 0, folder)


def find(model: str | Path, *, offline: bool = False) -> Path:
    """Return the model's folder; fetch a hub id, and convert a checkpoint in one file."""
    path = located(model, "model", offline)
    return open_checkpoint(path) if path.is_file() else path


def located(name_or_path: str | Path, name: str, offline: bool) -> Path:
    """Return the folder or the safetensors file that an argument `name` means. Raises `SourceError`."""
    if str(name_or_path) in _SHIPPED:
        return Path(calotype.__file__).parent / _SHIPPED[str(name_or_path)]
    if (at_hub := from_url(str(name_or_path), offline=offline)) is not None:
        return at_hub
    forms, class_name = _KINDS[name]
    forms = forms.format("folder in diffusers' layout")
    try:
        path = Path(name_or_path).expanduser()
        if path.is_dir():
            return path.absolute()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError) as failed:  # no permission, too long a name, no such home, a NUL
        raise SourceError(f"cannot read {name_or_path} ({failed}); {forms}.", path=name_or_path) from None
    has_weights = path.suffix.lower() in (".safetensors", SUFFIX, *PICKLES)
    if is_file:
        if path.suffix.lower() in (".safetensors", SUFFIX):
            return path.absolute()
        raise SourceError(
            refusal_of_pickle(path, class_name) if has_weights else f"{path} is {kind_of_file(path)}; {forms}.",
            path=path,
        )
    if _HUB_ID.fullmatch(str(name_or_path)) and not has_weights:
        return from_hub(str(name_or_path), offline=offline)
    raise SourceError(f"there is no {'file' if has_weights else 'folder'} {path}; {forms}.", path=path)


def _network_folder(network: str | Path, name: str, own: Mapping[str, Path], offline: bool) -> Path:
    """Return the folder of a network for the argument `name`. `own`: the model's folders. Raises `SourceError`."""
    path = located(network, name, offline)
    if name == "vae" and (pair := find_taesd(path)):
        return open_taesd(*pair, own)
    if path.is_file():
        with_config = path.name == f"{stem_of(name)}.safetensors" and path.with_name("config.json").is_file()
        return path.parent if with_config else open_component(path, name, own)
    if (path / "model_index.json").is_file():
        inside = path / name
        remedy = f"Pass its {name}: {inside}" if inside.is_dir() else f"It has no {name}"
        raise SourceError(f"{network} is a full model. {remedy}.", path=path)
    single = sorted(path.glob("*.safetensors"))
    if single and not (path / "config.json").is_file():
        if other := describe_other_folder(path, name):
            raise SourceError(other, path=path)
        raise SourceError(
            f"{path / 'config.json'} is missing. To use a {name} in one file, pass the file: {single[0]}",
            path=path / "config.json",
        )
    return path


def _index(folder: Path) -> dict[str, Any]:
    """Read the folder's `model_index.json`. Raises `SourceError`, which describes the folder if the file is missing."""
    path = folder / "model_index.json"
    if not path.exists():
        if other := describe_other_folder(folder):
            raise SourceError(other, path=folder)
        single, pickled = [p.name for p in sorted(folder.glob("*.safetensors"))], pickles_in(folder)
        if single:
            raise SourceError(
                f"{path} is missing. To use a single checkpoint, pass the file: {folder / single[0]}", path=path
            )
        if pickled:
            raise SourceError(refusal_of_pickle(folder / pickled[0]), path=folder / pickled[0])
    return read_json(path, "the list of parts of a model in diffusers' layout")


def _digest(files: Iterable[Path]) -> str:
    return hashlib.sha256("".join(file_digest(f) for f in files).encode()).hexdigest()
