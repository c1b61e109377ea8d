"""Converts networks from diffusers' names to the original layout: an independent inverse of diffusers' converters."""

import re

import torch


def original_unet(tensors, layers, prefix="model.diffusion_model."):
    """Rename from diffusers to CompVis: the blocks of the levels in order, resnets before transformers."""
    crossed = {int(m[1]) for n in tensors if (m := re.match(r"up_blocks\.(\d+)\.attentions", n))}
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
    resnet |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    outer = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    outer |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    outer |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    renamed = {}
    for name, tensor in tensors.items():
        if level := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
            side, i, part, j, rest = level[1], int(level[2]), level[3], int(level[4]), level[5]
            j = layers if part == "downsamplers" else layers if part == "upsamplers" else j
            block = f"{'input' if side == 'down' else 'output'}_blocks.{(side == 'down') + i * (layers + 1) + j}"
            slot = {"resnets": "0", "attentions": "1", "downsamplers": "0"}.get(part, "2" if i in crossed else "1")
            rest = rest.replace("conv.", "op.") if part == "downsamplers" else rest
            name = f"{block}.{slot}.{rest}"
        elif middle := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
            name = f"middle_block.{1 if middle[1] == 'attentions' else 2 * int(middle[2])}.{middle[3]}"
        for new, old in outer.items():
            name = re.sub(rf"^{re.escape(new)}\.", f"{old}.", name)
        if re.match(r"(input|output|middle)_blocks?", name) and ".transformer_blocks." not in name:
            for new, old in resnet.items():
                name = name.replace(f".{new}.", f".{old}.")
        renamed[f"{prefix}{name}"] = tensor
    return renamed


def original_vae(tensors, levels, prefix="first_stage_model."):
    renamed = {}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for name, tensor in tensors.items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            for new, old in attention.items():
                name = name.replace(f".{new}.", f".{old}.")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        renamed[f"{prefix}{name}"] = tensor
    return renamed


def original_text(tensors, prefix):
    """Rename from transformers to a prefixed name, or to OpenCLIP, which packs queries, keys and values."""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    if prefix.endswith(".transformer."):
        return {f"{prefix}text_model.{name}": tensor for name, tensor in bare.items()}
    names = {"embeddings.position_embedding.weight": "positional_embedding", "embeddings.token": "token"}
    names |= {"final_layer_norm": "ln_final", "encoder.layers": "transformer.resblocks", "layer_norm": "ln_"}
    names |= {"self_attn": "attn", "fc1": "c_fc", "fc2": "c_proj"}
    renamed = {}
    for name, tensor in bare.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            tensor = torch.cat([bare[name.replace("q_proj", f"{one}_proj")] for one in "qkv"])
            name = name.replace("q_proj.", "in_proj_")
        if name == "text_projection.weight":
            name, tensor = "text_projection", tensor.T
        for new, old in names.items():
            name = name.replace(new, old)
        renamed[prefix + name] = tensor.contiguous()
    return renamed


def original_controlnet(tensors, layers, prefix="control_model."):
    """Rename the U-Net's first half, and the layers that only ControlNets have."""
    renamed = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^controlnet_down_blocks\.(\d+)", r"zero_convs.\1.0", name)
        name = name.replace("controlnet_mid_block", "middle_block_out.0")
        name = name.replace("controlnet_cond_embedding.conv_in", "input_hint_block.0")
        name = name.replace("controlnet_cond_embedding.conv_out", "input_hint_block.14")
        at = re.match(r"controlnet_cond_embedding\.blocks\.(\d)\.(.*)", name)
        renamed[f"input_hint_block.{2 * int(at[1]) + 2}.{at[2]}" if at else name] = tensor
    return original_unet(renamed, layers, prefix)
