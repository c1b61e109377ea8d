"""The networks as PyTorch modules whose inputs and outputs are the bindings' tensors, in the bindings' order.

Imports torch: only the torch backends and `calotype.export` import this file, when they need it. Weights come from
safetensors only, and none may be missing: a library that fills a missing weight with random numbers returns noise, not
an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SourceError, first_line
from ...files.json_file import read_json
from ...plan.network_check import check_network
from ...plan.networks import UNION_MARK
from ...plan.video.model import UNET, VAE
from ...plan.video.motion import UNET as MOTION_UNET
from ...weights.folder import check_weights_folder
from ...weights.safetensors import TensorFile
from ...weights.types import check_types
from .controls import ControlNet, ControlNetUnion, T2IAdapter, adapter_states, index_of
from .image_prompts import image_prompts, load_ip_adapter, take_image_prompts
from .on_meta import on_meta
from .self_attention import attention_skips, style_rows, take_self_attention
from .upscalers import load_upscaler
from .video import ClipDecoder, MotionUNet, VideoUNet
from .wrapper import Wrapper

UPSCALER = "upscaler"
_ADDED = ("text_embeds", "time_ids")


class TextEncoder(Wrapper):
    """CLIP's text transformer.

    Outputs: the last state (normed), the pooled state, every layer's state, and the same normed in reverse order.
    """

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """# [B, T] int64 -> [B, T, W], [B, W], (layers + 1) x [B, T, W], layers x [B, T, W]"""
        out = self.model(input_ids, output_hidden_states=True)
        inner = getattr(self.model, "text_model", self.model)
        skipped = (inner.final_layer_norm(state) for state in out.hidden_states[-2::-1])
        return out.last_hidden_state, out.pooler_output, *out.hidden_states, *skipped


class ProjectedTextEncoder(Wrapper):
    """SDXL's second text encoder.

    Outputs: the projected pooled state, the last state (normed), and every layer's state.
    """

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """# [B, T] int64 -> [B, P], [B, T, W], (layers + 1) x [B, T, W]"""
        out = self.model(input_ids, output_hidden_states=True)
        return out.text_embeds, out.last_hidden_state, *out.hidden_states


class VisionEncoder(Wrapper):
    """CLIP's vision transformer. Outputs the projected vector of each image, and its states before the last layer."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """# [B, 3, S, S] -> [B, P], [B, T, W]"""
        out = self.model(pixel_values, output_hidden_states=True)
        return out.image_embeds, out.hidden_states[-2]


class VisionStates(Wrapper):
    """CLIP's vision transformer. Outputs the projected vector of each image, the last state, and every layer's."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """# [B, 3, S, S] -> [B, P], [B, T, W], (layers + 1) x [B, T, W]"""
        out = self.model(pixel_values, output_hidden_states=True)
        return out.image_embeds, out.last_hidden_state, *out.hidden_states


class UNet(Wrapper):
    """The denoiser.

    `others` are named inputs: SDXL's `text_embeds` and `time_ids`, a latent consistency model's `timestep_cond`, the
    `class_labels` of an upscaler, the residuals of ControlNets, the features of T2I-Adapters, the keys and values of
    image prompts, the rows whose style each row takes, and those that skip self-attention.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        take_image_prompts(model)
        take_self_attention(model)

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Tensor
    ) -> tuple[Tensor]:
        """# [B, 4, h, w], [B], [B, T, W], [B, P], [B, 6], N x [B, C, h / level, w / level] -> [B, 4, h, w]"""
        down = tuple(others[n] for n in sorted(others, key=index_of) if n.startswith("down_block"))
        with image_prompts(others), style_rows(others), attention_skips(others):
            out: Tensor = self.model(
                sample,
                timestep,
                encoder_hidden_states,
                class_labels=others.get("class_labels"),
                timestep_cond=others.get("timestep_cond"),
                added_cond_kwargs={n: others[n] for n in _ADDED if n in others} or None,
                down_block_additional_residuals=down or None,
                mid_block_additional_residual=others.get("mid_block_additional_residual"),
                down_intrablock_additional_residuals=adapter_states(others),
                return_dict=False,
            )[0]
        return (out,)


class UnconditionalUNet(Wrapper):
    """A denoiser without conditioning: its inputs are the sample and the timestep."""

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor]:
        """# [B, C, H, W], [B] -> [B, C, H, W]"""
        out: Tensor = self.model(sample, timestep, return_dict=False)[0]
        return (out,)


class VaeDecoder(nn.Module):
    """Decodes latents, already divided by the scaling factor, to pixels in about [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.post_quant_conv = getattr(model, "post_quant_conv", None)
        self.decoder = model.decoder

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        """# [B, 4, h, w] -> [B, 3, 8h, 8w]"""
        latents = latent_sample if self.post_quant_conv is None else self.post_quant_conv(latent_sample)
        return (self.decoder(latents),)


class QuantizingDecoder(Wrapper):
    """Rounds latents, already divided by the scaling factor, to the nearest codebook entries and decodes them."""

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        """# [B, C, h, w] -> [B, 3, H, W]"""
        pixels: Tensor = self.model.decode(latent_sample, return_dict=False)[0]
        return (pixels,)


class VaeEncoder(nn.Module):
    """Encodes pixels in [-1, 1] to the mean and log-variance of the latents' posterior.

    A tiny or a quantizing autoencoder encodes to latents.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.quant_conv = getattr(model, "quant_conv", None)

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        """# [B, 3, H, W] -> [B, 8, h, w]"""
        moments = self.encoder(sample)
        return (moments if self.quant_conv is None else self.quant_conv(moments),)


Loaded = tuple[Any, Mapping[str, Any]]  # a library's network, and what it says about its keys


Loader = Callable[[Path, torch.dtype | None], Loaded]  # None: float32, in memory that the weights' files do not share


def _transformers(class_name: str) -> Loader:
    def load(folder: Path, dtype: torch.dtype | None) -> Loaded:
        import transformers
        from transformers.utils import logging

        logging.disable_progress_bar()  # it would also print into pipes while it reads weights
        return _from_pretrained(getattr(transformers, class_name), folder, "model", dtype=dtype or torch.float32)

    return load


def _diffusers(folder: Path, class_name: str, dtype: torch.dtype | None) -> Loaded:
    import diffusers

    network_class, stem = getattr(diffusers, class_name), "diffusion_pytorch_model"
    _check_size(network_class, folder)
    if dtype is not None:
        variant = _variant(folder, stem)
        files = [f for f in _weights_in(folder, stem) if (".fp16" in f.path.name) == (variant == "fp16")]
        network = on_meta(lambda: network_class.from_config(network_class.load_config(folder)), files, dtype)
        if network is not None:
            return network, {"unexpected_keys": [], "missing_keys": [], "mismatched_keys": []}
    return _from_pretrained(network_class, folder, stem, torch_dtype=dtype or torch.float32, low_cpu_mem_usage=False)


def _from_pretrained(network_class: Any, folder: Path, stem: str, **options: Any) -> Loaded:
    variant, local = _variant(folder, stem), {"use_safetensors": True, "local_files_only": True}
    loaded: Loaded = network_class.from_pretrained(
        folder, output_loading_info=True, variant=variant, **local, **options
    )
    return loaded


def _variant(folder: Path, stem: str) -> str | None:
    """Return "fp16" if the folder has its weights only in fp16, as many repositories of the hub do."""
    plain = any((folder / f"{stem}.safetensors{index}").is_file() for index in ("", ".index.json"))
    return None if plain else "fp16"


def _by_config(usual: str, *others: str) -> Loader:
    """Load the class that the config names, if it is one of `others`; else the usual one."""

    def load(folder: Path, dtype: torch.dtype | None) -> Loaded:
        name = read_json(folder / "config.json", "a network's config").get("_class_name")
        return _diffusers(folder, str(name) if name in others else usual, dtype)

    return load


def _controlnet(folder: Path, dtype: torch.dtype | None) -> Loaded:
    """Load a ControlNet, or a ControlNet-Union, whose published config does not name its class."""
    union = any(UNION_MARK in file for file in _weights_in(folder, "diffusion_pytorch_model"))
    return _diffusers(folder, "ControlNetUnionModel" if union else "ControlNetModel", dtype)


