"""The form of the page in a real Chromium: masks, control images, settings from files, and programs to copy."""

import json
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import calotype
from calotype.__main__ import main
from tests.helpers.server.chromium import decoded, drop, opened, png_of, posted

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
expect = sync_api.expect
WEB_UI = """a red ring <lora:outline:0.5> <lora:ink:0.8>
Negative prompt: blurry, "dull"
Steps: 12, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 18446744073709551615, Size: 160x128"""


def scene(width=128, height=128):
    """A blue image with a white square."""
    pixels = np.full((height, width, 3), (30, 60, 200), np.uint8)
    pixels[32:96, 32:96] = 255
    return Image.fromarray(pixels)


def generate(page):
    page.keyboard.press("Control+Enter")


def draw(page, *points):
    """Draw a line on the mask through points, which are fractions of its sides."""
    page.locator("#canvas canvas").last.scroll_into_view_if_needed()
    box = page.locator("#canvas canvas").last.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


def test_a_drawn_mask_is_repainted(page):
    drop(page, "#image-group", png_of(scene(160, 96)))
    expect(page.locator("#image-editor")).to_be_visible()
    draw(page, (0.25, 0.1), (0.25, 0.9))
    body = posted(page, lambda: generate(page))
    assert (body["width"], body["height"], body["strength"]) == (160, 96, 0.8)
    assert np.array_equal(decoded(body["image"]).convert("RGB"), scene(160, 96))
    mask = np.asarray(decoded(body["mask_image"]).convert("L"))
    assert mask.shape == (96, 160)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[48, 40] == 255
    assert mask[:, 80:].max() == 0
    expect(page.locator(".result img")).to_have_count(1)
    page.click(".thumb")
    expect(page.locator("#viewer-meta .meta-inputs dd")).to_have_text("image, mask")
    assert page.errors == []


def test_strokes_can_be_undone_erased_inverted_and_cleared(page):
    drop(page, "#image-group", png_of(scene()))
    draw(page, (0.25, 0.5), (0.75, 0.5))
    page.click("#erase")
    draw(page, (0.75, 0.2), (0.75, 0.8))
    mask = np.asarray(decoded(posted(page, lambda: generate(page))["mask_image"]).convert("L"))
    assert (mask[64, 32], mask[64, 96]) == (255, 0)
    page.click("#undo")
    page.click("#invert")
    mask = np.asarray(decoded(posted(page, lambda: generate(page))["mask_image"]).convert("L"))
    assert (mask[64, 32], mask[64, 96], mask[5, 5]) == (0, 0, 255)
    page.click("#clear")
    assert "mask_image" not in posted(page, lambda: generate(page))


def test_a_mask_can_be_painted_with_the_keyboard(page):
    drop(page, "#image-group", png_of(scene()))
    page.locator("#canvas canvas").last.focus()
    page.keyboard.down(" ")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.keyboard.up(" ")
    page.keyboard.press("ArrowUp")
    mask = np.asarray(decoded(posted(page, lambda: generate(page))["mask_image"]).convert("L"))
    assert (mask[64, 64], mask[64, 50], mask[20, 64]) == (255, 255, 0)


def test_the_preview_of_edges_is_the_library_s(page):
    noise = np.random.default_rng(3).integers(0, 256, (128, 128, 3), np.uint8)
    noise[:64] = np.asarray(scene())[32:96]
    drop(page, "#control-group", png_of(Image.fromarray(noise)))
    expect(page.locator("#control-editor")).to_be_visible()
    body = posted(page, lambda: generate(page))
    expected = calotype.preprocess.canny(Image.fromarray(noise), 100, 200)
    assert np.array_equal(decoded(body["control_image"]).convert("RGB"), expected)
    page.fill("#canny_low-number", "500")
    page.fill("#canny_high-number", "900")
    page.press("#canny_high-number", "Tab")
    body = posted(page, lambda: generate(page))
    expected = calotype.preprocess.canny(Image.fromarray(noise), 500, 900)
    assert np.array_equal(decoded(body["control_image"]).convert("RGB"), expected)
    page.uncheck("#canny")
    body = posted(page, lambda: generate(page))
    assert np.array_equal(decoded(body["control_image"]).convert("RGB"), noise)


