"""Upscalers with random weights, and their published forward passes, written out with torch's functions.

RRDBNet: Wang et al. 2018 (arXiv 1809.00219), as in Real-ESRGAN (arXiv 2107.10833); SRVGGNetCompact: Real-ESRGAN. Keys
are those of Real-ESRGAN's files.
"""

import re

import torch
from torch.nn import functional

LEAK = 0.2


def conv(weights, name, x, padding=1):
    return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)


def lrelu(x):
    return functional.leaky_relu(x, LEAK)


def dense_block(weights, name, x):
    x1 = lrelu(conv(weights, f"{name}.conv1", x))
    x2 = lrelu(conv(weights, f"{name}.conv2", torch.cat((x, x1), 1)))
    x3 = lrelu(conv(weights, f"{name}.conv3", torch.cat((x, x1, x2), 1)))
    x4 = lrelu(conv(weights, f"{name}.conv4", torch.cat((x, x1, x2, x3), 1)))
    return conv(weights, f"{name}.conv5", torch.cat((x, x1, x2, x3, x4), 1)) * 0.2 + x


def rrdb_forward(weights, x, *, unshuffle=1, blocks=2):
    """RRDBNet with as many doublings as there are layers for them.  # [B, 3, H, W] -> [B, 3, sH, sW]"""
    first = conv(weights, "conv_first", functional.pixel_unshuffle(x, unshuffle))
    inner = first
    for i in range(blocks):
        out = inner
        for j in (1, 2, 3):
            out = dense_block(weights, f"body.{i}.rdb{j}", out)
        inner = out * 0.2 + inner
    features = first + conv(weights, "conv_body", inner)
    for i in (1, 2, 3):
        if f"conv_up{i}.weight" in weights:
            doubled = functional.interpolate(features, scale_factor=2, mode="nearest")
            features = lrelu(conv(weights, f"conv_up{i}", doubled))
    return conv(weights, "conv_last", lrelu(conv(weights, "conv_hr", features)))


def compact_forward(weights, x, *, scale):
    """SRVGGNetCompact.  # [B, 3, H, W] -> [B, 3, sH, sW]"""
    last = max(int(name.split(".")[1]) for name in weights)
    out = x
    for i in range(0, last, 2):
        out = functional.prelu(conv(weights, f"body.{i}", out), weights[f"body.{i + 1}.weight"])
    out = functional.pixel_shuffle(conv(weights, f"body.{last}", out), scale)
    return out + functional.interpolate(x, scale_factor=scale, mode="nearest")


def rrdb_weights(*, doublings=2, unshuffle=1, width=8, blocks=2, growth=4, seed=0):
    """Return random weights in Real-ESRGAN's layout, whose output is about gray."""
    shapes = {"conv_first": (width, 3 * unshuffle**2), "conv_body": (width, width)}
    for i in range(blocks):
        for j in (1, 2, 3):
            for k in range(5):
                shapes[f"body.{i}.rdb{j}.conv{k + 1}"] = (width if k == 4 else growth, width + k * growth)
    shapes |= {f"conv_up{i + 1}": (width, width) for i in range(doublings)}
    return drawn({**shapes, "conv_hr": (width, width), "conv_last": (3, width)}, seed, "conv_last")


def compact_weights(*, scale=4, width=8, convs=2, seed=0):
    shapes = {"body.0": (width, 3)}
    shapes |= {f"body.{2 * i + 2}": (width, width) for i in range(convs)}
    weights = drawn({**shapes, f"body.{2 * convs + 2}": (3 * scale**2, width)}, seed, None)
    return weights | {f"body.{2 * i + 1}.weight": torch.full((width,), 0.25) for i in range(convs + 1)}


def drawn(shapes, seed, gray):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (out, into) in shapes.items():
        weights[f"{name}.weight"] = torch.randn((out, into, 3, 3), generator=generator) / (9 * into) ** 0.5
        weights[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.05 + (0.5 if name == gray else 0)
    if gray:
        weights[f"{gray}.weight"] *= 0.3
    return weights


def in_old_layout(weights):
    """Return the weights under the names of ESRGAN's first code, which numbers its layers."""
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("body."))
    doublings = sum(name.startswith("conv_up") for name in weights) // 2
    after = 2 + 3 * doublings  # each doubling is an enlargement, a convolution and a leaky ReLU
    places = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}"}
    places |= {f"conv_up{i + 1}": f"model.{3 * i + 3}" for i in range(doublings)}
    places |= {"conv_hr": f"model.{after}", "conv_last": f"model.{after + 2}"}

    def renamed(name):
        stem, _, part = name.rpartition(".")
        dense = re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)", stem)
        place = f"model.1.sub.{dense[1]}.RDB{dense[2]}.conv{dense[3]}.0" if dense else places[stem]
        return f"{place}.{part}"

    return {renamed(name): tensor for name, tensor in weights.items()}


def in_later_layout(weights):
    """Return the weights under the names of ESRGAN's later code."""
    pairs = (("conv_body", "trunk_conv"), ("body.", "RRDB_trunk."), ("rdb", "RDB"), ("conv_up", "upconv"))
    renamed = {}
    for name, tensor in weights.items():
        for old, new in (*pairs, ("conv_hr", "HRconv")):
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed
