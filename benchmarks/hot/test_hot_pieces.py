"""Microbenchmarks of the functions that an image spends its time in: `pytest benchmarks --benchmark-only`.

Save a run with `--benchmark-autosave`, and compare the next run with `--benchmark-compare`. `calotype bench` measures
complete images, peers and correctness.
"""

import threading

import numpy as np
import pytest

from calotype.backends.session import completed
from calotype.images.png import to_uint8
from calotype.plan.bindings import random_inputs
from calotype.request.prompts import tokenizers_of
from calotype.request.resolved import resolve
from calotype.sampling.cache import sampler_for
from calotype.sampling.guidance import guide
from calotype.stages.denoise_inputs import prepare
from calotype.stages.loop import guidance_of, step
from calotype.stages.prompt_encoder import PromptEncoder
from calotype.system.trace import Stopwatch

PROMPTS = ["a large red circle on a blue background", "a small green ring above a white cross on an orange background"]
STEPS, SHAPES = 20, {"128px": (1, 4, 16, 16), "1024px": (1, 4, 128, 128)}  # of latents
at_both_sizes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@at_both_sizes
def test_guidance(benchmark, shape):
    benchmark(guide, normal(2 * shape[0], *shape[1:]), 5.0)


@at_both_sizes
@pytest.mark.parametrize("name", ["euler", "dpm++2m-karras", "unipc"])
def test_sampler_rows(benchmark, fake, name, shape):
    """All rows of a schedule, as one image uses them. Divide by the number of steps."""
    _, sampler = sampler_for(name, fake.plan.scheduler, STEPS)
    noise, outputs = normal(*shape), [normal(*shape) for _ in range(sampler.calls)]

    def rows():
        run = sampler.run(noise, lambda: noise, seeds=(0,))
        for i, output in enumerate(outputs):
            run.input(i)
            run.push(i, output)
        return run.latents()

    benchmark(rows)


def test_loop_overhead(benchmark, fake):
    """The loop over twenty steps around a network that costs nothing: guidance, rows and bookkeeping."""
    arguments = {"steps": STEPS, "seed": 1, "scheduler": "euler"}
    call = fake._generator.start(PROMPTS[0], arguments, threading.Event())
    inputs = prepare(fake.plan, call.request, fake._generator.codec, Stopwatch())
    answer = normal(2, *SHAPES["128px"][1:])

    def denoiser(*_):
        return answer
        yield  # a generator: no call of a network

    def loop():
        run = call.sampler.run(inputs.noise, inputs.draw, seeds=call.request.seeds)
        guidance = guidance_of(call)
        for i in range(STEPS):
            completed(step(denoiser, guidance, call, run, i))
        return run.latents()

    benchmark(loop)


def test_prompt_encoding(benchmark, pipe):
    """Text to embeddings: tokens, and the text encoder for the prompt and the empty prompt."""
    tokenizers = tokenizers_of(pipe.plan)

    def encode():
        request = resolve(PROMPTS[0], {"seed": 1}, pipe.plan, tokenizers)
        return PromptEncoder(pipe.plan, pipe.component)(request)  # a new one: without cached prompts

    encode()
    benchmark(encode)


def test_tokens(benchmark, fake):
    benchmark(tokenizers_of(fake.plan)["text_encoder"], PROMPTS)


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_component(benchmark, pipe, name):
    """One call for a guided image of 128 pixels."""
    component, bindings = pipe.component(name), pipe.plan.components[name].inputs
    sizes = pipe.plan.profile.sizes(batch=2 if name == "unet" else 1, height=128, width=128)
    inputs = random_inputs(bindings, {b.name: b.shape(sizes) for b in bindings}, ids=100)
    if "timestep" in inputs:
        inputs["timestep"] = np.full(2, 500, np.float32)
    component(**inputs)  # the first call allocates buffers and compiles the shape
    benchmark.extra_info["precision"] = component.runner.precision
    benchmark(lambda: component(**inputs))


def test_to_uint8(benchmark):
    benchmark(to_uint8, normal(1, 3, 1024, 1024))


def test_image_without_networks(benchmark, fake):
    """A complete call on the fake backend: what Calotype adds to the networks, including the PNG's metadata."""
    benchmark(lambda: fake(PROMPTS[0], steps=STEPS, seed=1, scheduler="euler"))
