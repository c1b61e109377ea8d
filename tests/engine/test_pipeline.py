"""The pipeline with the fake backend: events, seeds, cancellation, arguments, outputs."""

import threading

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from PIL import Image

from calotype.backends.base import Runner
from calotype.errors import BackendError, CalotypeError, Cancelled, InputError, SamplerError


def test_a_stream_yields_every_step_and_then_the_result(fake):
    events = list(fake.stream("x", steps=5, seed=1))
    assert [(e.step, e.total) for e in events] == [(i, 5) for i in range(1, 6)]
    assert [e.result is not None for e in events] == [False] * 4 + [True]


def test_previews_are_images(fake):
    for event in fake.stream("x", steps=3, seed=[1, 2], num_images=2):
        assert [p.size for p in event.preview()] == [(128, 128)] * 2


def test_a_call_without_previews_decodes_once(fake):
    decoder = fake.component("vae_decoder").runner
    fake("x", steps=4, seed=1)
    assert decoder.calls == 1


@pytest.mark.parametrize(("guidance_scale", "batch"), [(1.0, 1), (0.0, 1), (1.01, 2), (5.0, 2)])
def test_guidance_doubles_the_batch_only_above_one(fake, guidance_scale, batch):
    batches = []
    unet = fake.component("unet").runner
    run = type(unet).__call__
    unet_inputs = []

    class Spy(Runner):
        backend, precision = "fake", "fp32"

        def __call__(self, inputs):
            unet_inputs.append(inputs)
            batches.append(len(inputs["sample"]))
            return run(unet, inputs)

    fake.component("unet").runner = Spy()
    fake("x", steps=2, seed=1, guidance_scale=guidance_scale)
    assert batches == [batch, batch]
    assert all((i["timestep"] == i["timestep"][0]).all() for i in unet_inputs)


@pytest.mark.parametrize("scheduler", ["euler", "euler-a", "ddim"])
def test_an_image_of_a_batch_depends_on_its_seed_only(fake, scheduler):
    settings = {"steps": 6, "scheduler": scheduler, "output_type": "latent"}
    batch = fake(["a", "b"], num_images=2, seed=[5, 6, 7, 8], **settings).images
    single = fake("b", seed=7, **settings).images
    np.testing.assert_allclose(batch[2:3], single, atol=1e-6)


def test_files_and_tensors_are_images_of_a_call(fake, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)
    settings = {"steps": 2, "seed": 1, "strength": 0.5, "output_type": "np"}
    expected = fake("x", image=pixels, mask_image=pixels, **settings).images
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), tensor, tensor[None], [tensor[None]]):
        np.testing.assert_allclose(fake("x", image=image, mask_image=image, **settings).images, expected, atol=1e-5)
        np.testing.assert_allclose(fake.encode(image), fake.encode(pixels), atol=1e-5)


def test_latents_may_be_a_tensor(fake):
    latents = fake("x", steps=1, seed=1, output_type="latent").images
    settings = {"steps": 2, "seed": 1, "strength": 0.5, "output_type": "latent"}
    given, expected = (fake("x", image=each, **settings).images for each in (torch.from_numpy(latents), latents))
    np.testing.assert_array_equal(given, expected)
    decoded = fake.decode(torch.from_numpy(latents), output_type="np")
    np.testing.assert_array_equal(decoded, fake.decode(latents, output_type="np"))


def test_seeds_have_64_bits_and_the_low_32_choose_the_noise(fake):
    large = fake("x", steps=1, seed=2**64 - 1, num_images=2, output_type="latent")
    assert large.seeds == (2**64 - 1, 0)
    low = fake("x", steps=1, seed=2**32 - 1, output_type="latent").images
    np.testing.assert_array_equal(large.images[:1], low)


def test_seeds_count_up_and_random_seeds_are_returned(fake):
    assert fake("x", steps=1, seed=7, num_images=3).seeds == (7, 8, 9)
    first, second = (fake("x", steps=1).seeds for _ in range(2))
    assert first != second


