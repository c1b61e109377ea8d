"""`calotype.accelerate`: the same images, in place, with a way back, on each backend."""

import copy
import pickle
import threading

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

import calotype
from calotype import BackendError, InputError
from calotype.drop_in.image_check import psnr_db
from tests.helpers.pipelines.accelerated import MIN_DB, against_eager, generate, reasons


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", ["onnxruntime", "eager"]])
def test_images_are_eagers_on_each_backend(pipe, backend):
    expected = generate(pipe)
    assert calotype.accelerate(pipe, backend=backend) is pipe
    assert type(pipe) is diffusers.StableDiffusionPipeline
    assert psnr_db(generate(pipe), expected) > MIN_DB
    report = calotype.accelerate_report(pipe)
    assert not reasons(report)
    assert report.image_psnr_db > MIN_DB
    for name in ("text_encoder", "unet", "vae.decoder"):
        assert report[name].backend == (backend if isinstance(backend, str) else "onnxruntime")
        assert report[name].precision == "fp32"
        assert report[name].compiled_calls
        assert 0 < max(report[name].checks.values()) < 1e-4
    assert "unet" in str(report)


def test_other_sizes_scales_and_batches_run_compiled(fast):
    changes = [{"height": 48, "width": 64}, {"guidance_scale": 1.0}, {"num_images_per_prompt": 2}]
    for each in changes:
        assert against_eager(fast, **each) > MIN_DB
    assert not reasons(calotype.accelerate_report(fast))
    assert not calotype.accelerate_report(fast)["unet"].updates


def test_eager_keeps_everything_in_pytorch(pipe):
    expected = generate(pipe)
    calotype.accelerate(pipe, backend="eager")
    assert np.array_equal(generate(pipe), expected)
    report = calotype.accelerate_report(pipe)
    assert all(module.backend == "eager" and not module.compiled_calls for module in report.modules)


def test_restore_leaves_nothing(pipe):
    expected, before = generate(pipe), dict(pipe.unet.__dict__)
    call = type(pipe).__call__
    calotype.accelerate(pipe, backend="openvino")
    assert calotype.restore(pipe) is pipe
    assert pipe.unet.__dict__.keys() == before.keys()
    assert type(pipe).__call__ is call
    assert np.array_equal(generate(pipe), expected)
    calotype.restore(pipe)  # twice does nothing


def test_the_context_manager_restores(pipe):
    with calotype.accelerated(pipe, backend="openvino", verify=False) as fast:
        generate(fast)
        assert calotype.accelerate_report(pipe)["unet"].compiled_calls
    assert not calotype.accelerate_report(pipe)["unet"].compiled_calls
    assert "forward" not in pipe.unet.__dict__


def test_a_bare_unet_takes_every_form_of_its_arguments(pipe):
    unet = calotype.accelerate(pipe.unet, backend="openvino", verify=False)
    sample, states = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32)
    calls = [
        ((sample, 5, states), {}),
        ((sample, torch.tensor([7]), states), {"return_dict": False}),
        ((sample,), {"timestep": torch.tensor([3.5, 4.5]), "encoder_hidden_states": states, "added_cond_kwargs": {}}),
        ((sample.double().half().float(), 5.5, torch.cat([states, states], 1)), {"cross_attention_kwargs": None}),
    ]
    for args, kwargs in calls:
        with torch.no_grad():
            result, expected = unet(*args, **kwargs), type(unet).forward(unet, *args, **kwargs)
        assert type(result) is type(expected)
        torch.testing.assert_close(result[0], expected[0], rtol=1e-4, atol=1e-4)
    report = calotype.accelerate_report(unet)
    assert report.modules[0].compiled_calls == len(calls)
    assert unet.config.in_channels == 4
    assert unet.dtype == torch.float32
    assert next(unet.parameters()).device.type == "cpu"


def test_what_an_artifact_cannot_take_runs_eager(pipe):
    unet = calotype.accelerate(pipe.unet, backend="openvino", verify=False)
    sample, states, mask = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32), torch.ones(2, 77)
    with torch.no_grad():
        unet(sample, 5, states, encoder_attention_mask=mask)
        unet(sample[:, :, :7, :7], 5, states)
        with pytest.raises(TypeError):
            unet(sample, 5, states, unknown=1)
        with pytest.raises(RuntimeError):
            unet(sample, 5, states[..., :5])
    loss = unet(sample, 5, states).sample.sum()
    loss.backward()
    (module,) = calotype.accelerate_report(unet).modules
    assert module.compiled_calls == 0
    assert module.backend == "eager"
    assert len(module.reasons) == 5
    assert unet.conv_in.weight.grad is not None


def test_changes_of_the_module_are_noticed(fast):
    unet = fast.unet
    generate(fast)

    def eager_reason() -> str:
        before = set(reasons(calotype.accelerate_report(fast)))
        assert against_eager(fast) > MIN_DB
        (new,) = set(reasons(calotype.accelerate_report(fast))) - before
        return new

    handle = unet.mid_block.resnets[0].register_forward_hook(lambda module, args, out: out * 1.5)
    assert "hook" in eager_reason()
    handle.remove()
    unet.conv_out.padding_mode = "circular"
    assert "padding_mode" in eager_reason()
    unet.conv_out.padding_mode = "zeros"
    processors = unet.attn_processors
    unet.set_attn_processor(_Silent())
    assert "_Silent" in eager_reason()
    unet.set_attn_processor(processors)
    fast.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    assert "FreeU" in eager_reason()
    fast.disable_freeu()
    before = calotype.accelerate_report(fast)["unet"].eager_calls
    assert against_eager(fast) > MIN_DB
    assert calotype.accelerate_report(fast)["unet"].eager_calls == before


