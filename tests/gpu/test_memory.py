"""A GPU's memory: graphs of many sizes do not add up, and a full device raises an error and still works."""

import random
import threading

import pytest
import torch

from calotype.cuda.graphs import CudaGraphCache, CudaGraphCapturer
from calotype.errors import BackendError

LIMIT = 2**28
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this is about a GPU's memory")


@pytest.fixture
def layer():
    return torch.nn.Conv2d(8, 8, 3, padding=1, device="cuda").requires_grad_(False)


@pytest.fixture
def graphs(layer):
    return CudaGraphCache(lambda i: {"y": layer(layer(i["x"]).relu())}, CudaGraphCapturer(), limit_bytes=LIMIT)


def image_tensor(side, number=1.0):
    return {"x": torch.full((1, 8, side, side), number, device="cuda")}


def test_a_thousand_random_requests_are_right_and_memory_does_not_grow(graphs, layer):
    draw, peak = random.Random(0), 0
    for i in range(1000):
        inputs = image_tensor(16 * draw.randint(1, 24), draw.random())
        got = graphs(inputs)["y"]
        if i % 50 == 0:
            torch.testing.assert_close(got, layer(layer(inputs["x"]).relu()), rtol=1e-3, atol=1e-3)
        reserved = torch.cuda.memory_reserved()
        if i < 500:
            peak = max(peak, reserved)
        else:
            assert reserved <= peak * 1.1


def test_a_full_device_raises_and_the_next_run_works(graphs):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
    try:
        with pytest.raises(BackendError, match="no room"):
            graphs(image_tensor(4096))  # five tensors of half a gigabyte each
        assert torch.isfinite(graphs(image_tensor(64))["y"]).all()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_threads_get_their_own_outputs(graphs, layer):
    wrong = []

    def work(side: int) -> None:
        for number in range(1, 30):
            inputs = image_tensor(side, float(number))
            got = graphs(inputs)["y"]
            if not torch.allclose(got, layer(layer(inputs["x"]).relu()), rtol=1e-3, atol=1e-2):
                wrong.append((side, number))

    threads = [threading.Thread(target=work, args=(side,)) for side in (16, 32, 48, 64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
