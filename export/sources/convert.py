"""The tensors of a checkpoint in the original layout under diffusers' names: its own converters, and a check of each.

A tensor that finds no place, one that is missing and one of another shape are errors: a library that fills in random
numbers makes noise, not an error. Imports torch: it runs in a child process.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from calotype.errors import SourceError
from calotype.text.tokenizer import END

from .clip_vocabulary import write_tokenizer
from .single_file import UNET, VAE

Tensors = Mapping[str, Tensor]

_OF_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_V_SPREAD = 0.09


def convert_into(
    *,
    out: str,
    file: str,
    name: str,
    texts: Mapping[str, str],
    described: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> dict[str, str]:
    """In a child process: write the checkpoint as a folder of diffusers' layout; what it predicts, and how we know."""
    from safetensors.torch import load_file, save_file

    folder, tensors = Path(out), load_file(file)
    predicts, because = prediction_of(name, tensors, metadata)
    parts = with_prediction(described, predicts, zero_snr="ztsnr" in tensors)
    index: dict[str, Any] = {"_class_name": parts["pipeline"], "_diffusers_version": "0.42.0"}
    if "text_encoder_2" in texts:
        refines = "text_encoder" not in texts
        index |= {"force_zeros_for_empty_prompt": not refines, "requires_aesthetics_score": refines}
    scheduler, settings = parts["scheduler"]
    _write(folder / "scheduler" / "scheduler_config.json", {"_class_name": scheduler, **settings})
    index["scheduler"] = ["diffusers", scheduler]
    for part in (*texts, "unet", "vae"):
        class_name, config = parts[part]
        library = "transformers" if part in texts else "diffusers"
        index[part] = [library, class_name]
        network = network_of(class_name, config)
        found = converted(part, tensors, config, texts)
        check_fit(f"{file} is {name}, but its {part}", found, network)
        _write(folder / part / "config.json", full_config(network))
        stem = "model" if part in texts else "diffusion_pytorch_model"
        save_file(dict(found), folder / part / f"{stem}.safetensors", metadata={"format": "pt"})
    for part in texts:
        tokenizer = part.replace("text_encoder", "tokenizer")
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
        # OpenAI's encoder was trained on prompts filled up with its end mark, OpenCLIP's (with gelu) on others.
        write_tokenizer(folder / tokenizer, pad="!" if parts[part][1]["hidden_act"] == "gelu" else END)
    _write(folder / "model_index.json", index)
    return {"predicts": {"epsilon": "the noise", "v_prediction": "v"}[predicts], "because": because}


def convert_part_into(
    *, out: str, file: str, what: str, original: bool, prefix: str, class_name: str, config: Mapping[str, Any]
) -> dict[str, str]:
    """In a child process: write one network's file as its folder in diffusers' layout. The rest as in `parts.Part`."""
    from safetensors.torch import load_file, save_file

    folder = Path(out)
    network = network_of(class_name, known_fields(class_name, config))
    try:
        found = part_converted(network, load_file(file), original=original, prefix=prefix)
    except SourceError as lost:
        raise SourceError(f"{file} is {what} of a kind that is not read: {lost}") from None
    mend = "; take one of the model's own family, or a folder that has its config"
    check_fit(f"{file} is {what}, but beside this model it", found, network, mend)
    _write(folder / "config.json", full_config(network))
    save_file(found, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return {}


def part_converted(network: Any, tensors: Tensors, *, original: bool, prefix: str) -> dict[str, Tensor]:
    """The tensors of an autoencoder or a ControlNet alone, under the network's own names. Raises `SourceError`."""
    coded = type(network).__name__ == "AutoencoderKL"
    starts = tuple(prefix + part for part in _OF_VAE) if coded else prefix
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(starts)}
    if original:
        return _renamed("vae" if coded else "controlnet", own, network.config, prefix)
    found = {name.removeprefix(prefix): tensor.contiguous() for name, tensor in own.items()}
    network._fix_state_dict_keys_on_load(found)  # attention had other names in 2022
    return found


