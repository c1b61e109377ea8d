"""Fits for schedules that start from an image: every strength, masks, and a ControlNet."""

import numpy as np
import pytest
from PIL import Image

import calotype
from calotype.export.judge.scenes import held_out_captions
from calotype.export.quality.metrics import psnr
from tests.helpers.tiny_models import save_controlnet

STEPS, CALLS = 5, 3
SPEC = {"scheduler": "euler", "steps": STEPS, "guidance": (5.0, 5.0), "calibration": 8, "images": True}
SPEC |= {"unchecked": True}
OPTIONS = {"scheduler": "euler", "steps": STEPS, "guidance_scale": 5.0, "seed": [1, 2, 3], "output_type": "np"}
PROMPTS = held_out_captions(1, 3, seed=902)
SIDE = np.linspace(0, 255, 128, dtype=np.uint8)
SCENE = Image.fromarray(np.stack(np.broadcast_arrays(SIDE[:, None], SIDE[None], SIDE[::-1, None]), axis=-1))
LEFT = Image.fromarray(np.repeat(np.repeat(np.array([[255, 0]], np.uint8), 128, 0), 64, 1))


@pytest.fixture(scope="module")
def fit(pipe):
    return pipe.fit(CALLS, **SPEC)[0]


def test_every_strength_has_rows(fit):
    assert set(fit.parts) == {"noise", *(f"image.{skipped}" for skipped in range(STEPS))}
    assert all(len(part.positions) <= CALLS for part in fit.parts.values())
    assert fit.parts["noise"].image_coefficients is None
    assert all(part.image_coefficients is not None for name, part in fit.parts.items() if name != "noise")


@pytest.mark.parametrize(("strength", "most"), [(0.6, 2), (1.0, 3)])
def test_image_to_image(pipe, fit, strength, most):
    options = {**OPTIONS, "image": SCENE, "strength": strength}
    full, fewer = pipe(PROMPTS, **options), pipe(PROMPTS, calls=CALLS, **options)
    calls = fewer.report.network_calls
    assert calls <= most
    assert ["unchecked" in note for note in fewer.report.notes] == [True]
    assert psnr(fewer.images, full.images) > 16  # `unchecked`: only near


@pytest.mark.parametrize(("strength", "calls"), [(0.6, 2), (1.0, 3)])
def test_the_area_that_a_mask_preserves_is_that_of_the_full_schedule(pipe, fit, strength, calls):
    options = {**OPTIONS, "image": SCENE, "mask_image": LEFT, "strength": strength, "output_type": "latent"}
    full, fewer = pipe(PROMPTS, **options), pipe(PROMPTS, calls=CALLS, **options)
    assert fewer.report.network_calls == calls
    kept = np.s_[..., full.images.shape[-1] // 2 :]
    np.testing.assert_array_equal(fewer.images[kept], full.images[kept])
    assert 0 < np.abs(fewer.images - full.images).mean() < 0.5 * np.abs(full.images).mean()


def test_a_controlnet_follows_the_place_in_the_full_schedule(demo_folder, fit, tmp_path):
    net = save_controlnet(demo_folder / "unet", tmp_path / "net", 0)
    pipe = calotype.load(demo_folder, controlnet=net, backend="eager")
    options = {**OPTIONS, "seed": [1], "control_image": SCENE}
    pipe.fit(CALLS, **SPEC | {"images": False, "calibration": 2})
    assert fit.settings["fingerprint"] != pipe.plan.fingerprint

    def fewer(**more):
        return pipe(PROMPTS[:1], calls=CALLS, **options | more).images

    always, never = fewer(), fewer(controlnet_conditioning_scale=0.0)
    assert np.abs(always - never).max() > 0.02
    np.testing.assert_array_equal(fewer(control_guidance_start=0.0, control_guidance_end=1.0), always)
    first = fewer(control_guidance_end=1 / STEPS)  # the first of five steps: the first of three calls
    assert np.abs(first - never).max() > 1e-3
    assert np.abs(first - always).max() > 1e-3
    np.testing.assert_array_equal(fewer(control_guidance_end=0.5 / STEPS), never)
