"""Graphs without a GPU: a recorder that replays by calling, and that spoils the outputs of all other graphs."""

import random
import threading

import pytest
import torch

from calotype.cuda.graphs import CapturedGraph, CudaGraphCache
from calotype.errors import DeviceFullError


class Calls:
    """Stands in for captures. A replay leaves nothing of the outputs of other graphs: nobody may rely on them."""

    def __init__(self) -> None:
        self.made: list[CapturedGraph] = []
        self.full = 0  # how many of the next captures find the device full

    def record(self, function, inputs) -> CapturedGraph:
        if self.full:
            self.full -= 1
            raise MemoryError("tried to allocate 20 GiB\nmore")
        outputs = function(inputs)

        def replay() -> None:
            for other in self.made:
                for tensor in other.outputs.values():
                    tensor.fill_(float("nan"))
            for name, tensor in function(inputs).items():
                outputs[name].copy_(tensor)

        size = 4 * sum(t.numel() for t in inputs.values())
        self.made.append(CapturedGraph(inputs=inputs, outputs=outputs, replay=replay, size_bytes=size))
        return self.made[-1]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(graph.inputs["x"].shape) for graph in self.made]


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def graphs(calls):
    return lambda limit_bytes=10**6: CudaGraphCache(
        lambda i: {"y": i["x"] * 2 + i["z"]}, calls, limit_bytes=limit_bytes
    )


def given(count: int, number: float = 1.0, dtype=torch.float32):
    return {"x": torch.full((count, 2), number, dtype=dtype), "z": torch.full((1,), 0.5, dtype=dtype)}


def right(out, count: int, number: float = 1.0) -> bool:
    return out["y"].shape == (count, 2) and bool((out["y"] == 2 * number + 0.5).all())


def test_each_set_of_shapes_and_types_is_captured_once(graphs, calls):
    run = graphs()
    for count, number in ((3, 1.0), (5, 2.0), (3, 3.0), (5, 4.0)):
        assert right(run(given(count, number)), count, number)
    assert calls.shapes == [(3, 2), (5, 2)]
    assert run(given(3, dtype=torch.float64))["y"].dtype == torch.float64
    assert len(calls.made) == 3


def test_inputs_and_outputs_are_the_callers(graphs):
    run, inputs = graphs(), given(3)
    first = run(inputs)
    inputs["x"].fill_(9)
    run(given(3, 7.0))
    run(given(4, 8.0))
    assert right(first, 3)


def test_they_stay_within_the_limit_and_come_back_right(graphs, calls):
    run = graphs(limit_bytes=100)  # (4 * (2 * count + 1)) bytes each
    for count in (3, 4, 5, 3):
        assert right(run(given(count)), count)
        assert run.size_bytes <= 100
    assert calls.shapes == [(3, 2), (4, 2), (5, 2), (3, 2)]
    assert right(run(given(50)), 50)  # larger than all may be, and so alone
    assert right(run(given(3)), 3)
    assert calls.shapes[-2:] == [(50, 2), (3, 2)]


def test_the_one_last_used_stays(graphs, calls):
    run = graphs(limit_bytes=80)
    for count in (3, 4, 3, 5, 3):
        run(given(count))
    assert calls.shapes == [(3, 2), (4, 2), (5, 2)]


def test_a_full_device_lets_go_of_the_others_first(graphs, calls):
    run = graphs()
    run(given(3))
    calls.full = 1
    assert right(run(given(4)), 4)
    assert calls.shapes == [(3, 2), (4, 2)]
    run(given(3))
    assert calls.shapes[-1] == (3, 2)  # it was let go of


def test_a_run_that_does_not_fit_alone_is_our_error_and_the_next_works(graphs, calls):
    run = graphs()
    calls.full = 2
    with pytest.raises(DeviceFullError, match=r"no room .*\(tried to allocate 20 GiB\); ask for smaller pictures"):
        run(given(4))
    assert right(run(given(3)), 3)


def test_a_full_device_outside_of_a_capture_is_the_same_error(graphs, calls, monkeypatch):
    """Buffers of inputs before it, and copies of outputs after it."""
    run, real = graphs(), torch.Tensor.clone
    run(given(3))
    left = [2]

    def clone(tensor):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "clone", clone)
    with pytest.raises(DeviceFullError, match=r"no room for a run of this size \(CUDA out of memory. Tried"):
        run(given(4))
    assert right(run(given(4)), 4)
    left[0] = 1  # once: the others give way, and it fits
    assert right(run(given(4)), 4)
    assert calls.shapes == [(3, 2), (4, 2), (4, 2)]


def test_a_capture_that_fails_for_room_says_what_it_came_of(graphs, calls, monkeypatch):
    def record(function, inputs):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    run = graphs()
    monkeypatch.setattr(calls, "record", record)
    with pytest.raises(DeviceFullError, match="CUDA out of memory"):
        run(given(4))

    def broken(function, inputs):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(calls, "record", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        run(given(4))


def test_a_thousand_requests_hold_no_more_than_the_limit(graphs):
    run, draw = graphs(limit_bytes=400), random.Random(0)
    for _ in range(1000):
        count, number = draw.randint(1, 12), float(draw.randint(1, 9))
        assert right(run(given(count, number)), count, number)
        assert run.size_bytes <= 400


def test_threads_get_their_own_numbers(graphs):
    run, wrong = graphs(limit_bytes=150), []

    def work(count: int) -> None:
        for number in range(1, 40):
            if not right(run(given(count, float(number))), count, float(number)):
                wrong.append((count, number))

    threads = [threading.Thread(target=work, args=(count,)) for count in (2, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
