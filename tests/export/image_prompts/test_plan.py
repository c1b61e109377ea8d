"""Plans with IP-Adapters: what a build checks and keeps, and the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import calotype
from calotype.cli import app
from calotype.errors import InputError, SourceError
from calotype.export import BuildSpec, build, prepare
from calotype.export.tensorrt.builder import build_engine, shapes_of
from calotype.export.tensorrt.options import EngineOptions
from calotype.files.digest import digest_of
from calotype.plan.plan import MANIFEST, read_plan
from calotype.plan.profile import Range
from tests.helpers.conditioning.ip_adapters import image_encoder, save_ip_adapter
from tests.helpers.tiny_models import save_tiny_model

SCENE = Image.fromarray(np.random.default_rng(4).integers(0, 256, (40, 30, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def parts(demo_folder, tmp_path_factory):
    work = tmp_path_factory.mktemp("plan")
    folder, encoder = save_tiny_model(work / "tiny", demo_folder), image_encoder(work / "encoder")
    return folder, save_ip_adapter(work / "plus.safetensors", folder / "unet", "plus"), encoder


@pytest.fixture(scope="module")
def built(parts, tmp_path_factory):
    folder, file, encoder = map(str, parts)
    output = tmp_path_factory.mktemp("built") / "plan"
    spec = BuildSpec(model=folder, output=output, ip_adapter=(file,), image_encoder=encoder, proof_steps=2)
    return build(spec).plan, output


def test_every_network_is_checked_on_recorded_images(built):
    plan, _ = built
    for name in ("image_encoder", "ip_adapter", "unet"):
        assert plan.components[name].artifacts[0].check["max_relative_error"] <= 1e-4
        assert plan.components[name].artifacts[0].check["real_inputs"]["calls"] >= 2
    assert plan.build["proof"]["psnr"] >= 60
    assert plan.image_prompts.kinds == ("plus",)


def test_a_plan_generates_what_the_model_generates(parts, built):
    folder, file, encoder = parts
    options = {"ip_adapter_image": SCENE, "width": 64, "height": 32, "seed": 1, "steps": 2, "output_type": "latent"}
    direct = calotype.load(folder, ip_adapter=file, image_encoder=encoder, backend="onnxruntime")
    planned = calotype.load(built[1])
    got = planned("a ring", **options)
    np.testing.assert_array_equal(got.images, direct("a ring", **options).images)
    plain = planned("a ring", **options | {"ip_adapter_image": None})
    assert np.abs(plain.images - got.images).max() > 0.1
    assert {"image_encoder", "ip_adapter"} <= {c.name for c in got.report.components}
    with pytest.raises(InputError, match="contains its own ip_adapter"):
        calotype.load(built[1], ip_adapter=file)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(image_prompts=None),
        lambda data: data["image_prompts"].update(kinds=["plain", "plus"]),
        lambda data: data["image_prompts"].update(layers=["down.1.0"]),
        lambda data: data["components"]["ip_adapter"]["outputs"][0].update(dims=["batch", 4, 7]),
        lambda data: data["components"]["unet"]["inputs"].pop(),
        lambda data: data["components"].pop("ip_adapter"),
    ],
)
def test_a_changed_manifest_is_refused(built, tmp_path, change):
    data = json.loads((built[1] / MANIFEST).read_text())
    data.pop("digest")
    change(data)
    (tmp_path / MANIFEST).write_text(json.dumps({**data, "digest": digest_of(data)}))
    with pytest.raises(SourceError, match=r"plan\.json"):
        read_plan(tmp_path, sealed=False)


@pytest.mark.parametrize("name", ["unet", "ip_adapter"])
def test_tensorrt_rtx_builds_it_for_several_images(parts, name):
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
    folder, file, encoder = parts
    plan = prepare(folder, ip_adapters=[file], image_encoder=encoder)
    assert plan.profile.images == (2, 16)  # groups, and the tokens of four images
    side = Range(min=32, opt=32, max=64)
    profile = replace(plan.profile, batch=Range(min=1, opt=1, max=2), height=side, width=side)
    component = plan.components[name]
    shapes = shapes_of(name, component.inputs, profile)
    graph = component.artifact("onnx").path
    assert build_engine(trt, graph, [shapes], EngineOptions(targets=(89,))).engine


def test_the_command_line(built, tmp_path):
    SCENE.save(tmp_path / "scene.png")
    words = ["generate", "a ring", "--model", str(built[1]), "--steps", "1", "--width", "32", "--height", "32"]
    words += ["--ip-adapter-image", str(tmp_path / "scene.png"), "-o", str(tmp_path / "out.png"), "--seed", "1"]
    blocks = '{"up": {"block_0": [0, 1]}}'
    done = CliRunner().invoke(app, [*words, "--ip-adapter-scale", blocks])
    assert done.exit_code == 0, done.output
    again = ["generate", "--like", str(tmp_path / "out.png"), *words[2:-4], "-o", str(tmp_path / "again.png")]
    assert CliRunner().invoke(app, again).exit_code == 0
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("out.png", "again.png"))
    np.testing.assert_array_equal(first, second)
