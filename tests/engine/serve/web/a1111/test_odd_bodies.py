"""Random bodies: whatever a field is, the answer is an image or an error of the client."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.server.web_ui import encoded, scene

IMAGE, MASK = (encoded(each) for each in scene(32, 32))
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8)),
    st.sampled_from(["-1", "1e400", "20", "Euler", "karras", "<lora:x>", IMAGE, MASK, "http://127.0.0.1/"]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.text(max_size=8), SCALARS, max_size=2))
NAMES = (
    *("prompt", "negative_prompt", "seed", "steps", "cfg_scale", "width", "height", "batch_size", "n_iter", "eta"),
    *("sampler_name", "sampler_index", "scheduler", "clip_skip", "enable_hr", "hr_scale", "hr_resize_x", "hr_upscaler"),
    *("hr_second_pass_steps", "denoising_strength", "init_images", "mask", "mask_blur", "resize_mode", "styles"),
    *("inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding", "inpainting_mask_invert", "force_task_id"),
    *("override_settings", "alwayson_scripts", "controlnet_units", "send_images", "image", "imageList", "upscaler_1"),
    *("upscaling_resize", "upscaling_resize_w", "upscaling_crop", "sd_model_checkpoint", "CLIP_stop_at_last_layers"),
    *("controlnet_module", "controlnet_input_images", "controlnet_threshold_a"),
)
UNITS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("image", "module", "model", "weight", "resize_mode", "guidance_end", "enabled"), VALUES)
)
BODIES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5)
BASE = {"steps": 2, "width": 32, "height": 32, "init_images": [IMAGE], "mask": MASK, "image": IMAGE}
ROUTES = (
    *("sdapi/v1/txt2img", "sdapi/v1/img2img", "sdapi/v1/options", "sdapi/v1/interrupt", "sdapi/v1/png-info"),
    *("sdapi/v1/extra-single-image", "sdapi/v1/extra-batch-images", "controlnet/detect"),
)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(route=st.sampled_from(ROUTES), body=BODIES, units=st.lists(UNITS, max_size=2))
def test_no_body_is_an_error_of_the_server(client, route, body, units):
    scripts = {"alwayson_scripts": {"controlnet": {"args": units}}} if units else {}
    content = json.dumps({**BASE, **scripts, **body})  # with NaN and infinity, which Python's reader takes
    answer = client.post(f"/{route}", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 404), answer.text
