"""`txt2img` and `img2img`: the images are those of the calls that the requests describe."""

import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps

import calotype
from calotype.serve import Engine
from calotype.serve.web.a1111.images import filled, mask_from, resized
from tests.helpers.server import serving
from tests.helpers.server.web_ui import encoded, generated, scene

PROMPT = "a red ring"
BASE = {"prompt": PROMPT, "steps": 4, "seed": 5, "width": 128, "height": 128}


def call(engine, model="demo", **arguments):
    """Return the images of a call with AUTOMATIC1111's defaults."""
    defaults = {"steps": 4, "guidance_scale": 7.0, "seed": 5, "scheduler": "euler"}
    return engine.catalog.open(model)(PROMPT, **{**defaults, **arguments}).images


def same(images, expected):
    assert len(images) == len(expected)
    for image, other in zip(images, expected, strict=True):
        assert np.array_equal(image, other)


def test_txt2img_is_a_call_with_the_web_ui_s_defaults(client, engine):
    images, info = generated(client, "txt2img", **BASE)
    same(images, call(engine))
    assert images[0].text["parameters"] == info["infotexts"][0]
    assert "Sampler: Euler, CFG scale: 7, Seed: 5" in info["infotexts"][0]
    assert (info["seed"], info["all_seeds"], info["steps"], info["width"]) == (5, [5], 4, 128)
    assert info["comments"] == []


def test_batches_count_up_the_seed(client, engine):
    images, info = generated(client, "txt2img", **BASE, batch_size=2, n_iter=2)
    same(images, call(engine, num_images=4))
    assert info["all_seeds"] == [5, 6, 7, 8]
    assert len(info["infotexts"]) == len(info["all_prompts"]) == 4


def test_a_seed_of_minus_one_is_random(client):
    seeds = {generated(client, "txt2img", **{**BASE, "seed": -1})[1]["seed"] for _ in range(2)}
    assert len(seeds) == 2
    assert min(seeds) >= 0


@pytest.mark.parametrize(
    ("sampler", "scheduler", "ours"),
    [
        ("Euler a", None, "euler-a"),
        ("DPM++ 2M Karras", None, "dpm++2m-karras"),
        ("DPM++ 2M", "karras", "dpm++2m-karras"),
        ("DPM++ 2M", "Karras", "dpm++2m-karras"),
        ("DPM++ 2M", None, "dpm++2m-karras"),  # the web UI's automatic choice
        ("DPM++ 2M", "uniform", "dpm++2m"),
        ("DPM2 a", "exponential", "kdpm2-a-exponential"),
        ("UniPC", "automatic", "unipc"),
        ("Heun", "beta", "heun-beta"),
    ],
)
def test_samplers_have_their_counterparts(client, engine, sampler, scheduler, ours):
    images, info = generated(client, "txt2img", **BASE, sampler_name=sampler, scheduler=scheduler)
    same(images, call(engine, scheduler=ours))
    assert info["comments"] == []


def test_an_unknown_schedule_is_noted_and_an_unknown_sampler_is_404(client, engine):
    images, info = generated(client, "txt2img", **BASE, sampler_name="Euler", scheduler="Align Your Steps")
    same(images, call(engine))
    assert "Align Your Steps" in info["comments"][0]
    answer = client.post("/sdapi/v1/txt2img", json={**BASE, "sampler_name": "DPM fast"})
    assert answer.status_code == 404
    assert answer.json()["error"] == "Sampler not found"


def test_a_prompt_names_loras(client, engine):
    client.post("/sdapi/v1/txt2img", json={**BASE, "prompt": f"{PROMPT} <lora:outline:0.5>"})
    assert isinstance(engine.jobs()[-1].status.error, calotype.BackendError)  # the fake backend has no LoRAs


def test_a_prompt_names_only_loras_of_the_server(client):
    answer = client.post("/sdapi/v1/txt2img", json={**BASE, "prompt": "<lora:../../etc/passwd:1>"})
    assert answer.status_code == 400
    assert "outline" in answer.json()["detail"]


