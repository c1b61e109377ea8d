"""The choice of an attention implementation: compared and measured once for each shape, and stored."""

import threading
from functools import partial

import pytest
import torch
from torch.nn import attention as switches
from triton.runtime.errors import OutOfResources

from calotype.cuda import attention
from calotype.cuda.attention import Choices
from calotype.kernels import attention as ours


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, 6, 8, generator=generator) for _ in "qkv"]


@pytest.fixture
def kernels(monkeypatch):
    """Every implementation computes the formula; `kernels` counts calls by name."""
    monkeypatch.setattr(attention, "_measurable", lambda: True)
    calls = dict.fromkeys(("cudnn", "flash", "efficient", "triton"), 0)

    def right(name, q, k, v, scale):
        calls[name] += 1
        return ours.reference(q, k, v, scale=scale).to(q.dtype)

    for name in attention.TORCH_KERNELS:
        monkeypatch.setitem(attention.TORCH_KERNELS, name, partial(right, name))
    monkeypatch.setattr(ours, "attention", lambda q, k, v, scale: right("triton", q, k, v, scale))
    return calls


def expected(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)


def in_turn(*times):
    """Return a clock: the first implementation takes the first time, and so on."""
    left = iter(times)
    return lambda run: next(left)


def test_without_a_gpu_torch_chooses(qkv):
    choices = Choices(lambda run: pytest.fail("nothing can be measured"))
    assert torch.equal(choices.attend(*qkv, 0.3), expected(*qkv))
    assert torch.equal(attention.attend(*qkv, scale=0.3), expected(*qkv))
    assert choices.fastest == {}


def test_the_fastest_that_works_is_used_and_cached(qkv, kernels):
    """The first implementation does not work; the other three take different times."""
    choices = Choices(in_turn(None, 2.0, 1.0, 3.0))
    for _ in range(2):
        torch.testing.assert_close(choices.attend(*qkv, 0.3), expected(*qkv))
    assert list(choices.fastest.values()) == ["efficient"]
    assert kernels == {"cudnn": 1, "flash": 1, "efficient": 3, "triton": 1}