_AUTOENCODER = _by_config("AutoencoderKL", "AutoencoderTiny", "VQModel", VAE)
# Classes whose tensors are not those of the usual one, by class and component.
_OTHER_WRAPPERS: dict[tuple[str, str], type[nn.Module]] = {
    ("UNet2DModel", "unet"): UnconditionalUNet,
    (UNET, "unet"): VideoUNet,
    (MOTION_UNET, "unet"): MotionUNet,
    ("VQModel", "vae_decoder"): QuantizingDecoder,
    (VAE, "vae_decoder"): ClipDecoder,
    ("ControlNetUnionModel", "controlnet"): ControlNetUnion,
}
_LOADERS: dict[str, tuple[Loader, type[nn.Module]]] = {
    "text_encoder": (_transformers("CLIPTextModel"), TextEncoder),
    "text_encoder_2": (_transformers("CLIPTextModelWithProjection"), ProjectedTextEncoder),
    "image_encoder": (_transformers("CLIPVisionModelWithProjection"), VisionEncoder),
    "image_states": (_transformers("CLIPVisionModelWithProjection"), VisionStates),
    "unet": (_by_config("UNet2DConditionModel", "UNet2DModel", UNET, MOTION_UNET), UNet),
    "controlnet": (_controlnet, ControlNet),
    "t2i_adapter": (_by_config("T2IAdapter"), T2IAdapter),
    "vae_decoder": (_AUTOENCODER, VaeDecoder),
    "vae_encoder": (_AUTOENCODER, VaeEncoder),
}


def _weights_in(folder: Path, stem: str) -> list[TensorFile]:
    return [TensorFile(path) for path in sorted(folder.glob(f"{stem}*.safetensors"))]


def _check_size(network_class: Any, folder: Path) -> None:
    """Raise `SourceError` if the config's network is over twice as large as its weights: diffusers allocates it first.

    `load_module` reports smaller differences and names the tensors.
    """
    with torch.device("meta"):
        network = network_class.from_config(network_class.load_config(folder))
    needed = sum(parameter.numel() for parameter in network.parameters())
    held = sum(math.prod(file.shape(name)) for file in _weights_in(folder, "diffusion_pytorch_model") for name in file)
    if needed > 2 * held:
        raise SourceError(
            f"{folder / 'config.json'} describes a network of {needed} numbers, but its weights have {held}. "
            "Use the config and weights of the same model.",
            path=folder / "config.json",
        )


def _check(component: str, folder: Path) -> None:
    """Raise `SourceError` if config and weights have different layers, before diffusers allocates the module."""
    files = _weights_in(folder, "model" if component.startswith(("text", "image")) else "diffusion_pytorch_model")
    for file in files:
        check_types(file.path, {name: file.kind(name) for name in file})
    config = read_json(folder / "config.json", "a network's config")
    check_network(folder / "config.json", component, config, {name: f.shape(name) for f in files for name in f})


def load_module(component: str, folder: Path, dtype: torch.dtype | None = None) -> nn.Module:
    """Load a component's module in evaluation mode from the folder of its config and safetensors.

    Args:
        component: the component's name.
        folder: the folder.
        dtype: the type of the weights, for a module that moves to another device: the weights may be pages of their
            files, and no memory is filled with random numbers first. None is float32 in memory of its own.

    Raises:
        SourceError: the weights cannot be read, or do not fit the config exactly.
    """
    if component == UPSCALER:
        return load_upscaler(folder)
    if component.startswith("ip_adapter"):
        _check(component, folder)
        return load_ip_adapter(folder)
    check_weights_folder(folder)
    several = next((kind for kind in ("controlnet", "t2i_adapter") if component.startswith(kind)), component)
    load, wrapper = _LOADERS[several]
    _check(component, folder)
    try:
        model, info = load(folder, dtype)
    except SourceError:
        raise
    except Exception as broken:  # each library raises its own types
        raise SourceError(f"the weights in {folder} cannot be read: {first_line(broken)}", path=folder) from broken
    # Old CLIP checkpoints store the position numbers 0 to 76 as a weight.
    surplus = [k for k in info["unexpected_keys"] if not k.endswith("position_ids")]
    wrong = [*info["missing_keys"], *(str(k) for k in info["mismatched_keys"]), *surplus]
    if wrong:
        raise SourceError(
            f"the weights in {folder} do not fit its config: {len(wrong)} tensors are missing, unexpected, or of "
            f"another shape, such as {wrong[0]}. Use the config and weights of the same model.",
            path=folder,
        )
    wrapper = _OTHER_WRAPPERS.get((type(model).__name__, several), wrapper)
    return wrapper(model).eval().requires_grad_(False)
