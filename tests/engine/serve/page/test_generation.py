"""The page in a real Chromium: it generates, shows previews and the queue, cancels, and keeps its gallery."""

import re
import threading

import pytest

import calotype
from calotype.backends.fake import FakeRunner
from calotype.serve import Engine
from calotype.serve.web.service import ServiceSettings
from tests.helpers.server import serving
from tests.helpers.server.chromium import opened, posted

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
expect = sync_api.expect
PROMPT = "a large red circle on a blue background"


def generate(page):
    page.keyboard.press("Control+Enter")


def test_it_generates_images_with_the_settings_of_the_form(page):
    page.fill("#prompt", PROMPT)
    page.fill("#steps-number", "4")
    page.fill("#num_images-number", "2")
    page.press("#num_images-number", "Tab")
    page.fill("#seed", "7")
    body = posted(page, lambda: generate(page))
    expected = {
        "prompt": PROMPT,
        "steps": 4,
        "num_images": 2,
        "seed": 7,
        "width": 128,
        "height": 128,
        "model": "default",
    }
    assert body.items() >= expected.items()
    expect(page.locator(".result img")).to_have_count(2)
    expect(page.locator("#announce")).to_have_text("2 images are ready.")
    page.locator(".thumb").first.click()
    expect(page.locator("#viewer-meta .meta-seed dd")).to_have_text("8")
    assert page.errors == []


def test_previews_arrive_before_the_image(page, monkeypatch):
    seen, steps, original = threading.Event(), [], FakeRunner.__call__

    def waiting(self, inputs):
        steps.extend(["step"] if "timestep" in inputs else [])
        assert len(steps) < 100 or seen.wait(60)  # the last steps wait for the page
        return original(self, inputs)

    monkeypatch.setattr(FakeRunner, "__call__", waiting)
    page.evaluate("localStorage.setItem('calotype.previews', '1')")
    page.fill("#steps-number", "150")
    page.press("#steps-number", "Tab")
    generate(page)
    expect(page.locator(".preview").first).to_have_attribute("src", re.compile("^data:image/jpeg;base64,"))
    seen.set()
    expect(page.locator(".result img")).to_have_count(1)


def test_a_job_that_waits_has_a_place_and_can_be_canceled(page, busy):
    rows = page.locator("#queue-list li")
    for count in (1, 2):
        generate(page)
        expect(rows).to_have_count(count)
    rows.nth(1).get_by_role("button").click()
    expect(rows).to_have_count(1)
    busy.set()
    expect(page.locator("#queue")).to_be_hidden()
    expect(page.locator(".thumb")).to_have_count(1)


def test_escape_cancels(page, busy):
    generate(page)
    expect(page.locator("#queue-list li")).to_have_count(1)
    page.keyboard.press("Escape")
    busy.set()
    expect(page.locator("#queue")).to_be_hidden()
    expect(page.locator(".hint")).to_have_text("Cancelled.")
    expect(page.locator(".thumb")).to_have_count(0)


def test_a_reload_keeps_the_gallery_and_what_is_deleted_is_gone(page):
    for count in (1, 2):
        generate(page)
        expect(page.locator(".thumb")).to_have_count(count)
    page.reload()
    expect(page.locator(".thumb")).to_have_count(2)
    page.locator(".thumb").first.click()
    page.click("#viewer-delete")
    expect(page.locator(".thumb")).to_have_count(1)
    page.reload()
    expect(page.locator(".thumb")).to_have_count(1)


def test_a_job_survives_a_reload(page, busy):
    page.fill("#prompt", PROMPT)
    generate(page)
    expect(page.locator("#queue-list li")).to_have_count(1)
    page.reload()
    expect(page.locator("#queue-list li")).to_contain_text(PROMPT)
    busy.set()
    expect(page.locator(".thumb")).to_have_count(1)


def test_an_error_of_the_server_is_shown(page):
    page.evaluate("document.getElementById('steps-number').max = document.getElementById('steps').max = 9000")
    page.fill("#steps-number", "9000")
    generate(page)
    expect(page.locator(".toast.error")).to_contain_text("9000")
    expect(page.locator("#generate")).to_be_enabled()


def test_the_page_asks_for_the_key_and_sends_it(context, tmp_path):
    from calotype.serve.web.service.keys import new_key

    secret, table = new_key("alice")
    file = tmp_path / "keys.toml"
    file.write_text(table)
    with serving(Engine(calotype.load("demo", backend="fake")), ServiceSettings(key_file=file)) as address:
        page = context.new_page()
        page.goto(address)
        page.fill("#settings[open] #key", secret)
        page.press("#key", "Tab")
        page.keyboard.press("Escape")
        expect(page.locator("#generate")).to_be_enabled()
        generate(page)
        expect(page.locator(".thumb")).to_have_count(1)


def test_the_demo_model_draws_what_the_prompt_says(context):
    with serving(Engine(calotype.load("demo", backend="openvino"))) as address:
        page = opened(context, address)
        page.fill("#prompt", PROMPT)
        page.fill("#seed", "7")
        generate(page)
        expect(page.locator(".result img")).to_have_count(1, timeout=60_000)
        red, green, blue = page.evaluate(
            """() => {
                const image = document.querySelector(".result img");
                const context = new OffscreenCanvas(128, 128).getContext("2d");
                context.drawImage(image, 0, 0);
                return [...context.getImageData(64, 64, 1, 1).data].slice(0, 3);
            }"""
        )
        assert red > 150 > max(green, blue)