class _Silent:
    def __call__(self, attn, hidden_states, *args, **kwargs):
        return torch.zeros_like(hidden_states)


def test_attention_slicing_and_vae_tiling_run_compiled(fast):
    fast.enable_attention_slicing()
    fast.vae.enable_slicing()
    fast.vae.tile_sample_min_size, fast.vae.tile_latent_min_size = 32, 4
    fast.vae.enable_tiling()
    assert against_eager(fast, height=64, width=64, num_images_per_prompt=2) > MIN_DB
    assert not reasons(calotype.accelerate_report(fast))


def test_pickles_copies_and_saved_folders_are_plain(fast, tmp_path):
    expected = generate(fast)
    fast.save_pretrained(tmp_path / "saved")
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved", low_cpu_mem_usage=False)
    loaded.set_progress_bar_config(disable=True)
    others = [loaded.unet, pickle.loads(pickle.dumps(fast.unet)), copy.deepcopy(fast.unet)]
    for unet in others:
        assert not calotype.accelerate_report(unet).modules[0].compiled_calls
        nn.init.zeros_(unet.conv_out.weight)
        with torch.no_grad():
            states = torch.randn(1, 77, 32)
            sample = unet(torch.randn(1, 4, 8, 8), 3, states).sample
        torch.testing.assert_close(sample, unet.conv_out.bias[None, :, None, None].expand(1, 4, 8, 8).detach())
    assert np.array_equal(generate(fast), expected)
    assert calotype.accelerate_report(fast)["unet"].compiled_calls == 4


def test_threads_get_their_own_images(fast):
    expected = {seed: generate(fast, seed=seed) for seed in range(3)}
    pipes = [diffusers.StableDiffusionPipeline.from_pipe(fast) for _ in expected]
    for other in pipes:
        other.scheduler = type(fast.scheduler).from_config(fast.scheduler.config)
        # A tokenizer keeps the padding of its last call: threads that share one get wrong images, in eager too.
        other.tokenizer = copy.deepcopy(fast.tokenizer)
        other.set_progress_bar_config(disable=True)
    results = {}
    threads = [
        threading.Thread(target=lambda s=seed: results.update({s: generate(pipes[s], seed=s)})) for seed in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, image in expected.items():
        assert psnr_db(results[seed], image) > MIN_DB


def test_a_module_that_differs_stays_eager(pipe, monkeypatch, capsys):
    calotype.accelerate(pipe, backend="openvino")
    forward = pipe.unet.forward
    run = forward._run
    monkeypatch.setattr(forward, "_run", lambda *args: [2 * each for each in run(*args)[:1]])
    with torch.no_grad():
        expected = type(pipe.unet).forward(pipe.unet, torch.ones(1, 4, 8, 8), 1, torch.ones(1, 77, 32)).sample
        result = pipe.unet(torch.ones(1, 4, 8, 8), 1, torch.ones(1, 77, 32)).sample
    assert torch.equal(result, expected)
    assert "unet" in capsys.readouterr().err
    assert calotype.accelerate_report(pipe)["unet"].reasons


def test_an_image_that_differs_is_eagers(pipe, monkeypatch, capsys):
    expected = generate(pipe)
    calotype.accelerate(pipe, backend="openvino")
    for name in ("unet", "text_encoder"):
        monkeypatch.setattr(getattr(pipe, name).forward, "verify", False)
    run = pipe.unet.forward._run
    monkeypatch.setattr(pipe.unet.forward, "_run", lambda *args: (-run(*args)[0],))
    assert np.array_equal(generate(pipe), expected)
    report = calotype.accelerate_report(pipe)
    assert report.image_psnr_db < MIN_DB
    assert capsys.readouterr().err
    assert np.array_equal(generate(pipe), expected)


def test_callbacks_run_once(pipe):
    steps = []
    calotype.accelerate(pipe, backend="openvino")
    generate(pipe, callback_on_step_end=lambda pipe, step, timestep, values: steps.append(step) or values)
    assert steps == [0, 1]
    assert calotype.accelerate_report(pipe).image_psnr_db is None


def test_warm_runs_a_call_now(pipe):
    state = torch.get_rng_state()
    calotype.accelerate(pipe, backend="openvino", warm={"prompt": "", "height": 32, "width": 32})
    assert calotype.accelerate_report(pipe)["unet"].compiled_calls == 2
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("target", [None, 3, "demo", diffusers.StableDiffusionPipeline, object()])
def test_other_objects_are_refused(target):
    with pytest.raises(InputError) as raised:
        calotype.accelerate(target)
    assert raised.value.argument == "target"


@pytest.mark.parametrize(
    ("options", "argument"), [({"verify": 1}, "verify"), ({"keep_eager": None}, "keep_eager"), ({"warm": 3}, "warm")]
)
def test_wrong_options_are_refused(pipe, options, argument):
    with pytest.raises(InputError) as raised:
        calotype.accelerate(pipe, **options)
    assert raised.value.argument == argument
    assert "forward" not in pipe.unet.__dict__


def test_unknown_backends_are_refused(pipe):
    with pytest.raises(BackendError):
        calotype.accelerate(pipe, backend="none")
