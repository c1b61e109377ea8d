"""Fits to models with random weights: Stable Diffusion XL on two backends, v-prediction, and a refused model."""

import numpy as np
import pytest

import calotype
from calotype.errors import SamplerError

SPEC = {"scheduler": "euler", "steps": 4, "calibration": 2, "guidance": (4.0, 6.0), "unchecked": True, "images": True}
SIZE = {"width": 64, "height": 64}
OPTIONS = {"scheduler": "euler", "steps": 4, "guidance_scale": 5.0, "seed": 1, "output_type": "np", **SIZE}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_stable_diffusion_xl(sdxl_folder, backend):
    pipe = calotype.load(sdxl_folder, backend=backend)
    (fit,) = pipe.fit(2, **SPEC, **SIZE)
    assert fit.settings["guided"]
    full, fewer = pipe("a red ring", **OPTIONS), pipe("a red ring", calls=2, **OPTIONS)
    assert fewer.report.network_calls == 2
    (note,) = set(fewer.report.notes) - set(full.report.notes)
    assert "unchecked" in note
    assert 0 < np.abs(fewer.images - full.images).mean() < 0.1


def test_v_prediction(sd21_folder):
    pipe = calotype.load(sd21_folder, backend="eager")
    options = OPTIONS | {"scheduler": "ddim"}
    pipe.fit(3, **SPEC | {"scheduler": "ddim", "images": False}, **SIZE)
    full, fewer = (pipe("a red ring", calls=calls, **options) for calls in (None, 3))
    assert fewer.report.network_calls == 3
    assert np.abs(fewer.images - full.images).mean() < 0.1


def test_a_model_of_few_steps_is_refused(lcm_folder):
    pipe = calotype.load(lcm_folder, backend="eager")
    with pytest.raises(SamplerError, match="few steps"):
        pipe.fit(2, **SPEC)
