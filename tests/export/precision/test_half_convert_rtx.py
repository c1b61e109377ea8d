"""TensorRT reads lowered graphs by their types: TensorRT-RTX parses and builds them, without a GPU."""

from types import ModuleType

import onnx
import pytest

from calotype.export import prepare
from calotype.export.precision.half_convert import lower

TARGET = "SM89"
SIZES = {"tokens": (77, 77, 154), "batch": (1, 2, 4), "latent_height": (8, 16, 32), "latent_width": (8, 16, 32)}
ISLANDS = {"text_encoder": "Softmax", "unet": "Sin", "vae_decoder": "GroupNormalization"}


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ISLANDS)
def test_it_builds_the_demonstration_model_with_islands(name, precision, trt, pipe, tmp_path):
    component = prepare("demo").components[name]
    source, out = component.artifact("onnx").path, tmp_path / "model.onnx"
    nodes = onnx.load(source, load_external_data=False).graph.node
    lower(source, out, precision=precision, islands=[n.name for n in nodes if n.op_type == ISLANDS[name]])
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(out)), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, TARGET), 0)
    for binding in component.inputs:
        profile.set_shape(binding.name, *(binding.shape({s: SIZES[s][i] for s in SIZES}) for i in range(3)))
    config.add_optimization_profile(profile)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    types = {layer.get_output(0).dtype for layer in layers}
    assert {trt.float32, {"fp16": trt.float16, "bf16": trt.bfloat16}[precision]} <= types
    assert builder.build_serialized_network(network, config) is not None
