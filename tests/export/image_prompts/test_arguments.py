"""The arguments of image prompts: odd input is refused before any work, and names the argument."""

import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.errors import InputError
from tests.helpers.conditioning.ip_adapters import image_encoder, save_ip_adapter
from tests.helpers.tiny_models import save_tiny_model

SCENE = Image.new("RGB", (40, 30), "red")
MASK = Image.new("L", (32, 32), 255)
EMBEDS = np.zeros((2, 1, 48), np.float32)


@pytest.fixture(scope="module")
def pipes(demo_folder, tmp_path_factory):
    """A pipeline with one plain adapter, and one with two."""
    work = tmp_path_factory.mktemp("arguments")
    folder, encoder = save_tiny_model(work / "tiny", demo_folder), image_encoder(work / "encoder")
    files = [save_ip_adapter(work / f"{kind}.safetensors", folder / "unet", kind) for kind in ("plain", "plus")]
    return {n: calotype.load(folder, ip_adapter=files[:n], image_encoder=encoder, backend="fake") for n in (1, 2)}


@pytest.mark.parametrize(
    ("count", "arguments", "named"),
    [
        (1, {"ip_adapter_image": []}, "ip_adapter_image"),
        (1, {"ip_adapter_image": 5}, "ip_adapter_image"),
        (1, {"ip_adapter_image": "no such file.png"}, "ip_adapter_image"),
        (1, {"ip_adapter_image": np.full((8, 8, 3), np.nan, np.float32)}, "ip_adapter_image"),
        (1, {"ip_adapter_image": [SCENE] * 65}, "ip_adapter_image"),
        (2, {"ip_adapter_image": SCENE}, "ip_adapter_image"),
        (2, {"ip_adapter_image": [SCENE] * 3}, "ip_adapter_image"),
        (1, {"ip_adapter_image": SCENE, "ip_adapter_image_embeds": [EMBEDS]}, "ip_adapter_image_embeds"),
        (1, {"ip_adapter_image_embeds": [EMBEDS[:1]]}, "ip_adapter_image_embeds"),
        (1, {"ip_adapter_image_embeds": [EMBEDS[..., :4]]}, "ip_adapter_image_embeds"),
        (1, {"ip_adapter_image_embeds": [EMBEDS[:, 0]]}, "ip_adapter_image_embeds"),
        (1, {"ip_adapter_image_embeds": [EMBEDS * np.nan]}, "ip_adapter_image_embeds"),
        (1, {"ip_adapter_image_embeds": ["x"]}, "ip_adapter_image_embeds"),
        (2, {"ip_adapter_image_embeds": [EMBEDS]}, "ip_adapter_image_embeds"),
        (1, {"ip_adapter_mask": MASK}, "ip_adapter_mask"),
        (1, {"ip_adapter_image": SCENE, "ip_adapter_mask": [MASK, MASK]}, "ip_adapter_mask"),
        (1, {"ip_adapter_image": [SCENE] * 2, "ip_adapter_mask": [MASK, MASK.resize((8, 8))]}, "ip_adapter_mask"),
        (1, {"ip_adapter_image": SCENE, "ip_adapter_mask": 3}, "ip_adapter_mask"),
        (1, {"ip_adapter_image": SCENE, "ip_adapter_mask": np.full((8, 8), np.inf)}, "ip_adapter_mask"),
        (1, {"ip_adapter_scale": float("nan")}, "ip_adapter_scale"),
        (1, {"ip_adapter_scale": 11}, "ip_adapter_scale"),
        (1, {"ip_adapter_scale": None}, "ip_adapter_scale"),
        (1, {"ip_adapter_scale": True}, "ip_adapter_scale"),
        (1, {"ip_adapter_scale": "strong"}, "ip_adapter_scale"),
        (1, {"ip_adapter_scale": [0.5, 0.5]}, "ip_adapter_scale"),
        (2, {"ip_adapter_scale": [0.5]}, "ip_adapter_scale"),
        (1, {"ip_adapter_scale": {"left": 1}}, "ip_adapter_scale"),
        (1, {"ip_adapter_scale": {"down": {"block_0": 1}}}, "ip_adapter_scale"),
        (1, {"ip_adapter_scale": {"up": {"block_0": [1, 1, 1]}}}, "ip_adapter_scale"),
        (1, {"ip_adapter_scale": {"up": {"block_0": "x"}}}, "ip_adapter_scale"),
    ],
)
def test_odd_input_is_refused(pipes, count, arguments, named):
    with pytest.raises(InputError) as raised:
        pipes[count].stream("x", steps=1, **arguments)
    assert raised.value.data["argument"] == named


@pytest.mark.parametrize("name", ["ip_adapter_image", "ip_adapter_mask"])
def test_a_model_without_adapters_takes_no_image_prompt(fake, name):
    with pytest.raises(InputError, match="ip_adapter="):
        fake.stream("x", **{name: SCENE})
    with pytest.raises(InputError, match="IP-Adapter"):
        fake.stream("x", ip_adapter_scale=0.5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"ip_adapter_image": [[SCENE, SCENE]]},
        {"ip_adapter_image": np.zeros((2, 8, 8, 3), np.uint8)},
        {"ip_adapter_image": torch.zeros(3, 8, 8), "ip_adapter_scale": np.float32(0.5)},
        {"ip_adapter_image": SCENE, "ip_adapter_scale": '{"up": {"block_0": [0, 1]}}'},
        {"ip_adapter_image": SCENE, "ip_adapter_scale": [0.1, 0.2, 0.3, 0.4]},
        {"ip_adapter_image": SCENE, "ip_adapter_mask": np.ones((1, 1, 16, 16), bool)},
        {"ip_adapter_image": SCENE, "ip_adapter_mask": torch.ones(1, 1, 16, 24), "ip_adapter_scale": (0.5,)},
        {"ip_adapter_image_embeds": torch.zeros(2, 3, 48), "ip_adapter_scale": -1},
        {"ip_adapter_image_embeds": [EMBEDS[:1]], "guidance_scale": 1},
    ],
)
def test_the_forms_of_an_image_prompt(pipes, arguments):
    result = pipes[1]("x", steps=1, seed=1, width=32, height=32, **arguments)
    assert result.images[0].size == (32, 32)


def test_the_scale_is_in_the_metadata(pipes, tmp_path):
    scale = {"up": {"block_0": [0.0, 1.0]}}
    options = {"ip_adapter_image": SCENE, "width": 32, "height": 32}
    image = pipes[1]("x", steps=1, seed=1, ip_adapter_scale=scale, **options).images[0]
    image.save(tmp_path / "out.png", pnginfo=None)
    assert '"block_0"' in " ".join(str(value) for value in image.info.values())
