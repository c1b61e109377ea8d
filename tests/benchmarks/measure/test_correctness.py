"""Right and wrong pictures are told apart, by the precision's measure."""

from pathlib import Path

import numpy as np
import pytest

from calotype.benchmarks.measure.correctness import Judging, fault, least_db, quality, relative_l2


def scene(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)


def spoilt(picture, deviation):
    noise = np.random.default_rng(1).normal(0, deviation, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


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
def test_how_near_depends_on_the_precision(precision, deviation, right):
    wanted = scene()[0]
    told = fault(spoilt(wanted, deviation), wanted, precision)
    assert (told is None) == right
    if told:
        assert f"{least_db(precision):g} or more wanted" in told


def test_another_picture_is_wrong_in_every_precision():
    for precision in ("fp32", "fp16", "bf16", "int8", "auto"):
        assert "a wrong picture" in fault(scene(1)[0], scene(0)[0], precision)


def test_of_random_weights_the_error_is_held_against_the_contrast():
    """Near by PSNR, as everything is where there is little contrast: another prompt would be, too."""
    wanted = (128 + 0.15 * (scene()[0].astype(float) - 128)).astype(np.uint8)  # a contrast of 11 levels
    got = spoilt(wanted, 3.0)
    assert fault(got, wanted, "bf16") is None
    assert "of its contrast" in fault(got, wanted, "bf16", trained=False)
    assert fault(spoilt(wanted, 0.7), wanted, "bf16", trained=False) is None


def test_a_flat_picture_is_wrong_however_near():
    wanted = np.full((32, 32, 3), 128, np.uint8)
    wanted[::2] += 4  # 42 dB from its mean
    assert "flat picture" in fault(np.full_like(wanted, 130), wanted, "int8")
    assert fault(wanted, wanted, "fp32") is None


@pytest.mark.parametrize("got", [np.zeros((32, 64, 3), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_another_shape_or_kind_is_wrong(got):
    assert "for one of uint8 [64, 64, 3]" in fault(got, scene()[0], "int8")


def test_quality_of_equal_pictures():
    told = quality(scene(), Judging(prompts=["x"], wanted=scene(), judged=False, clip_model=None))
    assert (told.psnr_db, told.ssim, told.relative_l2, told.pictures) == (100.0, 1.0, 0.0, 1)
    assert told.judge is None


def test_the_judge_reads_pictures_of_the_demonstration_model():
    from calotype.export.judge import scenes

    drawn = scenes.draw_scene(7)
    picture = scenes.render(drawn)[None]
    words = [scenes.caption(drawn)]
    right = quality(picture, Judging(prompts=words, wanted=picture, judged=True, clip_model=None))
    wrong = quality(255 - picture, Judging(prompts=words, wanted=picture, judged=True, clip_model=None))
    assert (right.judge, right.judge_reference) == (1.0, 1.0)
    assert (wrong.judge, wrong.judge_reference) == (0.0, 1.0)


def test_relative_error_is_a_share_of_the_contrast():
    wanted = scene().astype(np.uint8)
    mean = np.full_like(wanted, 0) + np.rint(wanted.mean()).astype(np.uint8)
    assert relative_l2(mean, wanted) == pytest.approx(1.0, rel=0.01)
    assert relative_l2(mean, mean) == 0


def test_clip_score_by_a_models_folder(tmp_path, demo_folder):
    """A tiny CLIP of random weights: the path through the library, and the reference's score beside ours."""
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
    judging = Judging(prompts=["a red ring"], wanted=scene(), judged=False, clip_model=Path(tmp_path))
    same, other = quality(scene(), judging), quality(scene(3), judging)
    assert same.clip == pytest.approx(same.clip_reference)
    assert other.clip != pytest.approx(other.clip_reference, abs=1e-6)
    assert -1 <= other.clip <= 1
