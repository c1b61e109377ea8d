"""The networks of clips as PyTorch modules whose tensors are the bindings'. `modules` loads them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .controls import index_of
from .image_prompts import image_prompts, take_image_prompts
from .wrapper import Wrapper


class VideoUNet(Wrapper):
    """The denoiser of Stable Video Diffusion, over all frames of a clip."""

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, added_time_ids: Tensor
    ) -> tuple[Tensor]:
        """# [B, F, 2C, h, w], [B], [B, 1, W], [B, 3] -> [B, F, C, h, w]"""
        out: Tensor = self.model(sample, timestep, encoder_hidden_states, added_time_ids, return_dict=False)[0]
        return (out,)


class MotionUNet(Wrapper):
    """A denoiser of Stable Diffusion with motion modules (AnimateDiff), over all frames of a clip."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        take_image_prompts(model)

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Tensor
    ) -> tuple[Tensor]:
        """Return the output; all frames of a clip have the same text and image prompts.

        `others` are the residuals of ControlNets, and the keys and values of image prompts.
        # [B, C, F, h, w], [B], [B, T, W], N x [B, F, C, h / level, w / level] -> [B, C, F, h, w]
        """
        frames = sample.shape[2]
        residuals = {name: tensor.flatten(0, 1) for name, tensor in others.items() if "additional_residual" in name}
        down = tuple(residuals[n] for n in sorted(residuals, key=index_of) if n.startswith("down_block"))
        prompts = {n: each.repeat_interleave(frames, dim=0) for n, each in others.items() if n not in residuals}
        with image_prompts(prompts):
            out: Tensor = self.model(
                sample,
                timestep,
                encoder_hidden_states.repeat_interleave(frames, dim=0),
                down_block_additional_residuals=down or None,
                mid_block_additional_residual=residuals.get("mid_block_additional_residual"),
                return_dict=False,
            )[0]
        return (out,)


class ClipDecoder(nn.Module):
    """Decodes the latents of clips, already divided by the scaling factor, to pixels in about [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        """# [B, F, C, h, w] -> [B, F, 3, H, W]"""
        count, frames = latent_sample.shape[:2]
        only_images = latent_sample.new_zeros(count, frames)
        pixels: Tensor = self.decoder(latent_sample.flatten(0, 1), only_images, num_frames=frames)
        return (pixels.reshape(count, frames, *pixels.shape[1:]),)


def mixes_frames(module: nn.Module) -> bool:
    """Return whether a network has layers over the frames of a clip."""
    return isinstance(module, MotionUNet) or any(isinstance(each, nn.Conv3d) for each in module.modules())
