"""A denoiser taken apart: the same pictures, whatever is computed once or shared; and others only where asked for."""

import numpy as np
import pytest

import calotype
from calotype.backends.openvino import requests as vino_request
from calotype.backends.openvino.rewrites import DISABLE_VARIABLE, PIECES
from calotype.backends.openvino.session import OpenVinoSession
from calotype.errors import InputError
from calotype.export.quality.metrics import psnr
from calotype.images.png import settings_of

PROMPT = "a large red circle on a blue background"
SAID = {"steps": 3, "seed": 3, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe(pipes):
    return pipes["openvino"]


@pytest.fixture(scope="module")
def whole(pipe):
    """The picture as it is painted with nothing left out."""
    return pipe(PROMPT, **SAID).images


@pytest.mark.parametrize("piece", [*PIECES, ",".join(PIECES)])
def test_each_piece_leaves_the_picture_as_it_is(whole, piece, monkeypatch):
    monkeypatch.setenv(DISABLE_VARIABLE, piece)
    assert psnr(calotype.load("demo", backend="openvino")(PROMPT, **SAID).images, whole) > 90


def test_guidance_and_none_and_equal_halves(pipes, pipe):
    for said in ({"guidance_scale": 1.0}, {"negative_prompt": PROMPT}, {"negative_prompt": "a star"}):
        assert psnr(pipe(PROMPT, **SAID, **said).images, pipes["eager"](PROMPT, **SAID, **said).images) > 50


def test_more_calls_than_are_timed_at_once(pipe, monkeypatch):
    said = SAID | {"steps": 40}
    got = pipe(PROMPT, **said).images
    monkeypatch.setenv(DISABLE_VARIABLE, "time_table")
    assert psnr(pipe(PROMPT, **said).images, got) > 90


def test_batches_of_any_number_are_their_pictures(pipe):
    seeds = [5, 9, 13]
    together = pipe([PROMPT] * 3, **SAID | {"seed": seeds}).images
    for seed, picture in zip(seeds, together, strict=True):
        assert psnr(pipe(PROMPT, **SAID | {"seed": seed}).images[0], picture) > 80


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (1, 4), (2, 4), (3, 4), (4, 3)])
def test_any_number_of_threads_paints_the_same(pipe, count, threads, monkeypatch):
    said = SAID | {"seed": list(range(count))}
    wanted = pipe([PROMPT] * count, **said).images
    monkeypatch.setattr(vino_request, "_threads", lambda: threads)
    assert psnr(calotype.load("demo", backend="openvino")([PROMPT] * count, **said).images, wanted) > 80


def test_a_schedule_is_worked_out_once(pipe, whole, monkeypatch):
    pipe(PROMPT, **SAID)  # whatever was painted, and let go of, before
    worked = []
    of_times = OpenVinoSession._of_times
    monkeypatch.setattr(OpenVinoSession, "_of_times", lambda *given: worked.append(1) or of_times(*given))
    np.testing.assert_array_equal(pipe(PROMPT, **SAID).images, whole)
    assert not worked
    pipe(PROMPT, **SAID | {"steps": 2})
    assert worked


def test_two_pictures_that_take_turns(pipe, whole):
    other = pipe("a small green star", **SAID).images
    streams = [pipe.stream(prompt, **SAID) for prompt in (PROMPT, "a small green star")]
    for pair in zip(*streams, strict=True):
        last = pair
    np.testing.assert_array_equal(last[0].result.images, whole)
    np.testing.assert_array_equal(last[1].result.images, other)


def test_a_picture_that_ends_while_it_begins_leaves_others_alone(pipe, whole, monkeypatch):
    stream = pipe.stream(PROMPT, **SAID)
    next(stream)
    begin = OpenVinoSession._begin

    def interrupted(self, stages):
        begin(self, stages)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OpenVinoSession, "_begin", interrupted)
        pipe("a small green star", **SAID)
    *_, last = stream
    np.testing.assert_array_equal(last.result.images, whole)


