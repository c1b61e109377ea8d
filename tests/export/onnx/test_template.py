"""A graph that is traced once serves all networks of its config."""

import copy
import filecmp
import importlib
from pathlib import Path
from types import SimpleNamespace

import diffusers
import onnxruntime
import pytest
import torch
from torch import nn

from calotype.drop_in.kinds import profile_of
from calotype.export.onnx import trace as tracing
from calotype.export.onnx import trace_step
from calotype.export.onnx.template import distinct_weights, fill_template
from calotype.export.steps.subprocess_task import Outcome
from calotype.plan import networks
from calotype.plan.bindings import Binding
from calotype.plan.family import Component

pytestmark = pytest.mark.slow
SIZES = {"batch": 2, "h": 6, "w": 10}
FILES = ("model.onnx", "model.onnx.data")


class Network(nn.Module):
    """A convolution, a norm, a linear layer whose weight the exporter transposes, a constant, and a folded view."""

    def __init__(self, seed, width=8):
        super().__init__()
        torch.manual_seed(seed)
        self.places = nn.Parameter(torch.randn(4))
        self.conv, self.norm, self.linear = nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Linear(4, width)
        nn.init.normal_(self.norm.weight)

    def forward(self, sample):
        rows = self.norm(self.conv(sample)).flatten(2).transpose(1, 2)
        return (self.linear(rows + torch.arange(4.0) + self.places[None, None]),)


class Unused(Network):
    """A network with a weight that its graph does not have."""

    def __init__(self, seed):
        super().__init__(seed)
        self.other = nn.Linear(4, 4)


class Blend(Network):
    """A network that blends by the sigmoid of a weight, as Stable Video Diffusion does."""

    def __init__(self, seed):
        super().__init__(seed)
        self.factor = nn.Parameter(torch.randn(1))

    def forward(self, sample):
        factor = torch.sigmoid(self.factor)
        return super().forward(factor * sample + (1.0 - factor) * sample.flip(2))


def component(width=8):
    binding = Binding(name="sample", dtype="float32", dims=("batch", 4, "h", "w"))
    outputs = (Binding(name="out_sample", dtype="float32", dims=("batch", "n", width)),)
    return Component(name="unet", inputs=(binding,), outputs=outputs, config={})


def tensors(network):
    return {f"module.{name}": tensor for name, tensor in network.state_dict().items()}


def traced(network, folder):
    """Trace a network with its own weights."""
    folder.mkdir()
    return tracing.trace(component(), network.eval(), SIZES, folder)


def template(network, folder) -> bool:
    """Trace a network into `folder`, and its template into the folder `template` there."""
    folder.mkdir()
    return tracing.trace_with_template(component(), network.eval(), SIZES, tensors(network), folder)


def assert_equal(one, other):
    assert filecmp.cmpfiles(one, other, FILES, shallow=False)[0] == list(FILES)


def test_a_filled_graph_has_the_bytes_of_the_trace(tmp_path):
    first, second = Network(0), Network(1)
    assert template(first, tmp_path / "first")
    traced(first, tmp_path / "first again")
    assert_equal(tmp_path / "first", tmp_path / "first again")
    traced(second, tmp_path / "second")
    (tmp_path / "filled").mkdir()
    assert fill_template(tmp_path / "first" / "template", tensors(second), tmp_path / "filled")
    assert_equal(tmp_path / "second", tmp_path / "filled")
    assert not filecmp.cmp(tmp_path / "first" / FILES[1], tmp_path / "filled" / FILES[1], shallow=False)


def test_graphs_name_no_folders(tmp_path):
    tracing.trace(component(), Network(0).eval(), SIZES, tmp_path)
    content = (tmp_path / "model.onnx").read_bytes()
    assert str(Path(__file__).parent).encode() not in content
    assert b".py" not in content
    assert b"conv" in content