def test_the_same_call_gives_the_same_numbers(fake):
    a, b = (fake("x", steps=3, seed=3, scheduler="euler-a", output_type="np").images for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_outputs(fake):
    assert fake("x", steps=1, seed=1).images[0].size == (128, 128)
    pixels = fake("x", steps=1, seed=1, output_type="np", width=160, height=96).images
    assert pixels.shape == (1, 96, 160, 3)
    assert pixels.dtype == np.float32
    assert fake("x", steps=1, seed=1, output_type="latent").images.shape == (1, 4, 16, 16)


def test_cancel_from_another_thread(fake):
    before = fake("x", steps=4, seed=1, output_type="latent").images
    with pytest.raises(Cancelled, match="500"):
        for event in fake.stream("x", steps=500, seed=1):
            if event.step == 3:
                thread = threading.Thread(target=fake.cancel)
                thread.start()
                thread.join()
    np.testing.assert_array_equal(fake("x", steps=4, seed=1, output_type="latent").images, before)


def test_cancel_before_the_first_step(fake):
    stream = fake.stream("x", steps=5, seed=1)
    fake.cancel()
    with pytest.raises(Cancelled, match="0 of 5") as raised:
        next(stream)
    assert raised.value.data == {"step": 0, "total": 5}


@pytest.mark.parametrize(("component", "name"), [("vae_decoder", "VAE decoder"), ("text_encoder", "text encoder")])
def test_numbers_that_are_not_finite_raise(fake, component, name):
    opened = fake.component(component)
    real = opened.runner

    class Broken(Runner):
        backend, precision = "fake", "fp32"

        def __call__(self, inputs):
            return {k: v * np.nan for k, v in real(inputs).items()}

    opened.runner = Broken()
    with pytest.raises(CalotypeError, match=name):
        fake("x", steps=2, seed=1)


def test_an_error_of_a_library_is_a_backend_error(fake):
    class Broken(Runner):
        backend, precision = "fake", "fp32"

        def __call__(self, inputs):
            raise RuntimeError("out of memory\n  at line 3 of something")

    fake.component("unet").runner = Broken()
    with pytest.raises(BackendError, match="out of memory"):
        fake("x", steps=2, seed=1)


def test_numpy_numbers_are_accepted(fake):
    settings = {"steps": np.int64(3), "guidance_scale": np.float32(2.0), "output_type": "latent"}
    arrays = fake("x", num_images=np.int32(2), seed=np.array([4, 5]), **settings).images
    np.testing.assert_array_equal(arrays, fake("x", num_images=2, seed=[4, 5], **settings).images)


def test_a_prompt_of_lone_surrogates_generates_an_image(fake, tmp_path):
    fake("red \udcff circle", steps=1, seed=1).images[0].save(tmp_path / "x.png")


def test_a_closed_stream_does_not_change_later_calls(fake):
    before = fake("x", steps=4, seed=1, output_type="latent").images
    stream = fake.stream("x", steps=50, seed=2)
    next(stream)
    stream.close()
    fake.cancel()  # no call is running: no effect
    np.testing.assert_array_equal(fake("x", steps=4, seed=1, output_type="latent").images, before)


def test_threads_do_not_mix(fake):
    expected = {s: fake("x", steps=8, seed=s, scheduler="euler-a", output_type="latent").images for s in range(6)}
    results = {}

    def work(seed):
        results[seed] = fake("x", steps=8, seed=seed, scheduler="euler-a", output_type="latent").images

    workers = [threading.Thread(target=work, args=(s,)) for s in expected]
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    for seed, latents in expected.items():
        np.testing.assert_array_equal(results[seed], latents)


def test_schedulers_as_name_object_and_class(fake):
    settings = {"steps": 4, "seed": 1, "output_type": "latent"}
    config = dict(fake.plan.scheduler)
    name = fake("x", scheduler="euler", **settings).images
    np.testing.assert_array_equal(name, fake("x", scheduler=EulerDiscreteScheduler, **settings).images)
    scheduler = EulerDiscreteScheduler.from_config(config)
    np.testing.assert_array_equal(name, fake("x", scheduler=scheduler, **settings).images)


def test_a_note_reports_a_scheduler_that_is_not_linear(fake):
    clipping = DDIMScheduler.from_config(dict(fake.plan.scheduler), clip_sample=True)
    report = fake("x", steps=4, seed=1, scheduler=clipping).report
    assert any("sampler matrix" in note for note in report.notes)


@pytest.mark.parametrize(
    ("arguments", "keyword"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": 10**9}, "steps"),
        ({"width": 100}, "multiple of 16"),
        ({"height": 1 << 19}, "height must be from"),
        ({"width": -16}, "width"),
        ({"num_images": 10**6}, "num_images"),
        ({"num_images": 0}, "num_images"),
        ({"seed": -1}, "seed"),
        ({"seed": [1, 2]}, "one for each of 1"),
        ({"seed": "seven"}, "seed"),
        ({"seed": b"ab"}, "seed"),
        ({"guidance_scale": 10**400}, "guidance_scale"),
        ({"guidance_scale": np.zeros(3)}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": "much"}, "guidance_scale"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"guidance_rescale": 1.5}, "guidance_rescale"),
        ({"clip_skip": 99}, "clip_skip"),
        ({"clip_skip": -1}, "clip_skip"),
        ({"negative_prompt": "(red:11)"}, "weight"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt"),
        ({"negative_prompt": 3}, "negative_prompt"),
    ],
)
def test_wrong_arguments_raise_before_the_work(fake, arguments, keyword):
    with pytest.raises(InputError, match=keyword):
        fake.stream("x", **arguments)
    assert fake.component("unet").runner.calls == 0


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_an_invalid_weight_names_the_negative_prompt(fake, guidance_scale):
    with pytest.raises(InputError) as raised:
        fake("x", negative_prompt="(red:11)", guidance_scale=guidance_scale)
    assert raised.value.data == {"argument": "negative_prompt", "got": "11"}


@pytest.mark.parametrize("prompt", [None, 3, [], ["a", 3], {"a": 1}])
def test_prompts_that_are_not_text(fake, prompt):
    with pytest.raises(InputError, match="prompt"):
        fake(prompt)


def test_an_unknown_scheduler_raises_with_the_known_names(fake):
    with pytest.raises(SamplerError, match="euler"):
        fake("x", scheduler="eulr")


def test_notes_report_text_that_was_left_out(fake):
    notes = fake("red " * 10_000, steps=1, seed=1, negative_prompt="blue", guidance_scale=1.0).report.notes
    assert any("2400 tokens" in n and "(7600 words)" in n for n in notes)
    assert not any("too long" in n for n in fake("red " * 2400, steps=1, seed=1).report.notes)
    assert any("negative prompt" in n for n in notes)


def test_the_report_lists_components_and_stages(fake):
    report = fake("x", steps=3, seed=1).report
    assert [c.name for c in report.components] == ["text_encoder", "unet", "vae_decoder"]
    assert all(c.why for c in report.components)
    assert set(report.seconds) == {"text", "steps", "decode"}
    assert "3 U-Net calls" in str(report)
    assert report.to_json()["network_calls"] == 3
