"""LoRAs set, changed and removed on loaded models: on every backend, as in diffusers, and bit-exact after removal."""

import json
import subprocess
import sys
from dataclasses import replace

import diffusers
import numpy as np
import openvino
import pytest
import torch

import calotype
from calotype.backends import choose
from calotype.backends.torch.modules import load_module
from calotype.backends.torch.weights import ModuleWeights
from calotype.errors import BackendError, InputError
from calotype.export import prepare
from calotype.export.precision.half_convert import lower
from calotype.export.precision.weight_only import weight_only
from calotype.export.quality.metrics import psnr
from calotype.images.png import settings_of
from calotype.weights.onnx import weights_of
from tests.helpers.loras import MODELS, OPTIONS, PROMPT, SIZE, generate, pipelines_and_loras

BACKENDS = ("eager", "onnxruntime", "openvino")
# Of two encoders and a larger U-Net, OpenVINO would compile each change again: the demonstration model shows it.
CASES = [(model, backend) for model in MODELS for backend in BACKENDS]
CASES.remove(("Stable Diffusion XL", "openvino"))


@pytest.fixture(scope="module")
def loaded(request, tmp_path_factory):
    return pipelines_and_loras(request, tmp_path_factory.mktemp("loras"))


@pytest.mark.parametrize(("model", "backend"), CASES)
def test_removed_loras_restore_the_images_bit_for_bit(loaded, model, backend):
    pipes, loras = loaded
    pipe, (a, b) = pipes(model, backend), loras(model)
    none = generate(pipe)
    pipe.set_lora((a, 0.8))
    first = generate(pipe)
    pipe.set_lora([(a, 0.5), (b, -0.7)])
    both = generate(pipe)
    pipe.set_lora(f"{a}:0.8")
    np.testing.assert_array_equal(generate(pipe), first)
    pipe.set_lora([(a, 0), (b, 0.0)])
    np.testing.assert_array_equal(generate(pipe), none)
    pipe.set_lora(b)
    pipe.set_lora(None)
    assert pipe.loras == ()
    np.testing.assert_array_equal(generate(pipe), none)
    fresh = calotype.load(pipe.plan.model, backend=backend, lora=(a, 0.8))
    assert fresh.loras == ((str(a), 0.8),)
    np.testing.assert_array_equal(generate(fresh), first)
    assert min(np.abs(x - y).max() for x, y in ((none, first), (first, both), (none, both))) > 0.01


@pytest.mark.parametrize("model", MODELS)
def test_images_match_diffusers(request, loaded, figures, model):
    fixture, kind, components = MODELS[model]
    pipes, loras = loaded
    settings = {} if "text_encoder_2" in components else {"safety_checker": None}
    reference = kind.from_pretrained(
        request.getfixturevalue(fixture), dtype=torch.float32, low_cpu_mem_usage=False, **settings
    )
    reference.set_progress_bar_config(disable=True)
    reference.scheduler = diffusers.DDIMScheduler.from_config(reference.scheduler.config, clip_sample=False)
    files = list(zip(loras(model), (0.5, -0.7), strict=True))
    for i, (path, _) in enumerate(files):
        reference.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"a{i}")
    reference.set_adapters(["a0", "a1"], [weight for _, weight in files])
    reference.fuse_lora(components=components)
    generator = torch.Generator().manual_seed(5)
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "np", **SIZE}
    expected = reference(PROMPT, generator=[generator], **options).images
    assert expected.std() > 0.01
    for backend in BACKENDS:
        pipe = pipes(model, backend)
        pipe.set_lora(files)
        got = generate(pipe)
        pipe.set_lora(None)
        if backend in ("eager", "onnxruntime"):
            figures.hold((model, "text to image with two LoRAs", "ddim"), backend, got, expected)
        assert psnr(got, expected) >= 50


@pytest.mark.parametrize("fixture", ["demo_folder", "sdxl_folder"])
def test_every_layer_of_an_onnx_file_is_read(request, fixture):
    """By its name in the model, with its values, transposed or not."""
    plan = prepare(request.getfixturevalue(fixture))
    for name, component in plan.components.items():
        module = load_module(name, component.artifact("diffusers").path)
        weights, stored = ModuleWeights.of(module), weights_of(component.artifact("onnx").path)
        assert {layer: s.shape for layer, s in stored.items()} == weights.shapes(), name
        for layer, tensor in weights._weights.items():
            if stored[layer].refused is None:
                np.testing.assert_array_equal(stored[layer].read(), tensor.numpy())
                np.testing.assert_array_equal(stored[layer].put(tensor.numpy()).T.ravel(), _as_kept(stored[layer]))
            assert stored[layer].refused in (None, "it is inside the graph's own file"), layer
            assert stored[layer].refused is None or tensor.nbytes <= 256


def _as_kept(stored):
    """The file's values, transposed."""
    kept = stored.read()
    return (kept if stored.transposed else kept.T).ravel()