def known_fields(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that the class takes: a ControlNet's are among its U-Net's."""
    import diffusers

    fields = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    return {name: value for name, value in config.items() if name in fields}


def prediction_of(name: str, tensors: Tensors, metadata: Mapping[str, str]) -> tuple[str, str]:
    """ "epsilon" or "v_prediction", and how that is known: by what the file says, its marks, or else as ComfyUI does.

    Stable Diffusion 2 came in both kinds, of the same names and shapes. Those that predict v have a larger spread in
    the first norm's bias of the U-Net's last transformer (ComfyUI, `supported_models.SD20`). Raises `SourceError`.
    """
    if "edm_mean" in tensors or "edm_vpred.sigma_max" in tensors:
        raise SourceError(f"this {name} was trained with EDM's noise (Karras et al. 2022), which is not read here.")
    said = metadata.get("modelspec.prediction_type", "").lower()
    if said in ("v", "v_prediction", "epsilon"):
        return "epsilon" if said == "epsilon" else "v_prediction", "its metadata says so"
    if "v_pred" in tensors:
        return "v_prediction", "it is marked so"
    if name != "Stable Diffusion 2.x":
        return "epsilon", f"as {name} does, and nothing marks it otherwise"
    ends = ".1.transformer_blocks.0.norm1.bias"
    biases = {int(n.split(".")[3]): n for n in tensors if n.startswith(f"{UNET}output_blocks.") and n.endswith(ends)}
    spread = float(tensors[biases[max(biases)]].float().std(correction=0)) if biases else 0.0
    because = f"its last transformer's first bias spreads by {spread:.3f}, and above {_V_SPREAD} is taken for v"
    return "v_prediction" if spread > _V_SPREAD else "epsilon", because


def with_prediction(described: Mapping[str, Any], predicts: str, *, zero_snr: bool) -> dict[str, Any]:
    """The parts with a scheduler of this prediction; Stable Diffusion 2 that predicts noise was trained at 512 px."""
    scheduler, settings = described["scheduler"]
    settings = {**settings, "prediction_type": predicts, **({"rescale_betas_zero_snr": True} if zero_snr else {})}
    parts = {**described, "scheduler": (scheduler, settings)}
    class_name, config = described["unet"]
    if described["scheduler"][1].get("prediction_type") == "v_prediction" and predicts == "epsilon":
        parts["unet"] = (class_name, {**config, "sample_size": config["sample_size"] * 2 // 3})
    return parts


def converted(part: str, tensors: Tensors, config: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of one part under the names that its config's network has. Raises `SourceError`."""
    if part in texts:
        return _text(part, tensors, config, texts[part])
    starts = (UNET,) if part == "unet" else tuple(f"{VAE}{name}" for name in _OF_VAE)
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(starts)}
    return _renamed(part, own, config)


def _renamed(part: str, own: Tensors, config: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """By diffusers' converter. `SourceError` unless every tensor found its place."""
    from diffusers.loaders import single_file_utils as elder

    convert = {
        "unet": elder.convert_ldm_unet_checkpoint,
        "vae": elder.convert_ldm_vae_checkpoint,
        "controlnet": elder.convert_controlnet_checkpoint,
    }[part]
    found = convert(dict(own), config)
    if part == "controlnet" and config["addition_embed_type"]:  # of SDXL, which the converter has in a table alone
        table = elder.DIFFUSERS_TO_LDM_MAPPING[part]["addition_embed_type"]
        found |= {new: own.get(prefix + old) for new, old in table.items()}
    found = {name: tensor.contiguous() for name, tensor in found.items() if tensor is not None}
    if len(found) != len(own):
        raise SourceError(f"{len(own) - len(found)} tensors of the checkpoint's {part} have no place in its network.")
    return found


def _text(part: str, tensors: Tensors, config: Mapping[str, Any], start: str) -> dict[str, Tensor]:
    from diffusers.loaders import single_file_utils as elder

    own = {name: tensor for name, tensor in tensors.items() if name.startswith(start)}
    if start.endswith(".transformer."):  # as transformers has it; the oldest files lack the outer module
        bare = {name.removeprefix(start).removeprefix("text_model."): tensor for name, tensor in own.items()}
        found = {f"text_model.{name}": tensor for name, tensor in bare.items()}
    else:  # as OpenCLIP has it; of Stable Diffusion 2's layers the last is read by nobody
        used = {name: tensor for name, tensor in own.items() if _layer(name) < config["num_hidden_layers"]}
        wide = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
        found = elder.convert_open_clip_checkpoint(wide, used, prefix=start)
        if part == "text_encoder":
            found.pop("text_projection.weight", None)
    return {name: tensor.contiguous() for name, tensor in found.items() if not name.endswith("position_ids")}


def _layer(name: str) -> int:
    return int(name.partition(".resblocks.")[2].partition(".")[0] or -1)


def check_fit(what: str, tensors: Tensors, network: Any, mend: str = "") -> None:
    """`SourceError`, with `mend` at its end, unless the network has exactly these tensors, of these shapes."""
    wanted, got = shapes_of(network.state_dict()), shapes_of(tensors)
    wrong = [name for name in wanted | got if wanted.get(name) != got.get(name)]
    if wrong:
        name = min(wrong)
        raise SourceError(
            f"{what} does not fit: {len(wrong)} tensors are missing, too many, or of another shape, such as {name} "
            f"(wanted {wanted.get(name, 'none')}, got {got.get(name, 'none')}){mend}."
        )


def network_of(class_name: str, config: Mapping[str, Any]) -> Any:
    """The network of a config, without weights: its tensors are on the meta device."""
    import diffusers
    import transformers

    with torch.device("meta"):
        if hasattr(diffusers, class_name):
            return getattr(diffusers, class_name).from_config(dict(config))
        return getattr(transformers, class_name)(transformers.CLIPTextConfig(**config))


def full_config(network: Any) -> dict[str, Any]:
    """The network's config with every default spelt out, as a folder holds it."""
    if hasattr(network, "to_json_string"):  # diffusers' networks tell it themselves
        return dict(json.loads(network.to_json_string()))
    told = json.loads(network.config.to_json_string(use_diff=False))
    return {**told, "architectures": [type(network).__name__]}


def shapes_of(tensors: Tensors) -> dict[str, list[int]]:
    """Names and shapes of tensors."""
    return {_bare(name): list(tensor.shape) for name, tensor in tensors.items()}


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")  # which transformers has inside or not, from version to version


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1))