@pytest.mark.parametrize("fault", ["wrong", "nan", "of another order"])
def test_a_wrong_result_is_never_used_however_fast(qkv, kernels, monkeypatch, fault):
    def fast(q, k, v, scale):
        out = ours.reference(q, k, v, scale=scale)
        return {"wrong": out * 1.01, "nan": out * float("nan"), "of another order": out.flip(1)}[fault]

    monkeypatch.setitem(attention.TORCH_KERNELS, "flash", fast)
    choices = Choices(in_turn(2.0, 1.0, 3.0))  # the wrong one is not measured
    torch.testing.assert_close(choices.attend(*qkv, 0.3), expected(*qkv))
    assert list(choices.fastest.values()) == ["efficient"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_of_half_types_is_not_wrong(qkv, kernels, dtype):
    choices = Choices(in_turn(1.0, 2.0, 3.0, 4.0))
    choices.attend(*(t.to(dtype) for t in qkv), 0.3)
    assert list(choices.fastest.values()) == ["cudnn"]


def test_an_unsupported_kernel_is_skipped_and_a_full_device_raises(qkv, kernels, monkeypatch):
    def failing(error):
        def raises(*args):
            raise error

        monkeypatch.setattr(attention, "graph_seconds", raises)
        measured = attention._on_gpu(lambda: None)
        monkeypatch.setitem(attention.TORCH_KERNELS, "cudnn", raises)
        Choices(lambda run: 1.0).attend(*qkv, 0.3)
        return measured

    assert failing(OutOfResources(300_000, 200_000, "shared memory")) is None
    assert failing(RuntimeError("no kernel for these")) is None
    with pytest.raises(torch.OutOfMemoryError):
        failing(torch.OutOfMemoryError("full"))


def test_a_full_device_stores_nothing(qkv, kernels, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setitem(attention.TORCH_KERNELS, "cudnn", full)
    choices = Choices(lambda run: 1.0)
    with pytest.raises(torch.OutOfMemoryError):
        choices.attend(*qkv, 0.3)
    assert choices.fastest == {}


def test_torch_chooses_if_no_implementation_works(qkv, kernels):
    choices = Choices(lambda run: None)
    assert torch.equal(choices.attend(*qkv, 0.3), expected(*qkv))
    assert list(choices.fastest.values()) == [None]


def test_another_process_does_not_measure_again(qkv, kernels, tmp_path):
    path = tmp_path / "attention" / "card.json"
    Choices(in_turn(4.0, 3.0, 1.0, 2.0), lambda: path).attend(*qkv, 0.3)
    other = Choices(lambda run: pytest.fail("it is stored"), lambda: path)
    other.attend(*qkv, 0.3)
    assert list(other.fastest.values()) == ["efficient"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"x": "unknown"}', None])
def test_a_damaged_store_is_measured_again(qkv, kernels, tmp_path, content):
    """None: the folder cannot be created."""
    path = tmp_path / "card.json"
    if content is None:
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "card.json"
    else:
        path.write_bytes(content)
    choices = Choices(in_turn(1.0, 2.0, 3.0, 4.0), lambda: path)
    choices.attend(*qkv, 0.3)
    assert list(choices.fastest.values()) == ["cudnn"]


def test_an_unknown_stored_name_is_measured_again(qkv, kernels, tmp_path):
    path = tmp_path / "card.json"
    key = repr((tuple(qkv[0].shape), tuple(qkv[1].shape), torch.float32))
    path.write_text(f'{{"{key}": "flash9"}}')
    choices = Choices(in_turn(1.0, 2.0, 3.0, 4.0), lambda: path)
    choices.attend(*qkv, 0.3)
    assert list(choices.fastest.values()) == ["cudnn"]


def test_no_switch_of_the_process_changes(qkv, kernels, monkeypatch):
    """Another thread's attention would see it."""
    monkeypatch.setattr(switches, "sdpa_kernel", lambda *_: pytest.fail("a switch of the process"))
    Choices(in_turn(1.0, 2.0, 3.0, 4.0)).attend(*qkv, 0.3)
    assert not hasattr(attention, "sdpa_kernel")


def test_a_capture_that_measures_and_a_run_that_measures_do_not_wait_for_each_other(qkv, kernels):
    """A capture holds the lock of captures and asks for a choice; a run of another thread does both as well."""
    inside, choices = threading.Event(), Choices(lambda run: 1.0)

    def capturing() -> None:
        with attention.CAPTURES:
            inside.set()
            choices.attend(*qkv, 0.3)

    threads = [threading.Thread(target=capturing, daemon=True)]
    threads[0].start()
    inside.wait(5)
    threads.append(threading.Thread(target=lambda: choices.attend(*qkv, 0.3), daemon=True))
    threads[1].start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("scores", [1, 40, 1 << 20])
def test_products_of_some_rows_at_a_time_equal_the_formula(scores, monkeypatch):
    """An autoencoder's one head of 512; the parts have one row, a few, or all."""
    monkeypatch.setattr(attention, "_SCORES", scores)
    packed = torch.randn(2, 9, 3 * 160, generator=torch.Generator().manual_seed(0)).chunk(3, dim=-1)
    q, k, v = (part.view(2, 9, 1, 160).transpose(1, 2) for part in packed)
    got = attention._products(q, k, v, 0.1)
    torch.testing.assert_close(got, ours.reference(q, k, v, scale=0.1))


def test_wide_heads_are_compared_with_products(kernels, monkeypatch):
    q = torch.randn(1, 1, 6, 160, generator=torch.Generator().manual_seed(0))
    choices = Choices(in_turn(None, None, 2.0, 1.0))
    torch.testing.assert_close(choices.attend(q, q, q, 0.1), ours.reference(q, q, q, scale=0.1))
    assert list(choices.fastest.values()) == ["products"]
