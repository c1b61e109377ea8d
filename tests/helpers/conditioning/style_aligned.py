"""Style Aligned for diffusers' pipelines, written after the paper (arXiv 2312.02133) without Calotype's code."""

import diffusers
import torch


def adain(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Equation 3: normalize x, and scale it to the reference's statistics over its positions.  # [heads, P, D]"""
    mean, std = (f(dim=-2, keepdim=True) for f in (x.mean, lambda **k: (x.var(**k) + 1e-5).sqrt()))
    target_mean = reference.mean(dim=-2, keepdim=True)
    target_std = (reference.var(dim=-2, keepdim=True) + 1e-5).sqrt()
    return target_std * (x - mean) / std + target_mean


class SharedAttention:
    """Figure 4: each image of a half of the batch attends to its own positions and to those of the half's first."""

    def __init__(self, halves: int) -> None:
        self.halves = halves

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        assert encoder_hidden_states is None
        images = []
        for half in hidden_states.chunk(self.halves):
            q, k, v = (
                layer(half).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for layer in (attn.to_q, attn.to_k, attn.to_v)
            )
            for i in range(len(half)):
                query, key = adain(q[i], q[0]), adain(k[i], k[0])
                keys, values = torch.cat([key, adain(k[0], k[0])], 1), torch.cat([v[i], v[0]], 1)
                weights = (query @ keys.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
                images.append((weights @ values).transpose(0, 1).flatten(1))
        return attn.to_out[0](torch.stack(images))


def align(unet: diffusers.UNet2DConditionModel, halves: int) -> None:
    """Share the self-attention of a U-Net, whose batch has one part for each half of the guidance."""
    shared = {name: SharedAttention(halves) for name in unet.attn_processors if ".attn1." in name}
    unet.set_attn_processor({**unet.attn_processors, **shared})


@torch.no_grad()
def inversion(pipe, image: torch.Tensor, steps: int, **conditions) -> list[torch.Tensor]:
    """DDIM inversion without guidance. Returns the latents at each timestep of the schedule, the noisiest first.

    # [1, 3, H, W] from -1 to 1
    """
    config = pipe.scheduler.config
    kept = ("beta_start", "beta_end", "beta_schedule", "set_alpha_to_one", "prediction_type", "num_train_timesteps")
    scheduler = diffusers.DDIMInverseScheduler(**{name: config[name] for name in kept}, clip_sample=False)
    scheduler.set_timesteps(steps)
    latents = pipe.vae.encode(image).latent_dist.mean * pipe.vae.config.scaling_factor
    states = []
    for t in pipe.scheduler.timesteps.flip(0):
        output = pipe.unet(latents, t, **conditions).sample
        latents = scheduler.step(output, t, latents).prev_sample
        states.insert(0, latents)
    return states
