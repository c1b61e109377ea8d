"""Fuzzed .safetensors files as LoRAs: a `SourceError`, or finite updates in the shapes of the weights."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calotype.errors import SourceError
from calotype.lora.lora import parse_loras, weight_deltas_of

bounded = settings(max_examples=250, deadline=None, derandomize=True, database=None)

NETWORKS = {
    "unet": {"conv_in": (6, 8, 3, 3), "mid_block.attn1.to_q": (6, 8), "mid_block.proj": (6, 8, 1, 1)},
    "text_encoder": {"encoder.layers.0.mlp.fc1": (6, 8)},
}
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "BOOL": 1, "F8_E4M3": 1, "X": 3}
STEMS = ["unet.conv_in", "unet.mid_block.attn1.to_q", "unet.mid_block.proj", "text_encoder.encoder.layers.0.mlp.fc1"]
FLAT = [
    "lora_unet_conv_in",
    "lora_unet_mid_block_attn1_to_q",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "lora_te2_x",
]
ENDINGS = [
    "lora_A.weight",
    "lora_B.weight",
    "lora_down.weight",
    "lora_up.weight",
    "lora_mid.weight",
    "alpha",
    "dora_scale",
    "lora_magnitude_vector",
    *(f"hada_w{i}_{side}" for i in (1, 2) for side in "ab"),
    *("hada_t1", "lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "oft_blocks", "rescale", "weight", "on_input", "diff"),
]
SHAPES = [(2, 8), (6, 2), (2, 8, 3, 3), (6, 2, 1, 1), (2, 8, 1, 1), (2, 2, 3, 3), (), (1,), (0, 8), (6, 0)]
NUMBERS = [0.0, 1.0, -2.5, 3e4, 1e30, -3e38, math.nan, math.inf]

OTHERS = [  # parts of an adapter of the layer mid_block.proj
    {},
    {"hada_w1_a": (6, 2), "hada_w1_b": (2, 8), "hada_w2_a": (6, 3), "hada_w2_b": (3, 8)},
    {"lokr_w1": (2, 2), "lokr_w2": (3, 4, 1, 1)},
    {"lokr_w1": (3, 4), "lokr_w2_a": (2, 2), "lokr_w2_b": (2, 2)},
    {"oft_blocks": (3, 2, 2), "rescale": (6, 1, 1, 1), "alpha": ()},
    {"oft_blocks": (1, 3, 2, 2)},
    {"weight": (1, 8, 1, 1), "on_input": ()},
    {"diff": (6, 8, 1, 1)},
    {"lora_down.weight": (2, 8), "lora_up.weight": (6, 2), "dora_scale": (1, 8, 1, 1)},
    {"lora_down.weight": (2, 8), "lora_up.weight": (6, 2), "lora_magnitude_vector": (6,)},
    {"a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (6, 1), "b2.weight": (1, 8)},
]

shapes = st.one_of(st.sampled_from(SHAPES), st.lists(st.integers(0, 4), max_size=5).map(tuple), st.just((1,) * 70))
keys = st.builds("{}.{}".format, st.sampled_from(STEMS + FLAT), st.sampled_from(ENDINGS))
tensors = st.tuples(st.sampled_from(sorted(BYTES)), shapes, st.sampled_from(NUMBERS))
odd_files = st.dictionaries(st.one_of(keys, st.text(max_size=20)), tensors, max_size=5)


@st.composite
def near_files(draw):
    """Draw a LoRA that fits except for at most one tensor."""
    kind, number = draw(st.sampled_from(["F32", "F16", "BF16", "F64"])), st.sampled_from(NUMBERS)
    file = {}
    for stem, down, up in (("unet.conv_in", (2, 8, 3, 3), (6, 2, 1, 1)), ("unet.mid_block.attn1.to_q", (2, 8), (6, 2))):
        file[f"{stem}.lora_A.weight"] = (kind, down, draw(number))
        file[f"{stem}.lora_B.weight"] = (kind, up, draw(number))
    if draw(st.booleans()):
        file["lora_unet_conv_in.alpha"] = (draw(st.sampled_from(["F32", "I64"])), (), draw(number))
    other = draw(st.sampled_from(OTHERS))
    file |= {f"lora_unet_mid_block_proj.{part}": (kind, shape, draw(number)) for part, shape in other.items()}
    if draw(st.booleans()):
        file[draw(keys)] = draw(tensors)
    return file


values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([1]))
patterns = st.dictionaries(
    st.one_of(st.sampled_from(["conv_in", ".*", "(a|a)*b", "(", "to_q"]), st.text(max_size=8)), values
)
adapter = st.dictionaries(
    st.sampled_from(["unet.lora_alpha", "unet.alpha_pattern", "text_encoder.lora_alpha", "unet.use_dora", "x"]),
    st.one_of(values, patterns),
    max_size=3,
)
metadata = st.one_of(
    st.none(),
    adapter.map(lambda extra: {"lora_adapter_metadata": json.dumps(extra)}),
    st.sampled_from(["[" * 5000, "{", "null", "NaN"]).map(lambda text: {"lora_adapter_metadata": text}),
)


def stored(kind, shape, number):
    """Return the bytes of a tensor whose elements are equal."""
    count = math.prod(shape)
    with np.errstate(all="ignore"):
        if kind in ("F64", "F32", "F16"):
            return np.full(count, number, f"<f{BYTES[kind]}").tobytes()
        if kind == "BF16":
            return (np.full(count, number, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return b"\1" * (count * BYTES[kind])


def write(path, file, extra):
    header, data = {} if extra is None else {"__metadata__": extra}, b""
    for name, (kind, shape, number) in file.items():
        content = stored(kind, shape, number)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def loads(path, weight):
    """Return whether the file is read as a LoRA. Checks the updates."""
    try:
        patches = weight_deltas_of(parse_loras({path: weight}), NETWORKS)
    except SourceError:
        return False
    for component, added in patches.items():
        for name, patch in added.patches.items():
            shape = NETWORKS[component][name.removesuffix(".weight")]
            new = patch(np.zeros(shape, np.float32))
            assert new.shape == shape
            assert np.isfinite(new).all()
    return True


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "x.safetensors"


weights = st.one_of(st.sampled_from([1, 0, -10, 0.5, "0.5", None, math.nan, 10**400]), st.floats(), st.integers())


@bounded
@given(file=odd_files, extra=metadata, weight=weights)
def test_odd_files(path, file, extra, weight):
    write(path, file, extra)
    loads(path, weight)


@bounded
@given(file=near_files(), extra=metadata, weight=st.sampled_from([1, 0, -10]))
def test_files_that_nearly_fit(path, file, extra, weight):
    write(path, file, extra)
    loads(path, weight)


@bounded
@given(at=st.integers(0, 600), byte=st.integers(0, 255), cut=st.integers(0, 900))
def test_damaged_files(path, at, byte, cut):
    """A byte is changed or the end is missing. If the damage is only in values, the file may still be a LoRA."""
    file = {"unet.conv_in.lora_A.weight": ("F32", (2, 8, 3, 3), 1), "unet.conv_in.lora_B.weight": ("F32", (6, 2), 1)}
    write(path, file, {"lora_adapter_metadata": '{"unet.lora_alpha": 2}'})
    data = bytearray(path.read_bytes())
    if at < len(data):
        data[at] = byte
    path.write_bytes(data[: max(len(data) - cut, 0)] if cut < 300 else data)
    loads(path, 1)


def test_a_file_that_fits_is_read(path):
    """The other tests would also pass if every file was refused."""
    file = {"unet.conv_in.lora_A.weight": ("F32", (2, 8, 3, 3), 1), "unet.conv_in.lora_B.weight": ("F32", (6, 2), 1)}
    write(path, file, None)
    assert loads(path, 1)
