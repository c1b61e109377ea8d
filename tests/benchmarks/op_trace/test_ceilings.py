"""What the full-size networks launch: at most so many kernels, no copy of a layout, no bias in a kernel of its own."""

import pytest

from calotype.benchmarks.op_trace.networks import CASES, build, trace
from calotype.benchmarks.op_trace.recorder import ADD, ATTENTION, BIAS, CONCATENATION, LAYOUT, PRODUCT, totals
from calotype.benchmarks.op_trace.time_model import PEAK, seconds_of, step_seconds
from calotype.system.switches import DISABLE_VARIABLE, OF_CUDA

MOST_KERNELS = {"sd15": 397, "sdxl": 1016, "vae-1024": 113, "taesd": 44}
TFLOP = {"sd15": 1.60, "sdxl": 13.4, "vae-1024": 10.5, "taesd": 0.141}  # of the audit


@pytest.fixture(scope="module", params=MOST_KERNELS)
def traced(request):
    return request.param, trace(CASES[request.param])


def test_it_launches_few_kernels(traced):
    name, network = traced
    assert network.kernels <= MOST_KERNELS[name]


def test_no_layout_is_copied_and_nothing_is_joined(traced):
    counts = totals(traced[1].ops)
    assert counts[LAYOUT] == counts[CONCATENATION] == 0


def test_only_the_first_the_last_and_resampling_convolutions_have_a_separate_bias(traced):
    layers = [op.layer for op in traced[1].ops if op.kind == BIAS]
    first_or_last = ("conv_in", "conv_out", "post_quant_conv", "decoder.layers.18")
    assert [each for each in layers if not each.endswith(first_or_last) and "sampler" not in each] == []


def test_the_work_is_that_of_the_network(traced):
    name, network = traced
    assert sum(op.flops for op in network.ops if op.kind != ADD) / 1e12 == pytest.approx(TFLOP[name], rel=0.02)
    assert sum(map(seconds_of, network.ops)) < step_seconds(network.ops)
    assert step_seconds(network.ops) > sum(op.flops for op in network.ops) / PEAK


def test_without_the_optimizations_there_are_more(monkeypatch):
    monkeypatch.setenv(DISABLE_VARIABLE, ",".join(OF_CUDA))
    before = totals(trace(CASES["sd15"]).ops)
    assert sum(before.values()) > 550
    assert before[LAYOUT] >= 16  # each transformer returned images in the other format
    assert before[BIAS] >= 98  # of every convolution


def test_a_text_encoder_is_traced():
    counts = totals(trace(CASES["clip-l"]).ops)
    assert counts[ATTENTION] == 12
    assert counts[PRODUCT] == 6 * 12


def test_the_network_needs_no_memory():
    assert {p.device.type for p in build(CASES["taesd"]).parameters()} == {"meta"}
