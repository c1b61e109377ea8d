"""Tiny networks with random weights, and files made from them: U-Nets, text encoders, ControlNets and LoRAs."""

import json
import shutil
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
)

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def text_config(tokenizer, **settings) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_act="gelu",
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )


def tiny_unet(**settings) -> diffusers.UNet2DConditionModel:
    usual = {
        "sample_size": 16,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
    }
    return diffusers.UNet2DConditionModel(**usual | settings)


def save_controlnet(unet_folder: Path, folder: Path, seed: int) -> Path:
    """Save a ControlNet with random weights in its zero convolutions: else it would change no image."""
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel.from_pretrained(unet_folder, low_cpu_mem_usage=False)
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 16))
    for weight in net.parameters():
        if not weight.detach().any():
            torch.nn.init.normal_(weight, std=0.2)
    net.save_pretrained(folder)
    return folder


def save_model(folder: Path, demo_folder: Path, class_name: str, parts: dict) -> Path:
    """Save a model's folder: `parts` by name, and the demonstration model's files for the rest."""
    for name in ("tokenizer", "text_encoder", "vae", "scheduler"):
        if name not in parts:
            shutil.copytree(demo_folder / name, folder / name)
    index = json.loads((demo_folder / "model_index.json").read_text()) | {"_class_name": class_name}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__.removesuffix("Pil")]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_tiny_model(folder: Path, demo_folder: Path) -> Path:
    """Save a model of Stable Diffusion 1: a tiny U-Net, and the demonstration model's other parts."""
    torch.manual_seed(6)
    parts = {"unet": tiny_unet(cross_attention_dim=128, attention_head_dim=4)}
    return save_model(folder, demo_folder, "StableDiffusionPipeline", parts)


RANK = 3
# Attention and other layers of the U-Net; of a text encoder all layers that kohya trains, by which diffusers knows it.
TRAINED = ("to_q", "to_k", "to_out.0", "ff.net.0.proj", "conv1", "proj_in")
TRAINED += ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
KOHYA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def _trained_layers(folder: Path) -> dict[str, tuple[int, ...]]:
    """Layer -> the shape of its weight, for the layers that the LoRAs change."""
    shapes = {n: tuple(t.shape) for n, t in load_file(next(folder.glob("*.safetensors"))).items()}
    return {n.removesuffix(".weight"): s for n, s in shapes.items() if n.removesuffix(".weight").endswith(TRAINED)}


def _lora_pair(layout: str, component: str, layer: str, down: torch.Tensor, up: torch.Tensor) -> dict:
    """One layer's matrices under the names of a layout."""
    if layout == "diffusers":
        stem, names = f"{component}.{layer}", ("lora_A", "lora_B")
    elif layout == "older":
        stem, names = f"{component}.{layer}", ("lora.down", "lora.up")
        if component != "unet":
            names = ("lora_linear_layer.down", "lora_linear_layer.up")
    else:  # kohya uses the names of older transformers, whose text models had one more level
        level = "text_model." if component == "text_encoder" and not layer.startswith("text_model.") else ""
        stem, names = f"{KOHYA_PREFIXES[component]}_{(level + layer).replace('.', '_')}", ("lora_down", "lora_up")
    pair = {f"{stem}.{names[0]}.weight": down, f"{stem}.{names[1]}.weight": up}
    return pair | ({f"{stem}.alpha": torch.tensor(2.0)} if layout == "kohya" else {})