def with_unet(plan, path, precision):
    """Return the plan with another ONNX file for its U-Net."""
    unet = plan.components["unet"]
    artifact = replace(unet.artifact("onnx"), path=path, precision=precision)
    return replace(plan, components={**plan.components, "unet": unet.with_artifacts(artifact)})


@pytest.mark.parametrize(
    ("backend", "precision"), [("onnxruntime", "fp16"), ("openvino", "fp16"), ("openvino", "bf16")]
)
def test_half_precision_is_changed_as_well(loaded, tmp_path, backend, precision):
    """LoRAs have the same effect as on eager, within half precision. Without them, the images are as before."""
    if precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16 arithmetic")
    pipes, loras = loaded
    a, _ = loras("demonstration")
    pipe = pipes("demonstration", "onnxruntime")
    lower(pipe.plan.components["unet"].artifact("onnx").path, tmp_path / "model.onnx", precision=precision, islands=())
    half = calotype.pipeline.Pipeline(with_unet(pipe.plan, tmp_path / "model.onnx", precision), choose(backend))
    assert half.component("unet").runner.precision == precision
    eager, none = pipes("demonstration", "eager"), generate(half)
    eager.set_lora(a)
    expected = generate(eager)
    eager.set_lora(None)
    half.set_lora(a)
    assert psnr(generate(half), expected) >= (30 if precision == "bf16" else 45)
    half.set_lora(None)
    np.testing.assert_array_equal(generate(half), none)


def test_integer_weights_are_refused_without_a_change(loaded, tmp_path):
    pipes, loras = loaded
    pipe = pipes("demonstration", "onnxruntime")
    weight_only(pipe.plan.components["unet"].artifact("onnx").path, tmp_path / "model.onnx", bits=8)
    small = calotype.pipeline.Pipeline(with_unet(pipe.plan, tmp_path / "model.onnx", "fp32"), choose("onnxruntime"))
    before = generate(small)
    with pytest.raises(BackendError, match="int8"):
        small.set_lora(loras("demonstration")[0])  # fails after the text encoder was changed
    assert small.loras == ()
    np.testing.assert_array_equal(generate(small), before)


def test_report_and_metadata_name_the_loras(loaded, tmp_path):
    pipes, loras = loaded
    pipe, (a, b) = pipes("demonstration", "onnxruntime"), loras("demonstration")
    pipe.set_lora([(a, 0.5), b])
    result = pipe(PROMPT, **SIZE, **{**OPTIONS, "output_type": "pil"})
    pipe.set_lora(None)
    assert result.report.loras == ((str(a), 0.5), (str(b), 1.0))
    assert f"lora     {a} x 0.5" in str(result.report)
    assert result.report.to_json()["loras"][1] == {"file": str(b), "weight": 1.0}
    result.images[0].save(tmp_path / "x.png")
    stored = json.loads(settings_of(tmp_path / "x.png")["loras"])
    assert [each[:2] for each in stored] == [[str(a), 0.5], [str(b), 1.0]]
    from calotype import cli

    cli.app(["generate", "--like", str(tmp_path / "x.png"), "-o", str(tmp_path / "y.png")], standalone_mode=False)
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()
    stored[0][2] = "0" * 64
    result.images[0].info["loras"] = json.dumps(stored)
    result.images[0].save(tmp_path / "x.png")
    with pytest.raises(InputError, match="--lora"):
        cli.app(["generate", "--like", str(tmp_path / "x.png"), "-o", str(tmp_path / "y.png")], standalone_mode=False)


def test_nothing_heavy_is_imported(loaded):
    pipes, loras = loaded
    a, _ = loras("demonstration")
    pipes("demonstration", "onnxruntime")
    code = (
        "import sys, calotype\n"
        f"pipe = calotype.load('demo', backend='onnxruntime', lora={str(a)!r})\n"
        "pipe('x', steps=2, scheduler='ddim', seed=1)\n"
        "pipe.set_lora(None)\n"
        "heavy = ('torch', 'diffusers', 'transformers', 'onnx', 'safetensors', 'peft')\n"
        "print([m for m in heavy if m in sys.modules], pipe.loras)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] ()\n"


def test_one_initializer_of_two_layers_is_refused(loaded, tmp_path):
    import onnx

    pipes, _ = loaded
    path = pipes("demonstration", "onnxruntime").plan.components["unet"].artifact("onnx").path
    model = onnx.load(path, load_external_data=False)
    first, second = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1].startswith("val_")][:2]
    second.input[1] = first.input[1]
    onnx.save(model, tmp_path / "model.onnx")
    refused = [stored.refused for stored in weights_of(tmp_path / "model.onnx").values() if stored.refused]
    assert len(refused) == 2
    assert refused[0].startswith("it shares its values with ")
    (tmp_path / "model.onnx").write_bytes((tmp_path / "model.onnx").read_bytes()[:-7])
    with pytest.raises(BackendError, match="as ONNX"):
        weights_of(tmp_path / "model.onnx")
