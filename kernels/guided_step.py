"""One sampling step between two network calls: guidance, sampler, inpainting and the next input, in one pass.

For slot s, after call i of its network:

    e = u + g (c - u)                                   guidance (Ho and Salimans 2022, arXiv 2207.12598)
    e = e (r std(c) / std(e) + 1 - r)                   its rescaling (Lin et al. 2023, arXiv 2305.08891)
    history[1 + i] = e
    x = sum_j rows[i + 1, j] history[j]                 the sampler matrix (`calotype.sampling.matrix`)
      + image_coefficients[i + 1] original              for slots that start from an image
    x = m x + (1 - m) (masked_rows[i + 1] . (noise, original))      inpainting, m 0 or 1

x, cast, is the input of call i + 1 for both halves of guidance. After the last call it is the final latents. Values
that differ between slots and steps (i, rows, timesteps, g, r) are in device memory: one captured graph works for every
sampler and step, and slots may be at different steps. i = -1 computes the first input, before any call of the network.
The kernel does not change a slot after its last call.

Names and orders are those of `SamplerMatrix`. Sums are in float64, as in the numpy reference: at a high sigma large
terms cancel.
"""

from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, require

_BLOCK = 256  # the latents of a program
_IMAGE_TENSORS = ("image_coefficients", "inpaint_mask", "masked_rows")
_COLUMNS = 8  # the columns of the history that a program loads at once


@dataclass(frozen=True, kw_only=True)
class SourceLatents:
    """The images that slots start from, and their masks."""

    latents: Tensor  # float32 [S, C, H, W], clean
    image_coefficients: Tensor  # float64 [S, R], their weight in each row
    inpaint_mask: Tensor | None = None  # uint8 [S, H, W], 1 where the image is generated anew; None means everywhere
    masked_rows: Tensor | None = None  # float64 [S, R, 2], the weights of noise and clean latents elsewhere


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The state of a batch on the device. R is the maximum of calls + 1 of any slot, K of columns of any matrix.

    `history` contains the initial noise, the outputs after guidance and the noise draws. Noise and draws are there
    before the first call.
    """

    call: Tensor  # int32 [S], the last call of the network; -1 before the first
    calls: Tensor  # int32 [S]
    rows: Tensor  # float64 [S, R, K], zeros where a slot's matrix is smaller
    timesteps: Tensor  # float32 [S, R]
    guidance: Tensor  # float32 [S, 2], the scale and the rescaling factor
    history: Tensor  # float32 [S, K, C, H, W]
    latents: Tensor  # float32 [S, C, H, W], written: the mix before the cast
    original: SourceLatents | None = None


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network's tensors. N is 2S with guidance (the unconditional half comes first), otherwise S.

    Output and sample may be contiguous or in channels-last format.
    """

    output: Tensor  # [N, C, H, W]
    sample: Tensor  # [N, C, H, W], written
    timestep: Tensor  # float32 [N], written


@triton.jit
def _deviations(output, slot, cond_slot, size, scale, BLOCK: tl.constexpr):
    """Return std(c) / std(e) over a slot, from one pass over both halves.  # [N, C, H, W] -> scalar"""
    u_sum, c_sum = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        here = start + tl.arange(0, BLOCK)
        u_sum += tl.load(output + slot * size + here, mask=here < size, other=0).to(tl.float32)
        c_sum += tl.load(output + cond_slot * size + here, mask=here < size, other=0).to(tl.float32)
    u_mean, c_mean = tl.sum(u_sum, axis=0) / size, tl.sum(c_sum, axis=0) / size
    c_square, e_square = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        here = start + tl.arange(0, BLOCK)
        u = tl.load(output + slot * size + here, mask=here < size, other=0).to(tl.float32) - u_mean
        c = tl.load(output + cond_slot * size + here, mask=here < size, other=0).to(tl.float32) - c_mean
        e = u + scale * (c - u)
        c_square += tl.where(here < size, c * c, 0)
        e_square += tl.where(here < size, e * e, 0)
    return tl.sqrt(tl.sum(c_square, axis=0) / tl.sum(e_square, axis=0))


@triton.jit
def _place(here, pixels, channels, LAST: tl.constexpr):
    """Return where the latents `here` of [C, H, W] are in a tensor that may be channels last.  # [BLOCK]"""
    return (here % pixels) * channels + here // pixels if LAST else here