def test_weights_are_restored_bit_for_bit():
    network = Network(0)
    network.norm.weight.data.fill_(1)
    network.norm.bias.data.zero_()
    network.tied = network.linear
    before = copy.deepcopy(network.state_dict())
    with distinct_weights(network.state_dict()):
        assert all((w != before[name]).any() for name, w in network.state_dict().items())
    assert all(torch.equal(w, before[name]) for name, w in network.state_dict().items())


def test_a_graph_that_lacks_a_weight_is_no_template(tmp_path):
    network, before = Unused(0), copy.deepcopy(Unused(0).state_dict())
    assert not template(network, tmp_path / "first")
    assert {path.name for path in (tmp_path / "first").iterdir()} == set(FILES)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    traced(network, tmp_path / "again")
    assert_equal(tmp_path / "first", tmp_path / "again")


def test_weights_under_a_sigmoid_are_in_a_template(tmp_path):
    first, second = Blend(0), Blend(1)
    assert template(first, tmp_path / "first")
    (tmp_path / "filled").mkdir()
    assert fill_template(tmp_path / "first" / "template", tensors(second), tmp_path / "filled")
    sample = torch.randn(2, 4, 6, 10)
    got = onnxruntime.InferenceSession(tmp_path / "filled" / "model.onnx").run(None, {"sample": sample.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), second(sample)[0].detach())


@pytest.mark.parametrize("damage", ["", "not a graph"])
def test_other_shapes_and_damaged_templates_are_refused(damage, tmp_path):
    other = Network(1) if damage else Network(1, width=6)
    assert template(Network(0), tmp_path / "first")
    if damage:
        (tmp_path / "first" / "template" / "model.onnx").write_text(damage)
    assert not fill_template(tmp_path / "first" / "template", tensors(other), tmp_path)


def here(what, function, **arguments) -> Outcome:
    """Run the task of a child process in this process."""
    module, name = function.split(":")
    return Outcome(value=getattr(importlib.import_module(module), name)(**arguments), peak_bytes=0)


def decoder(folder, seed):
    """Save a tiny autoencoder, and return its decoder, its source and its profile."""
    torch.manual_seed(seed)
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, sample_size=16)
    vae.save_pretrained(folder)
    config = {**vae.config, "_class_name": "AutoencoderKL"}
    source = SimpleNamespace(
        model=str(folder), weights_folder=lambda component: folder, weights_digest=lambda component: str(folder)
    )
    return networks.vae(config)[0], source, profile_of("vae_decoder", config)


@pytest.fixture
def traces(tmp_path, monkeypatch) -> list[Component]:
    """The components that are traced, in a separate store."""
    components, graph = [], tracing._graph
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(trace_step, "run_in_subprocess", here)
    monkeypatch.setattr(tracing, "_graph", lambda *arguments: components.append(arguments[0]) or graph(*arguments))
    return components


def test_a_second_checkpoint_is_not_traced(traces, tmp_path):
    errors = [trace_step.traced(*decoder(tmp_path / str(seed), seed)).check["max_relative_error"] for seed in (0, 1)]
    assert len(traces) == 1
    assert max(errors) < 1e-5
    store = tmp_path / "home" / "store"
    in_use = {path.resolve().parent for path in Path("/proc/self/fd").iterdir() if path.resolve().is_relative_to(store)}
    assert len(list(store.iterdir())) == 3  # two traces, and their graph
    assert len(in_use) == 2  # each use is an open file


def test_a_filled_graph_that_differs_from_its_network_is_traced(traces, tmp_path, monkeypatch):
    def with_other_weights(template, weights, out):
        return fill_template(template, {name: -tensor for name, tensor in weights.items()}, out)

    monkeypatch.setattr(tracing, "fill_template", with_other_weights)
    for seed in (0, 1):
        assert trace_step.traced(*decoder(tmp_path / str(seed), seed)).check["max_relative_error"] < 1e-5
    assert len(traces) == 2
