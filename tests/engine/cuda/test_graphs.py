"""The graph cache without a GPU: the replay of a fake capturer calls the function and overwrites all other outputs."""

import random
import threading

import pytest
import torch

from calotype.cuda.graphs import CapturedGraph, CudaGraphCache
from calotype.errors import DeviceFullError


class Calls:
    """A fake capturer. A replay overwrites the outputs of other graphs, as nobody may rely on them."""

    def __init__(self) -> None:
        self.captured: list[CapturedGraph] = []
        self.full = 0  # the number of next captures that fail on a full device

    def record(self, function, tensors) -> CapturedGraph:
        if self.full:
            self.full -= 1
            raise MemoryError("tried to allocate 20 GiB\nmore")
        outputs = function(tensors)

        def replay() -> None:
            for other in self.captured:
                for tensor in other.outputs.values():
                    tensor.fill_(float("nan"))
            for name, tensor in function(tensors).items():
                outputs[name].copy_(tensor)

        size = 4 * sum(t.numel() for t in tensors.values())
        self.captured.append(CapturedGraph(inputs=tensors, outputs=outputs, replay=replay, size_bytes=size))
        return self.captured[-1]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(graph.inputs["x"].shape) for graph in self.captured]


@pytest.fixture
def calls() -> Calls:
    return Calls()


def cache_of(calls, limit_bytes=10**6) -> CudaGraphCache:
    return CudaGraphCache(lambda i: {"y": i["x"] * 2 + i["z"]}, calls, limit_bytes=limit_bytes)


def inputs(count: int, number: float = 1.0, dtype=torch.float32):
    return {"x": torch.full((count, 2), number, dtype=dtype), "z": torch.full((1,), 0.5, dtype=dtype)}


def is_right(out, count: int, number: float = 1.0) -> bool:
    return out["y"].shape == (count, 2) and bool((out["y"] == 2 * number + 0.5).all())


def test_each_set_of_shapes_and_types_is_captured_once(calls):
    run = cache_of(calls)
    for count, number in ((3, 1.0), (5, 2.0), (3, 3.0), (5, 4.0)):
        assert is_right(run(inputs(count, number)), count, number)
    assert calls.shapes == [(3, 2), (5, 2)]
    assert run(inputs(3, dtype=torch.float64))["y"].dtype == torch.float64
    assert len(calls.captured) == 3


def test_inputs_and_outputs_belong_to_the_caller(calls):
    run, tensors = cache_of(calls), inputs(3)
    first = run(tensors)
    tensors["x"].fill_(9)
    run(inputs(3, 7.0))
    run(inputs(4, 8.0))
    assert is_right(first, 3)


def test_graphs_stay_within_the_limit_and_remain_right(calls):
    run = cache_of(calls, limit_bytes=100)  # (4 * (2 * count + 1)) bytes each
    for count in (3, 4, 5, 3):
        assert is_right(run(inputs(count)), count)
        assert run.size_bytes <= 100
    assert calls.shapes == [(3, 2), (4, 2), (5, 2), (3, 2)]
    assert is_right(run(inputs(50)), 50)  # larger than the limit, so the only graph
    assert is_right(run(inputs(3)), 3)
    assert calls.shapes[-2:] == [(50, 2), (3, 2)]


def test_the_most_recently_used_graph_stays(calls):
    run = cache_of(calls, limit_bytes=80)
    for count in (3, 4, 3, 5, 3):
        run(inputs(count))
    assert calls.shapes == [(3, 2), (4, 2), (5, 2)]


def test_a_full_device_drops_the_other_graphs_first(calls):
    run = cache_of(calls)
    run(inputs(3))
    calls.full = 1
    assert is_right(run(inputs(4)), 4)
    assert calls.shapes == [(3, 2), (4, 2)]
    run(inputs(3))
    assert calls.shapes[-1] == (3, 2)  # it was dropped


def test_a_run_that_does_not_fit_raises_and_the_next_works(calls):
    run = cache_of(calls)
    calls.full = 3
    with pytest.raises(DeviceFullError, match="20 GiB"):
        run(inputs(4))
    assert is_right(run(inputs(3)), 3)


def test_a_full_device_outside_of_a_capture_raises_the_same_error(calls, monkeypatch):
    """Buffers of inputs before the capture, and copies of outputs after it."""
    run, real = cache_of(calls), torch.Tensor.clone
    run(inputs(3))
    failures = [3]

    def clone(tensor):
        if failures[0]:
            failures[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "clone", clone)
    with pytest.raises(DeviceFullError, match="out of memory"):
        run(inputs(4))
    assert is_right(run(inputs(4)), 4)
    failures[0] = 1  # once: the other graphs are dropped, and it fits
    assert is_right(run(inputs(4)), 4)
    assert calls.shapes == [(3, 2), (4, 2), (4, 2)]


def test_a_failed_capture_reports_its_cause(calls, monkeypatch):
    def record(function, tensors):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    run = cache_of(calls)
    monkeypatch.setattr(calls, "record", record)
    with pytest.raises(DeviceFullError, match="CUDA out of memory"):
        run(inputs(4))

    def broken(function, tensors):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(calls, "record", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        run(inputs(4))


def test_a_thousand_requests_stay_within_the_limit(calls):
    run, draw = cache_of(calls, limit_bytes=400), random.Random(0)
    for _ in range(1000):
        count, number = draw.randint(1, 12), float(draw.randint(1, 9))
        assert is_right(run(inputs(count, number)), count, number)
        assert run.size_bytes <= 400


def test_threads_get_their_own_outputs(calls):
    run, wrong = cache_of(calls, limit_bytes=150), []

    def work(count: int) -> None:
        for number in range(1, 40):
            if not is_right(run(inputs(count, float(number))), count, float(number)):
                wrong.append((count, number))

    threads = [threading.Thread(target=work, args=(count,)) for count in (2, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_full_device_drops_the_graphs_of_other_caches_as_well(calls):
    """Each network has a cache, and they share a device. One that another thread is using keeps its graphs."""
    others = [cache_of(calls) for _ in range(2)]
    for other in others:
        other(inputs(3))
    run, calls.full = cache_of(calls), 2
    with others[1]._lock:
        assert is_right(run(inputs(4)), 4)
    assert [other.size_bytes > 0 for other in others] == [False, True]
    assert is_right(others[0](inputs(3)), 3)


def test_a_full_device_first_drops_only_what_must_go(calls):
    other, run = cache_of(calls), cache_of(calls)
    other(inputs(3))
    run(inputs(3))
    calls.full = 1
    run(inputs(4))
    assert other.size_bytes > 0
