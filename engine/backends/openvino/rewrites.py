"""Rewrites of OpenVINO's graphs of known sizes: the same numbers from less work, or work that its kernels do better.

Each is a function of a model that changes it in place and says in how many places. All are equalities in real
arithmetic; what they leave is rounding (`tests/engine/backends/openvino/test_rewrites.py` has the figures). What they
gain is measured by `calotype bench --ablation`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ...errors import InputError

# Elements from which on putting a tensor into another layout costs more than a few small kernels: of graphs in floats,
# and of those in eight bits, whose layouts are changed twice. Smaller ones in bfloat16 are no faster, and less exact.
_LARGE, _LARGE_IN_EIGHT_BITS = 1 << 20, 1 << 17


def upsampled_convolutions(model: Any) -> int:
    """A 3x3 convolution over pixels that were doubled is a transposed 4x4 one over the pixels themselves.

    Of the nine products at each place some have the same pixel: their weights are added beforehand, and four are left.
    """
    import openvino as ov

    changed = 0
    for node in _of_type(model, "Convolution"):
        doubled, weights = (_source(node, i) for i in (0, 1))
        if doubled.get_type_name() != "Interpolate" or weights.get_type_name() != "Constant":
            continue
        if not _is_float(weights):
            continue
        if not _doubles(doubled) or not _is_plain(node) or tuple(weights.get_shape())[2:] != (3, 3):
            continue
        kernel = np.asarray(weights.data, dtype=np.float32)[:, :, ::-1, ::-1]  # [K, C, 3, 3]
        wide = np.zeros((kernel.shape[1], kernel.shape[0], 4, 4), dtype=np.float32)
        for dy in (0, 1):
            for dx in (0, 1):
                wide[:, :, dy : dy + 3, dx : dx + 3] += kernel.transpose(1, 0, 2, 3)
        made = ov.opset13.convolution_backprop_data(
            doubled.input_value(0), ov.opset13.constant(wide), [2, 2], None, [1, 1], [1, 1], [1, 1]
        )
        _replace(node, made)
        changed += 1
    return changed


def gated_linears(model: Any) -> int:
    """A linear layer whose output is cut in two (GEGLU's) is two layers: the cut is a copy of what was just written."""
    import openvino as ov

    ops, changed = ov.opset13, 0
    for node in _of_type(model, "Split", "VariadicSplit"):
        outputs = node.outputs()
        added = _source(node, 0)
        if len(outputs) != 2 or added.get_type_name() != "Add" or _takers(added.output(0)) != 1:
            continue
        product, bias = _with_constant(added)
        if bias is None or product.get_type_name() != "MatMul" or _takers(product.output(0)) != 1:
            continue
        weights = _source(product, 1)
        axis = int(np.asarray(_source(node, 1).data)) % len(outputs[0].get_shape())
        if weights.get_type_name() != "Constant" or axis != len(outputs[0].get_shape()) - 1 or not _is_float(node):
            continue
        turned = bool(product.get_attributes()["transpose_b"])
        whole, offset, start = np.asarray(weights.data), np.asarray(bias.data), 0
        for output in outputs:
            width = output.get_shape()[-1]
            span = slice(start, start + width)
            rows = whole[span] if turned else whole[:, span]
            layer = ops.matmul(product.input_value(0), ops.constant(np.ascontiguousarray(rows)), False, turned)
            made = ops.add(layer, ops.constant(np.ascontiguousarray(offset[..., span])))
            for place in list(output.get_target_inputs()):
                place.replace_source_output(made.output(0))
            start += width
        changed += 1
    return changed


def group_norms(model: Any) -> int:
    """Group normalization from the means of channels, which OpenVINO takes in the layout that convolutions leave.

    Its own kernel puts every tensor into another layout and back. Two passes, mean and then variance, as the squares of
    bfloat16 numbers cancel.
    """
    changed, least = 0, _LARGE_IN_EIGHT_BITS if _of_type(model, "FakeQuantize") else _LARGE
    for node in _of_type(model, "GroupNormalization"):
        shape = tuple(node.get_output_shape(0))
        if len(shape) == 4 and int(np.prod(shape)) >= least and _is_float(node):
            _replace(node, _normed(node, shape))
            changed += 1
    return changed


def _normed(node: Any, shape: tuple[int, ...]) -> Any:
    import openvino as ov

    ops, attributes, (batch, channels) = ov.opset13, node.get_attributes(), shape[:2]
    groups = int(attributes["num_groups"])

    def integers(*numbers: int) -> Any:
        return ops.constant(np.array(numbers, dtype=np.int64))

    def of_groups(values: Any) -> Any:
        """Each channel's share of its group's mean.  # [B, C, H, W] -> [B, C, 1, 1]"""
        parted = integers(batch, groups, channels // groups, 1)
        means = ops.reshape(ops.reduce_mean(values, integers(2, 3), True), parted, False)
        return ops.reshape(
            ops.broadcast(ops.reduce_mean(means, integers(2), True), parted), integers(batch, channels, 1, 1), False
        )

    x = node.input_value(0)
    mean = of_groups(x)
    centered = ops.subtract(x, mean)
    spread = ops.sqrt(
        ops.add(of_groups(ops.multiply(centered, centered)), ops.constant(np.float32(attributes["epsilon"])))
    )
    scale, shift = (ops.reshape(node.input_value(i), integers(1, channels, 1, 1), False) for i in (1, 2))
    slope = ops.divide(scale, spread)
    return ops.add(ops.multiply(x, slope), ops.subtract(shift, ops.multiply(mean, slope)))


def mend_attention(model: Any) -> int:
    """Attention of as many tokens as heads, taken apart so that OpenVINO does not fuse it with its transpositions.

    Fused in bfloat16 it takes one axis for the other there (2026.4.1), and gives other numbers at every run: 20 tokens
    of 20 heads are SD 2.1's deepest level at 256 by 320 pixels. All else is fused, which is faster.
    """
    import openvino as ov

    ops, changed = ov.opset13, 0
    for softmax in _of_type(model, "Softmax"):
        scores, places = _source(softmax, 0), list(softmax.output(0).get_target_inputs())
        product = places[0].get_node()
        if scores.get_type_name() != "MatMul" or product.get_type_name() != "MatMul" or len(places) != 1:
            continue
        shape = tuple(softmax.get_output_shape(0))  # [B, H, N, M]
        if len(shape) != 4 or shape[1] not in shape[2:] or shape[1] == 1 or places[0].get_index() != 0:
            continue
        if softmax.get_attributes()["axis"] not in (-1, 3) or not _same_rows(scores) or not _same_rows(product):
            continue

        def flat(value: Any) -> Any:
            rows = np.array([-1, *value.get_shape()[2:]], dtype=np.int64)
            return ops.reshape(value, ops.constant(rows), False)

        def multiplied(node: Any, left: Any, right: Any) -> Any:
            turned = node.get_attributes()
            return ops.matmul(left, right, bool(turned["transpose_a"]), bool(turned["transpose_b"]))

        inner = multiplied(scores, flat(scores.input_value(0)), flat(scores.input_value(1)))
        outer = multiplied(product, ops.softmax(inner, -1), flat(product.input_value(1)))
        whole = np.array(product.get_output_shape(0), dtype=np.int64)
        _replace(product, ops.reshape(outer, ops.constant(whole), False))
        changed += 1
    return changed


def mend_scaled_norms(model: Any) -> int:
    """A group norm whose result a computed scale multiplies, taken apart.

    OpenVINO 2026.4.1 ends the process when it compiles such a pair. U-Nets with `resnet_time_scale_shift="scale_shift"`
    have it: the timestep scales each channel.
    """
    changed = 0
    for node in _of_type(model, "GroupNormalization"):
        shape = tuple(node.get_output_shape(0))
        takers = [place.get_node() for place in node.output(0).get_target_inputs()]
        if len(shape) == 4 and any(_scales(taker, shape) for taker in takers):
            _replace(node, _normed(node, shape))
            changed += 1
    return changed


def _scales(taker: Any, shape: tuple[int, ...]) -> bool:
    """Does it combine the tensor with a smaller one that is no constant?"""
    if taker.get_type_name() not in ("Multiply", "Add"):
        return False
    others = (taker.input_value(i) for i in (0, 1))
    return any(tuple(other.get_shape()) != shape and other.get_node().get_type_name() != "Constant" for other in others)


REWRITES: dict[str, Callable[[Any], int]] = {
    "upsampled_convolutions": upsampled_convolutions,
    "gated_linears": gated_linears,
    "group_norms": group_norms,
}


# All that can be left undone: the rewrites, and what `session` does.
PIECES = (*REWRITES, "kept_inputs", "time_table", "shared_guidance", "parallel_guidance")
DISABLE_VARIABLE = (
    "CALOTYPE_DISABLE"  # names of what to leave undone, with commas between: for finding out what each gains
)


def enabled_rewrites() -> list[str]:
    """The names of the rewrites that are in force."""
    return [name for name in REWRITES if name not in disabled_optimizations()]


def disabled_optimizations() -> frozenset[str]:
    """What the environment says is to be left undone. Raises `InputError` for a name that is no piece."""
    names = frozenset(filter(None, map(str.strip, os.environ.get(DISABLE_VARIABLE, "").split(","))))
    for name in sorted(names.difference(PIECES)):
        near = "".join(f" The nearest: {each}." for each in difflib.get_close_matches(name, PIECES, 1))
        raise InputError(f"{DISABLE_VARIABLE} names {name!r:.80}; it may name {', '.join(PIECES)}.{near}")
    return names


def apply_rewrites(model: Any, names: Iterable[str]) -> dict[str, int]:
    """Apply the rewrites of these names, after what must be mended; in how many places each was."""
    mend_attention(model)
    mend_scaled_norms(model)
    done = {name: REWRITES[name](model) for name in names}
    model.validate_nodes_and_infer_types()
    return done


def _same_rows(product: Any) -> bool:
    """Is each matrix of the one side multiplied by one of the other, none repeated?"""
    left, right = (tuple(product.get_input_shape(i)) for i in (0, 1))
    return len(left) == len(right) and left[:-2] == right[:-2]


def _of_type(model: Any, *types: str) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() in types]


def _source(node: Any, i: int) -> Any:
    return node.input_value(i).get_node()


def _takers(output: Any) -> int:
    return len(output.get_target_inputs())


def _replace(node: Any, made: Any) -> None:
    made.set_friendly_name(node.get_friendly_name())
    for place in list(node.output(0).get_target_inputs()):
        place.replace_source_output(made.output(0))


def _with_constant(added: Any) -> tuple[Any, Any]:
    """The summands of an addition, the constant one last; None where none is constant."""
    first, second = _source(added, 0), _source(added, 1)
    if second.get_type_name() == "Constant":
        return first, second
    return (second, first) if first.get_type_name() == "Constant" else (first, None)


def _is_float(node: Any) -> bool:
    """In float32: sums of halves would lose digits, and OpenVINO computes half files in float32 anyway."""
    return bool(node.get_output_element_type(0).get_type_name() == "f32")


def _doubles(interpolate: Any) -> bool:
    """Does it put each pixel four times, and nothing else?"""
    attributes = interpolate.get_attributes()
    before, after = (tuple(output.get_shape()) for output in (interpolate.input_value(0), interpolate.output(0)))
    doubled = (*before[:2], *(2 * side for side in before[2:]))
    # Where the factor is two, all ways of rounding down or to the nearer, from corners or from middles, are the same.
    return len(before) == 4 and after == doubled and attributes["mode"] == "nearest" and _rounds_down(attributes)


def _rounds_down(attributes: Any) -> bool:
    coordinates, nearest = attributes["coordinate_transformation_mode"], attributes["nearest_mode"]
    return (coordinates, nearest) in {
        ("asymmetric", "floor"),
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
        ("half_pixel", "simple"),
        ("asymmetric", "simple"),
    }


def _is_plain(convolution: Any) -> bool:
    attributes = convolution.get_attributes()
    ones = all(list(attributes[name]) == [1, 1] for name in ("strides", "dilations", "pads_begin", "pads_end"))
    return ones and attributes["auto_pad"] == "explicit"