def test_settings_of_a_request_choose_model_and_layers(client, engine):
    override = {"sd_model_checkpoint": "edges.safetensors [0123abcd]", "CLIP_stop_at_last_layers": 2, "sd_vae": None}
    images, info = generated(client, "txt2img", **BASE, override_settings=override)
    same(images, call(engine, "edges", clip_skip=1))
    assert (info["sd_model_name"], info["clip_skip"]) == ("edges", 2)
    answer = client.post("/sdapi/v1/txt2img", json={**BASE, "override_settings": {"sd_model_checkpoint": "other"}})
    assert answer.status_code == 400
    assert "edges" in answer.json()["detail"]


def test_hires_fix(client, engine):
    hires = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.5, "hr_second_pass_steps": 3}
    images, info = generated(client, "txt2img", **BASE, **hires, hr_upscaler="Latent (bicubic)")
    same(images, call(engine, hires=2, hires_strength=0.5, hires_steps=3, hires_upscaler="latent"))
    assert (info["width"], info["height"]) == images[0].size == (256, 256)
    images, info = generated(client, "txt2img", **BASE, **hires, hr_resize_x=192, hr_upscaler="R-ESRGAN 4x+")
    assert images[0].size == (192, 192)
    assert "R-ESRGAN" in info["comments"][0]


def test_what_has_no_counterpart_is_noted(client):
    body = {
        "restore_faces": True,
        "tiling": False,
        "styles": ["photo"],
        "alwayson_scripts": {"ADetailer": {"args": []}},
    }
    _, info = generated(client, "txt2img", **{**BASE, "width": 130}, **body)
    assert {note.split()[2].strip(":,") for note in info["comments"]} == {"restore_faces", "styles", "script", "size"}


def test_img2img_is_a_call(client, engine):
    image, _ = scene()
    images, info = generated(client, "img2img", **BASE, init_images=[encoded(image)], denoising_strength=0.5)
    same(images, call(engine, image=image, strength=0.5))
    assert info["denoising_strength"] == 0.5


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_resize_modes(client, engine, mode):
    image, _ = scene(192, 96)
    body = {"init_images": ["data:image/png;base64," + encoded(image)], "resize_mode": mode}
    images, _ = generated(client, "img2img", **BASE, **body)
    same(images, call(engine, image=resized(image, (128, 128), mode), strength=0.75))


def test_an_unmasked_pixel_stays_as_it_is(client):
    image, mask = scene()
    body = {"init_images": [encoded(image)], "mask": encoded(mask), "inpainting_fill": 1, "denoising_strength": 1}
    sharp = {**body, "mask_blur": 0, "inpaint_full_res": False}
    (result,), _ = generated(client, "img2img", **BASE, **sharp)
    assert np.array_equal(np.asarray(result)[:, 64:], np.asarray(image)[:, 64:])
    assert not np.array_equal(np.asarray(result)[:, :64], np.asarray(image)[:, :64])
    (inverted,), _ = generated(client, "img2img", **BASE, **sharp, inpainting_mask_invert=1)
    assert np.array_equal(np.asarray(inverted)[:, :64], np.asarray(image)[:, :64])
    assert "parameters" in inverted.text


def test_only_the_masked_area_is_generated_by_default(client, engine):
    image, _ = scene(256, 192)
    mask = Image.new("L", image.size)
    mask.paste(255, (40, 40, 100, 90))
    body = {"init_images": [encoded(image)], "mask": encoded(mask), "inpaint_full_res_padding": 16, "mask_blur": 4}
    (result,), _ = generated(client, "img2img", **BASE, **body, inpainting_fill=0)
    soft = mask_from(mask, invert=False, blur=4)
    expected = call(
        engine, image=filled(image, soft), mask_image=soft, padding_mask_crop=16, strength=0.75, width=128, height=128
    )[0]
    assert result.size == (256, 192)
    assert np.array_equal(np.asarray(result)[120:], np.asarray(image)[120:])
    area = (slice(50, 80), slice(50, 90))
    assert np.array_equal(np.asarray(result)[area], np.asarray(expected)[area])


def test_a_transparent_mask_and_a_transparent_image():
    image = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    assert np.array_equal(np.asarray(mask_from(image, invert=False, blur=0))[0], [255] * 4 + [0] * 4)
    assert np.array_equal(np.asarray(mask_from(image, invert=True, blur=0))[0], [0] * 4 + [255] * 4)


