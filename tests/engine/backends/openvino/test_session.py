"""The partitioned denoiser: images stay the same, whatever it precomputes or shares, unless a setting changes them."""

import numpy as np
import pytest

import calotype
from calotype.backends.openvino import requests
from calotype.backends.openvino.rewrites import PIECES
from calotype.backends.openvino.session import CompiledPartition, OpenVinoSession
from calotype.errors import InputError
from calotype.export.quality.metrics import psnr
from calotype.images.png import settings_of
from calotype.system.switches import DISABLE_VARIABLE

PROMPT = "a large red circle on a blue background"
SETTINGS = {"steps": 3, "seed": 3, "output_type": "np", "height": 64, "width": 96}


@pytest.fixture(scope="module")
def pipe(pipes):
    return pipes["openvino"]


@pytest.fixture(scope="module")
def full(pipe):
    """The image with all optimizations."""
    return pipe(PROMPT, **SETTINGS).images


@pytest.mark.parametrize("piece", [*PIECES, ",".join(PIECES)])
def test_each_optimization_leaves_the_image_as_it_is(full, piece, monkeypatch):
    monkeypatch.setenv(DISABLE_VARIABLE, piece)
    assert psnr(calotype.load("demo", backend="openvino")(PROMPT, **SETTINGS).images, full) > 90


def test_guidance_and_none_and_equal_halves(pipes, pipe):
    for more in ({"guidance_scale": 1.0}, {"negative_prompt": PROMPT}, {"negative_prompt": "a star"}):
        assert psnr(pipe(PROMPT, **SETTINGS, **more).images, pipes["eager"](PROMPT, **SETTINGS, **more).images) > 50


def test_a_long_schedule_equals_eager(pipes, pipe):
    settings = SETTINGS | {"steps": 40}
    assert psnr(pipe(PROMPT, **settings).images, pipes["eager"](PROMPT, **settings).images) > 50


def test_a_batch_of_any_size_equals_its_single_images(pipe):
    seeds = [5, 9, 13]
    together = pipe([PROMPT] * 3, **SETTINGS | {"seed": seeds}).images
    for seed, image in zip(seeds, together, strict=True):
        assert psnr(pipe(PROMPT, **SETTINGS | {"seed": seed}).images[0], image) > 80


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (1, 4), (2, 4), (3, 4), (4, 3)])
def test_any_number_of_threads_generates_the_same(pipe, count, threads, monkeypatch):
    settings = SETTINGS | {"seed": list(range(count))}
    expected = pipe([PROMPT] * count, **settings).images
    monkeypatch.setattr(requests, "_threads", lambda: threads)
    assert psnr(calotype.load("demo", backend="openvino")([PROMPT] * count, **settings).images, expected) > 80


def test_the_time_table_of_a_schedule_is_computed_once(pipe, full, monkeypatch):
    pipe(PROMPT, **SETTINGS)  # fills the cache
    computed = []
    time_table = CompiledPartition._time_table
    monkeypatch.setattr(CompiledPartition, "_time_table", lambda *args: computed.append(1) or time_table(*args))
    np.testing.assert_array_equal(pipe(PROMPT, **SETTINGS).images, full)
    assert not computed
    pipe(PROMPT, **SETTINGS | {"steps": 2})
    assert computed


def test_two_streams_that_take_turns_generate_the_same(pipe, full):
    other = pipe("a small green star", **SETTINGS).images
    streams = [pipe.stream(prompt, **SETTINGS) for prompt in (PROMPT, "a small green star")]
    for pair in zip(*streams, strict=True):
        last = pair
    np.testing.assert_array_equal(last[0].result.images, full)
    np.testing.assert_array_equal(last[1].result.images, other)


def test_an_interrupted_call_leaves_other_streams_alone(pipe, full, monkeypatch):
    stream = pipe.stream(PROMPT, **SETTINGS)
    next(stream)
    run_step = OpenVinoSession._run_step

    def interrupted(self, parts, call, groups):
        run_step(self, parts, call, groups)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OpenVinoSession, "_run_step", interrupted)
        pipe("a small green star", **SETTINGS)
    *_, last = stream
    np.testing.assert_array_equal(last.result.images, full)


