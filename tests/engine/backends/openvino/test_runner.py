"""The openvino backend: correct values at every shape and from every thread, a safe disk cache, clear errors."""

import gc
import hashlib
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import calotype
from calotype.backends.openvino import network
from calotype.backends.openvino import shapes as shapes_module
from calotype.backends.openvino.pages import release_mapped_pages
from calotype.backends.openvino.runner import OpenVinoRunner
from calotype.errors import BackendError
from calotype.export.quality.metrics import psnr
from calotype.files.cache import OPENVINO
from calotype.plan.bindings import Binding
from calotype.plan.plan import Artifact, PlannedComponent

WEIGHTS = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
CAPABILITIES = network.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def component(*artifacts):
    return PlannedComponent(
        name="unet",
        inputs=(Binding(name="x", dtype="float32", dims=("batch", "length", 64)),),
        outputs=(Binding(name="y", dtype="float32", dims=("batch", "length", 32)),),
        artifacts=artifacts,
        refused={},
    )


def write_onnx(path, weights=WEIGHTS):
    """y = tanh(x @ weights), dynamic in batch and length."""
    tensors = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 64])]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Tanh", ["m"], ["y"])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 32])]
    graph = helper.make_graph(nodes, "g", tensors, out, [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def expected(x, weights=WEIGHTS):
    return np.tanh(x @ weights)


def batch(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.1


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def model(home, tmp_path):
    write_onnx(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def open_model(path, precision="fp32"):
    """Open the small network, as a new process would."""
    artifact = Artifact(form="onnx", path=path, precision=precision, check={})
    return OpenVinoRunner(component(artifact), artifact)


def test_the_image_equals_that_of_onnxruntime(pipe):
    settings = {"steps": 6, "seed": 3, "output_type": "np"}
    ours = calotype.load("demo", backend="openvino")
    result = ours("a large red circle on a blue background", **settings)
    assert psnr(result.images, pipe("a large red circle on a blue background", **settings).images) > 60
    assert {c.backend for c in result.report.components} == {"openvino"}
    assert {c.error for c in result.report.components} == {None}  # another backend ran the plan's check


def test_any_shape_any_order(model):
    runner = open_model(model)
    for shape in ((1, 3, 64), (2, 5, 64), (1, 3, 64), (4, 1, 64)):
        x = batch(*shape)
        np.testing.assert_allclose(runner({"x": x})["y"], expected(x), atol=1e-5)


def test_inputs_that_are_not_contiguous(model):
    x = batch(64, 5, 2).T
    np.testing.assert_allclose(open_model(model)({"x": x})["y"], expected(x), atol=1e-5)


def test_outputs_are_the_callers_own(model):
    runner = open_model(model)
    first = runner({"x": batch(1, 2, 64)})["y"]
    copy = first.copy()
    runner({"x": batch(1, 2, 64, seed=1)})
    np.testing.assert_array_equal(first, copy)
    assert first.dtype == np.float32


def test_compiled_shapes_are_bounded(model, monkeypatch):
    runner = open_model(model)
    for length in range(1, 9):
        runner({"x": batch(1, length, 64)})
    assert len(runner.cached) == shapes_module._MAX_SHAPES
    monkeypatch.setattr(shapes_module, "available_bytes", lambda: 1)  # a large network on a small machine
    runner({"x": batch(2, 1, 64)})
    assert len(runner.cached) == 1


def test_threads_may_share_a_runner(model):
    runner = open_model(model)
    xs = [batch(1 + i % 3, 4, 64, seed=i) for i in range(12)]
    got = {}

    def work(i):
        for _ in range(10):
            got[i] = runner({"x": xs[i]})["y"]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, x in enumerate(xs):
        np.testing.assert_allclose(got[i], expected(x), atol=1e-5)


def test_the_second_start_reads_what_the_first_compiled(home, model, monkeypatch):
    x = batch(1, 2, 64)
    open_model(model)({"x": x})
    assert len(list(home.rglob("*.blob"))) == 1
    runner = open_model(model)
    monkeypatch.setattr(runner, "_model", None)  # nothing to compile from
    for _ in range(3):
        gc.collect()  # its weights are mapped from the file and must stay alive
        np.testing.assert_allclose(runner({"x": x})["y"], expected(x), atol=1e-5)


def cut(data):
    return data[: len(data) // 2]


def flipped(data):
    return bytes(b ^ 0x41 for b in data[: len(data) // 2]) + data[len(data) // 2 :]


def tail_flipped(data):
    """The weights are at the end: OpenVINO itself would not notice."""
    return data[:-400] + bytes(b ^ 0x41 for b in data[-400:])


@pytest.mark.parametrize("damage", [cut, flipped, tail_flipped, lambda _: b"", lambda _: b"x" * 99])
def test_a_damaged_blob_is_compiled_again(home, model, damage):
    x = batch(1, 2, 64)
    open_model(model)({"x": x})
    (blob,) = home.rglob("*.blob")
    blob.write_bytes(damage(blob.read_bytes()))
    np.testing.assert_allclose(open_model(model)({"x": x})["y"], expected(x), atol=1e-5)
    mended = blob.read_bytes()
    assert hashlib.sha256(mended[:-32]).digest() == mended[-32:]


def test_a_blob_that_openvino_refuses_is_compiled_again(home, model):
    x = batch(1, 2, 64)
    open_model(model)({"x": x})
    (blob,) = home.rglob("*.blob")
    blob.write_bytes(b"of another build" + hashlib.sha256(b"of another build").digest())
    np.testing.assert_allclose(open_model(model)({"x": x})["y"], expected(x), atol=1e-5)


def test_each_version_precision_and_file_has_its_own_blobs(home, model, tmp_path, monkeypatch):
    x = batch(1, 2, 64)
    open_model(model)({"x": x})
    other = open_model(model)
    monkeypatch.setitem(other._cache._identity, "version", "2031.1")
    other({"x": x})
    assert len(list(home.rglob("*.blob"))) == 2
    open_model(model, "int8")({"x": x})
    assert len(list(home.rglob("*.blob"))) == 3
    write_onnx(tmp_path / "model.onnx", WEIGHTS * 2)
    os.utime(tmp_path / "model.onnx", ns=(1, 1))
    np.testing.assert_allclose(open_model(model)({"x": x})["y"], expected(x, WEIGHTS * 2), atol=1e-5)


def test_the_disk_cache_has_a_limit(home, model, monkeypatch):
    runner = open_model(model)
    runner({"x": batch(1, 1, 64)})
    (first,) = home.rglob("*.blob")
    os.utime(first, ns=(1, 1))
    limited = replace(OPENVINO, limit_bytes=3 * first.stat().st_size)
    monkeypatch.setattr("calotype.backends.openvino.cache.OPENVINO", limited)
    for length in range(2, 7):
        runner({"x": batch(1, length, 64)})
    assert 1 <= len(list(home.rglob("*.blob"))) <= 3
    assert not first.exists()


@pytest.mark.parametrize("home_path", ["file/below", "~no-such-user/home", "/proc/nothing"])
def test_a_home_that_cannot_be_written_does_not_stop_a_run(model, tmp_path, monkeypatch, home_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CALOTYPE_HOME", home_path if home_path[0] in "~/" else str(tmp_path / home_path))
    x = batch(1, 2, 64)
    np.testing.assert_allclose(open_model(model)({"x": x})["y"], expected(x), atol=1e-5)


@pytest.mark.skipif("BF16" not in CAPABILITIES, reason="this CPU has no bfloat16 arithmetic")
def test_bf16_is_computed_in_bf16(model):
    x = batch(1, 40, 64)
    error = np.abs(open_model(model, "bf16")({"x": x})["y"] - expected(x)).max()
    assert 1e-4 < error < 2e-2


def test_files_of_killed_writers_are_removed_after_a_day(home, model):
    open_model(model)({"x": batch(1, 2, 64)})
    (blob,) = home.rglob("*.blob")
    leftovers = [blob.with_name(f".{blob.name}.{i}-1") for i in range(2)]
    for path in leftovers:
        path.write_bytes(b"half a blob")
    os.utime(leftovers[0], (0, leftovers[1].stat().st_mtime - 90_000))
    open_model(model)({"x": batch(1, 3, 64)})
    assert [path.exists() for path in leftovers] == [False, True]
    assert len(list(home.rglob("*.blob"))) == 2


@pytest.mark.skipif("BF16" in CAPABILITIES, reason="this CPU has bfloat16 arithmetic")
def test_bf16_on_a_cpu_without_it_is_refused(model):
    with pytest.raises(BackendError, match="no bfloat16"):
        open_model(model, "bf16")


def test_a_precision_that_openvino_ignores_is_refused(model, monkeypatch):
    monkeypatch.setitem(network.HINTS, "fp32", "f16")  # this device has none
    with pytest.raises(BackendError, match="f16"):
        open_model(model)({"x": batch(1, 2, 64)})


def test_missing_and_broken_files_are_refused(home, tmp_path):
    for name, content in (("missing.onnx", None), ("garbage.onnx", b"\x00garbage" * 99), ("empty.onnx", b"")):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        artifact = Artifact(form="onnx", path=path, precision="fp32", check={})
        with pytest.raises(BackendError, match=f"cannot open .*{name}") as error:
            OpenVinoRunner(component(artifact), artifact)
        assert "\n" not in str(error.value)
        assert "Exception from" not in str(error.value)


def test_a_missing_output_is_refused(model, tmp_path):
    artifact = Artifact(form="onnx", path=tmp_path / "model.onnx", precision="fp32", check={})
    other = PlannedComponent(
        name="unet",
        inputs=component().inputs,
        outputs=(Binding(name="z", dtype="float32", dims=("batch",)),),
        artifacts=(artifact,),
        refused={},
    )
    with pytest.raises(BackendError, match="output z"):
        OpenVinoRunner(other, artifact)


def test_shapes_that_do_not_fit_are_one_line(model):
    with pytest.raises(BackendError) as error:
        open_model(model)({"x": batch(1, 2, 63)})
    assert "x [1, 2, 63]" in str(error.value)
    assert "\n" not in str(error.value)


IMPORTED = """
import sys, calotype.backends.openvino.network as network
network.core()
heavy = ("openvino_telemetry", "openvino.tools.ovc", "torch", "onnx", "urllib.request")
print([name for name in heavy if name in sys.modules])
"""


def test_importing_openvino_sends_no_telemetry(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("CI", None)
    command = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert list(Path(tmp_path).iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can release pages")
def test_released_pages_of_a_file_can_be_read_again(tmp_path):
    """The pages of a writable mapping stay."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * 4096)
    read, written = np.memmap(file, mode="r"), np.memmap(file, mode="c")
    written[:] = 7

    def resident():
        return int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

    total, before = int(read.sum(dtype=np.int64)), resident()
    assert release_mapped_pages(file) == read.size
    assert resident() <= before - read.size + 65536
    assert int(read.sum(dtype=np.int64)) == total
    assert (written == 7).all()
    assert release_mapped_pages(tmp_path / "nothing") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can release pages")
def test_a_compiled_network_keeps_no_pages_of_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    write_onnx(tmp_path / "inside.onnx")
    model = onnx.load(tmp_path / "inside.onnx")
    path, file = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    large = np.tile(WEIGHTS, (1, 1000))  # 8 MB
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(large, "w"))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = large.shape[1]
    onnx.save(model, path, save_as_external_data=True, location=file.name)
    artifact = Artifact(form="onnx", path=path, precision="fp32", check={})
    runner = OpenVinoRunner(component(artifact), artifact)
    shapes = {"x": (1, 3, 64)}
    assert runner.compiled({"shapes": shapes}, lambda: runner.sized(shapes))
    mapped = Path("/proc/self/smaps").read_text().split(f"{file}\n")[1:]
    resident = [int(re.search(r"\nRss: +(\d+)", each)[1]) for each in mapped]
    assert resident
    assert sum(resident) < 1024
    x = np.ones((1, 3, 64), dtype=np.float32)
    np.testing.assert_allclose(runner({"x": x})["y"], np.tanh(x @ large), atol=1e-5)
