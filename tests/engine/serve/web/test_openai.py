"""OpenAI's API, by OpenAI's own client and a real server."""

import base64
import io

import httpx
import numpy as np
import openai
import pytest
from PIL import Image, ImageDraw

import calotype
from calotype.serve import Engine
from calotype.serve.web.openai.calls import mask_from_alpha
from tests.helpers import tiny_models
from tests.helpers.server import serving

PROMPT = "a red ring"


@pytest.fixture(scope="module")
def address(fake_pipe):
    with serving(Engine({"demo": fake_pipe})) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def decoded(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "image.png", stream.getvalue(), "image/png"


def gradient():
    return Image.linear_gradient("L").resize((128, 128)).convert("RGB")


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "calotype"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


def test_generated_images_are_those_of_a_call(client, fake_pipe):
    extras = {"seed": 5, "num_inference_steps": 4, "guidance_scale": 3.0, "negative_prompt": "blue"}
    answer = client.images.generate(prompt=PROMPT, model="demo", n=2, size="64x128", extra_body=extras)
    expected = fake_pipe(PROMPT, num_images=2, width=64, height=128, **extras).images
    for image, same in zip(answer.data, expected, strict=True):
        assert np.array_equal(decoded(image.b64_json), same)
        assert np.array_equal(Image.open(io.BytesIO(httpx.get(image.url).content)), same)
    assert answer.size == "64x128"


@pytest.mark.parametrize("kind", ["url", "b64_json"])
def test_the_answer_has_the_requested_form(client, kind):
    answer = client.images.generate(prompt=PROMPT, response_format=kind, extra_body={"steps": 1})
    assert (answer.data[0].url is None) == (kind == "b64_json")
    assert (answer.data[0].b64_json is None) == (kind == "url")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_files_have_the_requested_format_and_their_settings(client, address, kind):
    extras = {"steps": 1, "seed": 3}
    answer = client.images.generate(
        prompt=PROMPT, output_format=kind, output_compression=50, size="auto", extra_body=extras
    )
    with decoded(answer.data[0].b64_json) as image:
        assert image.format == kind.upper()
    assert answer.output_format == kind
    got = httpx.get(answer.data[0].url)
    assert got.headers["content-type"] == f"image/{kind}"


def test_a_stream_has_partial_images_and_the_image(client, fake_pipe):
    extras = {"seed": 5, "steps": 100}
    stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body=extras)
    *partial, completed = list(stream)
    assert 1 <= len(partial) <= 3
    assert [each.partial_image_index for each in partial] == list(range(len(partial)))
    assert {each.type for each in partial} == {"image_generation.partial_image"}
    assert {decoded(each.b64_json).size for each in partial} == {(128, 128)}
    assert completed.type == "image_generation.completed"
    assert completed.usage.total_tokens == 0
    assert np.array_equal(decoded(completed.b64_json), fake_pipe(PROMPT, **extras).images[0])


def test_a_stream_ends_with_the_error_of_its_job(client):
    with pytest.raises(openai.APIError) as caught:
        list(client.images.generate(prompt=PROMPT, stream=True, extra_body={"steps": 150, "timeout_s": 0.001}))
    assert caught.value.body["code"] == "DeadlineError"


def test_an_edit_keeps_what_is_opaque_in_the_mask(client, fake_pipe):
    image = gradient()
    theirs = Image.new("RGBA", image.size, (0, 0, 0, 255))
    ImageDraw.Draw(theirs).rectangle((32, 32, 95, 95), fill=(0, 0, 0, 0))  # transparent where edited
    ours = Image.new("L", image.size, 0)
    ImageDraw.Draw(ours).rectangle((32, 32, 95, 95), fill=255)  # white where edited
    extras = {"seed": 1, "steps": 4, "strength": 1.0}
    expected = fake_pipe(PROMPT, image=image, mask_image=ours, **extras).images[0]
    by_mask = client.images.edit(image=png(image), mask=png(theirs), prompt=PROMPT, extra_body=extras)
    assert np.array_equal(decoded(by_mask.data[0].b64_json), expected)
    by_field = httpx.post(
        f"{client.base_url}images/edits",
        data={"prompt": PROMPT, **extras},
        files={"image[]": png(image), "mask_image": png(ours)},
        timeout=60,
    ).json()
    assert np.array_equal(decoded(by_field["data"][0]["b64_json"]), expected)


