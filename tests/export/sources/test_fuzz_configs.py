"""Random changes of a model's JSON files: reading ends fast, in an error or in a family that fits the weights."""

import copy
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calotype.errors import CalotypeError
from calotype.export.sources.source import find, read_source
from calotype.plan.family import Family, family_of
from tests.helpers.cores import cpu_limit

DEEP = {"deep": "[" * 5000 + "]" * 5000}  # written verbatim

ODD = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 2, 3, -1, 10**6, 10**9, 2**40, 10**400]),
    st.sampled_from([0.5, 1e300, -0.0, float("nan"), float("inf"), float("-inf")]),
    st.sampled_from(["", "x", "DownBlock2D", "CrossAttnDownBlock2D", "UNet2DModel", "VQModel", "AutoencoderTiny"]),
    st.sampled_from([[], {}, [[]], [None], [1, 2], ["x"] * 3, [10**9] * 2, {"x": {"x": []}}, [64] * 10**4]),
    st.text(max_size=8),
    st.integers(),
    st.just(DEEP),
)
CHANGE = st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["set", "drop", "add"]), ODD)
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), CHANGE), min_size=1, max_size=3)


def linked(folder: Path, target: Path) -> list[Path]:
    """Copy a model with links to its weights, and return its JSON files."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".json":
                (target / path.relative_to(folder)).write_bytes(path.read_bytes())
            else:
                os.symlink(path, target / path.relative_to(folder))
    return sorted(path for path in target.rglob("*.json") if path.name not in ("vocab.json", "tokenizer.json"))


def places(data, path=()):
    """Yield every path into the data."""
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield (*path, key)
        yield from places(data[key], (*path, key))


def changed(data, at, how, value):
    """Return the data with one value set, dropped or added."""
    paths = list(places(data))
    if not paths:
        return value
    value = copy.deepcopy(value)  # hypothesis draws it again, and later changes may modify it
    *outer, last = paths[int(at * len(paths))]
    holder = data
    for key in outer:
        holder = holder[key]
    if how == "drop":
        del holder[last]
    elif how == "add" and isinstance(holder, list):
        holder.append(value)
    else:
        holder[f"{last}_more" if how == "add" else last] = value
    return data


def written(data) -> str:
    return json.dumps(data).replace(json.dumps(DEEP), DEEP["deep"])


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def model(request, tmp_path_factory, demo_folder):
    """The folders of a model and its ControlNet, and their JSON files with content."""
    folder = tmp_path_factory.mktemp("fuzz")
    original = demo_folder if request.param == "sd1" else request.getfixturevalue("sdxl_folder")
    files = linked(original, folder / "model")
    controls = []
    if request.param == "sd1":
        files += linked(find("demo-canny"), folder / "canny")
        controls = [folder / "canny"]
    return folder / "model", controls, {path: path.read_text() for path in files}


@settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(changes=CHANGES)
def test_any_config_ends_in_an_error_or_in_a_family(model, changes):
    folder, controls, files = model
    damaged = {}
    for which, change in changes:
        path = list(files)[int(which * len(files))]
        damaged[path] = changed(damaged.get(path, json.loads(files[path])), *change)
    try:
        for path, data in damaged.items():
            path.write_text(written(data))
        with cpu_limit():
            family = read(folder, controls)
        if family is not None:
            check(family)
    finally:
        for path in damaged:
            path.write_text(files[path])


def read(folder, controls) -> Family | None:
    try:
        return family_of(read_source(folder, controls).configs)
    except CalotypeError:
        return None


def check(family: Family) -> None:
    """Check that no size exceeds the tiny weights, so that the family can be traced."""
    tensors = [b for c in family.components.values() for b in (*c.inputs, *c.outputs)]
    assert len(tensors) < 200
    assert all(0 < size <= 1024 for b in tensors for size in b.dims if isinstance(size, int))
    assert family.profile.height.max <= 4096 * family.profile.factor
