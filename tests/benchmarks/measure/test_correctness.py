"""Tests that correct and wrong images are separated by the limits of each precision."""

import numpy as np
import pytest

from calotype.benchmarks.measure.correctness import contrast_error, find_fault, min_psnr_db, quality


def scene(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)


def add_noise(image, deviation):
    noise = np.random.default_rng(1).normal(0, deviation, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("precision", "deviation", "right"),
    [
        ("fp32", 0.0, True),
        ("fp32", 3.0, False),  # 38 dB
        ("bf16", 3.0, True),
        ("bf16", 12.0, False),  # 27 dB
        ("int8", 12.0, True),
        ("auto", 25.0, False),  # 21 dB
    ],
)
def test_the_limit_depends_on_the_precision(precision, deviation, right):
    expected = scene()[0]
    result = find_fault(add_noise(expected, deviation), expected, precision)
    assert (result is None) == right
    if result:
        assert f"{min_psnr_db(precision):g}" in result


def test_another_image_is_wrong_in_every_precision():
    for precision in ("fp32", "fp16", "bf16", "int8", "auto"):
        assert "wrong" in find_fault(scene(1)[0], scene(0)[0], precision)


def test_with_random_weights_the_error_is_relative_to_the_contrast():
    """With little contrast, even the image of another prompt has a high PSNR."""
    expected = (128 + 0.15 * (scene()[0].astype(float) - 128)).astype(np.uint8)  # a contrast of 11 levels
    got = add_noise(expected, 3.0)
    assert find_fault(got, expected, "bf16") is None
    assert "contrast" in find_fault(got, expected, "bf16", trained=False)
    assert find_fault(add_noise(expected, 0.7), expected, "bf16", trained=False) is None


def test_a_flat_image_is_wrong_despite_a_high_psnr():
    expected = np.full((32, 32, 3), 128, np.uint8)
    expected[::2] += 4  # 42 dB from its mean
    assert "flat" in find_fault(np.full_like(expected, 130), expected, "int8")
    assert find_fault(expected, expected, "fp32") is None


@pytest.mark.parametrize("got", [np.zeros((32, 64, 3), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_another_shape_or_type_is_wrong(got):
    assert "uint8 [64, 64, 3]" in find_fault(got, scene()[0], "int8")


def test_quality_of_equal_images():
    result = quality(scene(), scene(), ["x"], judged=False)
    assert (result.psnr_db, result.ssim, result.relative_l2, result.images) == (100.0, 1.0, 0.0, 1)
    assert result.judge is None


def test_the_judge_reads_images_of_the_demonstration_model():
    from calotype.export.judge import scenes

    drawn = scenes.draw_scene(7)
    image = scenes.render(drawn)[None]
    words = [scenes.caption(drawn)]
    right = quality(image, image, words, judged=True)
    wrong = quality(255 - image, image, words, judged=True)
    assert (right.judge, right.judge_reference) == (1.0, 1.0)
    assert (wrong.judge, wrong.judge_reference) == (0.0, 1.0)


def test_relative_error_is_a_share_of_the_contrast():
    expected = scene().astype(np.uint8)
    mean = np.full_like(expected, 0) + np.rint(expected.mean()).astype(np.uint8)
    assert contrast_error(mean, expected) == pytest.approx(1.0, rel=0.01)
    assert contrast_error(mean, mean) == 0


def test_clip_score_with_the_folder_of_a_model(tmp_path, demo_folder):
    """A tiny CLIP with random weights tests the calls of the library, and the score of the reference."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    words = CLIPTokenizer.from_pretrained(demo_folder / "tokenizer")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(words), "eos_token_id": words.eos_token_id},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    for part in (CLIPModel(config), words, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)):
        part.save_pretrained(tmp_path)
    same, other = (
        quality(images, scene(), ["a red ring"], judged=False, clip_model=tmp_path) for images in (scene(), scene(3))
    )
    assert same.clip == pytest.approx(same.clip_reference)
    assert other.clip != pytest.approx(other.clip_reference, abs=1e-6)
    assert -1 <= other.clip <= 1
