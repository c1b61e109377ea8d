"""The guided step compared with the engine's numpy sampler, slot by slot, and with its float32 reference."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from calotype.kernels.guided_step import Network, Slots, SourceLatents, guided_step, reference
from calotype.sampling import matrix as sampler
from calotype.sampling.compile import compile_sampler
from calotype.sampling.guidance import guide
from calotype.sampling.matrix import SamplerMatrix
from calotype.sampling.schedule_range import ScheduleRange
from tests.helpers.kernels.checks import randn

SHAPE = (4, 5, 7)  # 140 latents: less than a block, and 35 pixels, which do not divide it, for the mask
WIDE = (4, 9, 13)  # 468: a block and a remainder


TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
# A long history, noise draws, two calls a step, and a schedule that ends first.
SAMPLERS = {"dpm++2m": 5, "euler-a": 3, "heun": 4, "ddim": 1}


@pytest.fixture(scope="module")
def matrices() -> list[SamplerMatrix]:
    compiled = [compile_sampler(name, steps, base_config=TRAINED) for name, steps in SAMPLERS.items()]
    assert all(isinstance(m, SamplerMatrix) for m in compiled)
    return compiled


@dataclass
class Batch:
    slots: Slots
    network: Network
    draws: np.ndarray  # [S, draws, C, H, W]


def batch_of(matrices, shape, *, guided=True, dtype=torch.float32, scales=None) -> Batch:
    """Slots before their first call; the history only has noise and draws."""
    count, table = len(matrices), max(m.calls for m in matrices) + 1
    columns = max(m.rows.shape[1] for m in matrices)
    noise, draws = randn(count, *shape), randn(count, 8, *shape)
    device = noise.device
    history = torch.full((count, columns, *shape), float("nan"), device=device)
    rows = torch.zeros(count, table, columns, dtype=torch.float64)
    timesteps = torch.full((count, table), float("nan"))
    for s, m in enumerate(matrices):
        rows[s, : m.calls + 1, : m.rows.shape[1]] = torch.tensor(m.rows)
        timesteps[s, : m.calls] = torch.tensor(m.timesteps)
        history[s, 0] = noise[s]
        history[s, 1 + m.calls : 1 + m.calls + m.draws] = draws[s, : m.draws]
    halves = count * (1 + guided)
    scales = torch.tensor(scales or [[7.5 - s, 0.0] for s in range(count)])
    slots = Slots(
        call=torch.full((count,), -1, dtype=torch.int32, device=device),
        calls=torch.tensor([m.calls for m in matrices], dtype=torch.int32, device=device),
        rows=rows.to(device),
        timesteps=timesteps.to(device),
        guidance=scales.to(device),
        history=history,
        latents=torch.empty(count, *shape, device=device),
    )
    network = Network(
        output=torch.empty(halves, *shape, dtype=dtype, device=device),
        sample=torch.empty(halves, *shape, dtype=dtype, device=device),
        timestep=torch.empty(halves, device=device),
    )
    return Batch(slots=slots, network=network, draws=draws.cpu().numpy())


def answer(sample, timestep):
    """A network that is not linear and depends on halves, slots and timesteps.  # [N, C, H, W], [N] -> the same"""
    apart = torch.arange(len(sample), device=sample.device)[:, None, None, None]
    return torch.tanh(sample.float() * 0.7 + timestep[:, None, None, None] * 1e-3 + apart * 0.1)


