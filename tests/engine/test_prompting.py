"""Long prompts, weights, skipped layers and rescaled guidance: parity with diffusers."""

import diffusers
import numpy as np
import pytest
import torch

from calotype.export.quality.metrics import psnr
from calotype.report.like import read_like
from tests.helpers.parity import MIN_DB

PROMPT = "a large red circle on a blue background"
LONG = ", ".join(["a large green star above a small red ring on a white background"] * 14)  # 182 tokens


@pytest.fixture(scope="module")
def diffusers_pipe(demo_folder):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        demo_folder, dtype=torch.float32, safety_checker=None, low_cpu_mem_usage=False
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


def expected_from(diffusers_pipe, **arguments):
    generator = [torch.Generator().manual_seed(3)]
    return diffusers_pipe(
        num_inference_steps=6, generator=generator, output_type="np", **{"guidance_scale": 5.0, **arguments}
    ).images


def check_parity(pipes, expected, prompt, **arguments):
    assert expected.std() > 0.05
    for backend, min_db in MIN_DB.items():
        got = pipes[backend](prompt, steps=6, seed=3, scheduler="ddim", output_type="np", **arguments)
        assert psnr(got.images, expected) >= min_db, backend
        assert got.report.notes == ()


def encoded(diffusers_pipe, *chunks):
    """Encode chunks of words one by one, and join their states.  # [1, 77 n, W]"""
    ids = diffusers_pipe.tokenizer(list(chunks), padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.inference_mode():
        return diffusers_pipe.text_encoder(ids).last_hidden_state.flatten(0, 1)[None]


def chunks_of(diffusers_pipe, prompt):
    words = diffusers_pipe.tokenizer(prompt, add_special_tokens=False).input_ids
    return [diffusers_pipe.tokenizer.decode(words[i : i + 75]) for i in range(0, len(words), 75)]


def test_a_long_prompt_is_encoded_in_chunks(diffusers_pipe, pipes):
    chunks = chunks_of(diffusers_pipe, LONG)
    assert len(chunks) == 3
    embeds = {
        "prompt_embeds": encoded(diffusers_pipe, *chunks),
        "negative_prompt_embeds": encoded(diffusers_pipe, "a blue ring", "", ""),
    }
    check_parity(pipes, expected_from(diffusers_pipe, **embeds), LONG, negative_prompt="a blue ring")


def test_a_batch_of_a_long_and_a_short_one(diffusers_pipe, pipes):
    embeds = {
        "prompt_embeds": torch.cat(
            [encoded(diffusers_pipe, *chunks_of(diffusers_pipe, LONG)), encoded(diffusers_pipe, PROMPT, "", "")]
        ),
        "negative_prompt_embeds": torch.cat([encoded(diffusers_pipe, "", "", "")] * 2),
    }
    generator = [torch.Generator().manual_seed(s) for s in (3, 4)]
    expected = diffusers_pipe(
        num_inference_steps=4, generator=generator, guidance_scale=5.0, output_type="np", **embeds
    ).images
    got = pipes["eager"]([LONG, PROMPT], steps=4, seed=3, scheduler="ddim", output_type="np").images
    assert psnr(got, expected) >= 60


def test_weights_scale_states_and_keep_their_mean(diffusers_pipe, pipes):
    states = encoded(diffusers_pipe, PROMPT)
    weighted = states.clone()
    weighted[:, 3] *= 1.3  # start, a, large, red
    weighted *= states.mean() / weighted.mean()
    embeds = {"prompt_embeds": weighted, "negative_prompt_embeds": encoded(diffusers_pipe, "")}
    expected = expected_from(diffusers_pipe, **embeds)
    check_parity(pipes, expected, PROMPT.replace("red", "(red:1.3)"))
    plain = pipes["eager"](PROMPT, steps=6, seed=3, scheduler="ddim", output_type="np").images
    assert psnr(plain, expected) < 50
    same = pipes["eager"](PROMPT.replace("red", "(red:1.0)"), steps=6, seed=3, scheduler="ddim", output_type="np")
    np.testing.assert_array_equal(same.images, plain)


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_skipped_layers(diffusers_pipe, pipes, clip_skip):
    def states(prompt):
        """Encode as diffusers' `encode_prompt`, which needs a `text_model` that transformers 5 lacks."""
        ids = diffusers_pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.inference_mode():
            state = diffusers_pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
            return getattr(diffusers_pipe.text_encoder, "text_model", diffusers_pipe.text_encoder).final_layer_norm(
                state
            )

    negative = encoded(diffusers_pipe, "a blue ring")  # skips no layer
    expected = expected_from(diffusers_pipe, prompt_embeds=states(PROMPT), negative_prompt_embeds=negative)
    check_parity(pipes, expected, PROMPT, clip_skip=clip_skip, negative_prompt="a blue ring")
    plain = pipes["eager"](PROMPT, steps=6, seed=3, scheduler="ddim", output_type="np", clip_skip=0).images
    assert psnr(plain, expected) < 50


@pytest.mark.parametrize("guidance_rescale", [0.7, 1.0])
def test_rescaled_guidance(diffusers_pipe, pipes, guidance_rescale):
    arguments = {"guidance_rescale": guidance_rescale, "guidance_scale": 7.5}
    check_parity(pipes, expected_from(diffusers_pipe, prompt=PROMPT, **arguments), PROMPT, **arguments)


def test_a_png_contains_prompt_settings(pipes, tmp_path):
    arguments = {"guidance_rescale": 0.5, "clip_skip": 1}
    pipes["eager"](PROMPT, steps=1, seed=3, **arguments).images[0].save(tmp_path / "a.png")
    settings = read_like(tmp_path / "a.png", (), loras_named=False, model_named=False).arguments
    assert {name: settings[name] for name in arguments} == arguments