def test_a_filled_area_has_the_colors_around_it():
    image, _ = scene()
    mask = Image.new("L", image.size)
    mask.paste(255, (48, 80, 80, 112))  # in the blue part
    result = np.asarray(filled(image, mask))
    assert np.abs(result[96, 64].astype(int) - (30, 60, 200)).max() <= 20  # of the 225 to the white part
    assert np.array_equal(result[40], np.asarray(image)[40])


def test_controlnet_by_its_current_and_older_forms(client, engine):
    image, _ = scene()
    expected = call(
        engine, "edges", control_image=calotype.preprocess.canny(image, 50, 120), controlnet_conditioning_scale=0.8
    )
    unit = {"module": "canny", "weight": 0.8, "threshold_a": 50, "threshold_b": 120, "save_detected_map": False}
    override = {"sd_model_checkpoint": "edges"}
    for unit_form in (
        {"alwayson_scripts": {"ControlNet": {"args": [{**unit, "image": encoded(image), "model": "controlnet"}]}}},
        {"alwayson_scripts": {"controlnet": {"args": [{**unit, "input_image": encoded(image), "enabled": True}]}}},
        {
            "alwayson_scripts": {
                "controlnet": {"args": [{**unit, "image": {"image": encoded(image)}}, {"enabled": False}]}
            }
        },
        {"controlnet_units": [{**unit, "input_image": encoded(image), "guidance": 1.0, "guessmode": False}]},
    ):
        images, _ = generated(client, "txt2img", **BASE, override_settings=override, **unit_form)
        same(images, expected)


def test_the_control_image_follows_the_images(client):
    image, _ = scene()
    unit = {"module": "invert (from white bg & black line)", "input_image": encoded(image)}
    body = {**BASE, "override_settings": {"sd_model_checkpoint": "edges"}}
    images, _ = generated(client, "txt2img", **body, alwayson_scripts={"controlnet": {"args": [unit]}})
    assert len(images) == 2
    assert np.array_equal(images[1], ImageOps.invert(image))


@pytest.mark.parametrize(
    "unit", [{"module": "openpose"}, {"model": "control_v11p_sd15_openpose [cab727d4]"}, {"image": None}]
)
def test_a_controlnet_that_the_server_lacks_is_refused(client, unit):
    unit = {"image": encoded(scene()[0]), **unit}
    body = {**BASE, "override_settings": {"sd_model_checkpoint": "edges"}}
    answer = client.post("/sdapi/v1/txt2img", json={**body, "alwayson_scripts": {"controlnet": {"args": [unit]}}})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {"steps": "many"},
        {"steps": 2.5},
        {"seed": True},
        {"cfg_scale": "nan"},
        {"prompt": 5},
        {"override_settings": []},
        {"alwayson_scripts": [1]},
        {"init_images": []},
        {"init_images": ["http://127.0.0.1/x.png"]},
        {"init_images": ["/etc/passwd"]},
        {"init_images": [None]},
        {"width": 100_000},
    ],
)
def test_a_wrong_field_is_an_error_of_the_client(client, body):
    answer = client.post("/sdapi/v1/img2img", json={**BASE, "init_images": [encoded(scene()[0])], **body})
    assert answer.status_code == 400
    assert answer.json()["detail"]


def test_an_answer_can_be_without_images(client):
    images, info = generated(client, "txt2img", **BASE, send_images=False)
    assert images == []
    assert info["seed"] == 5


def test_input_images_are_not_echoed(client):
    body = {**BASE, "init_images": [encoded(scene()[0])]}
    assert client.post("/sdapi/v1/img2img", json=body).json()["parameters"]["init_images"] is None


def test_the_demo_model_paints_where_the_mask_says():
    image = Image.new("RGB", (128, 128), (30, 60, 220))
    mask = Image.new("L", (128, 128))
    mask.paste(255, (32, 32, 96, 96))
    body = {"init_images": [encoded(image)], "mask": encoded(mask), "inpainting_fill": 1, "inpaint_full_res": False}
    text = {"prompt": "a large red circle on a blue background", "denoising_strength": 1, "steps": 20, "seed": 7}
    engine = Engine(calotype.load("demo", backend="openvino"))
    with serving(engine) as address, httpx.Client(base_url=address, timeout=60) as client:
        (result,), _ = generated(client, "img2img", **text, **body)
    pixels = np.asarray(result).astype(int)
    assert pixels[64, 64, 0] > 150 > pixels[64, 64, 2]
    assert np.array_equal(pixels[:16], np.asarray(image)[:16])
