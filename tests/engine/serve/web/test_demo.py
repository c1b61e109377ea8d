"""The demonstration model through the service of a configuration: its images are those of Python calls."""

import base64
import io
import json
import shutil

import httpx
import numpy as np
import openai
import pytest
from PIL import Image, ImageDraw

import calotype
from calotype.serve.command import ServeConfig
from calotype.serve.command.server import engine_of
from tests.helpers.server import events_of, serving

PROMPT = "a large red circle on a blue background"
SMALL = {"width": 64, "height": 64, "steps": 4, "seed": 7}


@pytest.fixture(scope="module")
def loras(demo_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    shutil.copy(demo_folder / "outline.safetensors", folder / "outline.safetensors")
    return folder


@pytest.fixture(scope="module")
def pipe():
    return calotype.load("demo", backend="openvino", controlnet="demo-canny")


@pytest.fixture(scope="module")
def client(loras):
    models = {"demo": {"model": "demo", "controlnet": "demo-canny"}, "later": {"model": "demo", "backend": "eager"}}
    config = ServeConfig(models=models, backend="openvino", lora_folder=loras)
    with serving(engine_of(config), config) as address, httpx.Client(base_url=address, timeout=120) as client:
        yield client


def same(data, expected):
    with Image.open(io.BytesIO(data)) as image:
        return np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= 1


def png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def image_of(client, **body):
    job = client.post("/jobs", json={"prompt": PROMPT, **SMALL, **body})
    assert job.status_code == 202, job.text
    *_, (_, data) = events_of(client.base_url, job.json()["id"])
    done = json.loads(data)
    assert done["state"] == "done", done["error"]
    return client.get(done["images"][0]["url"]).content


def test_jobs_of_every_task(client, pipe):
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    edges = Image.new("RGB", (64, 64))
    ImageDraw.Draw(edges).ellipse((16, 16, 48, 48), outline="white")
    mask = Image.new("RGB", (64, 64))
    ImageDraw.Draw(mask).rectangle((16, 16, 48, 48), fill="white")
    for images in ({}, {"image": image}, {"image": image, "mask_image": mask}, {"control_image": edges}):
        encoded = {name: base64.b64encode(png(each)).decode() for name, each in images.items()}
        assert same(image_of(client, **encoded), pipe(PROMPT, **SMALL, **images).images[0]), list(images)


def test_loras_by_field_by_model_and_by_tag(client, loras):
    pipe = calotype.load("demo", backend="eager", lora_folder=loras)  # whose weights change quickly
    prompt = f"{PROMPT} <lora:outline:0.5>"
    expected, plain = pipe(prompt, **SMALL).images[0], pipe(PROMPT, **SMALL).images[0]
    by_field = image_of(client, model="later", loras=[{"name": "outline", "weight": 0.5}])
    by_model = image_of(client, model="later+outline:0.5")
    by_tag = image_of(client, model="later", prompt=prompt)
    for data in (by_field, by_model, by_tag):
        assert same(data, expected)
        assert not same(data, plain)
    assert same(image_of(client, model="later"), plain)


@pytest.mark.parametrize("name", ["../outline", "/etc/passwd", "outline.safetensors", ""])
def test_a_lora_is_no_path(client, name):
    for body in ({"loras": [name]}, {"prompt": f"x <lora:{name or ' '}:1>"}, {"model": f"demo+{name}"}):
        answer = client.post("/jobs", json={"prompt": PROMPT, **SMALL, **body})
        assert answer.status_code == 400, body


def test_openai_on_a_model_that_opens_at_its_first_use(client, pipe):
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", timeout=120) as theirs:
        answer = theirs.images.generate(prompt=PROMPT, model="later", size="64x64", extra_body={"steps": 4, "seed": 7})
    assert same(base64.b64decode(answer.data[0].b64_json), pipe(PROMPT, **SMALL).images[0])
    options = client.get("/options").json()
    assert options["loras"] == ["outline"]
    assert [model["loaded"] for model in options["models"]] == [True, True]
