"""Memory of networks that ran at many sizes: the size in use, and a limited amount for the others."""

from types import SimpleNamespace

import numpy as np
import pytest

from calotype.backends.openvino import shapes as shapes_module
from calotype.backends.openvino.shapes import CompiledShapes
from calotype.system.memory import frees_after_run

MIB = 1 << 20


class CachedShape:
    """A compiled shape that counts how often its buffers were freed."""

    def __init__(self, tensor_bytes=0):
        self.freed, self.requests = 0, [SimpleNamespace(tensor_bytes=tensor_bytes)]

    def release(self):
        self.freed += 1


@pytest.mark.parametrize(
    ("weights", "tensors", "on_disk", "count"),
    [
        (1 * MIB, 0, True, shapes_module._MAX_SHAPES),  # a small network: the count bounds it
        (8 * MIB, 1 * MIB, True, 3),  # 24 + 8 MiB a shape
        (64 * MIB, 0, True, shapes_module._MIN_SHAPES),  # two alternating sizes stay
        (64 * MIB, 0, False, shapes_module._MAX_SHAPES),  # compiling it again takes seconds
    ],
)
def test_shapes_are_bounded_by_bytes_where_they_can_be_read_back(monkeypatch, weights, tensors, on_disk, count):
    monkeypatch.setattr(shapes_module, "available_bytes", lambda: None)
    shapes = CompiledShapes(weights, on_disk=on_disk)
    for key in "abcdef":
        shapes(key, lambda: CachedShape(tensors))
    assert len(shapes) == count


def test_only_the_shape_in_use_keeps_its_buffers(monkeypatch):
    monkeypatch.setattr(shapes_module, "available_bytes", lambda: None)
    shapes = CompiledShapes(1, on_disk=True)
    a, b = (shapes(key, CachedShape) for key in "ab")
    assert (a.freed, b.freed) == (1, 0)
    shapes("b", CachedShape)
    assert (a.freed, b.freed) == (1, 0)
    assert shapes("a", CachedShape) is a
    assert (a.freed, b.freed) == (1, 1)


def test_an_autoencoder_frees_what_large_images_took():
    small, large = np.zeros((1, 3, 128, 128), np.float32), np.zeros((1, 3, 512, 512), np.float32)
    assert [frees_after_run("vae_decoder", [a]) for a in (small, large)] == [False, True]
    assert not frees_after_run("unet", [large])


def test_onnx_runtime_frees_its_arena_when_the_size_changes(pipe, monkeypatch):
    """It keeps the arena at a constant size, as the next run would allocate it again."""
    runner, options = pipe.component("vae_decoder").runner, []
    session = runner._session

    def run(names, inputs, run_options):
        options.append(run_options is not None)
        return session.run(names, inputs, run_options)

    monkeypatch.setattr(runner, "_session", SimpleNamespace(run=run))
    for side in (8, 8, 10, 10, 8, 40, 40, 40):
        runner({"latent_sample": np.zeros((1, 4, side, side), np.float32)})
    assert options[1:] == [False, True, False, True, True, True, True]


def test_streams_of_two_sizes_that_take_turns_generate_the_same(pipes):
    """Each stream's step frees the buffers of the other."""
    sizes = [{"height": side, "width": side, "steps": 4, "seed": 1, "output_type": "np"} for side in (64, 128)]
    for backend in ("openvino", "onnxruntime"):
        alone = [pipes[backend]("x", **size).images for size in sizes]
        events = [pipes[backend].stream("x", **size) for size in sizes]
        last = list(zip(*events, strict=True))[-1]
        for event, expected in zip(last, alone, strict=True):
            np.testing.assert_array_equal(event.result.images, expected)
