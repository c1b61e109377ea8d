"""Tiny pipelines of diffusers with random weights, for any class with a U-Net, and arguments for their calls."""

import inspect

import diffusers
import numpy as np
import torch
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.helpers.tiny_models import SCHEDULE, save_controlnet, text_config, tiny_unet

IMAGE, EDGES = (
    Image.fromarray(np.random.default_rng(s).integers(0, 256, (32, 32, 3), dtype=np.uint8)) for s in range(2)
)
MASK = Image.new("L", IMAGE.size, 0)
MASK.paste(255, (6, 5, 25, 21))


def tiny_pipeline(kind, demo_folder, tmp_path, *, nets=1, unet=(), scheduler=None, vae=None):
    """Return a pipeline of a class, with ControlNets if it takes them.

    Args:
        kind: the class.
        demo_folder: the demonstration model, for its tokenizer and its autoencoder.
        tmp_path: a folder for ControlNets.
        nets: the number of ControlNets.
        unet: settings of the U-Net.
        scheduler: a scheduler in place of the usual one.
        vae: an autoencoder in place of the demonstration model's.
    """
    parts, takes = _parts(kind, demo_folder, dict(unet)), inspect.signature(kind).parameters
    parts |= {name: part for name, part in {"scheduler": scheduler, "vae": vae}.items() if part is not None}
    if "controlnet" in takes:
        controls = [_controlnet(parts["unet"], tmp_path, i) for i in range(nets)]
        parts["controlnet"] = controls[0] if nets == 1 else controls
    pipe = kind(**{name: part for name, part in parts.items() if name in takes})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _parts(kind, demo_folder, unet):
    torch.manual_seed(7)
    tokenizer, xl = CLIPTokenizer.from_pretrained(demo_folder / "tokenizer"), "XL" in kind.__name__
    if xl:
        unet = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, **unet}
        unet = {"projection_class_embeddings_input_dim": 6 * 8 + 24, **unet}
    consistency = "Consistency" in kind.__name__
    unet = {"time_cond_proj_dim": 16, **unet} if consistency else unet
    return {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(text_config(tokenizer, hidden_size=32)),
        "tokenizer_2": tokenizer,
        "text_encoder_2": CLIPTextModelWithProjection(text_config(tokenizer, hidden_size=48, projection_dim=24)),
        "unet": tiny_unet(**{"cross_attention_dim": 32 + 48 * xl, "attention_head_dim": 4, **unet}),
        "vae": diffusers.AutoencoderKL.from_pretrained(demo_folder / "vae", low_cpu_mem_usage=False),
        "scheduler": (diffusers.LCMScheduler if consistency else diffusers.DDIMScheduler)(
            **SCHEDULE, clip_sample=False
        ),
        "requires_safety_checker": False,
        **dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder")),
    }


def _controlnet(unet, tmp_path, seed):
    unet.save_pretrained(tmp_path / "unet")
    folder = save_controlnet(tmp_path / "unet", tmp_path / f"net{seed}", seed)
    return diffusers.ControlNetModel.from_pretrained(folder, low_cpu_mem_usage=False)


def inputs_of(kind, nets=1, **changes):
    """Return the arguments of a call, by the task in the name of a class. `changes` replace some."""
    name, edges = kind.__name__, EDGES if nets == 1 else [EDGES, IMAGE]
    inputs = {"prompt": "a red ring", "num_inference_steps": 2, "guidance_scale": 5.0}
    inputs |= {"image": IMAGE, "strength": 0.7} if "Img2Img" in name or "Inpaint" in name else {}
    inputs |= {"mask_image": MASK} if "Inpaint" in name else {}
    inputs |= {} if "Img2Img" in name else {"height": 32, "width": 32}
    inputs |= {"control_image" if "image" in inputs else "image": edges} if "ControlNet" in name else {}
    return inputs | ({"pag_scale": 3.0} if "PAG" in name else {}) | changes
