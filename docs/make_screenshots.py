"""Take the screenshots of the server's page: `PYTHONPATH=. python docs/make_screenshots.py`.

It needs playwright and Chromium.
"""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

import calotype
from calotype.serve import Engine, ModelCatalog
from tests.helpers.server import serving

FOLDER = Path(__file__).parent / "images"
DEMO = Path(calotype.__file__).parent / "demo_model"
PROMPTS = (
    ("a large blue heart on a white background", 3),
    ("a small yellow star on a black background", 11),
    ("a large purple ring on a yellow background", 4),
    ("a red circle above a green square on a white background", 5),
    ("a large orange triangle on a blue background", 6),
    ("a small green cross on a pink background", 7),
)


def generate(page: Page, prompt: str, seed: int, count: int = 1) -> None:
    """Generate images, and wait for them."""
    page.fill("#prompt", prompt)
    page.fill("#seed", str(seed))
    page.fill("#num_images-number", str(count))
    page.press("#num_images-number", "Tab")
    before = page.locator(".thumb").count()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".thumb")).to_have_count(before + count, timeout=60_000)


def save(page: Page, name: str) -> None:
    """Save what the page shows."""
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(5, 500)
    page.evaluate("document.getElementById('toasts').replaceChildren()")
    page.wait_for_timeout(300)
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").save(FOLDER / f"{name}.webp", quality=88, method=6)


def use_as_image(page: Page) -> None:
    """Take the newest image as the input."""
    page.locator(".thumb").first.click()
    page.click("#viewer-image")
    expect(page.locator("#image-editor")).to_be_visible()


def draw(page: Page, points: Sequence[tuple[float, float]]) -> None:
    """Draw a line on the mask, through points that are fractions of its sides."""
    box = page.locator("#canvas canvas").last.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=12)
    page.mouse.up()


def opened(browser: Browser, address: str, **options: Any) -> Page:
    """Open the page in a browser without history."""
    page = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options}).new_page()
    page.goto(address)
    page.locator("html[data-ready]").wait_for(state="attached")
    return page


def screenshots(browser: Browser, address: str) -> None:
    """Take all screenshots."""
    page = opened(browser, address)
    for prompt, seed in PROMPTS:
        generate(page, prompt, seed)
    generate(page, "a yellow heart left of a purple ring on a black background", 10, count=4)
    save(page, "page-light")
    page.click("#theme")
    page.click("#theme")
    generate(page, "a large purple ring on a yellow background", 4)
    page.fill("#steps-number", "150")
    page.fill("#num_images-number", "2")
    page.press("#num_images-number", "Tab")
    for prompt in ("a large orange triangle on a blue background", "a small red square on a black background"):
        page.fill("#prompt", prompt)
        rows = page.locator("#queue-list li").count()
        page.keyboard.press("Control+Enter")
        expect(page.locator("#queue-list li")).to_have_count(rows + 1)
    page.locator(".preview[data-step='120']").wait_for()
    save(page, "page-dark")

    page = opened(browser, address)
    generate(page, "a large blue heart on a white background", 3)
    use_as_image(page)
    page.fill("#prompt", "a large red heart on a white background")
    page.fill("#strength-number", "1")
    page.press("#strength-number", "Tab")
    page.locator("#canvas canvas").last.scroll_into_view_if_needed()
    page.locator("#brush-size").fill("26")
    draw(page, [(0.26, 0.3), (0.76, 0.3), (0.74, 0.45), (0.27, 0.45), (0.34, 0.58), (0.66, 0.58), (0.51, 0.7)])
    page.keyboard.press("Control+Enter")
    expect(page.locator(".thumb")).to_have_count(2, timeout=60_000)
    save(page, "page-inpainting")

    page = opened(browser, address, viewport={"width": 390, "height": 844}, device_scale_factor=2, has_touch=True)
    for prompt, seed in PROMPTS[:3]:
        generate(page, prompt, seed)
    page.evaluate("scrollTo(0, 0)")
    save(page, "page-390")


def main() -> None:
    """Serve the demonstration model, and take the screenshots."""
    pipe = calotype.load("demo", backend="openvino", controlnet="demo-canny")
    loras = {"outline": DEMO / "outline.safetensors"}
    with sync_playwright() as playwright, serving(Engine(ModelCatalog({"demo": pipe}, loras))) as address:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        screenshots(browser, address)
        browser.close()


if __name__ == "__main__":
    main()
