"""Rewrites of OpenVINO graphs of known sizes: they compute the same with less work, or with faster kernels.

Each rewrite changes a model in place and returns the number of changed places. All are equalities in real arithmetic,
so only rounding differs (`tests/engine/backends/openvino/test_rewrites.py` has the figures). `calotype bench --preset
ablation` measures the gains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ...system.switches import disabled_optimizations
from .graph import replace_uses

# From this number of elements, changing a tensor's layout costs more than a few small kernels: in float graphs, and in
# 8-bit graphs, which change layouts twice. Rewriting smaller ones in bfloat16 gains no speed and loses accuracy.
_LARGE, _LARGE_IN_EIGHT_BITS = 1 << 20, 1 << 17
# Ways of rounding, from corners or from centers, that are the same for a factor of two.
_DOUBLING = (
    *("asymmetric floor", "asymmetric simple", "half_pixel simple"),
    *("half_pixel round_prefer_floor", "half_pixel round_prefer_ceil"),
)


def upsampled_convolutions(model: Any) -> int:
    """Replace a 3x3 convolution after 2x nearest upsampling by a transposed 4x4 convolution without upsampling.

    Some of the nine products at each position have the same pixel. Adding their weights in advance leaves four.
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
        transposed = ov.opset13.convolution_backprop_data(
            doubled.input_value(0), ov.opset13.constant(wide), [2, 2], None, [1, 1], [1, 1], [1, 1]
        )
        _replace(node, transposed)
        changed += 1
    return changed


def group_norms(model: Any) -> int:
    """Replace group normalization by means of channels, which OpenVINO computes in the layout of the convolutions.

    Its own kernel changes the layout of every tensor and changes it back. The mean and then the variance take two
    passes, because in bfloat16 a difference of squares cancels.
    """
    changed, minimum = 0, _LARGE_IN_EIGHT_BITS if _of_type(model, "FakeQuantize") else _LARGE
    for node in _of_type(model, "GroupNormalization"):
        shape = tuple(node.get_output_shape(0))
        if len(shape) == 4 and int(np.prod(shape)) >= minimum and _is_float(node):
            _replace(node, _decomposed_norm(node, shape))
            changed += 1
    return changed