def by_numpy(m: SamplerMatrix, s: int, batch: Batch, count: int, guided: bool, original=None) -> np.ndarray:
    """Run slot s with the engine's numpy sampler."""
    draws = iter(batch.draws[s][:, None])
    run = m.run(batch.slots.history[s, :1].cpu().numpy(), lambda: next(draws), original=original)
    for i, timestep in enumerate(m.timesteps):
        x = torch.from_numpy(run.input(i))
        halves = (s, count + s) if guided else (s,)
        apart = torch.tensor(halves)[:, None, None, None]
        out = torch.tanh(x * 0.7 + np.float32(timestep) * 1e-3 + apart * 0.1).numpy()
        run.push(i, guide(out, float(batch.slots.guidance[s, 0])) if guided else out)
    return run.latents()[0]


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "unguided"])
@pytest.mark.parametrize("shape", [SHAPE, WIDE], ids=["part of a block", "a block and more"])
def test_slots_with_different_samplers_equal_the_engine(shape, guided, matrices):
    batch = batch_of(matrices, shape, guided=guided)
    for _ in range(max(m.calls for m in matrices) + 1):
        guided_step(batch.network, batch.slots)
        batch.network.output.copy_(answer(batch.network.sample, batch.network.timestep))
    for s, m in enumerate(matrices):
        expected = torch.from_numpy(by_numpy(m, s, batch, len(matrices), guided))
        torch.testing.assert_close(batch.slots.latents[s].cpu(), expected, rtol=2e-5, atol=2e-5)


def test_a_slot_may_start_later_than_the_others(matrices):
    together, late = (batch_of(matrices, SHAPE) for _ in range(2))
    late.slots.history.copy_(together.slots.history)
    late.slots.call[0] = int(late.slots.calls[0])  # no work yet
    for i in range(10):
        if i == 2:
            late.slots.call[0] = -1
        for batch in (together, late):
            guided_step(batch.network, batch.slots)
            batch.network.output.copy_(answer(batch.network.sample.nan_to_num(), batch.network.timestep.nan_to_num()))
    torch.testing.assert_close(late.slots.latents, together.slots.latents, rtol=0, atol=0)


def test_a_finished_slot_does_not_change(matrices):
    batch = batch_of(matrices, SHAPE)
    batch.slots.call.copy_(batch.slots.calls)
    batch.slots.latents.fill_(3)
    batch.network.output.fill_(5)
    before = batch.slots.history.clone()
    guided_step(batch.network, batch.slots)
    assert (batch.slots.latents == 3).all()
    assert torch.isnan(batch.network.sample).all()
    assert torch.isnan(batch.network.timestep).all()
    assert torch.equal(batch.slots.history.isnan(), before.isnan())


def with_images(batch: Batch, *, masked: bool) -> Batch:
    """The same slots, starting from images of random latents, and with random masked rows."""
    count, table = batch.slots.rows.shape[:2]
    shape = batch.slots.latents.shape
    mask = (randn(count, *shape[2:]) > 0).to(torch.uint8) if masked else None
    masked_rows = randn(count, table, 2).double() if masked else None
    original = SourceLatents(
        latents=randn(*shape),
        image_coefficients=randn(count, table).double(),
        inpaint_mask=mask,
        masked_rows=masked_rows,
    )
    return replace(batch, slots=replace(batch.slots, original=original))


@pytest.mark.parametrize("rescaled", [False, True], ids=["plain", "rescaled"])
@pytest.mark.parametrize("origin", ["noise", "mask"])
def test_every_tensor_equals_the_reference(rescaled, origin, dtype, matrices):
    scales = [[7.5, 0.7], [3.0, 0.0], [1.0, 1.0], [5.0, 0.3]] if rescaled else None
    ours = batch_of(matrices, WIDE, dtype=dtype, scales=scales)
    ours = ours if origin == "noise" else with_images(ours, masked=origin == "mask")
    theirs = copy.deepcopy(ours)
    for _ in range(4):
        guided_step(ours.network, ours.slots, rescaled=rescaled)
        reference(theirs.network, theirs.slots)
        for side in ("network", "slots"):
            for name in vars(getattr(ours, side)):
                got, expected = (getattr(getattr(b, side), name) for b in (ours, theirs))
                if isinstance(got, torch.Tensor):
                    close = {"rtol": 2e-5, "atol": 2e-5} if got.dtype == torch.float32 else {}  # half: torch's default
                    torch.testing.assert_close(got, expected, equal_nan=True, **close)
        for batch in (ours, theirs):  # continue from the reference's, so that differences do not add up
            batch.network.output.copy_(answer(theirs.network.sample, theirs.network.timestep))
            batch.slots.history.copy_(theirs.slots.history)


