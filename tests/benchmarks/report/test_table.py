"""Tests of the table in the terminal: its content, and that it is complete at every width."""

import io
import re

import pytest
from rich.console import Console

from calotype.benchmarks.report import table
from calotype.benchmarks.report.columns import COLUMNS, digits, honest, rate, size, title
from tests.helpers.benchmarks import runs


def shown(recorded, width: int | None = 200, terminal: bool = True) -> str:
    out = io.StringIO()
    table.show(recorded, Console(file=out, width=width, force_terminal=terminal, color_system=None))
    return out.getvalue()


@pytest.fixture
def mixed():
    base = runs.samples(0.4, seed=1)
    rows = [
        runs.row(runs.BASE, 0.4, 100.0, ratio=runs.ratio(base, base)),
        runs.row("calotype:openvino:bf16", 0.2, 56.4, ratio=runs.ratio(base, runs.samples(0.2)), disturbed_rounds=3),
        runs.row("calotype:onnxruntime:fp32", 0.8, 90.0, ratio=runs.ratio(base, runs.samples(0.8)), build_s=83.0),
        runs.row("stable-diffusion.cpp:fp16", None, None, status="cannot", reason="it reads no such U-Net"),
        runs.row("optimum:fp32", None, None, status="failed", reason="its process died of signal 9"),
    ]
    return runs.recorded(*rows)


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [80, 100, 130, 200, 260])
def test_it_is_complete_at_every_width(mixed, width):
    text = shown(mixed, width)
    assert max(map(len, text.splitlines())) <= width
    for words in (
        "demo, text to image, 128 × 128 px, 20 steps of dpm++2m, guidance 5",
        "A Processor (2 cores), 2 threads",
    ):
        assert words in flat(text)
    for key in table.SHOWN:
        assert all(COLUMNS[key].cell(row) in text for row in mixed.rows if row.speed)
    assert "stable-diffusion.cpp:fp16 it reads no such U-Net" in flat(text)
    assert "failed: optimum:fp32 its process died of signal 9" in flat(text)
    assert "kept the machine busy" in flat(text)


def test_it_shows_every_figure_of_a_row(mixed):
    row = mixed.rows[1]
    line = next(line for line in shown(mixed, 220).splitlines() if line.startswith(row.contender))
    for key in table.SHOWN:
        assert COLUMNS[key].cell(row) in line


def test_a_name_is_complete_at_100_columns(mixed):
    lines = shown(mixed, 100).splitlines()
    assert any(line.startswith("calotype:onnxruntime:fp32 ") for line in lines)
    assert sum(line.startswith("calotype:onnxruntime:fp32 ") for line in lines) > 1  # the columns continue below


def test_a_pipe_has_one_line_a_row_and_no_escapes(mixed):
    out = io.StringIO()
    table.show(mixed, Console(file=out, width=80))
    text = out.getvalue()
    assert "\x1b" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("calotype:openvino:bf16")]
    assert "ahead" in line
    assert "43%" in line


@pytest.mark.parametrize("width", [100, 200])
def test_wrong_images_have_their_error_and_no_speed(width):
    """Even if the record has a speed."""
    seconds = runs.speed([0.012347] * 7)
    wrong = runs.row(
        "openvino-genai:bf16", 0.012347, 12.3, status="wrong", reason="more than bf16 explains", speed=seconds
    )
    text = shown(runs.recorded(wrong, runs.row(runs.BASE, 0.4)), width)
    assert "PSNR 12.3 dB" in flat(text)
    assert "more than bf16 explains" in flat(text)
    for figure in (digits(0.012347), digits(1 / 0.012347), digits(21 / 0.012347), digits(0.012347 * 3)):
        assert figure not in text


def test_honest_removes_every_figure_of_speed():
    wrong = honest(runs.row("a:b:fp32", 0.1, status="wrong", ratio=runs.ratio([0.2] * 7, [0.1] * 7), energy_j=3.0))
    speeds = (wrong.speed, wrong.ratio, wrong.utilization, wrong.first_s, wrong.energy_j)
    assert speeds == (None,) * 5
    assert wrong.parts == {}
    assert wrong.host_peak_bytes
    assert wrong.quality


def test_too_few_rounds_are_unknown():
    few = runs.ratio([0.4] * 5, [0.2] * 5)
    text = shown(runs.recorded(runs.row("calotype:openvino:bf16", 0.2, ratio=few)))
    assert "unknown" in text
    assert "ahead" not in text


def test_the_device_has_a_column_only_if_there_is_one():
    host = runs.row("a:cuda:fp16", 0.2)
    assert "GPU mem." not in shown(runs.recorded(host))
    assert "3.00 GiB" in shown(runs.recorded(runs.row("a:cuda:fp16", 0.2, device_peak_bytes=3 * 2**30)), 100)


def test_strings_of_contenders_are_not_markup():
    text = shown(runs.recorded(runs.row("a:b:fp32", None, None, status="cannot", reason="[red]not[/red] here")))
    assert "[red]not[/red] here" in text


def test_titles():
    case = runs.CASE | {"height": 512, "width": 768, "batch": 4, "steps": 1, "sampler": "own", "guidance": 1.0}
    case |= {"model": "/some/where/sd15", "controlnets": ["/some/canny", "depth"]}
    words = "sd15, text to image, 768 × 512 px, batch of 4, 1 step of the model's own sampler, no guidance"
    assert title(case) == words + ", 2 ControlNets (canny, depth)"


def test_figures():
    assert [digits(v) for v in (0.012345, 1.2345, 12.345, 123.45, 12345.6, 0.0)] == [
        "0.0123",
        "1.23",
        "12.3",
        "123",
        "12346",
        "0",
    ]
    assert [size(v) for v in (10, 700 * 2**20, 1100 * 2**20)] == ["10 B", "700 MiB", "1.07 GiB"]
    assert [rate("fp32", v) for v in (1.5e11, 9.9e14)] == ["150 GFLOP/s", "990 TFLOP/s"]
    assert rate("copy", 4.56e9) == "4.56 GB/s"
    assert not re.search("e", digits(1e-7))
