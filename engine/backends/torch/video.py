"""The networks of clips as PyTorch modules whose tensors are the bindings'. `modules` loads them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

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

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        """# [B, C, F, h, w], [B], [B, T, W] -> [B, C, F, h, w]"""
        of_frames = encoder_hidden_states.repeat_interleave(sample.shape[2], dim=0)
        out: Tensor = self.model(sample, timestep, of_frames, return_dict=False)[0]
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
