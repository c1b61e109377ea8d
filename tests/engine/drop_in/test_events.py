"""Diffusers' own calls on an accelerated pipeline: after each the image is eager's, and runs compiled."""

import diffusers
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

import calotype
from calotype.drop_in.forward import eager_only
from calotype.drop_in.image_check import psnr_db
from tests.helpers.pipelines.accelerated import MIN_DB, against_eager, generate, reasons
from tests.helpers.pipelines.tiny import tiny_pipeline
from tests.helpers.tiny_models import save_lora


@pytest.fixture
def fast(pipe):
    """ONNX Runtime opens an artifact with other weights faster than OpenVINO compiles it."""
    return calotype.accelerate(pipe, backend="onnxruntime", verify=False)


@pytest.fixture
def loras(fast, tmp_path):
    """Two LoRAs of the pipeline's U-Net and text encoder."""
    fast.save_pretrained(tmp_path / "model")
    parts = ("unet", "text_encoder")
    return [save_lora(tmp_path / "model", tmp_path / f"lora{i}.safetensors", parts, seed=i) for i in range(2)]


def ip_adapter(unet) -> dict[str, torch.Tensor]:
    """Return the weights of an IP-Adapter for embeddings of 24 numbers, as a file has them."""
    torch.manual_seed(4)
    width = unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(4 * width, 24) / 5,
        "image_proj.proj.bias": torch.zeros(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    names = [name for name in unet.attn_processors if "attn2" in name]
    for number, name in enumerate(names):
        out = unet.get_submodule(name.removesuffix(".processor")).inner_dim
        for kind in ("k", "v"):
            tensors[f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"] = torch.randn(out, width) / width**0.5
    return tensors


def compiled(pipe):
    """Assert that the image is eager's, and that all networks run compiled. Return the image."""
    before = reasons(calotype.accelerate_report(pipe))
    image = generate(pipe)
    with eager_only():
        assert psnr_db(image, generate(pipe)) > MIN_DB
    assert reasons(calotype.accelerate_report(pipe)) == before
    return image


def test_loras_are_updates_of_weights(fast, loras):
    seen = [generate(fast)]

    def step(*, new: bool = True) -> None:
        image = compiled(fast)
        assert all((psnr_db(image, other) < MIN_DB) == new for other in seen[: None if new else 1])
        seen.append(image)

    fast.load_lora_weights(loras[0], adapter_name="first")
    step()
    fast.set_adapters("first", 0.4)
    step()
    fast.load_lora_weights(loras[1], adapter_name="second")
    fast.set_adapters(["first", "second"], [0.5, -0.7])
    step()
    assert against_eager(fast, cross_attention_kwargs={"scale": 0.3}) > MIN_DB
    compiled(fast)
    fast.fuse_lora(adapter_names=["second"], lora_scale=0.6)
    step()
    fast.unfuse_lora()
    fast.set_adapters(["first"], [1.2])
    step()
    fast.disable_lora()
    step(new=False)
    fast.enable_lora()
    fast.delete_adapters("second")
    compiled(fast)
    fast.unload_lora_weights()
    step(new=False)
    assert not reasons(calotype.accelerate_report(fast))
    assert calotype.accelerate_report(fast)["unet"].updates > 5


def test_a_lora_that_is_there_before(pipe, loras):
    calotype.restore(pipe)
    pipe.load_lora_weights(loras[0])
    calotype.accelerate(pipe, backend="openvino", verify=False)
    compiled(pipe)


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"lora_bias": True}])
def test_other_adapters(fast, kind):
    torch.manual_seed(5)
    fast.unet.add_adapter(LoraConfig(r=2, target_modules=["to_out.0", "proj_in"], init_lora_weights=False, **kind))
    before = generate(fast, seed=2)
    assert against_eager(fast) > MIN_DB
    fast.unet.delete_adapters("default")
    assert (generate(fast, seed=2) != before).any()
    assert bool(reasons(calotype.accelerate_report(fast))) == ("lora_bias" in kind)


def test_writes_into_weights_are_noticed(fast):
    compiled(fast)
    fast.unet.mid_block.attentions[0].proj_in.weight.data[0, 0] += 3  # not counted by PyTorch
    compiled(fast)
    weight = fast.unet.mid_block.attentions[0].proj_out.weight
    weight.data = weight.data.flip(0)  # the same numbers in another order
    compiled(fast)
    fast.text_encoder.load_state_dict(
        {k: 0.9 * v for k, v in fast.text_encoder.state_dict().items() if "mlp" in k}, strict=False
    )
    compiled(fast)