def save_lora(folder: Path, path: Path, components=("unet",), layout="diffusers", seed=0, strength=0.3) -> Path:
    """Save a LoRA of random numbers for the model in `folder`. kohya's has an alpha: the scale is alpha / rank."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for component in components:
        for layer, (out, into, *kernel) in _trained_layers(folder / component).items():
            down = torch.randn(RANK, into, *kernel, generator=generator) / into**0.5
            up = torch.randn(out, RANK, *(1 for _ in kernel), generator=generator) * strength
            tensors |= _lora_pair(layout, component, layer, down, up)
    save_file(tensors, path)
    return path


WIDTH = 128  # of the demonstration model's text states


def save_edit(folder: Path, demo: Path) -> Path:
    """InstructPix2Pix: four more channels for the latents of the image."""
    torch.manual_seed(21)
    unet = tiny_unet(cross_attention_dim=WIDTH, in_channels=8)
    return save_model(folder, demo, "StableDiffusionInstructPix2PixPipeline", {"unet": unet})


def save_depth(folder: Path, demo: Path) -> Path:
    """Depth to image: one more channel, and a depth estimator of two layers."""
    torch.manual_seed(22)
    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=37,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=16,
        is_hybrid=False,
    )
    parts = {
        "unet": tiny_unet(cross_attention_dim=WIDTH, in_channels=5),
        "depth_estimator": DPTForDepthEstimation(config),
        "feature_extractor": DPTImageProcessorPil(size={"height": 32, "width": 32}),
    }
    return save_model(folder, demo, "StableDiffusionDepth2ImgPipeline", parts)


def save_pixels(folder: Path, demo: Path) -> Path:
    """The x4 upscaler: three more channels for the small image, and a class for the level of its noise."""
    torch.manual_seed(23)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.08333,
    )
    parts = {
        "unet": tiny_unet(
            cross_attention_dim=WIDTH,
            in_channels=7,
            num_class_embeds=100,
            only_cross_attention=(False, True),
            attention_head_dim=8,
            use_linear_projection=True,
        ),
        "vae": vae,
        "low_res_scheduler": diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.03),
        "scheduler": diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, prediction_type="v_prediction"),
    }
    return save_model(folder, demo, "StableDiffusionUpscalePipeline", parts)


def save_latents(folder: Path, demo: Path) -> Path:
    """The latent upscaler: blocks of k-diffusion, and the level of noise and pooled text added to the timestep."""
    torch.manual_seed(24)
    unet = diffusers.UNet2DConditionModel(
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=(32, 32, 64, 64),
        time_cond_proj_dim=WIDTH + 128,
        conv_in_kernel=1,
        conv_out_kernel=1,
        cross_attention_dim=WIDTH,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        in_channels=8,
        mid_block_type=None,
        only_cross_attention=False,
        out_channels=5,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
        layers_per_block=1,
        sample_size=32,
    )
    scheduler = diffusers.EulerDiscreteScheduler(**SCHEDULE, prediction_type="sample")
    parts = {"unet": unet, "scheduler": scheduler}
    return save_model(folder, demo, "StableDiffusionLatentUpscalePipeline", parts)


def vision_encoder(side: int = 32) -> CLIPVisionModelWithProjection:
    """Return a tiny encoder of images of 32 pixels, or another side: vectors of 48 numbers, 17 states of 32."""
    config = CLIPVisionConfig(
        hidden_size=32,
        projection_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        patch_size=side // 4,
        image_size=side,
    )
    return CLIPVisionModelWithProjection(config)


def save_vision(folder: Path, demo: Path) -> Path:
    """Image variation: a vision encoder in place of text."""
    torch.manual_seed(25)
    parts = {
        "unet": tiny_unet(cross_attention_dim=48),
        "image_encoder": vision_encoder(),
        "feature_extractor": CLIPImageProcessorPil(size=32, crop_size=32),
    }
    save_model(folder, demo, "StableDiffusionImageVariationPipeline", parts)
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / name)
        del index[name]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_edit_xl(folder: Path, sdxl: Path) -> Path:
    """InstructPix2Pix of XL, from the folder of an XL model."""
    torch.manual_seed(26)
    shutil.copytree(sdxl, folder)
    config = diffusers.UNet2DConditionModel.load_config(folder / "unet")
    diffusers.UNet2DConditionModel.from_config(config | {"in_channels": 8}).save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionXLInstructPix2PixPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_motion(folder: Path, *, positions: int = 8) -> Path:
    """Motion modules of random numbers for `save_tiny_model`, as a MotionAdapter."""
    torch.manual_seed(28)
    modules = diffusers.MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_num_attention_heads=8,
        motion_norm_num_groups=32,
        motion_max_seq_length=positions,
        use_motion_mid_block=True,
    )
    modules.save_pretrained(folder)
    return folder


def save_video(folder: Path, *, side: int = 32, levels: int = 2) -> Path:
    """Stable Video Diffusion: networks over the frames of a clip, and a vision encoder of `side` pixels.

    The autoencoder has `levels` levels. The factors that mix frames have random values, and the sigmas are published.
    """
    torch.manual_seed(27)
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=48,
        num_attention_heads=(2, 4),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=4,
    )
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    for name, weight in [*unet.named_parameters(), *vae.named_parameters()]:
        if name.endswith("mix_factor"):
            torch.nn.init.normal_(weight)
    scheduler = diffusers.EulerDiscreteScheduler(
        **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "use_karras_sigmas": True},
        **{"sigma_min": 0.002, "sigma_max": 700.0, "prediction_type": "v_prediction"},
        **{"timestep_spacing": "leading", "timestep_type": "continuous", "steps_offset": 1},
    )
    parts = {
        "vae": vae,
        "unet": unet,
        "image_encoder": vision_encoder(side),
        "scheduler": scheduler,
        "feature_extractor": CLIPImageProcessorPil(size=side, crop_size=side),
    }
    diffusers.StableVideoDiffusionPipeline(**parts).save_pretrained(folder)
    return folder
