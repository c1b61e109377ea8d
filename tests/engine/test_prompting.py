"""Long prompts, weights, skipped layers and rescaled guidance: the pictures that diffusers makes of the same."""

import diffusers
import numpy as np
import pytest
import torch

from calotype.export.quality.metrics import psnr

# diffusers gives tensors of torch to functions of numpy, about which numpy 2 has its doubts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

LEAST_DB = {"eager": 60, "onnxruntime": 50, "openvino": 50}
PROMPT = "a large red circle on a blue background"
LONG = ", ".join(["a large green star above a small red ring on a white background"] * 14)  # 182 tokens


@pytest.fixture(scope="module")
def elder(demo_folder):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        demo_folder, dtype=torch.float32, safety_checker=None, low_cpu_mem_usage=False
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


def wanted_from(elder, **said):
    generator = [torch.Generator().manual_seed(3)]
    return elder(num_inference_steps=6, generator=generator, output_type="np", **{"guidance_scale": 5.0, **said}).images


def held(pipes, wanted, prompt, **said):
    assert wanted.std() > 0.05
    for backend, least in LEAST_DB.items():
        got = pipes[backend](prompt, steps=6, seed=3, scheduler="ddim", output_type="np", **said)
        assert psnr(got.images, wanted) >= least, backend
        assert got.report.notes == ()


def encoded(elder, *chunks):
    """Chunks of words through the text encoder, each by itself, side by side.  # [1, 77 n, W]"""
    ids = elder.tokenizer(list(chunks), padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.inference_mode():
        return elder.text_encoder(ids).last_hidden_state.flatten(0, 1)[None]


def chunks_of(elder, prompt):
    words = elder.tokenizer(prompt, add_special_tokens=False).input_ids
    return [elder.tokenizer.decode(words[i : i + 75]) for i in range(0, len(words), 75)]


def test_a_long_prompt_is_all_of_its_chunks(elder, pipes):
    chunks = chunks_of(elder, LONG)
    assert len(chunks) == 3
    embeds = {"prompt_embeds": encoded(elder, *chunks), "negative_prompt_embeds": encoded(elder, "a blue ring", "", "")}
    held(pipes, wanted_from(elder, **embeds), LONG, negative_prompt="a blue ring")


def test_a_batch_of_a_long_and_a_short_one(elder, pipes):
    embeds = {
        "prompt_embeds": torch.cat([encoded(elder, *chunks_of(elder, LONG)), encoded(elder, PROMPT, "", "")]),
        "negative_prompt_embeds": torch.cat([encoded(elder, "", "", "")] * 2),
    }
    generator = [torch.Generator().manual_seed(s) for s in (3, 4)]
    wanted = elder(num_inference_steps=4, generator=generator, guidance_scale=5.0, output_type="np", **embeds).images
    got = pipes["eager"]([LONG, PROMPT], steps=4, seed=3, scheduler="ddim", output_type="np").images
    assert psnr(got, wanted) >= 60


def test_weights_scale_states_and_keep_their_mean(elder, pipes):
    states = encoded(elder, PROMPT)
    heavier = states.clone()
    heavier[:, 3] *= 1.3  # start, a, large, red
    heavier *= states.mean() / heavier.mean()
    embeds = {"prompt_embeds": heavier, "negative_prompt_embeds": encoded(elder, "")}
    wanted = wanted_from(elder, **embeds)
    held(pipes, wanted, PROMPT.replace("red", "(red:1.3)"))
    plain = pipes["eager"](PROMPT, steps=6, seed=3, scheduler="ddim", output_type="np").images
    assert psnr(plain, wanted) < 50
    same = pipes["eager"](PROMPT.replace("red", "(red:1.0)"), steps=6, seed=3, scheduler="ddim", output_type="np")
    np.testing.assert_array_equal(same.images, plain)


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_skipped_layers(elder, pipes, clip_skip):
    def states(prompt):
        """As `encode_prompt` of diffusers has them; its own code looks for a `text_model` that transformers 5 lacks."""
        ids = elder.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.inference_mode():
            state = elder.text_encoder(ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
            return getattr(elder.text_encoder, "text_model", elder.text_encoder).final_layer_norm(state)

    without = encoded(elder, "a blue ring")  # of which no layer is skipped
    wanted = wanted_from(elder, prompt_embeds=states(PROMPT), negative_prompt_embeds=without)
    held(pipes, wanted, PROMPT, clip_skip=clip_skip, negative_prompt="a blue ring")
    plain = pipes["eager"](PROMPT, steps=6, seed=3, scheduler="ddim", output_type="np", clip_skip=0).images
    assert psnr(plain, wanted) < 50


@pytest.mark.parametrize("guidance_rescale", [0.7, 1.0])
def test_rescaled_guidance(elder, pipes, guidance_rescale):
    said = {"guidance_rescale": guidance_rescale, "guidance_scale": 7.5}
    held(pipes, wanted_from(elder, prompt=PROMPT, **said), PROMPT, **said)


def test_a_picture_remembers(pipes, tmp_path):
    from calotype.cli import _made_like

    said = {"guidance_rescale": 0.5, "clip_skip": 1}
    pipes["eager"](PROMPT, steps=1, seed=3, **said).images[0].save(tmp_path / "a.png")
    arguments = _made_like(tmp_path / "a.png", {}, loras_said=False).arguments
    assert {name: arguments[name] for name in said} == said
