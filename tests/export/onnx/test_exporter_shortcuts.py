"""Traces with the shortcuts through the exporter are those without them."""

from contextlib import nullcontext

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxscript._internal.values import TracedOnnxFunction
from onnxscript.function_libs.torch_lib.registration import default_registry
from onnxscript.rewriter._rewrite_rule import RewriteRule
from torch import nn

from calotype.export.onnx import trace as tracing
from calotype.export.onnx.exporter_shortcuts import exporter_shortcuts
from calotype.plan.bindings import Binding
from calotype.plan.family import Component

pytestmark = pytest.mark.slow


class Foldable(nn.Module):
    """Operations that the optimizer's rules rewrite: chains of reshapes, transposes, casts and slices."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.conv = nn.GroupNorm(2, 4), nn.Linear(4, 8), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, sample):
        batch, _, height, width = sample.shape
        rows = self.conv(self.norm(sample)).permute(0, 2, 3, 1).reshape(batch, height * width, 4)
        first, second = self.linear(rows).chunk(2, dim=-1)
        mixed = (first * nn.functional.gelu(second)).transpose(1, 2).transpose(1, 2)
        return (mixed.reshape(batch, height, width, 4).permute(0, 3, 1, 2).clamp(min=0).clamp(max=2),)


class Mixed(nn.Module):
    """Operations with operands of several types, which the exporter promotes."""

    def forward(self, sample):
        places = torch.arange(4)
        return (sample * places + places / 3 + (sample > 0) * 2,)


class Chosen(nn.Module):
    """Choices by a condition and by an index, whose types promote nothing."""

    def forward(self, sample):
        other = sample.flip(1)
        return (torch.where(sample > other, sample, other).index_select(0, torch.arange(2)),)


def traced(network, folder, rank):
    binding = Binding(name="sample", dtype="float32", dims=("batch", 4, "h", "w")[:rank])
    outputs = (Binding(name="out_sample", dtype="float32", dims=binding.dims),)
    component = Component(name="unet", inputs=(binding,), outputs=outputs, config={})
    torch.manual_seed(0)
    return tracing.trace(component, network.eval(), {"batch": 2, "h": 6, "w": 10}, folder)


def nodes(path):
    graph = onnx.load(path, load_external_data=False).graph
    return [(node.op_type, *node.input) for node in graph.node], {i.name for i in graph.initializer}


@pytest.mark.parametrize(("network", "rank"), [(Foldable(), 4), (Mixed(), 2), (Chosen(), 2)])
def test_the_graphs_are_the_same(network, rank, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    short = nodes(traced(network, tmp_path / "a", rank))
    monkeypatch.setattr(tracing, "exporter_shortcuts", nullcontext)
    assert nodes(traced(network, tmp_path / "b", rank)) == short


def test_operands_of_several_types_are_promoted(tmp_path):
    sample = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
    got = onnxruntime.InferenceSession(traced(Mixed(), tmp_path, 2)).run(None, {"sample": sample})[0]
    np.testing.assert_allclose(got, Mixed()(torch.from_numpy(sample))[0], rtol=1e-6)


NAMES = [(RewriteRule, "try_rewrite"), (TracedOnnxFunction, "function_ir")]


@pytest.mark.parametrize(("owner", "name"), NAMES)
def test_the_exporter_is_as_before_afterwards(owner, name):
    before = getattr(owner, name)
    with exporter_shortcuts():
        assert getattr(owner, name) is not before  # onnxscript still has the name that the shortcut replaces
    assert getattr(owner, name) is before


@pytest.mark.parametrize("name", ["aten::cat", "aten::silu"])
def test_the_domain_of_a_translation_is_the_same(name):
    (translation, *_) = default_registry[name].overloads
    assert isinstance(translation, TracedOnnxFunction)
    domain = translation.function_ir.domain
    with exporter_shortcuts():
        assert translation.function_ir.domain == domain
