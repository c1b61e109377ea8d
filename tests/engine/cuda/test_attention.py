"""The choice of an attention: measured once for a shape, and torch's own where nothing can be measured."""

import pytest
import torch
from triton.runtime.errors import OutOfResources

from calotype.cuda import attention
from calotype.cuda.attention import Choices


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, 6, 8, generator=generator) for _ in "qkv"]


def wanted(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)


def test_without_a_gpu_it_is_torchs_own_choice(qkv):
    choices = Choices(lambda run: pytest.fail("nothing can be measured"))
    assert torch.equal(choices.attend(*qkv, 0.3), wanted(*qkv))
    assert torch.equal(attention.attend(*qkv, scale=0.3), wanted(*qkv))
    assert choices.found == {}


def test_the_fastest_that_works_is_taken_and_kept(qkv, monkeypatch):
    """In the order in which they are tried: one that does not work here, and three that take some time."""
    monkeypatch.setattr(attention, "_measurable", lambda: True)
    asked, took = [], iter([None, 2.0, 1.0, 3.0])

    def by_torch(q, k, v, scale, backend):
        asked.append(backend)
        return wanted(q, k, v)

    monkeypatch.setattr(attention, "_by_torch", by_torch)
    choices = Choices(lambda run: next(took))
    for _ in range(2):
        assert torch.equal(choices.attend(*qkv, 0.3), wanted(*qkv))
    (key,) = choices.found
    assert choices.found[key] == "efficient"
    assert asked == [attention.TORCHS["efficient"]] * 2


def test_a_kernel_that_does_not_fit_loses_and_a_full_device_is_told(monkeypatch):
    def failing(error):
        def bench(run, **said):
            raise error

        monkeypatch.setattr(attention, "do_bench", bench)
        return attention._on_gpu(lambda: None)

    assert failing(OutOfResources(300_000, 200_000, "shared memory")) is None
    assert failing(RuntimeError("no kernel for these")) is None
    with pytest.raises(torch.OutOfMemoryError):
        failing(torch.OutOfMemoryError("full"))


def test_where_none_works_it_is_torchs_own_choice(qkv, monkeypatch):
    monkeypatch.setattr(attention, "_measurable", lambda: True)
    choices = Choices(lambda run: None)
    assert torch.equal(choices.attend(*qkv, 0.3), wanted(*qkv))
    assert list(choices.found.values()) == [None]
