"""The page for everybody: small screens, dark and light, the keyboard, labels and contrast."""

import pytest

from tests.engine.serve.page.test_form import scene
from tests.helpers.server.chromium import drop, opened, png_of

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
expect = sync_api.expect
# Elements whose name a screen reader would read as nothing.
NAMELESS = """() => [...document.querySelectorAll("button, a, input, select, textarea, img, canvas, dialog, progress")]
    .filter((element) => !element.closest("[aria-hidden=true]") && element.getAttribute("aria-hidden") !== "true")
    .filter((element) => {
        const named = ["aria-label", "aria-labelledby", "alt"].some((name) => element.hasAttribute(name));
        return !(named || element.labels?.length || element.textContent.trim() || element.querySelector("img[alt]"));
    })
    .map((element) => element.outerHTML.slice(0, 120))"""
# Visible texts whose contrast with what is behind them is below 4.5:1 (WCAG 2.2, AA).
FAINT = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgb = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const color = rgb(getComputedStyle(element).backgroundColor);
            if (color[3] === 255) return color;
        }
    };
    const own = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    return [...document.body.querySelectorAll("*")]
        .filter((element) => own(element) && element.checkVisibility() && !element.closest(":disabled, option"))
        .map((element) => {
            const [a, b] = [luminance(rgb(getComputedStyle(element).color)), luminance(behind(element))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 120)];
        })
        .filter(([contrast]) => contrast < 4.5);
}"""
DIALOGS = ("#settings", "#code", "#viewer", "#large-editor")


def show_everything(page):
    """Open every part of the form, and generate an image."""
    page.fill("#prompt", "a prompt")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".thumb")).to_have_count(1)
    drop(page, "#image-group", png_of(scene(300, 100)))
    drop(page, "#control-group", png_of(scene()))
    expect(page.locator("#control-editor")).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("dark", 390), ("light", 1280)])
def test_everything_has_a_name_enough_contrast_and_room(chromium, address, scheme, width):
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = opened(context, address)
    show_everything(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(FAINT) == []
    for dialog in DIALOGS:
        page.evaluate(f"document.querySelector('{dialog}').showModal()")
        box = page.locator(dialog).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert page.evaluate(FAINT) == []
        page.keyboard.press("Escape")
    assert page.errors == []
    context.close()


def test_ids_are_unique_and_labels_lead_somewhere(page):
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))
    references = page.evaluate(
        "[...document.querySelectorAll('[for], [aria-controls], [aria-labelledby]')].flatMap((element) => "
        "['for', 'aria-controls', 'aria-labelledby'].map((name) => element.getAttribute(name)).filter(Boolean))"
    )
    assert set(references) <= set(ids)


def test_the_switch_of_the_theme_outlasts_a_reload(page):
    for theme, dark in (("auto", False), ("light", False), ("dark", True)):
        page.reload()
        page.locator("html[data-ready]").wait_for(state="attached")
        assert page.get_attribute("#theme", "aria-label") == f"Theme: {theme}"
        red, *_ = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        assert (red < 100) == dark
        page.click("#theme")


def test_the_tab_key_reaches_the_controls_in_their_order(page):
    expect(page.locator("#prompt")).to_be_focused()
    reached = []
    while page.evaluate("document.activeElement !== document.body"):
        reached.append(page.evaluate("document.activeElement.id"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle !== 'none'"), reached[-1]
        page.keyboard.press("Tab")
    order = ["prompt", "negative_prompt", "sampler", "steps", "steps-number", "width", "seed", "generate"]
    assert [name for name in reached if name in order] == order
