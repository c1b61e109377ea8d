"""Convert checkpoints in the original layout to diffusers' names with diffusers' converters, and check every tensor.

Unknown tensors, missing tensors and wrong shapes are errors: diffusers would fill in random numbers and generate noise.
This module imports torch, so it runs in a child process.
"""

from __future__ import annotations

import gzip
import inspect
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calotype.errors import SourceError
from calotype.text.tokenizer import END, START

from .gguf_file import SUFFIX, GgufFile
from .single_file import UNET, VAE

Tensors = Mapping[str, Tensor]

_VAE_STARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_V_SPREAD = 0.09
_CLIP_LENGTH = 77  # tokens of CLIP's text encoders


def convert_into(
    *,
    out: str,
    file: str,
    name: str,
    texts: Mapping[str, str],
    described: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> dict[str, str]:
    """Write the checkpoint as a folder in diffusers' layout, in a child process. The message says what it predicts."""
    folder, tensors = Path(out), load_tensors(file)
    prediction = prediction_of(name, tensors, metadata)
    parts = with_prediction(described, prediction.type, zero_snr="ztsnr" in tensors)
    index: dict[str, Any] = {"_class_name": parts["pipeline"], "_diffusers_version": "0.42.0"}
    if "text_encoder_2" in texts:
        refines = "text_encoder" not in texts
        index |= {"force_zeros_for_empty_prompt": not refines, "requires_aesthetics_score": refines}
    scheduler, settings = parts["scheduler"]
    _write(folder / "scheduler" / "scheduler_config.json", {"_class_name": scheduler, **settings})
    index["scheduler"] = ["diffusers", scheduler]
    for part in (*texts, "unet", "vae"):
        class_name, config = parts[part]
        index[part] = ["transformers" if part in texts else "diffusers", class_name]
        network = network_of(class_name, config)
        state = convert_tensors(part, tensors, config, texts)
        check_tensors(f"{file} is {name}, but its {part}", state, network)
        _save_network(folder / part, "model" if part in texts else "diffusion_pytorch_model", network, state)
    for part in texts:
        tokenizer = part.replace("text_encoder", "tokenizer")
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
        # OpenAI's encoder was trained with the end token as padding, OpenCLIP's (with gelu) with another.
        write_tokenizer(folder / tokenizer, pad="!" if parts[part][1]["hidden_act"] == "gelu" else END)
    _write(folder / "model_index.json", index)
    predicts = "the noise" if prediction.type == "epsilon" else "v"
    return {"message": f"it predicts {predicts}: {prediction.reason}"}


def convert_component_into(
    *, out: str, file: str, what: str, original: bool, prefix: str, class_name: str, config: Mapping[str, Any]
) -> None:
    """Write one network's file as a folder in diffusers' layout, in a child process.

    The arguments from `what` on are the fields of `single_file_components.NetworkFile`.
    """
    network = network_of(class_name, config)
    try:
        state = convert_component_tensors(network, load_tensors(file), original=original, prefix=prefix)
    except SourceError as failed:
        raise SourceError(f"{file} is {what} of an unsupported kind: {failed}", path=file) from None
    remedy = ". Use one of the model's family, or a folder that has its config"
    check_tensors(f"{file} is {what}, but with this model it", state, network, remedy)
    _save_network(Path(out), "diffusion_pytorch_model", network, state)


def convert_taesd_into(*, out: str, file: str, decoder: str, digest: str) -> None:
    """Write TAESD's two files as a folder in diffusers' layout, in a child process. `digest` only names the result."""
    network = network_of("AutoencoderTiny", {})
    state = {f"encoder.layers.{name}": tensor for name, tensor in load_tensors(file).items()}
    for name, tensor in load_tensors(decoder).items():  # the list starts with a clamp that diffusers has elsewhere
        position, _, rest = name.partition(".")
        state[f"decoder.layers.{int(position) - 1}.{rest}"] = tensor
    check_tensors(f"{file} with {decoder} is a TAESD, but it", state, network)
    _save_network(Path(out), "diffusion_pytorch_model", network, state)


def load_tensors(file: str) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file, or of a GGUF file, dequantized."""
    from safetensors.torch import load_file

    if not file.lower().endswith(SUFFIX):
        return dict(load_file(file))
    tensors = {name: torch.from_numpy(array) for name, array in GgufFile(Path(file)).tensors()}
    kinds = {tensor.dtype for tensor in tensors.values()}  # a network computes in one type
    return tensors if len(kinds) == 1 else {name: tensor.float() for name, tensor in tensors.items()}


def _save_network(folder: Path, stem: str, network: Any, state: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    _write(folder / "config.json", full_config(network))
    save_file(state, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def convert_component_tensors(network: Any, tensors: Tensors, *, original: bool, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of one autoencoder or ControlNet under the network's names. Raises `SourceError`."""
    is_vae = type(network).__name__ == "AutoencoderKL"
    if original and type(network).__name__ == "UNet2DConditionModel":
        unet = {f"{UNET}{name.removeprefix(prefix)}": tensor for name, tensor in _own(tensors, prefix).items()}
        return _renamed("unet", unet, network.config)
    own = _own(tensors, *((prefix + part for part in _VAE_STARTS) if is_vae else [prefix]))
    if original:
        return _renamed("vae" if is_vae else "controlnet", own, network.config, prefix)
    state = {name.removeprefix(prefix): tensor.contiguous() for name, tensor in own.items()}
    network._fix_state_dict_keys_on_load(state)  # attention had other names in 2022
    return state


class Prediction(NamedTuple):
    """What a U-Net predicts, "epsilon" or "v_prediction", and why this is concluded."""

    type: str
    reason: str


def prediction_of(name: str, tensors: Tensors, metadata: Mapping[str, str]) -> Prediction:
    """Conclude from the metadata, a marker tensor, or ComfyUI's rule what the U-Net predicts.

    Stable Diffusion 2 exists in both kinds, with equal names and shapes. Models that predict v have a larger spread in
    the first norm's bias of the U-Net's last transformer (ComfyUI, `supported_models.SD20`).

    Raises:
        SourceError: the model uses EDM's noise.
    """
    if "edm_mean" in tensors or "edm_vpred.sigma_max" in tensors:
        raise SourceError(f"this {name} was trained with EDM's noise (Karras et al. 2022), which is not supported.")
    declared = metadata.get("modelspec.prediction_type", "").lower()
    if declared in ("v", "v_prediction", "epsilon"):
        return Prediction("epsilon" if declared == "epsilon" else "v_prediction", "its metadata says so")
    if "v_pred" in tensors:
        return Prediction("v_prediction", "a tensor named v_pred marks it")
    if name != "Stable Diffusion 2.x":
        return Prediction("epsilon", f"the default of {name}; no metadata and no tensor says otherwise")
    ends = ".1.transformer_blocks.0.norm1.bias"
    biases = {int(n.split(".")[3]): n for n in tensors if n.startswith(f"{UNET}output_blocks.") and n.endswith(ends)}
    spread = float(tensors[biases[max(biases)]].float().std(correction=0)) if biases else 0.0
    reason = f"the first bias of its last transformer has a spread of {spread:.3f}; above {_V_SPREAD} means v"
    return Prediction("v_prediction" if spread > _V_SPREAD else "epsilon", reason)


def with_prediction(described: Mapping[str, Any], predicts: str, *, zero_snr: bool) -> dict[str, Any]:
    """Set the scheduler's prediction type. Stable Diffusion 2 models that predict noise were trained at 512 px."""
    scheduler, settings = described["scheduler"]
    settings = {**settings, "prediction_type": predicts, **({"rescale_betas_zero_snr": True} if zero_snr else {})}
    parts = {**described, "scheduler": (scheduler, settings)}
    class_name, config = described["unet"]
    if described["scheduler"][1].get("prediction_type") == "v_prediction" and predicts == "epsilon":
        parts["unet"] = (class_name, {**config, "sample_size": config["sample_size"] * 2 // 3})
    return parts


def convert_tensors(
    part: str, tensors: Tensors, config: Mapping[str, Any], texts: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the tensors of one part under the names of its config's network. Raises `SourceError`."""
    if part in texts:
        return _text_tensors(part, _own(tensors, texts[part]), config, texts[part])
    starts = (UNET,) if part == "unet" else tuple(VAE + name for name in _VAE_STARTS)
    return _renamed(part, _own(tensors, *starts), config)


def _own(tensors: Tensors, *starts: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(starts)}


def _renamed(part: str, own: Tensors, config: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Rename with diffusers' converter. Raises `SourceError` if a tensor was not used."""
    from diffusers.loaders import single_file_utils as diffusers_utils

    convert = {
        "unet": diffusers_utils.convert_ldm_unet_checkpoint,
        "vae": diffusers_utils.convert_ldm_vae_checkpoint,
        "controlnet": diffusers_utils.convert_controlnet_checkpoint,
    }[part]
    state = convert(dict(own), config)
    if part == "controlnet" and config["addition_embed_type"]:  # SDXL's: the converter has these only in a table
        table = diffusers_utils.DIFFUSERS_TO_LDM_MAPPING[part]["addition_embed_type"]
        state |= {new: own.get(prefix + old) for new, old in table.items()}
    state = {name: tensor.contiguous() for name, tensor in state.items() if tensor is not None}
    if len(state) != len(own):
        raise SourceError(f"{len(own) - len(state)} tensors of the checkpoint's {part} are unknown to its network.")
    return state


def _text_tensors(part: str, own: Tensors, config: Mapping[str, Any], start: str) -> dict[str, Tensor]:
    from diffusers.loaders import single_file_utils as diffusers_utils

    if start.endswith(".transformer."):  # transformers' layout; the oldest files lack the outer module
        bare = {name.removeprefix(start).removeprefix("text_model."): tensor for name, tensor in own.items()}
        state = _of_transformers(bare, config)
        if part == "text_encoder":
            state.pop("text_projection.weight", None)
    else:  # OpenCLIP's layout; Stable Diffusion 2 does not use the last layer
        layer = re.compile(r".*\.resblocks\.(\d+)\.")
        layers = {name: int(m[1]) if (m := layer.match(name)) else -1 for name in own}
        used = {name: tensor for name, tensor in own.items() if layers[name] < config["num_hidden_layers"]}
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
        state = diffusers_utils.convert_open_clip_checkpoint(model, used, prefix=start)
        if part == "text_encoder":
            state.pop("text_projection.weight", None)
    return {name: tensor.contiguous() for name, tensor in state.items() if not name.endswith("position_ids")}


def _of_transformers(bare: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return transformers' names for the tensors of OpenCLIP's encoder as stable-diffusion.cpp renames them, too.

    Queries, keys and values may be packed, the projection is transposed, and Stable Diffusion 2 has an unused layer.
    """
    state: dict[str, Tensor] = {}
    layer = re.compile(r"encoder\.layers\.(\d+)\.")
    for name, tensor in bare.items():
        if (match := layer.match(name)) and int(match[1]) >= config["num_hidden_layers"]:
            continue
        if ".in_proj." in name:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            state |= {f"text_model.{name.replace('in_proj', f'{each}_proj')}": part for each, part in parts}
        elif name == "text_projection":
            state["text_projection.weight"] = tensor.T
        else:
            state[name if name.startswith("text_projection.") else f"text_model.{name}"] = tensor
    return state


def check_tensors(subject: str, tensors: Tensors, network: Any, remedy: str = "") -> None:
    """Raise `SourceError` unless the network has exactly these tensors and shapes. `remedy` ends the message."""
    expected, got = shapes_of(network.state_dict()), shapes_of(tensors)
    wrong = [name for name in expected | got if expected.get(name) != got.get(name)]
    if wrong:
        name = min(wrong)
        raise SourceError(
            f"{subject} does not fit: {len(wrong)} tensors are missing, unknown or of another shape, such as {name} "
            f"(expected {expected.get(name, 'none')}, got {got.get(name, 'none')}){remedy}.",
            field=name,
        )


def network_of(class_name: str, config: Mapping[str, Any]) -> Any:
    """Build the network of a config on the meta device, without weights. Ignore fields that the class does not know."""
    import diffusers
    import transformers

    with torch.device("meta"):
        if cls := getattr(diffusers, class_name, None):
            fields = inspect.signature(cls.__init__).parameters
            return cls.from_config({name: value for name, value in config.items() if name in fields})
        return getattr(transformers, class_name)(transformers.CLIPTextConfig(**config))


def full_config(network: Any) -> dict[str, Any]:
    """Return the network's config with all default values, as a model folder stores it."""
    if hasattr(network, "to_json_string"):  # a diffusers network
        return dict(json.loads(network.to_json_string()))
    config = json.loads(network.config.to_json_string(use_diff=False))
    return {**config, "architectures": [type(network).__name__]}


def shapes_of(tensors: Tensors) -> dict[str, list[int]]:
    """Return name -> shape, without a prefix that depends on the version of transformers."""
    return {name.removeprefix("text_model."): list(tensor.shape) for name, tensor in tensors.items()}


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1))


def write_tokenizer(folder: Path, *, pad: str) -> None:
    """Write vocab.json, merges.txt and the settings of a CLIPTokenizer into a new folder.

    `vocabulary/merges.txt.gz` holds the 48,894 merges of OpenAI's CLIP (`bpe_simple_vocab_16e6.txt.gz` as the wheel
    open_clip_torch 3.3.0 ships it, cut to what CLIP uses; MIT license, in the same folder). The token ids follow
    from them: the bytes, the bytes that end a word, the results of the merges in their order, and two special tokens.

    `pad` is the padding token: the end token for OpenAI's text encoder, "!" for those of OpenCLIP.
    """
    folder.mkdir(parents=True)
    packed = resources.files("calotype.export.sources").joinpath("vocabulary", "merges.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode("utf-8").splitlines()
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    # Printable bytes are written as their characters, and then the others as the characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*letters, *(f"{c}</w>" for c in letters), *("".join(merge.split()) for merge in merges), START, END]
    ids = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": _CLIP_LENGTH, "do_lower_case": True, **special}
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
