"""Pictures of `backend="cuda"` against eager's as users make them: every sampler, sizes, crowds, full devices, LoRAs.

In the interpreter the networks are left as they are, and a few of each have to do.
"""

import random
import threading

import numpy as np
import pytest
import torch

import calotype
from calotype.backends.torch import cuda
from calotype.cuda import fused_modules as fused
from calotype.errors import DeviceFullError
from calotype.export.sources.source import find
from calotype.graph import runner as painter

RED, SMALL = "a red star", {"width": 64, "height": 64}
CPU = not torch.cuda.is_available()
SAMPLERS = calotype.scheduler_names()[:: 24 if CPU else 1]
ON_A_GPU = pytest.mark.skipif(CPU, reason="this is about a GPU's memory")


@pytest.fixture(scope="module")
def eager():
    return calotype.load("demo", backend="eager")


@pytest.fixture
def load(device, gpu, recorder, monkeypatch):
    if device.type == "cpu":
        monkeypatch.setattr(fused, "fuse", lambda network: None)
        monkeypatch.setattr(cuda, "unavailable", lambda: None)
        for module in (cuda, painter):
            monkeypatch.setattr(module, "Gpu", lambda: gpu)
            monkeypatch.setattr(module, "CudaGraphCapturer", lambda: recorder)
    return lambda **more: calotype.load("demo", backend="cuda", **more)


def off(got, wanted) -> int:
    """Levels of 255 that the worst pixel is away."""
    pairs = zip(got.images, wanted.images, strict=True)
    return max(int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max()) for a, b in pairs)


MOST = 2 if CPU else 12  # convolutions of a GPU round otherwise, and samplers with large steps carry that on


def test_every_sampler_paints_eagers_picture(load, eager):
    pipe, wrong = load(), {}
    for name in SAMPLERS:
        said = {"prompt": RED, "seed": 5, "steps": 3, "scheduler": name, **SMALL}
        got, wanted = pipe(**said), eager(**said)
        if off(got, wanted) > MOST:
            wrong[name] = off(got, wanted)
    assert wrong == {}


def test_sizes_come_and_go(load, eager):
    pipe = load()
    for width, height in ((64, 96), (96, 64), (64, 96)):
        said = {"prompt": RED, "seed": 1, "steps": 2, "width": width, "height": height}
        assert off(pipe(**said), eager(**said)) <= MOST


def test_threads_get_their_own_pictures(load, eager):
    pipe, wrong = load(), []
    wanted = {seed: eager(RED, seed=seed, steps=2, **SMALL) for seed in range(3)}

    def work(seed: int) -> None:
        for _ in range(2 if CPU else 20):
            if off(pipe(RED, seed=seed, steps=2, **SMALL), wanted[seed]) > MOST:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_lora_is_put_in_and_taken_out(load, recorder, tmp_path):
    """Graphs read the weights where they lie."""
    from safetensors.torch import load_file, save_file

    weights = load_file(next((find("demo") / "unet").glob("*.safetensors")))
    name = next(n for n in weights if n.endswith("attn2.to_q.weight"))
    (out, into), stem = weights[name].shape, name.removesuffix(".weight")
    draw = torch.Generator().manual_seed(0)
    pair = {"A": torch.randn(2, into, generator=draw), "B": torch.randn(out, 2, generator=draw)}
    save_file({f"unet.{stem}.lora_{side}.weight": w for side, w in pair.items()}, tmp_path / "a.safetensors")
    said = {"prompt": RED, "seed": 1, "steps": 2, **SMALL}
    pipe = load()
    first, captures = pipe(**said), recorder.made
    pipe.set_lora(tmp_path / "a.safetensors")
    changed = calotype.load("demo", backend="eager", lora=tmp_path / "a.safetensors")(**said)
    assert off(pipe(**said), changed) <= MOST
    assert off(first, changed) > MOST
    pipe.set_lora(None)
    assert off(pipe(**said), first) == 0
    wholes = recorder.made - captures  # the graphs of the pictures stay: what is tried on a network alone has its own
    assert wholes <= 1


@ON_A_GPU
def test_a_thousand_random_pictures_hold_no_more_memory(load):
    pipe, draw, most = load(), random.Random(0), 0
    for i in range(1000):
        sides = {name: 64 + 16 * draw.randint(0, 4) for name in ("width", "height")}
        pipe(RED, seed=i, steps=draw.randint(1, 4), num_images=draw.randint(1, 3), **sides)
        held = torch.cuda.memory_reserved()
        if i < 500:
            most = max(most, held)
        else:
            assert held <= most * 1.1


@ON_A_GPU
def test_a_full_device_is_told_with_what_would_fit_and_the_next_picture_works(load, eager):
    pipe = load()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**29) / total)
    try:
        with pytest.raises(DeviceFullError, match=r"no room for .*; by an estimate .* would fit\."):
            pipe(RED, seed=1, steps=2, num_images=8, width=1024, height=1024)
        assert off(pipe(RED, seed=1, steps=2, **SMALL), eager(RED, seed=1, steps=2, **SMALL)) <= MOST
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@ON_A_GPU
def test_a_picture_is_one_launch_and_its_trace_shows_the_gpu(load, tmp_path):
    import json

    pipe = load()
    pipe(RED, steps=4, **SMALL)  # captured
    pipe.profile(tmp_path / "trace.json", RED, steps=4, **SMALL)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    launches = [e for e in events if e.get("name") in ("cudaGraphLaunch", "cudaLaunchKernel")]
    assert sum(e["name"] == "cudaGraphLaunch" for e in launches) == 1
    assert len(launches) < 30  # copies of inputs and outputs, not the network's layers
    assert any(e.get("cat") == "kernel" for e in events)
