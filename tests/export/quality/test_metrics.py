"""Image metrics: known values, and their order."""

import numpy as np
import pytest

from calotype.errors import BuildError, InputError
from calotype.export.judge import scenes
from calotype.export.quality.metrics import figures, psnr, require, ssim

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def images():
    drawn = [scenes.draw_scene(i, held_out=True) for i in range(3)]
    return np.stack([scenes.render(s) for s in drawn]), [scenes.caption(s) for s in drawn]


def test_psnr_of_a_known_error():
    a = np.zeros((4, 4), np.uint8)
    assert psnr(a, a + 1, 255.0) == pytest.approx(48.1308, abs=1e-3)
    assert psnr(a, a) == float("inf")


def test_ssim_falls_with_noise_and_is_one_for_equal_images(images):
    image = images[0][0]
    assert ssim(image, image) == pytest.approx(1)
    noisy = [(image + RNG.normal(0, s, image.shape)).clip(0, 255).astype(np.uint8) for s in (5, 20, 80)]
    values = [ssim(image, n) for n in noisy]
    assert 1 > values[0] > values[1] > values[2] > 0


def test_ssim_agrees_with_its_definition_on_one_window():
    """An 11 x 11 image has one window: compare with the paper's formula."""
    a, b = RNG.integers(0, 256, (2, 11, 11, 3)).astype(np.float64)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window = (window / window.sum())[..., None]
    mean_a, mean_b = (window * a).sum((0, 1)), (window * b).sum((0, 1))
    var_a, var_b = (window * (a - mean_a) ** 2).sum((0, 1)), (window * (b - mean_b) ** 2).sum((0, 1))
    both = (window * (a - mean_a) * (b - mean_b)).sum((0, 1))
    c1, c2 = 2.55**2, 7.65**2
    want = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    assert ssim(a.astype(np.uint8), b.astype(np.uint8)) == pytest.approx(float(want.mean()), abs=1e-9)


def test_judge_drop_is_the_share_of_lost_images(images):
    drawn, words = images
    same = figures(drawn, drawn, words, ["judge_drop", "ssim"])
    assert same == {"psnr": 100.0, "psnr_min": 100.0, "ssim": pytest.approx(1), "judge": 1.0, "judge_drop": 0.0}
    black = drawn.copy()
    black[0] = 0
    damaged = figures(black, drawn, words, ["judge_drop"])
    assert damaged["judge_drop"] == pytest.approx(1 / 3)
    assert damaged["psnr_min"] < 20 < damaged["psnr"]


def test_unavailable_metrics_are_rejected():
    with pytest.raises(InputError, match="judge_drop"):
        require(["judge_drop"], judged=False, clip_model=None)
    with pytest.raises(InputError, match="--clip-model"):
        require(["clip_drop"], judged=True, clip_model=None)
    with pytest.raises(BuildError, match="pip install lpips"):
        require(["lpips"], judged=True, clip_model=None)
    require(["psnr", "ssim", "judge_drop"], judged=True, clip_model=None)