def _decomposed_norm(node: Any, shape: tuple[int, ...]) -> Any:
    import openvino as ov

    ops, attributes, (batch, channels) = ov.opset13, node.get_attributes(), shape[:2]
    groups = int(attributes["num_groups"])

    def integers(*numbers: int) -> Any:
        return ops.constant(np.array(numbers, dtype=np.int64))

    def of_groups(values: Any) -> Any:
        """Return the mean of each channel's group.  # [B, C, H, W] -> [B, C, 1, 1]"""
        grouped = integers(batch, groups, channels // groups, 1)
        means = ops.reshape(ops.reduce_mean(values, integers(2, 3), True), grouped, False)
        return ops.reshape(
            ops.broadcast(ops.reduce_mean(means, integers(2), True), grouped), integers(batch, channels, 1, 1), False
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


def decompose_attention(model: Any) -> int:
    """Decompose attention with as many tokens as heads, so that OpenVINO does not fuse it with its transpositions.

    OpenVINO 2026.4.1 confuses the two axes when it fuses such attention in bfloat16, and its results differ from run to
    run. Example: 20 tokens and 20 heads, in SD 2.1's deepest level at 256 by 320 pixels. All other attention stays
    fused, which is faster.
    """
    import openvino as ov

    ops, changed = ov.opset13, 0
    for softmax in _of_type(model, "Softmax"):
        scores, users = _source(softmax, 0), list(softmax.output(0).get_target_inputs())
        product = users[0].get_node()
        if scores.get_type_name() != "MatMul" or product.get_type_name() != "MatMul" or len(users) != 1:
            continue
        shape = tuple(softmax.get_output_shape(0))  # [B, H, N, M]
        if len(shape) != 4 or shape[1] not in shape[2:] or shape[1] == 1 or users[0].get_index() != 0:
            continue
        if softmax.get_attributes()["axis"] not in (-1, 3) or not _same_rows(scores) or not _same_rows(product):
            continue

        def flat(value: Any) -> Any:
            rows = np.array([-1, *value.get_shape()[2:]], dtype=np.int64)
            return ops.reshape(value, ops.constant(rows), False)

        def multiplied(node: Any, left: Any, right: Any) -> Any:
            attributes = node.get_attributes()
            return ops.matmul(left, right, bool(attributes["transpose_a"]), bool(attributes["transpose_b"]))

        inner = multiplied(scores, flat(scores.input_value(0)), flat(scores.input_value(1)))
        outer = multiplied(product, ops.softmax(inner, -1), flat(product.input_value(1)))
        shape_4d = np.array(product.get_output_shape(0), dtype=np.int64)
        _replace(product, ops.reshape(outer, ops.constant(shape_4d), False))
        changed += 1
    return changed


def decompose_scaled_norms(model: Any) -> int:
    """Decompose group norms whose result is multiplied by a computed scale.

    OpenVINO 2026.4.1 crashes the process when it compiles such a pair. U-Nets with
    `resnet_time_scale_shift="scale_shift"` have it: the timestep scales each channel.
    """
    changed = 0
    for node in _of_type(model, "GroupNormalization"):
        shape = tuple(node.get_output_shape(0))
        users = [target.get_node() for target in node.output(0).get_target_inputs()]
        if len(shape) == 4 and any(_scales(user, shape) for user in users):
            _replace(node, _decomposed_norm(node, shape))
            changed += 1
    return changed


def _scales(user: Any, shape: tuple[int, ...]) -> bool:
    """Return whether the node combines the tensor with a smaller one that is not a constant."""
    if user.get_type_name() not in ("Multiply", "Add"):
        return False
    others = (user.input_value(i) for i in (0, 1))
    return any(tuple(other.get_shape()) != shape and other.get_node().get_type_name() != "Constant" for other in others)


REWRITES: dict[str, Callable[[Any], int]] = {
    "upsampled_convolutions": upsampled_convolutions,
    "group_norms": group_norms,
}


# Everything here that CALOTYPE_DISABLE can turn off: the rewrites, and optimizations of `session`.
PIECES = (*REWRITES, "shared_guidance")


def enabled_rewrites() -> list[str]:
    """Return the names of the enabled rewrites."""
    return [name for name in REWRITES if name not in disabled_optimizations()]


def apply_rewrites(model: Any, names: Iterable[str]) -> dict[str, int]:
    """Apply the named rewrites, after the fixes that OpenVINO needs.

    Returns:
        The number of changed places, by the rewrite's name.
    """
    decompose_attention(model)
    decompose_scaled_norms(model)
    counts = {name: REWRITES[name](model) for name in names}
    model.validate_nodes_and_infer_types()
    return counts


def _same_rows(product: Any) -> bool:
    """Return whether both sides have the same batch dimensions, so that nothing is broadcast."""
    left, right = (tuple(product.get_input_shape(i)) for i in (0, 1))
    return len(left) == len(right) and left[:-2] == right[:-2]


def _of_type(model: Any, *types: str) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() in types]


def _source(node: Any, i: int) -> Any:
    return node.input_value(i).get_node()


def _replace(node: Any, replacement: Any) -> None:
    replacement.set_friendly_name(node.get_friendly_name())
    replace_uses(node.output(0), replacement.output(0))


def _is_float(node: Any) -> bool:
    """Return whether it is float32: sums in half would lose digits, and OpenVINO computes half files in float32."""
    return bool(node.get_output_element_type(0).get_type_name() == "f32")


def _doubles(interpolate: Any) -> bool:
    """Return whether it only repeats each pixel in a 2x2 square."""
    attributes = interpolate.get_attributes()
    before, after = (tuple(output.get_shape()) for output in (interpolate.input_value(0), interpolate.output(0)))
    doubled = (*before[:2], *(2 * side for side in before[2:]))
    rounding = f"{attributes['coordinate_transformation_mode']} {attributes['nearest_mode']}"
    return len(before) == 4 and after == doubled and attributes["mode"] == "nearest" and rounding in _DOUBLING


def _is_plain(convolution: Any) -> bool:
    attributes = convolution.get_attributes()
    ones = all(list(attributes[name]) == [1, 1] for name in ("strides", "dilations", "pads_begin", "pads_end"))
    return ones and attributes["auto_pad"] == "explicit"
