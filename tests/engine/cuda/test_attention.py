"""The choice of an attention implementation: measured once for each shape; torch chooses if nothing can be measured."""

import pytest
import torch
from triton.runtime.errors import OutOfResources

from calotype.cuda import attention
from calotype.cuda.attention import Choices


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, 6, 8, generator=generator) for _ in "qkv"]


def expected(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)


def test_without_a_gpu_torch_chooses(qkv):
    choices = Choices(lambda run: pytest.fail("nothing can be measured"))
    assert torch.equal(choices.attend(*qkv, 0.3), expected(*qkv))
    assert torch.equal(attention.attend(*qkv, scale=0.3), expected(*qkv))
    assert choices.fastest == {}


def test_the_fastest_that_works_is_used_and_cached(qkv, monkeypatch):
    """The first implementation does not work; the other three take different times."""
    monkeypatch.setattr(attention, "_measurable", lambda: True)
    used, times = [], iter([None, 2.0, 1.0, 3.0])

    def by_torch(q, k, v, scale, backend):
        used.append(backend)
        return expected(q, k, v)

    monkeypatch.setattr(attention, "_by_torch", by_torch)
    choices = Choices(lambda run: next(times))
    for _ in range(2):
        assert torch.equal(choices.attend(*qkv, 0.3), expected(*qkv))
    (key,) = choices.fastest
    assert choices.fastest[key] == "efficient"
    assert used == [attention.TORCH_BACKENDS["efficient"]] * 2


def test_an_unsupported_kernel_is_skipped_and_a_full_device_raises(monkeypatch):
    def failing(error):
        def bench(run, **options):
            raise error

        monkeypatch.setattr(attention, "do_bench", bench)
        return attention._on_gpu(lambda: None)

    assert failing(OutOfResources(300_000, 200_000, "shared memory")) is None
    assert failing(RuntimeError("no kernel for these")) is None
    with pytest.raises(torch.OutOfMemoryError):
        failing(torch.OutOfMemoryError("full"))


def test_torch_chooses_if_no_implementation_works(qkv, monkeypatch):
    monkeypatch.setattr(attention, "_measurable", lambda: True)
    choices = Choices(lambda run: None)
    assert torch.equal(choices.attend(*qkv, 0.3), expected(*qkv))
    assert list(choices.fastest.values()) == [None]