@triton.jit
def _guided(output, guidance, slot, slots, here, size, mask, GUIDED: tl.constexpr, RESCALED: tl.constexpr):
    """Return the network's output after guidance, at `here`.  # [N, C, H, W] -> [BLOCK] float32"""
    cond_slot = slot + slots if GUIDED else slot
    e = tl.load(output + cond_slot * size + here, mask=mask, other=0).to(tl.float32)
    if GUIDED:
        u = tl.load(output + slot * size + here, mask=mask, other=0).to(tl.float32)
        scale = tl.load(guidance + slot * 2)
        e = u + scale * (e - u)
        if RESCALED:
            share = tl.load(guidance + slot * 2 + 1)
            # Every program sums over its full slot: a second launch would cost more than reading it from the cache.
            ratio = _deviations(output, slot, cond_slot, size, scale, here.shape[0])
            e *= tl.where(share > 0, share * ratio + (1 - share), 1)
    return tl.where(mask, e, 0)  # before the first call the ratio is arbitrary


@triton.jit
def _mixed(past, row, columns, size, fresh, inside, alive, COLUMNS: tl.constexpr):
    """Mix the history by the row's weights, without the column `fresh`, at `past`.  # -> [BLOCK] float64"""
    total = tl.zeros(past.shape, tl.float64)
    for first in range(0, columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        weight = tl.load(row + column, mask=(column < columns) & alive, other=0)
        used = (weight != 0) & (column != fresh)  # columns without a weight may not exist yet
        terms = tl.load(past[None, :] + column[:, None] * size, mask=used[:, None] & inside[None, :], other=0)
        total += tl.sum(tl.where(used, weight, 0)[:, None] * terms.to(tl.float64), axis=0)
    return total


@triton.jit
def _guided_step(
    output, sample, timestep, latents, history, rows, timesteps, call, calls, guidance,
    original, image_coefficients, inpaint_mask, masked_rows, slots, table, columns, size, pixels,
    GUIDED: tl.constexpr, RESCALED: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    OUTPUT_LAST: tl.constexpr, SAMPLE_LAST: tl.constexpr,
):  # fmt: skip
    block, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = tl.load(call + slot)
    alive = at < tl.load(calls + slot)
    here = block * BLOCK + tl.arange(0, BLOCK)
    inside = (here < size) & alive
    past = history + slot * columns * size + here  # [K, C, H, W]
    row = rows + (slot * table + at + 1) * columns  # [K]

    answered = inside & (at >= 0)
    channels = size // pixels
    at_output = _place(here, pixels, channels, OUTPUT_LAST)
    e = _guided(output, guidance, slot, slots, at_output, size, answered, GUIDED, RESCALED)
    tl.store(past + (1 + at) * size, e, mask=answered)
    total = tl.load(row + 1 + at, mask=alive & (at >= 0), other=0) * e.to(tl.float64)

    total += _mixed(past, row, columns, size, tl.where(at >= 0, 1 + at, -1), inside, alive, COLUMNS)
    if original is not None:
        image = tl.load(original + slot * size + here, mask=inside, other=0).to(tl.float64)
        total += tl.load(image_coefficients + slot * table + at + 1, mask=alive, other=0) * image
        if inpaint_mask is not None:
            mix = masked_rows + (slot * table + at + 1) * 2
            preserved = tl.load(mix, mask=alive, other=0) * tl.load(past, mask=inside, other=0).to(tl.float64)
            preserved += tl.load(mix + 1, mask=alive, other=0) * image
            generated = tl.load(inpaint_mask + slot * pixels + here % pixels, mask=inside, other=0)
            total = tl.where(generated != 0, total, preserved)

    x = total.to(tl.float32)
    tl.store(latents + slot * size + here, x, mask=inside)
    at_sample = _place(here, pixels, channels, SAMPLE_LAST)
    tl.store(sample + slot * size + at_sample, x.to(sample.dtype.element_ty), mask=inside)
    following = tl.load(timesteps + slot * table + at + 1, mask=alive & (at + 1 < tl.load(calls + slot)), other=0)
    tl.store(timestep + slot, following, mask=alive & (block == 0))
    if GUIDED:
        tl.store(sample + (slots + slot) * size + at_sample, x.to(sample.dtype.element_ty), mask=inside)
        tl.store(timestep + slots + slot, following, mask=alive & (block == 0))


def guided_step(network: Network, slots: Slots, *, rescaled: bool = False) -> None:
    """Store the network's output in the history, write its next input and timestep, and advance every slot's call.

    Set `rescaled` if any slot may rescale its guidance.

    Raises `ValueError` if the shapes do not match.
    """
    launch(network, slots, rescaled=rescaled)()
    slots.call.add_(1)  # not in the kernel: programs of a slot would read it while another program writes it


def launch(network: Network, slots: Slots, *, rescaled: bool = False) -> Launch:
    """Return the launch for these tensors. It does not change `slots.call`."""
    guided = _check(network, slots)
    count, table, columns = slots.rows.shape
    size = slots.latents[0].numel()
    states = {f.name: getattr(slots, f.name) for f in fields(slots) if f.name != "original"}
    images = {name: getattr(slots.original, name, None) for name in _IMAGE_TENSORS}
    return Launch(
        kernel=_guided_step,
        grid=(triton.cdiv(size, _BLOCK), count),
        arguments={
            **{**vars(network), **states, **images, "original": getattr(slots.original, "latents", None)},
            **{"slots": count, "table": table, "columns": columns},
            **{"size": size, "pixels": slots.latents[0, 0].numel()},
        },
        constants={
            **{"GUIDED": guided, "RESCALED": rescaled and guided, "COLUMNS": _COLUMNS, "BLOCK": _BLOCK},
            **{"OUTPUT_LAST": not network.output.is_contiguous(), "SAMPLE_LAST": not network.sample.is_contiguous()},
        },
        warps=4,
    )


def _check(network: Network, slots: Slots) -> bool:
    """Return whether there is guidance. Raise `ValueError` if the shapes do not match."""
    count, *shape = slots.latents.shape
    guided = len(network.output) == 2 * count
    rows = list(slots.rows.shape)
    expected: dict[str, tuple[Tensor | None, list[int]]] = {
        "output": (network.output, [count * (1 + guided), *shape]),
        "sample": (network.sample, [count * (1 + guided), *shape]),
        "timestep": (network.timestep, [count * (1 + guided)]),
        "history": (slots.history, [count, rows[-1], *shape]),
        "timesteps": (slots.timesteps, rows[:2]),
        "guidance": (slots.guidance, [count, 2]),
    }
    if original := slots.original:
        pair = (original.inpaint_mask, original.masked_rows)
        require(sum(tensor is None for tensor in pair) != 1, "inpaint_mask and masked_rows, or neither", pair)
        expected["original"] = (original.latents, [rows[0], *shape])
        expected["image_coefficients"] = (original.image_coefficients, rows[:2])
        expected["inpaint_mask"] = (original.inpaint_mask, [rows[0], *shape[1:]])
        expected["masked_rows"] = (original.masked_rows, [*rows[:2], 2])
    for name, (tensor, dims) in expected.items():
        match = tensor is None or (list(tensor.shape) == dims and _is_ordered(name, tensor))
        require(match, f"{name} {dims}, contiguous, for latents {[count, *shape]} and rows {rows}", [tensor])
    return guided


def _is_ordered(name: str, tensor: Tensor) -> bool:
    last = name in ("output", "sample") and tensor.is_contiguous(memory_format=torch.channels_last)
    return last or tensor.is_contiguous()


def reference(network: Network, slots: Slots) -> None:
    """Compute the same with torch, slot by slot, in float32 with sums in float64."""
    count = len(slots.latents)
    for s in range(count):
        i = int(slots.call[s])
        if i >= int(slots.calls[s]):
            continue
        halves = network.output[s::count].float()  # [2 or 1, C, H, W]
        if i >= 0:
            slots.history[s, 1 + i] = _guided_reference(halves, *slots.guidance[s])
        row = slots.rows[s, i + 1]
        terms = slots.history[s, row != 0].double()  # the other columns may not exist yet
        x = (row[row != 0][:, None, None, None] * terms).sum(0)
        original = slots.original
        if original is not None:
            x = x + original.image_coefficients[s, i + 1] * original.latents[s]
            if original.inpaint_mask is not None and original.masked_rows is not None:
                noise_weight, clean_weight = original.masked_rows[s, i + 1]
                preserved = noise_weight * slots.history[s, 0].double() + clean_weight * original.latents[s]
                x = torch.where(original.inpaint_mask[s].bool(), x, preserved)
        slots.latents[s] = x.float()
        network.sample[s::count] = slots.latents[s].to(network.sample.dtype)
        last = i + 1 == int(slots.calls[s])
        network.timestep.view(-1, count)[:, s] = 0 if last else slots.timesteps[s, i + 1]
    slots.call.add_(1)


def _guided_reference(halves: Tensor, scale: Tensor, share: Tensor) -> Tensor:
    """# [2, C, H, W] (or [1, C, H, W] without guidance) -> [C, H, W]"""
    cond = halves[-1]
    if len(halves) == 1:
        return cond
    guided = halves[0] + scale * (cond - halves[0])
    return torch.where(share > 0, guided * (share * cond.std() / guided.std() + 1 - share), guided)
