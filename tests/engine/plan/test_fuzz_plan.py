"""Fuzzed manifests: a plan is refused with a `CalotypeError`, or it loads and generates an image."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import calotype
from calotype.errors import CalotypeError
from calotype.files.digest import digest_of
from calotype.plan.plan import Artifact, read_plan, write_plan
from tests.helpers.cores import cpu_limit

ODD = [
    *(None, True, False, 0, 1, -1, 2, 3, 64, 77, 2**31, 10**400, 0.5, -1.5, 1e300, float("nan"), float("inf")),
    *("", "x", "..", "../x", "/etc/passwd", "unet", "batch", "height", "1:1:1", "1:16:64", "\x1b[2J\n", "\0", "\ud800"),
    *([], [None], [[]], ["batch"], [0, 0], {}, {"a": 1}, {"": None}, "x" * 5000),
]


@pytest.fixture(scope="module")
def small(saved_plan, tmp_path_factory) -> Path:
    """A sealed plan of the demonstration model without weights, for the fake backend."""
    folder = tmp_path_factory.mktemp("fuzz") / "plan"
    shutil.copytree(saved_plan, folder, ignore=shutil.ignore_patterns("*.onnx*"))
    plan = read_plan(saved_plan)
    components = {
        name: c.with_artifacts(Artifact(form="diffusers", path=Path(name), precision="fp32", check={}))
        for name, c in plan.components.items()
    }
    tokenizers = {name: Path(path.name) for name, path in plan.tokenizers.items()}
    plan = replace(plan, components=components, tokenizers=tokenizers, samplers=Path("samplers"))
    write_plan(plan, folder, sealed=True)
    return folder


def manifest_of(folder):
    data = json.loads((folder / "plan.json").read_text())
    data.pop("digest")
    return data


@st.composite
def places(draw, data):
    """Draw an object or a list in the data and one of its names. Every level is equally likely."""
    while True:
        names = sorted(data) if isinstance(data, dict) else range(len(data))
        name = draw(st.sampled_from(names))
        inner = data[name]
        if not isinstance(inner, (dict, list)) or not inner or draw(st.integers(0, 4)) == 0:
            return data, name
        data = inner


def mutate(data, draw):
    """Replace, delete, duplicate or exchange one value."""
    holder, name = draw(places(data))
    kind = draw(st.sampled_from(["replace", "replace", "delete", "duplicate", "exchange"]))
    if kind == "replace":
        holder[name] = copy.deepcopy(draw(st.sampled_from(ODD)))
    elif kind == "delete":
        del holder[name]
    elif kind == "duplicate" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[name]))
    elif kind == "duplicate":
        holder[f"{name}_2"] = copy.deepcopy(holder[name])
    else:
        other, place = draw(places(data))
        holder[name] = copy.deepcopy(other[place])


def write(folder, data):
    (folder / "plan.json").write_text(json.dumps({**data, "digest": digest_of(data)}))


def load_and_generate(folder):
    """Return whether the plan loads and generates an image."""
    try:
        pipe = calotype.load(folder, backend="fake")
        image = pipe("a red ring", steps=1, seed=0, width=64, height=64).images[0]
    except CalotypeError:
        return False
    assert isinstance(image, Image.Image)
    return True


def test_the_plan_works_before_it_is_changed(small):
    write(small, manifest_of(small))
    assert load_and_generate(small)


@settings(
    max_examples=250, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(data=st.data())
def test_any_manifest_is_refused_or_works(small, pristine, data):
    manifest = copy.deepcopy(pristine)
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(manifest, data.draw)
    write(small, manifest)
    with cpu_limit():
        load_and_generate(small)


@pytest.fixture(scope="module")
def pristine(small):
    return manifest_of(small)