def test_deep_layers_are_never_older_than_was_asked_for(pipe, monkeypatch):
    """Also where guidance begins and ends between: each of the two series has its own."""
    ages = []
    each = OpenVinoSession._each

    def noted(self, stages, call, inputs):
        got = each(self, stages, call, inputs)
        ages.append(call - self._deepened)
        return got

    monkeypatch.setattr(OpenVinoSession, "_each", noted)
    pipe(PROMPT, **SAID | {"steps": 12}, cache_interval=3, guidance_interval=(0.1, 0.8))
    assert len(ages) == 12
    assert max(ages) == 2


def test_a_repeated_prompt_is_not_encoded_again(pipe, monkeypatch):
    encoder = pipe.component("text_encoder")
    calls, run = [], encoder.runner.__call__
    pipe("a purple cross on a cyan background", **SAID)  # the empty negative prompt is known already

    def counted(self, inputs):
        calls.append(len(inputs["input_ids"]))
        return run(inputs)

    monkeypatch.setattr(type(encoder.runner), "__call__", counted)
    monkeypatch.setattr(pipe._codec, "decode", lambda latents, tiling: np.zeros((len(latents), 3, 8, 8), np.float32))
    pipe("a purple cross on a cyan background", **SAID)
    assert calls == []
    pipe(["a purple cross on a cyan background", "an orange ring"], **SAID)
    assert calls == [1]


def test_deep_layers_that_are_used_again(pipe, whole):
    said = SAID | {"steps": 20, "output_type": "pil"}
    result = pipe(PROMPT, **said, cache_interval=2)
    exact = np.asarray(pipe(PROMPT, **said).images[0])
    figure = psnr(np.asarray(result.images[0]) / 255, exact / 255)
    assert 15 < figure < 60  # another picture, and the same scene
    assert any("cache_interval" in note for note in result.report.notes)
    assert result.images[0].info["cache_interval"] == "2"
    np.testing.assert_array_equal(pipe(PROMPT, **SAID, cache_interval=1).images, whole)


def test_deep_layers_in_a_batch_are_each_pictures_own(pipe):
    said = SAID | {"steps": 4, "seed": [5, 9], "cache_interval": 2}
    together = pipe([PROMPT] * 2, **said).images
    alone = pipe(PROMPT, **said | {"seed": 9}).images[0]
    assert psnr(alone, together[1]) > 80


def test_other_backends_say_that_they_use_nothing_again(pipes):
    with pytest.raises(InputError, match="openvino"):
        pipes["eager"](PROMPT, **SAID, cache_interval=2)


def test_guidance_for_a_part_of_the_way(pipes, pipe, whole, tmp_path):
    said = SAID | {"steps": 6, "guidance_interval": (0.2, 0.7)}
    got = pipe(PROMPT, **said)
    assert psnr(got.images, pipes["eager"](PROMPT, **said).images) > 50
    assert psnr(got.images, pipe(PROMPT, **said | {"guidance_interval": (0, 1)}).images) < 60
    assert any("guidance_interval" in note for note in got.report.notes)
    pipe(PROMPT, **said | {"output_type": "pil"}).images[0].save(tmp_path / "a.png")
    assert settings_of(tmp_path / "a.png")["guidance_interval"] == "[0.2, 0.7]"
    np.testing.assert_array_equal(pipe(PROMPT, **SAID, guidance_interval=(0, 1)).images, whole)


@pytest.mark.parametrize("wrong", [(0.5,), (0.7, 0.2), (0.2, 1.4), "0-1", None, (0.1, "x")])
def test_intervals_that_are_none(pipe, wrong):
    with pytest.raises(InputError, match="guidance_interval"):
        pipe(PROMPT, **SAID, guidance_interval=wrong)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2"])
def test_numbers_of_steps_that_are_none(pipe, wrong):
    with pytest.raises(InputError, match="cache_interval"):
        pipe(PROMPT, **SAID, cache_interval=wrong)
