"""The requests of four clients, written from their sources; the clients themselves were not run.

Open WebUI (routers/images.py), SillyTavern (endpoints/stable-diffusion.js), Auto-Photoshop-StableDiffusion-Plugin
(session.js, controlnet/entry.ts, python_replacement.js), and the first krita-ai-diffusion (ai_tools/diffusion.py). The
last spoke this API; today it speaks ComfyUI's.
"""

import base64
import json

import numpy as np
import pytest

from tests.helpers.server.web_ui import decoded, encoded, scene


def get(client, path, **options):
    answer = client.get(path, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(client, path, body=None, **options):
    answer = client.post(path, json=body, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_open_webui(client):
    basic = {"authorization": "Basic " + base64.b64encode(b"user:password").decode()}
    options = get(client, "/sdapi/v1/options", headers=basic)
    titles = [model["title"] for model in get(client, "/sdapi/v1/sd-models", headers=basic)]
    assert options["sd_model_checkpoint"] in titles
    assert {"title", "model_name"} <= get(client, "/sdapi/v1/sd-models")[0].keys()
    post(client, "/sdapi/v1/options", {**options, "sd_model_checkpoint": titles[1]}, headers=basic)
    body = {"prompt": "a ring", "batch_size": 2, "width": 128, "height": 128, "steps": 4, "negative_prompt": "blurry"}
    more = {"sampler_name": "Euler a", "scheduler": "Karras", "cfg_scale": 6}
    answer = post(client, "/sdapi/v1/txt2img", {**body, **more}, headers=basic)
    assert len(answer["images"]) == 2
    assert decoded(answer["images"][0]).format == "PNG"
    assert json.loads(answer["info"])["sd_model_name"] == titles[1]
    post(client, "/sdapi/v1/options", options)


def test_silly_tavern(client):
    basic = {"Authorization": "Basic"}  # as it sends it without a user
    upscalers = [entry["name"] for entry in get(client, "/sdapi/v1/upscalers", headers=basic)]
    upscalers[1:1] = [entry["name"] for entry in get(client, "/sdapi/v1/latent-upscale-modes", headers=basic)]
    assert upscalers[:2] == ["None", "Latent"]
    assert [entry["model_name"] for entry in get(client, "/sdapi/v1/sd-vae", headers=basic)] == []
    samplers = [entry["name"] for entry in get(client, "/sdapi/v1/samplers", headers=basic)]
    schedulers = [entry["name"] for entry in get(client, "/sdapi/v1/schedulers", headers=basic)]
    assert "DPM++ 2M" in samplers
    assert "karras" in schedulers
    post(client, "/sdapi/v1/options", {"sd_model_checkpoint": "demo"}, headers=basic)
    progress = get(client, "/sdapi/v1/progress", headers=basic)
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
    body = {
        **{"url": "http://localhost:7860", "auth": "", "prompt": "a ring", "negative_prompt": "blurry"},
        **{"sampler_name": "DPM++ 2M", "scheduler": "karras", "steps": 4, "cfg_scale": 7, "width": 128, "height": 128},
        **{"restore_faces": False, "enable_hr": True, "hr_upscaler": "Latent", "hr_scale": 2},
        **{"denoising_strength": 0.7, "hr_second_pass_steps": 2, "override_settings_restore_afterwards": True},
        **{"override_settings": {"CLIP_stop_at_last_layers": 1}, "clip_skip": 1, "save_images": True},
        **{"send_images": True, "do_not_save_grid": False, "do_not_save_samples": False},
    }
    answer = post(client, "/sdapi/v1/txt2img", body, headers=basic)
    assert decoded(answer["images"][0]).size == (256, 256)
    assert json.loads(answer["info"])["comments"] == []
    assert client.post("/sdapi/v1/interrupt", headers=basic).status_code == 200


PHOTOSHOP = {
    **{"selection_info": {"left": 0, "top": 0, "right": 128, "bottom": 128}, "alwayson_scripts": {}},
    **{"prompt": "a ring", "negative_prompt": "blurry", "original_prompt": "a ring", "original_negative_prompt": ""},
    **{"clip_skip": 1, "steps": 4, "sampler_index": "DPM++ 2M Karras", "width": 128, "height": 128, "cfg_scale": 7},
    **{"denoising_strength": 0.7, "batch_size": 1, "seed": "-1", "mask_blur": 4, "use_sharp_mask": False},
    **{"use_prompt_shortcut": False, "prompt_shortcut_ui_dict": {}, "uniqueDocumentId": "fcd4", "mode": "inpaint"},
    **{"restore_faces": False, "tiling": False},
}


def test_photoshop_inpaints(client):
    image, mask = scene()
    more = {"inpaint_full_res": False, "inpaint_full_res_padding": 32, "inpainting_fill": 1, "mask_expansion": 0}
    pictures = {"init_images": [encoded(image)], "mask": encoded(mask), "expanded_mask": encoded(mask)}
    answer = post(client, "/sdapi/v1/img2img", {**PHOTOSHOP, **more, **pictures})
    (result,) = answer["images"]
    assert np.array_equal(np.asarray(decoded(result))[:, 96:], np.asarray(image)[:, 96:])
    info = post(client, "/sdapi/v1/png-info", {"image": "data:image/png;base64," + result})["info"]
    assert "Negative prompt: blurry\nSteps: 4, Sampler: DPM++ 2M, Schedule type: Karras" in info
    client.post("/sdapi/v1/interrupt", headers={"Content-Type": "application/json"}).raise_for_status()
    get(client, "/sdapi/v1/progress?skip_current_image=false")


def test_photoshop_steers_by_edges(client):
    post(client, "/sdapi/v1/options", {"sd_model_checkpoint": "edges"})
    assert get(client, "/controlnet/version")["version"] > 1
    assert get(client, "/controlnet/settings")["control_net_unit_count"] == 1
    (model,) = get(client, "/controlnet/model_list")["model_list"]
    modules = get(client, "/controlnet/module_list?alias_names=true")
    assert "canny" in modules["module_list"]
    assert modules["module_detail"]["canny"]["model_free"] is False
    image, _ = scene()
    detect = {"controlnet_module": "canny", "controlnet_input_images": [encoded(image)], "controlnet_threshold_a": 50}
    assert decoded(post(client, "/controlnet/detect", detect)["images"][0]).size == image.size
    unit = {
        **{"enabled": True, "input_image": encoded(image), "mask": "", "module": "canny", "model": model, "weight": 1},
        **{"resize_mode": "Crop and Resize", "lowvram": False, "processor_res": 512, "threshold_a": 50},
        **{"threshold_b": 120, "guidance_start": 0, "guidance_end": 1, "control_mode": "Balanced"},
        **{"pixel_perfect": False},
    }
    scripts = {"controlnet": {"args": [unit, {**unit, "enabled": False}]}}
    more = {"controlnet_units": [unit], "subseed": -1, "override_settings": {}, "alwayson_scripts": scripts}
    images = post(client, "/sdapi/v1/txt2img", {**PHOTOSHOP, **more})["images"]
    assert len(images) == PHOTOSHOP["batch_size"] + 1  # the plugin shows the others as annotations
    post(client, "/sdapi/v1/options", {"sd_model_checkpoint": "demo"})


def test_photoshop_enlarges(client):
    image, _ = scene()
    body = {
        **{"resize_mode": 0, "show_extras_results": 0, "gfpgan_visibility": 0, "codeformer_visibility": 0},
        **{"codeformer_weight": 0, "upscaling_resize": 2, "upscaling_resize_w": 0, "upscaling_resize_h": 0},
        **{"upscaling_crop": True, "upscaler_1": "Lanczos", "upscaler_2": "None"},
        **{"extras_upscaler_2_visibility": 0, "upscale_first": False, "image": encoded(image)},
    }
    assert decoded(post(client, "/sdapi/v1/extra-single-image", body)["image"]).size == (256, 256)
    by_size = {**body, "resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 50}
    assert decoded(post(client, "/sdapi/v1/extra-single-image", by_size)["image"]).size == (100, 50)
    files = [{"data": encoded(image), "name": "a.png"}, {"data": encoded(image), "name": "b.png"}]
    assert len(post(client, "/sdapi/v1/extra-batch-images", {**body, "imageList": files})["images"]) == 2
    assert client.post("/sdapi/v1/extra-single-image", json={**body, "upscaling_resize": 1000}).status_code == 400
    assert client.post("/sdapi/v1/extra-single-image", json={**body, "upscaler_1": "ESRGAN_4x"}).status_code == 400


def test_krita(client):
    image, _ = scene()
    unit = {"input_image": encoded(image), "module": "none", "control_mode": "Balanced"}
    body = {
        **{"init_images": [encoded(image)], "resize_mode": 0, "denoising_strength": 0.4, "prompt": "highres 8k uhd"},
        **{"sampler_index": "DPM++ 2M Karras", "steps": 5, "cfg_scale": 5, "width": 256, "height": 256},
        **{"script_name": "ultimate sd upscale", "script_args": [None, 768, 768, 8, 32, 0, 0, 0, 5, False]},
        **{"alwayson_scripts": {"controlnet": {"args": [unit]}}, "override_settings": {"sd_model_checkpoint": "edges"}},
    }
    answer = post(client, "/sdapi/v1/img2img", body)
    assert decoded(answer["images"][0]).size == (256, 256)
    assert "ultimate sd upscale" in answer["info"]  # a script that this server does not have


@pytest.mark.parametrize(
    ("route", "keys"),
    [
        ("embeddings", {"loaded", "skipped"}),
        ("scripts", {"txt2img", "img2img"}),
        ("cmd-flags", {"api"}),
        ("memory", {"ram", "cuda"}),
    ],
)
def test_what_is_asked_at_the_start(client, route, keys):
    assert keys <= get(client, f"/sdapi/v1/{route}").keys()


def test_lists(client):
    assert get(client, "/sdapi/v1/prompt-styles") == []
    assert [lora["name"] for lora in get(client, "/sdapi/v1/loras")] == ["outline"]
    assert 0 < get(client, "/sdapi/v1/memory")["ram"]["free"] <= get(client, "/sdapi/v1/memory")["ram"]["total"]
