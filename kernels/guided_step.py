"""One step of a batch between two calls of the network: guidance, sampler, inpainting and the next input, in one pass.

For slot s, whose network has just answered call i:

    e = u + g (c - u)                                   guidance (Ho and Salimans 2022, arXiv 2207.12598)
    e = e (r std(c) / std(e) + 1 - r)                   its rescaling (Lin et al. 2023, arXiv 2305.08891)
    history[1 + i] = e
    x = sum_j rows[i + 1, j] history[j]                 the sampler matrix (`calotype.sampling.matrix`)
      + clean[i + 1] original                           of a picture that is set out from
    x = m x + (1 - m) (kept[i + 1] . (noise, original)) inpainting, m 0 or 1

x, cast, is the input of call i + 1 for both halves of guidance; after the last call it is the final latents. All that
differs between slots and steps (i, rows, timesteps, g, r) is read from device memory: one captured graph serves every
sampler and step, and slots may stand at different ones. i = -1 makes the first input, of which no network has answered
anything; a slot that is through its calls is left as it is.

Names and orders are those of `SamplerMatrix`.

Sums are made in float64, as the reference in numpy makes them: at a high sigma large terms cancel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, blocks, require

_BLOCK = 256  # latents of a program
_COLUMNS = 8  # of the history that are under way at once


@dataclass(frozen=True, kw_only=True)
class SourceLatents:
    """The pictures that slots set out from, and what a mask keeps of them."""

    latents: Tensor  # float32 [S, C, H, W], clean
    clean: Tensor  # float64 [S, R], how much of them is in each row
    inpaint_mask: Tensor | None = None  # uint8 [S, H, W], 1 where the picture is painted anew; None is everywhere
    kept: Tensor | None = None  # float64 [S, R, 2], of the noise and of the clean latents: what stands elsewhere


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The state of a batch on the device. R is the most calls of any slot and one, K the most columns of any matrix.

    `history` holds the initial noise, the outputs after guidance and the draws of noise, which are there beforehand.
    """

    call: Tensor  # int32 [S], the call that the network has answered; -1 before the first
    calls: Tensor  # int32 [S]
    rows: Tensor  # float64 [S, R, K], zeros where a slot's matrix is smaller
    timesteps: Tensor  # float32 [S, R]
    guidance: Tensor  # float32 [S, 2], the scale and the share that is rescaled
    history: Tensor  # float32 [S, K, C, H, W]
    latents: Tensor  # float32 [S, C, H, W], written: the mix before it is cast
    original: SourceLatents | None = None


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network's tensors. N is 2S with guidance (the unconditional half first), else S."""

    output: Tensor  # [N, C, H, W]
    sample: Tensor  # [N, C, H, W], written
    timestep: Tensor  # float32 [N], written


@triton.jit
def _deviations(output, slot, given_slot, size, scale, BLOCK: tl.constexpr):
    """std(c) / std(e) over a slot, from one pass over both halves.  # [N, C, H, W] -> scalar"""
    u_sum, c_sum = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        here = start + tl.arange(0, BLOCK)
        u_sum += tl.load(output + slot * size + here, mask=here < size, other=0).to(tl.float32)
        c_sum += tl.load(output + given_slot * size + here, mask=here < size, other=0).to(tl.float32)
    u_mean, c_mean = tl.sum(u_sum, axis=0) / size, tl.sum(c_sum, axis=0) / size
    c_square, e_square = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        here = start + tl.arange(0, BLOCK)
        u = tl.load(output + slot * size + here, mask=here < size, other=0).to(tl.float32) - u_mean
        c = tl.load(output + given_slot * size + here, mask=here < size, other=0).to(tl.float32) - c_mean
        e = u + scale * (c - u)
        c_square += tl.where(here < size, c * c, 0)
        e_square += tl.where(here < size, e * e, 0)
    return tl.sqrt(tl.sum(c_square, axis=0) / tl.sum(e_square, axis=0))


