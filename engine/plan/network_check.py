"""The check of a network's config against the headers of its weights, before a module of the config's size is built.

A config may claim ten million layers. The check compares its layers and widths with the names and shapes of the
tensors, so that a module is never larger than its file of weights. Reads no weights and imports no torch. Skips fields
that a config lacks: they have the default of its class.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import SourceError
from .video.model import is_video
from .video.motion import has_motion

Config = Mapping[str, Any]
Shapes = Mapping[str, Sequence[int]]
Fact = tuple[str, Any, Any]  # a field, its value in the config, its value in the weights

TOKEN_TABLE = "embeddings.token_embedding.weight"
_LONGEST_NAME = 500  # tensor names of networks are shorter
_INDEX = re.compile(r"\.(\d+)(?=\.)")


def check_network(file: Path, component: str, config: Config, shapes: Shapes) -> None:
    """Check that a config has the layers and widths of its weights.

    Args:
        file: the path of the config, for the error.
        component: the network's name: text_encoder, unet, controlnet_1, vae, vae_decoder, ...
        config: the content of the file.
        shapes: the shape of each tensor, from all files of weights.

    Raises:
        SourceError: a field of the config does not match the weights.
    """
    for field, configured, actual in _facts(component, config, _Tensors(shapes)):
        if configured is not None and configured != actual:
            raise SourceError(
                f"{file}: {field} is {configured!r:.80}, but the weights have {actual!r:.80}. "
                "Use config and weights of the same model.",
                path=file,
                field=next((word for word in field.split() if "_" in word), field),
            )


def token_rows(shapes: Shapes) -> int | None:
    """Return the number of token embeddings in the weights of a text encoder."""
    return next((shape[0] for name, shape in shapes.items() if name.endswith(TOKEN_TABLE) and shape), None)


class _Tensors:
    """Names and shapes of tensors. Indexes once how many layers each module list has."""

    def __init__(self, shapes: Shapes) -> None:
        prefix = re.compile(r"(text|vision)_model\.")
        self._shapes = {prefix.sub("", name, count=1) if prefix.match(name) else name: s for name, s in shapes.items()}
        self._layers: dict[str, set[str]] = defaultdict(set)
        for name in self._shapes:
            for at in _INDEX.finditer(name) if len(name) < _LONGEST_NAME else ():
                self._layers[name[: at.start()]].add(at[1])

    def layers(self, start: str) -> int:
        """Return the number of layers in a module list, for example "down_blocks"."""
        return len(self._layers.get(start, ()))

    def size(self, name: str, axis: int) -> int | None:
        """Return the size of a tensor along an axis; None if the tensor does not exist."""
        shape = self._shapes.get(name, ())
        return shape[axis] if axis < len(shape) else None

    def text_width(self) -> int | None:
        """Return the width of the text states in the first cross-attention."""
        layers = (name for name in self._shapes if name.endswith(".attn2.to_k.weight") and "motion_modules" not in name)
        return next((self.size(name, 1) for name in layers), None)


def _facts(component: str, config: Config, tensors: _Tensors) -> Iterator[Fact]:
    if component.startswith("text_encoder"):
        yield from _text(config, tensors)
        if component == "text_encoder_2":
            yield from _sizes(config, tensors, [("projection_dim", "text_projection.weight", 0)])
    elif component.startswith("controlnet"):
        yield from _half(config, tensors, "down_blocks")
        yield from _network(config, tensors)
        yield from _control_embedding(config, tensors)
    elif component in ("image_encoder", "image_states"):
        yield from _vision(config, tensors)
    elif component.startswith("t2i_adapter"):
        yield from _t2i_adapter(config, tensors)
    elif component.startswith("ip_adapter"):
        widths = [tensors.size(f"keys.{i}.weight", 0) for i in range(tensors.layers("keys"))]
        yield "widths", config.get("widths"), widths
    elif component == "unet":
        yield from _half(config, tensors, "down_blocks")
        yield from _half(config, tensors, "up_blocks", more=1)
        yield from _network(config, tensors)
        table = (("out_channels", "conv_out.weight", 0), ("num_class_embeds", "class_embedding.weight", 0))
        yield from _sizes(config, tensors, table)
        if is_video(config):
            added = ("projection_class_embeddings_input_dim", "add_embedding.linear_1.weight", 1)
            yield from _sizes(config, tensors, [added])
        if has_motion(config):
            yield from _motion(config, tensors)
    elif config.get("_class_name") == "AutoencoderTiny":
        yield from _tiny(config, tensors)
    else:
        yield from _autoencoder(config, tensors)


def _sizes(config: Config, tensors: _Tensors, table: Iterable[tuple[str, str, int]]) -> Iterator[Fact]:
    """Yield the fields that are the size of one tensor. `table` holds (field, tensor, axis)."""
    for field, name, axis in table:
        yield field, config.get(field), tensors.size(name, axis)


def _text(config: Config, tensors: _Tensors) -> Iterator[Fact]:
    yield "num_hidden_layers", config.get("num_hidden_layers"), tensors.layers("encoder.layers")
    table = (
        ("vocab_size", TOKEN_TABLE, 0),
        ("hidden_size", TOKEN_TABLE, 1),
        ("max_position_embeddings", "embeddings.position_embedding.weight", 0),
        ("intermediate_size", "encoder.layers.0.mlp.fc1.weight", 0),
    )
    yield from _sizes(config, tensors, table)


def _vision(config: Config, tensors: _Tensors) -> Iterator[Fact]:
    yield "num_hidden_layers", config.get("num_hidden_layers"), tensors.layers("encoder.layers")
    table = (
        ("hidden_size", "embeddings.class_embedding", 0),
        ("patch_size", "embeddings.patch_embedding.weight", 2),
        ("projection_dim", "visual_projection.weight", 0),
    )
    yield from _sizes(config, tensors, table)


def _network(config: Config, tensors: _Tensors) -> Iterator[Fact]:
    """Yield the fields that U-Nets and ControlNets share, without those of their levels."""
    table = (
        ("in_channels", "conv_in.weight", 1),
        ("time_cond_proj_dim", "time_embedding.cond_proj.weight", 1),
        ("time_embedding_dim", "time_embedding.linear_1.weight", 0),
    )
    yield from _sizes(config, tensors, table)
    if (width := tensors.text_width()) is not None:
        yield "cross_attention_dim", config.get("cross_attention_dim"), width
    if config.get("addition_embed_type") == "text_time":
        added = ("projection_class_embeddings_input_dim", "add_embedding.linear_1.weight", 1)
        yield from _sizes(config, tensors, [added])
    if _is_deep(config, "mid_block_type", "UNetMidBlock2DCrossAttn"):
        depth = config.get("transformer_layers_per_block")
        depth = depth[-1] if isinstance(depth, list) and depth else depth
        blocks = tensors.layers("mid_block.attentions.0.transformer_blocks")
        # The block has one attention. The first entry of a list applies to it.
        yield "transformer_layers_per_block", depth[:1] if isinstance(depth, list) else depth, _like(depth, [blocks])


def _is_deep(config: Config, field: str, kind: str) -> bool:
    """Tell whether attentions are stacks of transformer blocks: not in a `UNet2DModel` or with dual cross attention."""
    plain = config.get("_class_name") == "UNet2DModel" or config.get("dual_cross_attention")
    return not plain and config.get(field, kind) == kind


def _half(config: Config, tensors: _Tensors, side: str, more: int = 0) -> Iterator[Fact]:
    """Yield the fields of the levels of one side, in config order. The side has `more` layers than layers_per_block."""
    levels, field = tensors.layers(side), f"{side.rpartition('.')[2].removesuffix('s')}_types"
    kinds = config.get(field)
    yield f"the length of {field}", len(kinds) if isinstance(kinds, list) else kinds, levels
    order = range(levels) if side.endswith("down_blocks") else range(levels)[::-1]
    if side.endswith("down_blocks"):
        inner = ".spatial_res_block" if is_video(config) else ""
        widths = [tensors.size(f"{side}.{i}.resnets.0{inner}.conv1.weight", 0) for i in order]
        yield "block_out_channels", config.get("block_out_channels"), widths
    layers = config.get("layers_per_block")
    if isinstance(kinds, list) and kinds and str(kinds[0]).startswith("K"):  # k-diffusion's blocks have no more
        more = 0
    actual = [tensors.layers(f"{side}.{i}.resnets") - more for i in order]
    yield "layers_per_block", layers, _like(layers, actual)
    if isinstance(kinds, list):
        yield from _depths(config, tensors, side, dict(zip(order, kinds[:: 1 if order.step > 0 else -1], strict=True)))


def _depths(config: Config, tensors: _Tensors, side: str, kinds: Mapping[int, Any]) -> Iterator[Fact]:
    """Yield the number of transformer blocks in each attention, by level in config order."""
    field, depths = "transformer_layers_per_block", config.get("transformer_layers_per_block")
    if side == "up_blocks" and config.get(f"reverse_{field}") is not None:
        field, depths = f"reverse_{field}", config[f"reverse_{field}"]
        kinds = dict(reversed([*kinds.items()]))
    if isinstance(depths, list):
        yield f"the length of {field}", len(depths), len(kinds)
    for place, (i, kind) in enumerate(kinds.items()):
        if not _is_deep({**config, "kind": kind}, "kind", f"CrossAttn{side.removesuffix('_blocks').title()}Block2D"):
            continue
        count = tensors.layers(f"{side}.{i}.resnets")
        actual = [tensors.layers(f"{side}.{i}.attentions.{j}.transformer_blocks") for j in range(count)]
        configured = depths[place] if isinstance(depths, list) else depths
        yield f"{field} of level {place}", configured, _like(configured, actual)


def _like(configured: Any, actual: list[int]) -> Any:
    """Return one number if the config has one and all values are equal; else the list."""
    return actual[0] if len(set(actual)) == 1 and not isinstance(configured, list) else actual


def _motion(config: Config, tensors: _Tensors) -> Iterator[Fact]:
    """Yield the fields of motion modules: the positions, and the transformer blocks of the first one."""
    first = "down_blocks.0.motion_modules.0.transformer_blocks"
    yield from _sizes(config, tensors, [("motion_max_seq_length", f"{first}.0.pos_embed.pe", 1)])
    blocks = config.get("temporal_transformer_layers_per_block")
    yield "temporal_transformer_layers_per_block", blocks, _like(blocks, [tensors.layers(first)])


def _control_embedding(config: Config, tensors: _Tensors) -> Iterator[Fact]:
    start = "controlnet_cond_embedding"
    union = (("num_control_type", "task_embedding", 0), ("num_trans_channel", "task_embedding", 1))
    yield from _sizes(config, tensors, (*union, ("num_proj_channel", "spatial_ch_projs.weight", 0)))
    yield from _sizes(config, tensors, [("conditioning_channels", f"{start}.conv_in.weight", 1)])
    ends = [f"{start}.blocks.{i}.weight" for i in range(1, tensors.layers(f"{start}.blocks"), 2)]
    widths = [tensors.size(name, 0) for name in (f"{start}.conv_in.weight", *ends)]
    yield "conditioning_embedding_out_channels", config.get("conditioning_embedding_out_channels"), widths


def _t2i_adapter(config: Config, tensors: _Tensors) -> Iterator[Fact]:
    light = config.get("adapter_type") == "light_adapter"
    first = tensors.size(f"adapter.{'body.0.in_conv' if light else 'conv_in'}.weight", 1)
    pixels = config.get("downscale_factor")
    if isinstance(pixels, int) and first is not None:
        yield "in_channels", config.get("in_channels"), first // pixels**2
    numbers = range(tensors.layers("adapter.body") - light)
    last = "out_conv" if light else "resnets.0.block2"
    yield "channels", config.get("channels"), [tensors.size(f"adapter.body.{i}.{last}.weight", 0) for i in numbers]
    yield "num_res_blocks", config.get("num_res_blocks"), tensors.layers("adapter.body.0.resnets")


def _autoencoder(config: Config, tensors: _Tensors) -> Iterator[Fact]:
    yield from _half(config, tensors, "encoder.down_blocks")
    yield from _half(config, tensors, "decoder.up_blocks", more=1)
    table = (
        ("in_channels", "encoder.conv_in.weight", 1),
        ("out_channels", "decoder.conv_out.weight", 0),
        ("latent_channels", "decoder.conv_in.weight", 1),
        ("num_vq_embeddings", "quantize.embedding.weight", 0),  # the codebook of a VQModel
        ("vq_embed_dim", "quantize.embedding.weight", 1),
    )
    yield from _sizes(config, tensors, table)


def _tiny(config: Config, tensors: _Tensors) -> Iterator[Fact]:
    """Yield the fields of a tiny autoencoder: a convolution per level besides its blocks, and one at the end."""
    for side in ("encoder", "decoder"):
        blocks, widths = config.get(f"num_{side}_blocks"), config.get(f"{side}_block_out_channels")
        if isinstance(blocks, list) and isinstance(widths, list):
            yield f"the length of {side}_block_out_channels", len(widths), len(blocks)
            total = sum(n for n in blocks if isinstance(n, int)) + len(blocks) + 1
            yield f"the number of layers by num_{side}_blocks", total, tensors.layers(f"{side}.layers")
            yield f"{side}_block_out_channels", widths[:1], [tensors.size(f"{side}.layers.0.weight", 0)]
    table = (("in_channels", "encoder.layers.0.weight", 1), ("latent_channels", "decoder.layers.0.weight", 1))
    yield from _sizes(config, tensors, table)
