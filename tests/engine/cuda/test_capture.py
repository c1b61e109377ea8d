"""Captures without a GPU: a stand-in for `torch.cuda` notes what happens, in order, and fails where CUDA would."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from calotype.cuda import capture
from calotype.cuda.capture import graph_seconds, warming_up
from calotype.cuda.graphs import CudaGraphCapturer


class FakeCuda:
    """Two captures at the same time, or a synchronization in the capture of another thread, raise as CUDA does."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.streams: list[object] = []
        self.current: object = None
        self.capturing: int | None = None

    def new_stream(self) -> object:
        self.streams.append(object())
        return self.streams[-1]

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def graph(self, graph, *, stream, capture_error_mode):
        if self.capturing is not None:
            raise RuntimeError("two captures at the same time")
        self.capturing = threading.get_ident()
        self.events.append("capture")
        yield
        self.capturing = None
        self.events.append("end")

    def synchronize(self) -> None:
        if self.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.events.append("synchronize")


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    fake = FakeCuda()
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda other: 20.0)
    parts = {
        "Stream": fake.new_stream,
        "stream": fake.stream,
        "graph": fake.graph,
        "synchronize": fake.synchronize,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: fake.events.append("replay")),
        "empty_cache": fake.synchronize,
        "memory_reserved": lambda: 0,
        "Event": lambda enable_timing: event,
    }
    for name, part in parts.items():
        monkeypatch.setattr(torch.cuda, name, part)
    release = lambda: fake.events.append("release")  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", release, raising=False)
    monkeypatch.setattr(capture, "_streams", [])
    return fake


def test_threads_capture_one_after_another_on_one_stream(cuda):
    errors = []

    def function(inputs):
        threading.Event().wait(0.001)
        return {"y": inputs["x"] + 1}

    def work() -> None:
        try:
            for _ in range(5):
                CudaGraphCapturer().record(function, {"x": torch.ones(1)})
        except RuntimeError as failed:
            errors.append(failed)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(cuda.streams) == 1


def test_the_workspace_of_cublas_belongs_to_the_graph(cuda):
    CudaGraphCapturer().record(lambda inputs: inputs, {"x": torch.ones(1)})
    order = [event for event in cuda.events if event in ("release", "capture", "end")]
    assert order == ["release", "capture", "end", "release"]


def test_a_failed_capture_lets_the_next_one_in(cuda):
    def failing(inputs):
        if cuda.capturing:
            cuda.capturing = None
            raise RuntimeError("out of memory")
        return inputs

    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            CudaGraphCapturer().record(failing, {})
    assert not warming_up()
    assert CudaGraphCapturer().record(lambda inputs: inputs, {}).size_bytes == 0


def test_a_search_for_algorithms_happens_before_the_capture_only(cuda):
    seen = []
    CudaGraphCapturer().record(lambda inputs: seen.append((cuda.capturing is not None, warming_up())) or {}, {})
    assert seen == [(False, True), (False, True), (True, False)]


def test_a_run_is_timed_by_replays_without_the_host(cuda):
    """Ten runs in a graph; the stand-in's clock says 20 ms for a replay."""
    runs = []
    assert graph_seconds(lambda: runs.append(cuda.capturing is not None)) == pytest.approx(0.002)
    assert runs.count(True) == 10
    assert cuda.events.count("replay") > 1
    assert cuda.events.index("replay") > cuda.events.index("end")
