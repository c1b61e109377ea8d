"""Images of `backend="cuda"` compared with eager's: every sampler, sizes, threads, full devices, LoRAs.

In the interpreter the networks have no kernels, and a few cases of each kind must do.
"""

import random
import threading

import numpy as np
import pytest
import torch

import calotype
from calotype.backends.torch import cuda
from calotype.cuda.fused import fuse as fused
from calotype.errors import DeviceFullError
from calotype.export.sources.source import find
from calotype.graph import runner as graph_runner
from tests.helpers.backends import change_backend

RED, SMALL = "a red star", {"width": 32, "height": 32}
CPU = not torch.cuda.is_available()
SAMPLERS = calotype.scheduler_names()[:: 24 if CPU else 1]
ON_A_GPU = pytest.mark.skipif(CPU, reason="this is about a GPU's memory")


@pytest.fixture(scope="module")
def eager():
    return calotype.load("demo", backend="eager")


@pytest.fixture
def pipe(device, gpu, recorder, monkeypatch):
    if device.type == "cpu":
        monkeypatch.setattr(fused, "fuse", lambda network: None)
        change_backend(monkeypatch, "cuda", unavailable=lambda: None)
        for module in (cuda, graph_runner):
            monkeypatch.setattr(module, "Gpu", lambda: gpu)
            monkeypatch.setattr(module, "CudaGraphCapturer", lambda: recorder)
    return calotype.load("demo", backend="cuda", precision="fp32")


def max_difference(got, expected) -> int:
    """Return the largest difference of a pixel, of 255."""
    pairs = zip(got.images, expected.images, strict=True)
    return max(int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max()) for a, b in pairs)


TOLERANCE = 2 if CPU else 12  # a GPU's convolutions round differently, and samplers with large steps amplify it


def test_every_sampler_generates_eagers_image(pipe, eager):
    wrong = {}
    for name in SAMPLERS:
        options = {"prompt": RED, "seed": 5, "steps": 2, "scheduler": name, **SMALL}
        got, expected = pipe(**options), eager(**options)
        if max_difference(got, expected) > TOLERANCE:
            wrong[name] = max_difference(got, expected)
    assert wrong == {}


def test_sizes_come_and_go(pipe, eager):
    for width, height in ((32, 48), (48, 32), (32, 48)):
        options = {"prompt": RED, "seed": 1, "steps": 2, "width": width, "height": height}
        assert max_difference(pipe(**options), eager(**options)) <= TOLERANCE


def test_threads_get_their_own_images(pipe, eager):
    wrong = []
    expected = {seed: eager(RED, seed=seed, steps=2, **SMALL) for seed in range(3)}

    def work(seed: int) -> None:
        for _ in range(2 if CPU else 20):
            if max_difference(pipe(RED, seed=seed, steps=2, **SMALL), expected[seed]) > TOLERANCE:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_lora_is_set_and_removed(pipe, recorder, tmp_path):
    """Graphs read the weights in place."""
    from safetensors.torch import load_file, save_file

    weights = load_file(next((find("demo") / "unet").glob("*.safetensors")))
    name = next(n for n in weights if n.endswith("attn2.to_q.weight"))
    (out, columns), stem = weights[name].shape, name.removesuffix(".weight")
    draw = torch.Generator().manual_seed(0)
    pair = {"A": torch.randn(2, columns, generator=draw), "B": torch.randn(out, 2, generator=draw)}
    save_file({f"unet.{stem}.lora_{side}.weight": w for side, w in pair.items()}, tmp_path / "a.safetensors")
    options = {"prompt": RED, "seed": 1, "steps": 2, **SMALL}
    first, captures = pipe(**options), recorder.count
    pipe.set_lora(tmp_path / "a.safetensors")
    changed = calotype.load("demo", backend="eager", lora=tmp_path / "a.safetensors")(**options)
    assert max_difference(pipe(**options), changed) <= TOLERANCE
    assert max_difference(first, changed) > TOLERANCE
    pipe.set_lora(None)
    assert max_difference(pipe(**options), first) == 0
    new_captures = recorder.count - captures  # the images' graphs stay: the check of a single network has its own
    assert new_captures <= 1


@ON_A_GPU
def test_many_random_images_do_not_grow_memory(device, gpu, recorder, monkeypatch):
    """Graphs stay within their limit: there are 300 sizes, and the limit holds some ten."""
    monkeypatch.setattr(graph_runner, "_MEMORY_SHARE", gpu.total_bytes() // 2**30)  # 1 GiB
    pipe, draw, peak = calotype.load("demo", backend="cuda", precision="fp32"), random.Random(0), 0
    for i in range(100):
        sides = {name: 64 + 16 * draw.randint(0, 4) for name in ("width", "height")}
        pipe(RED, seed=i, steps=draw.randint(1, 4), num_images=draw.randint(1, 3), **sides)
        reserved = torch.cuda.memory_reserved()
        if i < 50:
            peak = max(peak, reserved)
        else:
            assert reserved <= peak + 2**30


@ON_A_GPU
def test_a_full_device_raises_with_a_fitting_size_and_the_next_image_works(pipe, eager):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**29) / total)
    try:
        with pytest.raises(DeviceFullError, match="would fit"):
            pipe(RED, seed=1, steps=2, num_images=8, width=1024, height=1024)
        assert max_difference(pipe(RED, seed=1, steps=2, **SMALL), eager(RED, seed=1, steps=2, **SMALL)) <= TOLERANCE
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@ON_A_GPU
def test_an_image_is_one_launch_and_its_trace_shows_the_gpu(pipe, tmp_path):
    import json

    pipe(RED, steps=4, **SMALL)  # captured
    pipe.profile(tmp_path / "trace.json", RED, steps=4, **SMALL)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    launches = [e for e in events if e.get("name") in ("cudaGraphLaunch", "cudaLaunchKernel")]
    assert sum(e["name"] == "cudaGraphLaunch" for e in launches) == 1
    assert len(launches) < 30  # copies of inputs and outputs, not layers of the network
    assert any(e.get("cat") == "kernel" for e in events)