def test_weights_that_no_artifact_can_change_are_traced_again(fast):
    first = generate(fast)
    with torch.no_grad():
        fast.unet.conv_norm_out.weight.mul_(1.3)
    compiled(fast)
    assert (generate(fast) != first).any()


def test_a_write_between_two_steps(fast):
    generate(fast)

    def change(pipe, step, timestep, values):
        with torch.no_grad():
            pipe.unet.conv_out.weight.mul_(1.25)
        return values

    assert against_eager(fast, callback_on_step_end=change, num_inference_steps=3) < MIN_DB  # 1.25^3 further
    original = fast.unet.conv_out.weight.detach().clone()
    image = generate(fast, callback_on_step_end=change)
    calotype.restore(fast)
    with torch.no_grad():
        fast.unet.conv_out.weight.copy_(original)
    expected = generate(fast, callback_on_step_end=change)
    assert abs(image - expected).max() < 1e-3


def test_textual_inversion(fast, tmp_path):
    generate(fast)
    torch.manual_seed(3)
    save_file({"emb_params": torch.randn(2, 32)}, tmp_path / "word.safetensors")
    fast.load_textual_inversion(tmp_path / "word.safetensors", token="<ring>")
    assert against_eager(fast, prompt="a <ring> ring") > MIN_DB
    assert not reasons(calotype.accelerate_report(fast))


def load_adapters(pipe, folder, count):
    save_file(ip_adapter(pipe.unet), folder / "ip.safetensors")
    names = {"subfolder": [""] * count, "weight_name": ["ip.safetensors"] * count, "image_encoder_folder": None}
    pipe.load_ip_adapter([str(folder)] * count, **names)


def test_ip_adapters_are_inputs(fast, tmp_path):
    before = generate(fast)
    load_adapters(fast, tmp_path, 1)
    draw = torch.Generator().manual_seed(1)
    one, three = (torch.randn(2, count, 1, 24, generator=draw) for count in (1, 3))
    images = []
    for scale, embeds in ((1.0, one), (0.3, one), (0.3, three), ({"up": {"block_0": [0.0, 1.0]}}, one), (0.0, one)):
        fast.set_ip_adapter_scale(scale)
        images.append(generate(fast, ip_adapter_image_embeds=[embeds]))
        assert against_eager(fast, ip_adapter_image_embeds=[embeds]) > MIN_DB
        assert all(psnr_db(images[-1], other) < MIN_DB for other in images[:-1])
    assert psnr_db(images[-1], before) > MIN_DB
    fast.unet.encoder_hid_proj.image_projection_layers[0].norm.bias.data += 1
    fast.set_ip_adapter_scale(0.3)
    assert against_eager(fast, ip_adapter_image_embeds=[one]) > MIN_DB
    fast.unload_ip_adapter()
    load_adapters(fast, tmp_path, 2)
    fast.set_ip_adapter_scale([0.4, 0.9])
    assert against_eager(fast, ip_adapter_image_embeds=[one, three]) > MIN_DB
    left = torch.zeros(1, 3, 32, 32)
    left[:, :, :, :16] = 1
    masks = {"ip_adapter_masks": [torch.ones(1, 1, 32, 32), left]}
    fast.set_ip_adapter_scale([[0.4], [0.9, 0.1, 0.5]])
    assert against_eager(fast, ip_adapter_image_embeds=[one, three], cross_attention_kwargs=masks) > MIN_DB
    assert not reasons(calotype.accelerate_report(fast))
    fast.unload_ip_adapter()
    compiled(fast)


def test_schedulers_from_pipe_and_another_unet(fast, demo_folder, tmp_path):
    fast.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(fast.scheduler.config)
    compiled(fast)
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(fast)
    other.set_progress_bar_config(disable=True)
    compiled(other)
    assert calotype.accelerate_report(other)["vae.encoder"].compiled_calls
    fresh = tiny_pipeline(diffusers.StableDiffusionPipeline, demo_folder, tmp_path)
    fast.unet = fresh.unet
    assert against_eager(fast) > MIN_DB
    report = calotype.accelerate_report(fast)["unet"]
    assert report.backend == "eager"
    assert report.notes
