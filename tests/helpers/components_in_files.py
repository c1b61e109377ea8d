"""Autoencoders and ControlNets in one file."""

import diffusers
import torch
from safetensors.torch import save_file

SCALE = 0.25  # of the model's own autoencoder; differs from Stable Diffusion's, SDXL's and diffusers' default


def autoencoder(demo_folder, seed):
    torch.manual_seed(seed)
    config = diffusers.AutoencoderKL.load_config(demo_folder / "vae")
    return diffusers.AutoencoderKL.from_config({**config, "mid_block_add_attention": True, "scaling_factor": SCALE})


def written(tensors, path, metadata=None):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def zeros(**shapes):
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


OTHERS = {
    "a LoRA": {"lora_unet_x.lora_down.weight": (1,)},
    "a LoRA of diffusers": {"unet.mid_block.x.lora_A.weight": (1,)},
    "a learned word": {"emb_params": (1, 768)},
    "a U-Net": {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
    "a model": {f"{part}.x": (1,) for part in ("model.diffusion_model", "first_stage_model", "cond_stage_model")},
    "half": {"decoder.layers.0.weight": (64, 4, 3, 3)},
    "union": {"task_embedding": (6, 320), "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)},
    "difference": {"difference": (1,), "control_model.input_hint_block.0.weight": (16, 3, 3, 3)},
    "Control-LoRA": {"lora_controlnet": (0,), "input_hint_block.0.weight": (16, 3, 3, 3)},
    "of video": {"decoder.conv_in.weight": (512, 4, 3, 3), "encoder.x": (1,)},
    "nothing": {},
    "one number": {"decoder.conv_in.weight": (), "encoder.down.0.block.0.conv1.weight": ()},
}
