"""The full-size networks that are traced, as the cuda backend runs them, on the meta device: no weights, no memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from calotype.cuda.fused.fuse import fuse
from calotype.cuda.step_cache import StepValues
from calotype.export.sources.configs import MODELS
from calotype.kernels.launch import Launch

from ..suite.flops import module_of
from .recorder import Op, OpRecorder

if TYPE_CHECKING:
    Inputs = Mapping[str, Tensor]

_HALF = torch.bfloat16
_WIDE = ("timestep", "time_ids")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network of a model at one size."""

    title: str
    model: str
    component: str  # as in a plan
    batch: int  # the network's: two for an image with guidance
    pixels: int  # height and width of the image
    folder: str = ""  # in the model, where it is not the component's name
    described: tuple[str, Mapping[str, object]] | None = None  # class and config of a network of no model

    @property
    def config(self) -> Mapping[str, object]:
        """The network's config, with its class."""
        class_name, config = self.described or MODELS[self.model][self.folder or self.component]
        return {**config, "_class_name": class_name}


CASES: Mapping[str, Case] = {
    "sd15": Case(title="SD 1.5 U-Net, 512 px, guided", model="sd15", component="unet", batch=2, pixels=512),
    "sdxl": Case(title="SDXL U-Net, 1024 px, guided", model="sdxl", component="unet", batch=2, pixels=1024),
    "sd-turbo": Case(title="SD-Turbo U-Net, 512 px", model="sd-turbo", component="unet", batch=1, pixels=512),
    "vae-512": Case(
        title="VAE decoder, 512 px", model="sd15", component="vae_decoder", folder="vae", batch=1, pixels=512
    ),
    "vae-1024": Case(
        title="VAE decoder, 1024 px", model="sdxl", component="vae_decoder", folder="vae", batch=1, pixels=1024
    ),
    "taesd": Case(
        title="TAESD decoder, 512 px",
        model="sd-turbo-taesd",
        component="vae_decoder",
        folder="vae",
        batch=1,
        pixels=512,
    ),
    "clip-l": Case(title="CLIP ViT-L text encoder", model="sd15", component="text_encoder", batch=2, pixels=512),
    "openclip-h": Case(
        title="OpenCLIP ViT-H text encoder", model="sd-turbo", component="text_encoder", batch=1, pixels=512
    ),
    "openclip-g": Case(
        title="OpenCLIP ViT-bigG text encoder", model="sdxl", component="text_encoder_2", batch=2, pixels=1024
    ),
}
_SMALL = {"block_out_channels": (32,), "layers_per_block": 1, "norm_num_groups": 4}
TINY: Mapping[str, Case] = {  # networks that a CPU runs in Triton's interpreter
    "unet": Case(
        title="a tiny U-Net",
        model="",
        component="unet",
        batch=2,
        pixels=16,
        described=(
            "UNet2DConditionModel",
            {
                **_SMALL,
                "down_block_types": ("CrossAttnDownBlock2D",),
                "up_block_types": ("CrossAttnUpBlock2D",),
                **{"attention_head_dim": 4, "cross_attention_dim": 24},
            },
        ),
    ),
    "vae": Case(
        title="a tiny VAE decoder",
        model="",
        component="vae_decoder",
        batch=1,
        pixels=16,
        described=(
            "AutoencoderKL",
            {**_SMALL, "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)},
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Traced:
    """The kernels of one call, and how many parameters the network has."""

    case: Case
    parameters: int
    ops: list[Op]
    launches: list[Launch]  # of our kernels

    @property
    def kernels(self) -> int:
        """The number of launches."""
        return len(self.ops)


def build(case: Case, fusing: Callable[[nn.Module], object] = fuse) -> nn.Module:
    """Return the fused network in bfloat16 on the meta device."""
    config = {name: value for name, value in case.config.items() if name != "_class_name"}
    with torch.device("meta"):
        module = module_of(case.component, config | {"_class_name": case.config["_class_name"]})
    module.requires_grad_(False)
    fusing(module)
    return module.to(_HALF)


def inputs_of(case: Case) -> dict[str, Tensor]:
    """Return the network's inputs on the meta device."""
    batch, side, config = case.batch, case.pixels // 8, case.config
    if case.component.startswith("text"):
        return {"input_ids": torch.zeros(batch, 77, dtype=torch.long, device="meta")}
    if case.component == "vae_decoder":
        return {"latent_sample": _image(batch, side)}
    inputs = {
        "sample": _image(batch, side),
        "timestep": _empty(batch, dtype=torch.float32),
        "encoder_hidden_states": _empty(batch, 77, int(str(config["cross_attention_dim"]))),
    }
    if config.get("addition_embed_type") == "text_time":
        inputs |= {"text_embeds": _empty(batch, 1280), "time_ids": _empty(batch, 6, dtype=torch.float32)}
    return inputs


def trace(case: Case, module: nn.Module | None = None) -> Traced:
    """Return the kernels of one call. A denoiser runs inside of a session, which has computed what all steps share."""
    module, inputs = module or build(case), inputs_of(case)
    recorder = OpRecorder()
    with torch.no_grad():
        if case.component == "unet":
            constants = {name: t for name, t in inputs.items() if name not in ("sample", "timestep")}
            values = StepValues(module, inputs["timestep"].expand(2, -1), constants, _HALF)
            with values.at(0), recorder.recording(module):
                module(**inputs)
        else:
            with recorder.recording(module):
                module(**inputs)
    parameters = sum(p.numel() for p in module.parameters())
    return Traced(case=case, parameters=parameters, ops=recorder.ops, launches=recorder.launches)


def _image(batch: int, side: int) -> Tensor:
    """Return latents as the sampling kernel writes them."""
    return _empty(batch, 4, side, side).contiguous(memory_format=torch.channels_last)


def _empty(*shape: int, dtype: torch.dtype = _HALF) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")
