"""Group norm and SiLU as a TensorRT plugin: what is registered, its PTX, and the nodes that use it."""

import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from triton import knobs

from calotype.export.tensorrt.plugin import PLUGIN, compiled, register, with_plugins, without_hidden
from tests.helpers import tensorrt_standin


def test_the_plugin_is_registered_with_tensors_layouts_and_kernel():
    trtp = tensorrt_standin.plugin()
    implemented = register(trtp, 90)
    described = trtp.registered["register", PLUGIN]
    kinds = {"x": trtp.TensorDesc, "weight": trtp.TensorDesc, "bias": trtp.TensorDesc, "groups": int, "eps": float}
    assert described.__annotations__ == {**kinds, "return": trtp.TensorDesc}
    combinations = trtp.registered["autotune", PLUGIN](*[None] * 6)
    assert [c.pairs[0] for c in combinations] == [("FP16", "HWC8"), ("BF16", "HWC8"), ("FP32", "HWC")]
    assert all(c.pairs[0] == c.pairs[3] and c.pairs[1][1] == "LINEAR" for c in combinations)
    x = trtp.TensorDesc((2, 320, 16, 24), "DataType.HALF")
    name, ptx, launch, extra = implemented(x, x, x, 32, 1e-5, (x,))
    assert f".entry {name}(" in ptx
    assert (launch.grid_x, launch.grid_y, launch.block_x) == (32, 2, 128)
    assert extra == [16 * 24]


@pytest.mark.parametrize("capability", [80, 90])  # newer ones have another assembler
def test_the_ptx_has_tensorrts_parameters_and_assembles(capability, tmp_path):
    kernel = compiled(channels=1280, groups=32, eps=1e-6, dtype=torch.bfloat16, capability=capability)
    entry = kernel.ptx[kernel.ptx.index(".entry") : kernel.ptx.index(".reqntid")]
    widths = [line.split()[1] for line in entry.splitlines() if line.strip().startswith(".param")]
    assert widths == [".u64", ".u64", ".u64", ".u32", ".u64"]  # x, weight, bias, pixels, out
    (tmp_path / "k.ptx").write_text(kernel.ptx)
    target = next(line.split()[1].rstrip(",") for line in kernel.ptx.splitlines() if line.startswith(".target"))
    command = [knobs.nvidia.ptxas.path, f"--gpu-name={target}", "-o", tmp_path / "k.cubin", tmp_path / "k.ptx"]
    subprocess.run(command, check=True, capture_output=True)


def test_a_used_hidden_parameter_is_refused():
    ptx = ".entry k(\n.param .u64 k_param_0,\n.param .u64 k_param_1\n)\n{ ld.param.b64 %rd1, [k_param_1]; }"
    assert "k_param_1\n)" in without_hidden(ptx, 2)
    with pytest.raises(ValueError, match="k_param_1"):
        without_hidden(ptx, 1)


class group_norm_silu(OpRun):
    op_domain = "calotype"

    def _run(self, x, weight, bias, groups=None, eps=None, plugin_namespace=None, plugin_version=None):
        x, weight, bias = (torch.from_numpy(np.array(t)) for t in (x, weight, bias))
        return (torch.nn.functional.silu(torch.group_norm(x, groups, weight, bias, eps)).numpy(),)


def graph_of(folder):
    """Write a graph of a norm with SiLU, a norm with SiLU and another user, and a norm without SiLU."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 8, "h", "w"]) for n in "xy")
    nodes = []
    for i, (into, out) in enumerate((("x", "a"), ("a", "b"), ("b", "c"))):
        nodes.append(helper.make_node("GroupNormalization", [into, "w", "v"], [f"n{i}"], num_groups=4, epsilon=1e-5))
        if i == 2:
            nodes.append(helper.make_node("Identity", [f"n{i}"], [out]))
            continue
        nodes.append(helper.make_node("Sigmoid", [f"n{i}"], [f"s{i}"]))
        nodes.append(helper.make_node("Mul", [f"n{i}", f"s{i}"], [out]))
    nodes.append(helper.make_node("Add", ["c", "n1"], ["y"]))
    draw = np.random.default_rng(0)
    scales = [onnx.numpy_helper.from_array(draw.standard_normal(8, dtype=np.float32), n) for n in "wv"]
    graph = helper.make_graph(nodes, "g", [x], [y], scales)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "g.onnx")
    return folder / "g.onnx"


def test_norms_with_silu_become_plugin_nodes_and_the_values_stay(tmp_path):
    source = graph_of(tmp_path)
    assert with_plugins(source, tmp_path / "out.onnx") == 1  # the second norm has another user
    model = onnx.load(tmp_path / "out.onnx")
    (node,) = [n for n in model.graph.node if n.domain == "calotype"]
    assert node.op_type == PLUGIN.partition("::")[2]
    assert {a.name for a in node.attribute} == {"groups", "eps", "plugin_namespace", "plugin_version"}
    x = np.random.default_rng(1).standard_normal((2, 8, 3, 5), dtype=np.float32)
    (expected,) = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    (got,) = ReferenceEvaluator(model, new_ops=[group_norm_silu]).run(None, {"x": x})
    np.testing.assert_allclose(got, expected, atol=1e-5)