def test_deep_layers_are_never_older_than_the_cache_interval(pipe, monkeypatch):
    """Also if guidance begins and ends in between: each of the two sessions has its own deep layers."""
    ages = []
    run_step = OpenVinoSession._run_step

    def record(self, parts, call, groups):
        got = run_step(self, parts, call, groups)
        ages.append(call - self._deep_call)
        return got

    monkeypatch.setattr(OpenVinoSession, "_run_step", record)
    pipe(PROMPT, **SETTINGS | {"steps": 12}, cache_interval=3, guidance_interval=(0.1, 0.8))
    assert len(ages) == 12
    assert max(ages) == 2


def test_a_repeated_prompt_is_not_encoded_again(pipe, monkeypatch):
    encoder = pipe.component("text_encoder")
    calls, run = [], encoder.runner.__call__
    pipe("a purple cross on a cyan background", **SETTINGS)  # caches the empty negative prompt too

    def counted(self, inputs):
        calls.append(len(inputs["input_ids"]))
        return run(inputs)

    monkeypatch.setattr(type(encoder.runner), "__call__", counted)
    monkeypatch.setattr(
        pipe._generator.codec, "decode", lambda latents, tiling: np.zeros((len(latents), 3, 8, 8), np.float32)
    )
    pipe("a purple cross on a cyan background", **SETTINGS)
    assert calls == []
    pipe(["a purple cross on a cyan background", "an orange ring"], **SETTINGS)
    assert calls == [1]


def test_reused_deep_layers_change_the_image_a_little(pipe, full):
    settings = SETTINGS | {"steps": 20, "output_type": "pil"}
    result = pipe(PROMPT, **settings, cache_interval=2)
    exact = np.asarray(pipe(PROMPT, **settings).images[0])
    figure = psnr(np.asarray(result.images[0]) / 255, exact / 255)
    assert 15 < figure < 60  # another image of the same scene
    assert any("cache_interval" in note for note in result.report.notes)
    assert result.images[0].info["cache_interval"] == "2"
    np.testing.assert_array_equal(pipe(PROMPT, **SETTINGS, cache_interval=1).images, full)


def test_each_image_of_a_batch_has_its_own_deep_layers(pipe):
    settings = SETTINGS | {"steps": 4, "seed": [5, 9], "cache_interval": 2}
    together = pipe([PROMPT] * 2, **settings).images
    alone = pipe(PROMPT, **settings | {"seed": 9}).images[0]
    assert psnr(alone, together[1]) > 80


def test_other_backends_refuse_a_cache_interval(pipes):
    with pytest.raises(InputError, match="openvino"):
        pipes["eager"](PROMPT, **SETTINGS, cache_interval=2)


def test_guidance_for_a_part_of_the_schedule(pipes, pipe, full, tmp_path):
    settings = SETTINGS | {"steps": 6, "guidance_interval": (0.2, 0.7)}
    got = pipe(PROMPT, **settings)
    assert psnr(got.images, pipes["eager"](PROMPT, **settings).images) > 50
    assert psnr(got.images, pipe(PROMPT, **settings | {"guidance_interval": (0, 1)}).images) < 60
    assert any("guidance_interval" in note for note in got.report.notes)
    pipe(PROMPT, **settings | {"output_type": "pil"}).images[0].save(tmp_path / "a.png")
    assert settings_of(tmp_path / "a.png")["guidance_interval"] == "[0.2, 0.7]"
    np.testing.assert_array_equal(pipe(PROMPT, **SETTINGS, guidance_interval=(0, 1)).images, full)


@pytest.mark.parametrize("wrong", [(0.5,), (0.7, 0.2), (0.2, 1.4), "0-1", None, (0.1, "x")])
def test_wrong_guidance_intervals_are_refused(pipe, wrong):
    with pytest.raises(InputError, match="guidance_interval"):
        pipe(PROMPT, **SETTINGS, guidance_interval=wrong)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2"])
def test_wrong_cache_intervals_are_refused(pipe, wrong):
    with pytest.raises(InputError, match="cache_interval"):
        pipe(PROMPT, **SETTINGS, cache_interval=wrong)