@triton.jit
def _guided(output, guidance, slot, slots, here, size, mask, GUIDED: tl.constexpr, RESCALED: tl.constexpr):
    """The network's output after guidance, at `here`.  # [N, C, H, W] -> [BLOCK] float32"""
    given_slot = slot + slots if GUIDED else slot
    e = tl.load(output + given_slot * size + here, mask=mask, other=0).to(tl.float32)
    if GUIDED:
        u = tl.load(output + slot * size + here, mask=mask, other=0).to(tl.float32)
        scale = tl.load(guidance + slot * 2)
        e = u + scale * (e - u)
        if RESCALED:
            share = tl.load(guidance + slot * 2 + 1)
            # Every program sums its whole slot up: a second launch would cost more than reading it from the cache.
            ratio = _deviations(output, slot, given_slot, size, scale, here.shape[0])
            e *= tl.where(share > 0, share * ratio + (1 - share), 1)
    return tl.where(mask, e, 0)  # the ratio of what no network has written may be anything


@triton.jit
def _mixed(past, row, columns, size, fresh, inside, alive, COLUMNS: tl.constexpr):
    """The row's mix of the history, but for the column `fresh`, at the places of `past`.  # -> [BLOCK] float64"""
    total = tl.zeros(past.shape, tl.float64)
    for first in range(0, columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        weight = tl.load(row + column, mask=(column < columns) & alive, other=0)
        wanted = (weight != 0) & (column != fresh)  # what has no weight may not be there yet
        terms = tl.load(past[None, :] + column[:, None] * size, mask=wanted[:, None] & inside[None, :], other=0)
        total += tl.sum(tl.where(wanted, weight, 0)[:, None] * terms.to(tl.float64), axis=0)
    return total


@triton.jit
def _guided_step(
    output, sample, timestep, latents, history, rows, timesteps, call, calls, guidance, original, clean, inpaint_mask,
    kept, slots, table, columns, size, pixels,
    GUIDED: tl.constexpr, RESCALED: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block, slot = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = tl.load(call + slot)
    alive = at < tl.load(calls + slot)
    here = block * BLOCK + tl.arange(0, BLOCK)
    inside = (here < size) & alive
    past = history + slot * columns * size + here  # [K, C, H, W]
    row = rows + (slot * table + at + 1) * columns  # [K]

    answered = inside & (at >= 0)
    e = _guided(output, guidance, slot, slots, here, size, answered, GUIDED, RESCALED)
    tl.store(past + (1 + at) * size, e, mask=answered)
    total = tl.load(row + 1 + at, mask=alive & (at >= 0), other=0) * e.to(tl.float64)

    total += _mixed(past, row, columns, size, tl.where(at >= 0, 1 + at, -1), inside, alive, COLUMNS)
    if original is not None:
        picture = tl.load(original + slot * size + here, mask=inside, other=0).to(tl.float64)
        total += tl.load(clean + slot * table + at + 1, mask=alive, other=0) * picture
        if inpaint_mask is not None:
            mix = kept + (slot * table + at + 1) * 2
            stands = tl.load(mix, mask=alive, other=0) * tl.load(past, mask=inside, other=0).to(tl.float64)
            stands += tl.load(mix + 1, mask=alive, other=0) * picture
            painted = tl.load(inpaint_mask + slot * pixels + here % pixels, mask=inside, other=0)
            total = tl.where(painted != 0, total, stands)

    x = total.to(tl.float32)
    tl.store(latents + slot * size + here, x, mask=inside)
    tl.store(sample + slot * size + here, x.to(sample.dtype.element_ty), mask=inside)
    following = tl.load(timesteps + slot * table + at + 1, mask=alive & (at + 1 < tl.load(calls + slot)), other=0)
    tl.store(timestep + slot, following, mask=alive & (block == 0))
    if GUIDED:
        tl.store(sample + (slots + slot) * size + here, x.to(sample.dtype.element_ty), mask=inside)
        tl.store(timestep + slots + slot, following, mask=alive & (block == 0))


def guided_step(network: Network, slots: Slots, *, rescaled: bool = False) -> None:
    """Take the network's output into the history, write its next input and timestep, and advance every slot's call.

    `rescaled` is whether any slot may have a share of its guidance rescaled. Raises `ValueError` for tensors that do
    not fit together.
    """
    for launch in launches(network, slots, rescaled=rescaled):
        launch()
    slots.call.add_(1)  # not inside: programs of a slot would read it while another writes it


def launches(network: Network, slots: Slots, *, rescaled: bool = False) -> Sequence[Launch]:
    """The launch for these tensors. It leaves `slots.call` as it is."""
    guided = _check(network, slots)
    count, table, columns = slots.rows.shape
    size = slots.latents[0].numel()
    original = slots.original
    return [
        Launch(
            kernel=_guided_step,
            grid=(blocks(size, _BLOCK), count),
            arguments={
                **{n: getattr(network, n) for n in ("output", "sample", "timestep")},
                **{n: getattr(slots, n) for n in ("latents", "history", "rows", "timesteps")},
                **{n: getattr(slots, n) for n in ("call", "calls", "guidance")},
                "original": None if original is None else original.latents,
                **{n: None if original is None else getattr(original, n) for n in ("clean", "inpaint_mask", "kept")},
                **{"slots": count, "table": table, "columns": columns},
                **{"size": size, "pixels": slots.latents[0, 0].numel()},
            },
            constants={"GUIDED": guided, "RESCALED": rescaled and guided, "COLUMNS": _COLUMNS, "BLOCK": _BLOCK},
            warps=4,
        )
    ]


def _check(network: Network, slots: Slots) -> bool:
    """Is there guidance? `ValueError` where the tensors do not fit together."""
    count, *shape = slots.latents.shape
    guided = len(network.output) == 2 * count
    rows = list(slots.rows.shape)
    wanted = {
        "output": (network.output, [count * (1 + guided), *shape]),
        "sample": (network.sample, [count * (1 + guided), *shape]),
        "timestep": (network.timestep, [count * (1 + guided)]),
        "history": (slots.history, [count, rows[-1], *shape]),
        "timesteps": (slots.timesteps, rows[:2]),
        "guidance": (slots.guidance, [count, 2]),
        **({} if slots.original is None else _wanted(slots.original, shape, rows)),
    }
    for name, (tensor, dims) in wanted.items():
        fits = list(tensor.shape) == dims and tensor.is_contiguous()
        require(fits, f"{name} {dims}, contiguous, beside latents {[count, *shape]} and rows {rows}", [tensor])
    return guided


def _wanted(original: SourceLatents, shape: list[int], rows: list[int]) -> dict[str, tuple[Tensor, list[int]]]:
    wanted = {"original": (original.latents, [rows[0], *shape]), "clean": (original.clean, rows[:2])}
    given = [t for t in (original.inpaint_mask, original.kept) if t is not None]
    require(len(given) != 1, "repaint and kept, or neither", given)
    if original.inpaint_mask is not None and original.kept is not None:
        wanted["repaint"] = (original.inpaint_mask, [rows[0], *shape[1:]])
        wanted["kept"] = (original.kept, [*rows[:2], 2])
    return wanted


def reference(network: Network, slots: Slots) -> None:
    """The same in torch, slot by slot, in float32 with sums in float64."""
    count = len(slots.latents)
    for s in range(count):
        i = int(slots.call[s])
        if i >= int(slots.calls[s]):
            continue
        halves = network.output.view(-1, *slots.latents.shape)[:, s].float()  # [2 or 1, C, H, W]
        if i >= 0:
            slots.history[s, 1 + i] = _guided_reference(halves, *slots.guidance[s])
        row = slots.rows[s, i + 1]
        terms = slots.history[s, row != 0].double()  # the others may not be there yet
        x = (row[row != 0][:, None, None, None] * terms).sum(0)
        original = slots.original
        if original is not None:
            x = x + original.clean[s, i + 1] * original.latents[s]
            if original.inpaint_mask is not None and original.kept is not None:
                of_noise, of_clean = original.kept[s, i + 1]
                stands = of_noise * slots.history[s, 0].double() + of_clean * original.latents[s]
                x = torch.where(original.inpaint_mask[s].bool(), x, stands)
        slots.latents[s] = x.float()
        network.sample.view(-1, *slots.latents.shape)[:, s] = slots.latents[s].to(network.sample.dtype)
        last = i + 1 == int(slots.calls[s])
        network.timestep.view(-1, count)[:, s] = 0 if last else slots.timesteps[s, i + 1]
    slots.call.add_(1)


def _guided_reference(halves: Tensor, scale: Tensor, share: Tensor) -> Tensor:
    """# [2, C, H, W] (or [1, C, H, W] without guidance) -> [C, H, W]"""
    given = halves[-1]
    if len(halves) == 1:
        return given
    guided = halves[0] + scale * (given - halves[0])
    return torch.where(share > 0, guided * (share * given.std() / guided.std() + 1 - share), guided)
