"""The exporter's direct translation, and its decompositions where an operator has no translation."""

import numpy as np
import onnxruntime
import pytest
import torch

from calotype.export.onnx import trace as tracing
from calotype.plan.bindings import Binding
from calotype.plan.family import Component

pytestmark = pytest.mark.slow


class Casts(torch.nn.Module):
    """A network with a cast, which the exporter translates only after a replacement or a decomposition."""

    def forward(self, sample):
        return (sample.to(torch.int32).to(torch.float32) + sample,)


class Squares(torch.nn.Module):
    """A network with a square, for which there is no translation."""

    def forward(self, sample):
        return (sample.square() + sample,)


@pytest.mark.parametrize("replaced", [True, False])
@pytest.mark.parametrize("network", [Casts(), Squares()])
def test_an_operator_is_translated_with_and_without_decompositions(monkeypatch, tmp_path, network, replaced):
    tries, translated = [], tracing._translated

    def counted(*arguments):
        tries.append(1)
        return translated(*arguments)

    monkeypatch.setattr(tracing, "_translated", counted)
    if not replaced:
        monkeypatch.setattr(tracing, "make_translatable", lambda program: None)
    binding = Binding(name="sample", dtype="float32", dims=("batch", 4))
    outputs = (Binding(name="out_sample", dtype="float32", dims=("batch", 4)),)
    component = Component(name="unet", inputs=(binding,), outputs=outputs, config={})
    path = tracing.trace(component, network, {"batch": 2}, tmp_path)
    sample = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    got = onnxruntime.InferenceSession(path).run(None, {"sample": sample})[0]
    np.testing.assert_array_equal(got, network(torch.from_numpy(sample))[0])
    assert len(tries) == (1 if replaced else 2)
