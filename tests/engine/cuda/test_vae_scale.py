"""The divided residual stream of autoencoders: the same result in float32, and no overflow in fp16."""

import copy

import diffusers
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D

from calotype.backends.torch.modules import VaeDecoder, VaeEncoder
from calotype.cuda.vae_scale import DIVISOR, scale_residuals


def autoencoder(size: float = 1.0) -> diffusers.AutoencoderKL:
    """Return a small one. `size` makes the states of its residual streams larger."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
    network = diffusers.AutoencoderKL(latent_channels=4, **sizes, **blocks).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.normal_(module.weight, 1, 0.3)
            torch.nn.init.normal_(module.bias, 0, 0.3)
        if isinstance(module, ResnetBlock2D):
            module.conv2.weight.mul_(size)
    return network


NETWORKS = {
    "decoder": lambda size=1.0: (VaeDecoder(autoencoder(size)), torch.randn(1, 4, 8, 8)),
    "encoder": lambda size=1.0: (VaeEncoder(autoencoder(size)), torch.randn(1, 3, 16, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_result_is_the_same_bit_for_bit(name):
    network, x = NETWORKS[name]()
    scaled, largest = copy.deepcopy(network), {}
    assert scale_residuals(scaled) == 1
    for kind, each in (("before", network), ("after", scaled)):
        largest[kind] = 0.0

        def note(module, inputs, output, kind=kind):
            largest[kind] = max(largest[kind], float(output.abs().max()))

        for module in each.modules():
            if isinstance(module, ResnetBlock2D):
                module.register_forward_hook(note)
    assert torch.equal(network(x)[0], scaled(x)[0])
    assert largest["before"] == DIVISOR * largest["after"]


@pytest.mark.parametrize("name", NETWORKS)
def test_states_above_the_largest_number_of_fp16_become_finite(name):
    network, x = NETWORKS[name](2e5)
    scaled = copy.deepcopy(network)
    scale_residuals(scaled)
    expected = network(x)[0]
    assert not torch.isfinite(network.half()(x.half())[0]).all()
    got = scaled.half()(x.half())[0]
    assert float((got.float() - expected).norm() / expected.norm()) < 0.02


def test_a_network_with_other_layers_stays():
    tiny = VaeDecoder(diffusers.AutoencoderTiny(decoder_block_out_channels=(8, 8), num_decoder_blocks=(1, 1)))
    assert scale_residuals(tiny) == 0
