"""Tests of the page of a run: complete, safe, small, and without a speed for wrong images."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from calotype.benchmarks.report import page, plots
from calotype.benchmarks.report.columns import by_case, digits
from calotype.errors import InputError
from tests.helpers.benchmarks import runs

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'too'"
NAMES = (
    "calotype:openvino:bf16",
    "calotype:onnxruntime:fp32",
    "calotype:eager:fp32",
    "diffusers:fp32",
    "diffusers:bf16",
)
NAMES += (
    "torch-compile:fp32",
    "torch-compile:bf16",
    "optimum:fp32",
    "openvino-genai:bf16",
    "stable-diffusion.cpp:fp16",
)


class Read(HTMLParser):
    """Collect tags with their attributes as a browser would, and check that they nest."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def scene(pixels: int, seed: int = 0) -> np.ndarray:
    """Return an image with smooth colors and an edge, uint8 [H, W, 3]."""
    y, x = np.mgrid[:pixels, :pixels] / pixels
    random = np.random.default_rng(seed)
    base = np.stack([np.sin(x * a + y * b) * 90 + 128 for a, b in random.uniform(2, 9, (3, 2))], axis=2)
    base[(x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.08] = random.uniform(0, 255, 3)
    return (base + random.normal(0, 2, base.shape)).clip(0, 255).astype(np.uint8)


def full_run(folder, pixels: int = 128):
    """Return a run of two cases and ten contenders, with two images of each."""
    rows = []
    base = runs.samples(0.5, seed=1)
    for case_id in ("demo-128", "demo-256"):
        images = [scene(pixels, i) for i in range(2)]
        runs.save_images(folder, case_id, "reference", images)
        for k, name in enumerate(NAMES):
            ratio = runs.ratio(base, runs.samples(0.1 + 0.07 * k))
            rows.append(runs.row(name, 0.1 + 0.07 * k, 30.0 + 6 * k, case_id=case_id, ratio=ratio))
            noise = np.random.default_rng(k).integers(-k, k + 1, images[0].shape)
            runs.save_images(folder, case_id, name, [np.clip(p + noise, 0, 255).astype(np.uint8) for p in images])
    return runs.recorded(*rows, folder=folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return page.page(full_run(tmp_path_factory.mktemp("run")))


def test_nothing_is_fetched(text):
    assert not re.search(r"https?:|//\w", re.sub(r'"data:[^"]*"', "", text))
    read = Read(text)
    addresses = [
        v for _, attrs in read.tags for k, v in attrs.items() if k in ("src", "href", "xlink:href", "srcset", "data")
    ]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not read.named("link")
    assert not re.search(r"@import|@font-face", text)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_it_is_small(text):
    assert len(text.encode()) < 10**6


def test_it_stays_small_with_large_images(tmp_path):
    assert len(page.page(full_run(tmp_path, pixels=512)).encode()) < 10**6


def test_the_same_run_gives_the_same_page(tmp_path):
    rows = [runs.row("a:b:fp32"), runs.row("c:d:fp32", 0.3, 50.0)]
    runs.save_images(tmp_path, "demo-128", "a:b:fp32", [scene(64)])
    recorded = runs.recorded(*rows, folder=tmp_path)
    assert page.page(recorded) == page.page(recorded)


def test_everything_is_on_it(text):
    words = " ".join(" ".join(Read(text).text).split())
    for name in NAMES:
        assert name in words
    for words_on_page in (
        "demo, text to image, 128 × 128 px",
        runs.run().command,
        "A Processor (2 cores)",
        "150 GFLOP/s",
        "3.11.7",
        "8.00 GiB",
    ):
        assert words_on_page in words
    for explained in ("The base", "The interval", "Ahead", "Utilization", "Disturbed"):
        assert explained in words
    assert len(re.findall(r"<svg ", text)) == 8  # four plots of two cases


def test_labels_of_the_figures_are_text_with_all_digits():
    rows = (runs.row("calotype:openvino:bf16", 0.12345),)
    svg = plots.draw(rows, plots.colors(rows))["latency"]
    assert digits(rows[0].speed.median_s) in re.sub(r"<[^>]*>", "\n", svg).split("\n")


def test_strings_of_contenders_are_escaped():
    rows = [
        runs.row(
            "a:b:fp32", None, None, status="failed", reason=HOSTILE, notes=(HOSTILE,), versions={HOSTILE: HOSTILE}
        ),
        runs.row(HOSTILE + ":b:fp32", 0.2, maker=HOSTILE, case=runs.CASE | {"model": HOSTILE}, case_id=HOSTILE),
    ]
    recorded = runs.recorded(*rows, command=HOSTILE, device=HOSTILE, notes=(HOSTILE,), machine={HOSTILE: HOSTILE})
    read = Read(page.page(recorded))
    assert len(read.named("script")) == 1
    assert not read.named("img")
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    assert HOSTILE in "".join(read.text)


@pytest.mark.parametrize("status", ["wrong", "failed", "cannot"])
def test_a_row_that_is_not_ok_has_no_speed(tmp_path, status):
    """Even if the record has a speed. No plot shows it either."""
    seconds = 0.7351
    bad = runs.row(
        "openvino-genai:bf16", seconds, 12.3, status=status, reason="so it is", utilization=0.7777, energy_j=5432.0
    )
    recorded = runs.recorded(runs.row(runs.BASE, 0.4), bad, folder=tmp_path)
    runs.save_images(tmp_path, "demo-128", bad.contender, [scene(32)])
    text = page.page(recorded)
    figures = (seconds, 1 / seconds, 21 / seconds, 3 * seconds, bad.speed.median_s, bad.speed.images_per_s, 5432.0)
    for figure in (*map(digits, figures), "0.735", "77.8", "78%", *(repr(s)[:7] for s in bad.speed.samples_s)):
        assert figure not in re.sub(r'"data:[^"]*"|<path[^>]*>|<use[^>]*>', "", text)
    assert "so it is" in text
    assert status != "wrong" or "PSNR 12.3 dB" in text
    (_, rows) = by_case(recorded)[0]
    without = runs.recorded(runs.row(runs.BASE, 0.4))
    (_, without_bad) = by_case(without)[0]
    colors = plots.colors(rows)
    drawn, drawn_without = (plots.draw(shown, colors) for shown in (rows, without_bad))
    assert all(drawn[name] == drawn_without[name] for name in ("components", "quality"))


def test_each_maker_has_its_own_color():
    rows = [runs.row(name) for name in (*NAMES, "strange:x:fp32", "other:y:fp32")]
    colors = plots.colors(rows)
    assert len(set(colors.values())) == len(colors) == 8
    assert plots.colors(rows[3:])["diffusers"] == colors["diffusers"]


def test_names_of_points_do_not_cover_each_other():
    rows = [runs.row(f"contender-{i}:openvino:bf16", 0.2, 50.0) for i in range(24)]  # all at one point
    svg = plots.draw(rows, plots.colors(rows))["quality"]
    heights = sorted(
        float(y) for y, name in re.findall(r'<text [^>]* y="([\d.]+)"[^>]*>([^<]*)</text>', svg) if "contender-" in name
    )
    assert len(heights) == 24
    assert np.diff(heights).min() > 9  # the names have 8 points


def test_without_data_there_is_no_plot():
    rows = (runs.row("a:b:fp32", None, None, status="cannot", host_peak_bytes=None),)
    assert plots.draw(rows, plots.colors(rows)) == {}
    assert "No contender has a speed" in page.page(runs.recorded(*rows))


def opened(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_the_grid_shows_the_reference_and_differences(tmp_path):
    expected = scene(128)
    got = expected.copy()
    got[32:64, 32:64] = np.where(got[32:64, 32:64] > 127, got[32:64, 32:64] - 8, got[32:64, 32:64] + 8)
    rows = [runs.row("a:b:fp32"), runs.row("c:d:fp32"), runs.row("e:f:fp32"), runs.row("g:h:fp32")]
    images = {"reference": expected, "a:b:fp32": got, "c:d:fp32": expected, "e:f:fp32": expected[:64]}
    for name, pixels in images.items():
        runs.save_images(tmp_path, "demo-128", name, [pixels])
    reference, near, equal, other = page.build_grid(runs.recorded(*rows, folder=tmp_path), rows, 2)
    assert (reference["status"], reference["images"][0]["difference"]) == ("reference", "")
    decibel = 10 * np.log10(255**2 / np.mean((expected.astype(float) - got) ** 2))
    assert near["images"][0]["caption"] == f"{decibel:.1f} dB"
    difference = np.asarray(opened(near["images"][0]["difference"]).convert("L"))
    assert difference[:32].max() == 0  # equal is black
    assert abs(int(difference[40, 40]) - 8 * page.FACTOR) <= 256 // page.GRAYS + 1
    assert equal["images"][0]["caption"] == "equal"
    assert np.asarray(opened(equal["images"][0]["difference"]).convert("L")).max() == 0
    assert "128 × 64 px, the reference 128 × 128" in other["images"][0]["caption"]


def test_a_difference_of_one_level_is_not_black(tmp_path):
    expected = np.full((16, 16, 3), 100, np.uint8)
    runs.save_images(tmp_path, "demo-128", "reference", [expected])
    runs.save_images(tmp_path, "demo-128", "a:b:fp32", [expected + 1])
    row = runs.row("a:b:fp32")
    _, near = page.build_grid(runs.recorded(row, folder=tmp_path), [row], 1)
    assert np.asarray(opened(near["images"][0]["difference"]).convert("L")).min() > 0


def test_large_images_are_shown_at_192_px(tmp_path):
    runs.save_images(tmp_path, "demo-128", "reference", [scene(512)] * 4)
    row = runs.row("a:b:fp32")
    (reference,) = page.build_grid(runs.recorded(row, folder=tmp_path), [row], 2)
    assert [opened(shown["image"]).size for shown in reference["images"]] == [(192, 192)] * 2


def test_the_headline_names_the_fastest_correct_row():
    base = runs.samples(0.4)
    wrong = runs.row("openvino-genai:bf16", 0.01, 10.0, status="wrong")
    fast = runs.row("calotype:openvino:bf16", 0.2, ratio=runs.ratio(base, runs.samples(0.2)))
    (_, rows) = by_case(runs.recorded(wrong, runs.row(runs.BASE, 0.4), fast))[0]
    headline = page.headline(rows)
    assert "calotype:openvino:bf16" in headline
    assert "2.00 times as fast as diffusers:fp32 (2.00–2.00)" in headline


def test_the_headline_claims_no_more_than_the_interval():
    close = runs.row("calotype:openvino:bf16", 0.39, ratio=runs.ratio(runs.samples(0.4), runs.samples(0.4, seed=1)))
    assert "level with diffusers:fp32" in page.headline((close,))
    few = runs.row("calotype:openvino:bf16", 0.2, ratio=runs.ratio([0.4] * 5, [0.2] * 5))
    assert "too few" in page.headline((few,))


def test_it_is_written_to_a_file(tmp_path):
    path = page.write_page(runs.recorded(runs.row("a:b:fp32")), tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="jinja2, matplotlib"):
        page.page(runs.recorded(runs.row("a:b:fp32")))