def test_a_dropped_png_fills_the_form(page, engine):
    pipe = engine.catalog.open("default")
    image = pipe("a ring (red:1.2) ö", negative_prompt="blurry", seed=5, steps=7, width=144, scheduler="euler-karras")
    drop(page, "#prompt", png_of(image.images[0]))
    expect(page.locator("#prompt")).to_have_value("a ring (red:1.2) ö")
    assert [page.input_value(f"#{name}") for name in ("negative_prompt", "steps", "seed", "width", "height")] == [
        *("blurry", "7", "5", "144", "128")
    ]
    assert [page.input_value(f"#{name}") for name in ("sampler", "schedule")] == ["euler", "karras"]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_png_of_the_web_ui_fills_the_form(page, compressed):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", WEB_UI, zip=compressed)
    file = png_of(Image.new("RGB", (8, 8)), pnginfo=chunks)
    drop(page, "body", file, name="web-ui.png")
    expect(page.locator("#prompt")).to_have_value("a red ring")
    names = ("negative_prompt", "steps", "guidance_scale", "seed", "width", "sampler", "schedule")
    expected = ['blurry, "dull"', "12", "6.5", "18446744073709551615", "160", "dpm++2m", "karras"]
    assert [page.input_value(f"#{name}") for name in names] == expected
    expect(page.locator(".toast")).to_contain_text("ink")  # a LoRA that this server does not have
    assert page.get_by_label("Weight of outline").input_value() == "0.5"
    sent = []
    page.on("request", lambda request: sent.append(request.post_data))
    posted(page, lambda: generate(page))
    assert any('"seed":18446744073709551615' in (data or "") for data in sent)


def test_loras_have_weights(page):
    page.click("#lora-group summary")
    page.select_option("#lora-add", "outline")
    page.get_by_label("Weight of outline").fill("-0.5")
    assert posted(page, lambda: generate(page))["loras"] == [{"name": "outline", "weight": -0.5}]
    page.get_by_label("Remove outline").click()
    assert "loras" not in posted(page, lambda: generate(page))


def test_a_png_without_settings_is_offered_as_an_image(page):
    drop(page, "body", png_of(scene()), name="photo.png")
    page.get_by_role("button", name="Use as image").click()
    expect(page.locator("#image-editor")).to_be_visible()


def test_settings_of_the_gallery_can_be_used_again(page):
    first = '<img src="x" onerror="throw 1">'  # which the page shows as text
    page.fill("#prompt", first)
    page.fill("#seed", "3")
    generate(page)
    expect(page.locator(".thumb")).to_have_count(1)
    page.fill("#prompt", "second")
    page.fill("#seed", "")
    page.click(".thumb")
    expect(page.locator("#viewer-meta .meta-prompt dd")).to_have_text(first)
    page.click("#viewer-reuse")
    assert (page.input_value("#prompt"), page.input_value("#seed")) == (first, "3")
    assert page.errors == []


PROMPT = 'it\'s "a" $HOME `ring` \\ 100 %\nred'


@pytest.fixture(scope="module")
def code(chromium, address):
    """The programs that the page shows for a prompt with every character that a shell or Python treats specially."""
    context = chromium.new_context()
    page = opened(context, address)
    page.fill("#prompt", PROMPT)
    page.fill("#steps-number", "2")
    page.fill("#seed", "5")
    page.press("#seed", "Tab")
    page.click("#copy-as")
    texts = {}
    for name in ("curl", "python", "cli"):
        page.click(f"#tab-{name}")
        texts[name] = page.locator("#code-text").text_content()
    context.close()
    return texts


def test_the_copied_command_line_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = code["cli"].replace("\\\n", "").replace("--model default", "--model demo --backend fake")
    monkeypatch.setattr("sys.argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    with Image.open("image.png") as image:
        assert (image.text["prompt"], image.text["seed"], image.text["steps"]) == (PROMPT, "5", "2")


def test_the_copied_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code["python"].replace('load("default")', 'load("demo", backend="fake")'), {})
    with Image.open("image-0.png") as image:
        assert (image.text["prompt"], image.text["seed"], image.text["steps"]) == (PROMPT, "5", "2")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_copied_curl_runs(code):
    run = subprocess.run(["bash", "-c", code["curl"]], capture_output=True, text=True, timeout=60, check=True)
    last = json.loads(run.stdout.strip().split("data: ")[-1])
    assert (last["state"], last["seeds"]) == ("done", [5])


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_copied_curl_sends_files_of_images(page, tmp_path):
    scene().save(tmp_path / "image.png")
    drop(page, "#image-group", png_of(scene()))
    page.fill("#prompt", PROMPT)
    page.click("#copy-as")
    program = page.locator("#code-text").text_content()
    run = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    last = json.loads(run.stdout.strip().split("data: ")[-1])
    assert (last["state"], len(last["images"])) == ("done", 1)


def test_two_visits_share_the_form(context, page, address):
    page.fill("#prompt", "kept")
    page.press("#prompt", "Tab")
    assert opened(context, address).input_value("#prompt") == "kept"