def test_an_edit_takes_the_mask_from_the_transparency_of_the_image(client, fake_pipe):
    image = gradient().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((128, 128)).point(lambda value: 255 * (value > 127)))
    extras = {"seed": 1, "steps": 4}
    expected = fake_pipe(PROMPT, image=image, mask_image=mask_from_alpha(image), **extras).images[0]
    answer = client.images.edit(image=[png(image)], prompt=PROMPT, extra_body=extras)
    assert np.array_equal(decoded(answer.data[0].b64_json), expected)


def test_an_edit_without_a_mask_is_image_to_image(client, fake_pipe):
    stream = client.images.edit(image=png(gradient()), prompt=PROMPT, stream=True, extra_body={"seed": 1, "steps": 4})
    *_, completed = list(stream)
    assert completed.type == "image_edit.completed"
    expected = fake_pipe(PROMPT, image=gradient(), seed=1, steps=4).images[0]
    assert np.array_equal(decoded(completed.b64_json), expected)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # of OpenAI's client, for its own models
def test_a_variation_of_a_model_without_a_vision_encoder_is_image_to_image(client, fake_pipe):
    answer = client.images.create_variation(image=png(gradient()), n=1, extra_body={"seed": 1, "steps": 5})
    expected = fake_pipe("", image=gradient(), strength=0.6, seed=1, steps=5).images[0]
    assert np.array_equal(decoded(answer.data[0].b64_json), expected)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "huge"}, "size"),
        ({"size": "100000x100000"}, "width"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"response_format": "html"}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 101}, "output_compression"),
        ({"background": "transparent"}, "background"),
        ({"partial_images": 4}, "partial_images"),
        ({"stream": "yes"}, "stream"),
        ({"frame_count": 2}, "frame_count"),
        ({"steps": "many"}, "steps"),
        ({"model": "demo+ink"}, "loras"),
    ],
)
def test_a_wrong_field_is_named(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt=PROMPT, extra_body=fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_an_unknown_model_is_not_there(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt=PROMPT, model="gpt-image-1")
    assert caught.value.code == "model_not_found"


def test_a_mask_without_transparency_is_an_error(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=png(gradient()), mask=png(gradient()), prompt=PROMPT)
    assert caught.value.param == "mask"


@pytest.mark.parametrize("kind", ["edits", "variations"])
@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{}", "application/json", 415),
        (b"", "multipart/form-data", 400),
        (b"--x\r\nnonsense", "multipart/form-data; boundary=x", 400),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            400,
        ),
    ],
)
def test_a_malformed_form_is_an_error(address, kind, content, content_type, status):
    headers = {"Content-Type": content_type}
    answer = httpx.post(f"{address}/v1/images/{kind}", content=content, headers=headers)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.filterwarnings("ignore:deprecated")  # by the client
def test_variations_by_a_vision_encoder_are_those_of_a_call(demo_folder, tmp_path):
    pipe = calotype.load(tiny_models.save_vision(tmp_path / "model", demo_folder), backend="eager")
    extras = {"seed": 5, "num_inference_steps": 2, "guidance_scale": 3.0}
    with (
        serving(Engine({"tiny": pipe})) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        form = {"image": png(gradient()), "model": "tiny", "n": 2, "size": "64x32"}
        answer = client.images.create_variation(**form, extra_body=extras)
    expected = pipe(image=gradient(), num_images=2, width=64, height=32, **extras).images
    for image, same in zip(answer.data, expected, strict=True):
        difference = np.abs(np.asarray(decoded(image.b64_json), int) - np.asarray(same, int))
        assert difference.max() <= 1
