"""A closed pipeline gives everything back, and says so when it is called."""

import gc
import os
import threading
from pathlib import Path

import pytest

import calotype
from calotype.errors import BackendError
from calotype.system.memory import proc_bytes

SMALL = {"steps": 2, "seed": 1, "height": 64, "width": 64}


def held():
    """Return the resident memory, the threads, and the open files of this process."""
    status = Path("/proc/self/status")
    threads = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("Threads:"))
    return proc_bytes(status, "VmRSS"), threads, len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "eager"])
def test_rounds_of_load_and_close_hold_nothing(backend):
    rounds = []
    for _ in range(4):
        with calotype.load("demo", backend=backend) as pipe:
            pipe("a red ring", **SMALL)
        rounds.append(held())
    (second, threads, files), last = rounds[1], rounds[-1]
    assert last[0] <= second * 1.05
    assert last[1:] == (threads, files)


def test_a_closed_pipeline_raises():
    pipe = calotype.load("demo", backend="fake")
    pipe("a red ring", **SMALL)
    pipe.close()
    pipe.close()
    with pytest.raises(BackendError, match="closed"):
        pipe("a red ring", **SMALL)
    with pytest.raises(BackendError, match="closed"):
        pipe.component("unet")


def test_close_waits_for_running_calls():
    pipe = calotype.load("demo", backend="fake")
    events = pipe.stream("a red ring", **SMALL)
    next(events)
    closing = threading.Thread(target=pipe.close)
    closing.start()
    *_, last = events
    closing.join(60)
    assert not closing.is_alive()
    assert last.result is not None


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "eager"])
def test_memory_names_what_is_held(backend):
    pipe = calotype.load("demo", backend=backend)
    before = pipe.memory()
    assert before["prompts"] == 0
    pipe("a red ring", **SMALL)
    after = pipe.memory()
    assert {"unet", "text_encoder", "vae_decoder", "prompts", "process"} <= after.keys()
    assert min(after.values()) > 0
    assert after["unet"] > after["vae_decoder"]
    pipe.close()
    gc.collect()
    assert "unet" not in pipe.memory()