@pytest.mark.parametrize("rescaled", [False, True], ids=["plain", "rescaled"])
@pytest.mark.parametrize(("output_last", "sample_last"), [(True, True), (True, False), (False, True)])
def test_the_networks_images_may_be_channels_last(output_last, sample_last, rescaled, matrices):
    """A sample of channels last needs no copy before the first convolution."""
    scales = [[7.5, 0.7], [3.0, 0.0], [1.0, 1.0], [5.0, 0.3]] if rescaled else None
    plain = batch_of(matrices, WIDE, scales=scales)
    last = copy.deepcopy(plain)
    order = {True: torch.channels_last, False: torch.contiguous_format}
    last.network = replace(
        last.network,
        output=last.network.output.contiguous(memory_format=order[output_last]),
        sample=last.network.sample.contiguous(memory_format=order[sample_last]),
    )
    for _ in range(3):
        for batch in (plain, last):
            guided_step(batch.network, batch.slots, rescaled=rescaled)
            batch.network.output.copy_(answer(plain.network.sample, plain.network.timestep))
        torch.testing.assert_close(last.network.sample, plain.network.sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(last.slots.latents, plain.slots.latents, rtol=1e-5, atol=1e-5)
    assert last.network.sample.is_contiguous() != sample_last


RANGES = {
    "from an image": ScheduleRange(origin="image", skipped=1),
    "into a mask": ScheduleRange(origin="image", skipped=1, preserves_unmasked=True),
}


@pytest.mark.parametrize("schedule_range", RANGES.values(), ids=RANGES)
def test_starting_from_images_equals_the_engine(schedule_range):
    """Samplers with different numbers of calls in one batch, each compared with its own run in numpy."""
    names = {"dpm++2m": 4, "euler-a": 3}
    matrices = [
        compile_sampler(n, steps, base_config=TRAINED, schedule_range=schedule_range) for n, steps in names.items()
    ]
    batch = batch_of(matrices, SHAPE)
    table = batch.slots.rows.shape[1]
    batch = with_images(batch, masked=schedule_range.preserves_unmasked)
    original = batch.slots.original
    for s, m in enumerate(matrices):
        original.image_coefficients[s, : m.calls + 1] = torch.tensor(m.image_coefficients)
        if schedule_range.preserves_unmasked:
            original.masked_rows[s, : m.calls + 1] = torch.tensor(m.masked_rows)
    for _ in range(table):
        guided_step(batch.network, batch.slots)
        batch.network.output.copy_(answer(batch.network.sample, batch.network.timestep))
    for s, m in enumerate(matrices):
        mask = (
            original.inpaint_mask[s : s + 1, None].bool().cpu().numpy() if schedule_range.preserves_unmasked else None
        )
        source = sampler.SourceLatents(latents=original.latents[s : s + 1].cpu().numpy(), inpaint_mask=mask)
        expected = torch.from_numpy(by_numpy(m, s, batch, len(matrices), True, source))
        torch.testing.assert_close(batch.slots.latents[s].cpu(), expected, rtol=2e-5, atol=2e-5)


def test_rescaling_equals_diffusers(matrices):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    batch = batch_of(matrices[:1], WIDE, scales=[[7.5, 0.7]])
    guided_step(batch.network, batch.slots, rescaled=True)
    batch.network.output.copy_(randn(*batch.network.output.shape))
    uncond, cond = batch.network.output.chunk(2)
    expected = rescale_noise_cfg(uncond + 7.5 * (cond - uncond), cond, guidance_rescale=0.7)
    guided_step(batch.network, batch.slots, rescaled=True)
    torch.testing.assert_close(batch.slots.history[:, 1], expected, rtol=1e-5, atol=1e-5)


def test_mismatched_tensors_raise(matrices):
    batch = batch_of(matrices, SHAPE)
    with pytest.raises(ValueError, match="guidance"):
        guided_step(batch.network, replace(batch.slots, guidance=batch.slots.guidance[:2]))
    with pytest.raises(ValueError, match="sample"):
        guided_step(replace(batch.network, sample=batch.network.sample[1:]), batch.slots)
