"""Every kernel compiles without a GPU, spills no registers, and uses the resources of the committed table."""

import json
import re
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from tests.helpers.kernels import resources as kernel_resources
from tests.helpers.kernels.resources import cases, differences, resources, targets_of

KERNELS = Path(__file__).parent.parent.parent / "kernels"
COMMITTED = json.loads((KERNELS / "resources.json").read_text())
CASES = dict(cases())
MAX_REGISTERS = 80  # for each thread: with four warps, six programs fit on a multiprocessor
EXCEPTIONS = {"attention": 255, "group_norm_moments": 96}  # tiles in registers; up to five tensors in a sum


@pytest.fixture(scope="module", autouse=True)
def _compiled_here(tmp_path_factory):
    """Use an empty cache: the user's may contain kernels of another version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def some_targets(number: int, launch) -> list[int]:
    """Return sm_90 and one other target in turn: a change of a kernel changes its resources on every target."""
    others = [target for target in targets_of(launch) if target != 90]
    return [90, others[number % len(others)]]


@pytest.mark.parametrize(
    ("name", "target"), [(name, t) for i, (name, launch) in enumerate(CASES.items()) for t in some_targets(i, launch)]
)
def test_it_compiles_to_the_committed_resources(name, target):
    measured = resources(CASES[name], target)
    assert measured["spilled_bytes"] == 0
    if triton.__version__ != COMMITTED["triton"]:
        pytest.skip(f"the table is for triton {COMMITTED['triton']}, installed is {triton.__version__}")
    assert measured == COMMITTED["kernels"][name][f"sm_{target}"]


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_triton_compiles_at_the_first_launch(name):
    """Triton's own binder gives the same types, constants and alignments for the arguments of a launch."""
    launch = CASES[name]
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    bound, kinds, _ = bind(**launch.arguments, **launch.constants, **launch.options)
    source = launch.source()
    assert dict(zip(bound, (kind for kind, _ in kinds), strict=True)) == source.signature
    assert {(i,) for i, (_, marks) in enumerate(kinds) if marks == "D"} == set(
        source.attrs
    )  # constants carry their values


def test_the_table_has_every_kernel_and_nothing_else():
    assert set(COMMITTED["kernels"]) == set(CASES)
    sources = "".join(path.read_text() for path in KERNELS.glob("*.py"))
    written = set(re.findall(r"^@triton.jit\ndef (\w+)", sources, flags=re.MULTILINE))
    parts = {"_deviations", "_guided", "_mixed", "_moments", "_normalize", "_place", "_tile", "stored"}  # of kernels
    assert written - parts == {launch.kernel.__name__ for launch in CASES.values()}


def test_register_limits():
    for name, of in COMMITTED["kernels"].items():
        limit = EXCEPTIONS.get(name.partition(":")[0], MAX_REGISTERS)
        assert max(entry["registers"] for entry in of.values()) <= limit, name
        assert all(entry["spilled_bytes"] == 0 for entry in of.values()), name
        assert set(of) == {f"sm_{target}" for target in targets_of(CASES[name])}, name


def test_the_command_lists_changes(tmp_path, monkeypatch, capsys):
    now = json.loads(json.dumps(COMMITTED))
    name = next(iter(CASES))
    now["kernels"][name]["sm_90"]["registers"] += 1
    (line,) = differences(now, COMMITTED)
    assert line.startswith(f"{name}: ")
    (tmp_path / "kernels").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kernel_resources, "table", lambda: now)
    assert kernel_resources.main(["--write"]) == 0
    assert json.loads((tmp_path / "kernels" / "resources.json").read_text()) == now
    monkeypatch.setattr(kernel_resources, "table", lambda: COMMITTED)
    assert kernel_resources.main([]) == 1
    assert name in capsys.readouterr().out


def test_attention_copies_sixteen_bytes_at_once_in_three_stages():
    """Heads of 40 numbers, in rows of packed projections: two-byte loads would not be asynchronous."""
    launch = CASES["attention: SD 1.5's first level"]
    compiled = triton.compile(launch.source(), target=GPUTarget("cuda", 90, 32), options=launch.options)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (0x)?(\w+)", compiled.asm["ptx"])
    assert copies
    assert {int(size, 16 if base else 10) for base, size in copies} == {16}
    assert "ld.global.b16" not in compiled.asm["ptx"]
    assert compiled.metadata.shared >= 2 * 3 * 64 * 64 * 2  # three tiles of keys and of values
