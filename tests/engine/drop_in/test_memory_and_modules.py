"""Weights in a mapped file, half precision, other networks than U-Nets, and other processes."""

import gc
import multiprocessing
import pickle
import weakref

import diffusers
import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import calotype
from calotype.drop_in.differences import difference, limit_of
from calotype.drop_in.image_check import psnr_db
from tests.helpers.pipelines.accelerated import MIN_DB, against_eager, generate, reasons


def test_eager_weights_in_a_mapped_file(pipe, tmp_path):
    expected = generate(pipe)
    before = dict(pipe.unet.named_parameters())
    calotype.accelerate(pipe, backend="onnxruntime", verify=False, keep_eager=False)
    assert all(before[name] is parameter for name, parameter in pipe.unet.named_parameters())
    assert psnr_db(generate(pipe), expected) > MIN_DB
    pipe.save_pretrained(tmp_path)
    saved = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False)
    for name, parameter in saved.named_parameters():
        assert torch.equal(parameter, before[name])
    with torch.no_grad():  # private pages: the file keeps its values
        pipe.unet.conv_out.weight.mul_(2)
    assert against_eager(pipe) > MIN_DB
    calotype.restore(pipe)
    with torch.no_grad():
        pipe.unet.conv_out.weight.div_(2)
    assert np.array_equal(generate(pipe), expected)


def test_half_precision_of_the_pipeline(pipe):
    encoder = calotype.accelerate(pipe.text_encoder, backend="onnxruntime").to(torch.bfloat16)
    ids = torch.randint(0, 500, (2, 77))
    with torch.no_grad():
        result, expected = encoder(ids), type(encoder).forward(encoder, ids)
    assert result.last_hidden_state.dtype == torch.bfloat16
    assert difference(result, expected) < limit_of(torch.bfloat16, "fp32")
    (module,) = calotype.accelerate_report(encoder).modules
    assert module.compiled_calls == 1
    assert not module.reasons


def test_an_image_encoder():
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4)
    config.image_size, config.patch_size, config.projection_dim = 32, 8, 24
    encoder = calotype.accelerate(CLIPVisionModelWithProjection(config).eval(), backend="onnxruntime")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for options in ({}, {"output_hidden_states": True}, {"return_dict": False}, {"output_attentions": True}):
            result, expected = encoder(pixels, **options), type(encoder).forward(encoder, pixels, **options)
            assert type(result) is type(expected)
            assert len(result) == len(expected)
            assert difference(result, expected) < 1e-4
    (module,) = calotype.accelerate_report(encoder).modules
    assert module.compiled_calls == 3
    assert module.eager_calls == 1


def test_inputs_that_are_not_finite_are_eagers(pipe):
    unet = calotype.accelerate(pipe.unet, backend="onnxruntime", verify=False)
    with torch.no_grad():
        sample = unet(torch.full((1, 4, 8, 8), torch.nan), 5, torch.randn(1, 77, 32)).sample
    assert sample.isnan().all()
    assert calotype.accelerate_report(unet).modules[0].eager_calls == 1


def test_a_pickled_pipeline_is_plain(pipe):
    calotype.accelerate(pipe, backend="onnxruntime")
    other = pickle.loads(pickle.dumps(pipe))
    assert not any(module.compiled_calls for module in calotype.accelerate_report(other).modules)
    assert psnr_db(generate(other), generate(pipe)) > MIN_DB
    calotype.accelerate(other.unet, backend="onnxruntime", verify=False)
    generate(other)
    assert calotype.accelerate_report(other)["unet"].compiled_calls
    assert calotype.accelerate_report(other).image_psnr_db is None
    assert calotype.accelerate_report(pipe).image_psnr_db > MIN_DB


def test_a_network_that_is_not_known(pipe):
    pipe.safety_checker = torch.nn.Linear(3, 3)
    calotype.accelerate(pipe, backend="onnxruntime", verify=False)
    report = calotype.accelerate_report(pipe)["safety_checker"]
    assert report.backend == "eager"
    assert "Linear" in report.notes[0]


def _generate_in_a_fork(pipe, connection):
    connection.send((generate(pipe), reasons(calotype.accelerate_report(pipe))))


def test_hooks_of_the_package_accelerate(pipe):
    hooks = pytest.importorskip("accelerate.hooks")
    expected = generate(pipe)
    calotype.accelerate(pipe, backend="onnxruntime", verify=False)
    hooks.add_hook_to_module(pipe.unet, hooks.ModelHook())
    assert psnr_db(generate(pipe), expected) > MIN_DB
    assert calotype.accelerate_report(pipe)["unet"].compiled_calls
    calotype.restore(pipe)
    hooks.remove_hook_from_module(pipe.unet)
    assert np.array_equal(generate(pipe), expected)
    hooks.add_hook_to_module(pipe.unet, hooks.ModelHook())
    calotype.accelerate(pipe, backend="onnxruntime", verify=False)
    assert psnr_db(generate(pipe), expected) > MIN_DB
    assert calotype.accelerate_report(pipe)["unet"].reasons


def test_inside_torch_compile(pipe):
    calotype.accelerate(pipe.unet, backend="onnxruntime", verify=False)
    graph = torch.compile(pipe.unet, backend="eager")
    with torch.no_grad():
        inputs = torch.randn(1, 4, 8, 8), 5, torch.randn(1, 77, 32)
        assert difference(graph(*inputs).sample, pipe.unet(*inputs).sample) < 1e-4
    assert calotype.accelerate_report(pipe.unet).modules[0].compiled_calls == 2


def test_a_forked_process(pipe):
    calotype.accelerate(pipe, backend="onnxruntime", verify=False)
    expected = generate(pipe)
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    torch.set_num_threads(1)
    child = multiprocessing.get_context("fork").Process(target=_generate_in_a_fork, args=(pipe, theirs))
    child.start()
    assert ours.poll(60)
    image, why = ours.recv()
    child.join()
    assert psnr_db(image, expected) > MIN_DB
    assert not why


def test_memory_is_free_without_the_garbage_collector(pipe):
    calotype.accelerate(pipe, backend="onnxruntime")
    generate(pipe)
    generate(pipe)
    ends = [weakref.ref(each) for each in (pipe.unet, pipe.vae, pipe.vae.decoder, pipe.unet.forward._artifacts)]
    gc.collect()
    gc.disable()
    try:
        del pipe.unet, pipe.vae
        assert not any(end() for end in ends)
    finally:
        gc.enable()


def test_a_part_of_a_deleted_autoencoder_runs_in_pytorch(pipe):
    decoder = calotype.accelerate(pipe.vae, backend="onnxruntime").decoder
    del pipe.vae
    with torch.no_grad():
        assert decoder(torch.zeros(1, 4, 4, 4)).isfinite().all()
