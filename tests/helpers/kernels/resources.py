"""Registers, shared memory and spills of the kernels, from ahead-of-time builds that need no GPU.

    python -m tests.helpers.kernels.resources            # compare with kernels/resources.json
    python -m tests.helpers.kernels.resources --write    # write it

The launches have the shapes of full-size models, on the meta device. Each is compiled as Triton would compile it at its
first launch. NVIDIA's assembler, which Triton ships, reports the resources. No kernel runs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from calotype.kernels import add_bias, attention, geglu, group_norm_silu, guided_step, layer_norm, to_uint8
from calotype.kernels.launch import Launch

TARGETS = (80, 89, 90, 100, 120)  # compute capabilities: A100, RTX 40, H100 and H200, B200, RTX 50
_USED = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")

Table = dict[str, Any]


def cases() -> Iterator[tuple[str, Launch]]:
    """Yield (unique name, launch): typical shapes of full-size models, and kernels that no model uses yet."""
    half = torch.bfloat16
    for what, shape, added in (
        ("SD 1.5's first level", (2, 320, 64, 64), "time"),
        ("SDXL's second level", (2, 640, 64, 64), "time"),
        ("the widest skip", (2, 2560, 16, 16), ""),
        ("a residual, low", (2, 1280, 16, 16), "residual"),
        ("the autoencoder's middle", (1, 512, 128, 128), ""),
        ("the autoencoder's last level", (1, 128, 1024, 1024), "residual"),
    ):
        x = _empty(*shape, dtype=half).contiguous(memory_format=torch.channels_last)
        more = {"time": _empty(*shape[:2], dtype=half), "residual": x}
        yield from _named(
            what,
            *group_norm_silu.launches(
                x, _norm(shape[1]), group_norm_silu.Addends(**{n: more[n] for n in more if n == added})
            ),
        )
    x, skip = (_empty(2, n, 64, 64, dtype=half).contiguous(memory_format=torch.channels_last) for n in (640, 320))
    sums = group_norm_silu.Addends(residual=x, skip=skip, time=_empty(640, dtype=half))
    yield from _named("SD 1.5's last level, a sum and a skip", *group_norm_silu.launches(x, _norm(960), sums))
    yield from _named("a residual and a bias", add_bias.launch(x, residual=x, bias=_empty(640, dtype=half)))
    small = _empty(2, 1280, 16, 16, dtype=half).contiguous(memory_format=torch.channels_last)
    plugin = replace(_norm(1280), weight=_empty(1280, dtype=half), bias=_empty(1280, dtype=half))
    yield from _named("TensorRT's plugin", group_norm_silu.plugin_launch(small, plugin))
    for width, rows in ((320, 4096), (1280, 1024)):
        x, scale = _empty(2, rows, width, dtype=half), _empty(width, dtype=half)
        yield from _named(f"{width} wide", layer_norm.launch(x, scale, scale, residual=x))
    yield from _named("SD 1.5's first level", geglu.launch(_empty(2, 4096, 2560, dtype=half)))
    for what, heads, pixels, width, keys in (
        ("SD 1.5's first level", 8, 4096, 40, 4096),
        ("SD 1.5's second level", 8, 1024, 80, 1024),
    ):
        packed = _empty(2, pixels, 3 * heads * width, dtype=half).chunk(3, dim=-1)
        q, k, v = (part.view(2, pixels, heads, width).transpose(1, 2) for part in packed)
        assert keys == pixels
        yield from _named(what, attention.launch(q, k, v, scale=width**-0.5))
    x, scale = _empty(2, 1024, 1280, dtype=half), _empty(1280, dtype=half)
    fused = layer_norm.launch(x, scale, scale, residual=x, fp8_scale=_empty(1))
    yield from _named("to float8_e4m3fn", fused, geglu.launch(_empty(2, 1024, 10240, dtype=half), fp8_scale=_empty(1)))
    for order in (torch.contiguous_format, torch.channels_last):
        x = _empty(1, 3, 1024, 1024, dtype=half).contiguous(memory_format=order)
        yield from _named(str(order)[6:], to_uint8.launch(x))
    for rescaled in (False, True):
        network, slots = _batch(slots=4, calls=50)
        name = "rescaled" if rescaled else "plain"
        yield from _named(f"{name}, 50 calls", guided_step.launch(network, slots, rescaled=rescaled))


def targets_of(launch: Launch) -> list[int]:
    """Return the compute capabilities that the launch supports: fp8 exists since 8.9."""
    types = {a.dtype for a in launch.arguments.values() if isinstance(a, torch.Tensor)}
    return [target for target in TARGETS if target >= 89 or torch.float8_e4m3fn not in types]


def _named(what: str, *launches: Launch) -> Iterator[tuple[str, Launch]]:
    for launch in launches:
        yield f"{launch.kernel.__name__.removeprefix('_')}: {what}", launch


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _norm(channels: int) -> group_norm_silu.GroupNorm:
    return group_norm_silu.GroupNorm(weight=_empty(channels), bias=_empty(channels))


def _batch(*, slots: int, calls: int) -> tuple[guided_step.Network, guided_step.Slots]:
    """Build guided slots of SDXL's size with inpainting, which use every path of the kernel."""
    shape, rows, columns = (4, 128, 128), calls + 1, 2 * calls + 1
    half = _empty(2 * slots, *shape, dtype=torch.bfloat16)
    network = guided_step.Network(output=half, sample=half, timestep=_empty(2 * slots))
    original = guided_step.SourceLatents(
        latents=_empty(slots, *shape),
        image_coefficients=_empty(slots, rows, dtype=torch.float64),
        inpaint_mask=_empty(slots, *shape[1:], dtype=torch.uint8),
        masked_rows=_empty(slots, rows, 2, dtype=torch.float64),
    )
    return network, guided_step.Slots(
        call=_empty(slots, dtype=torch.int32),
        calls=_empty(slots, dtype=torch.int32),
        rows=_empty(slots, rows, columns, dtype=torch.float64),
        timesteps=_empty(slots, rows),
        guidance=_empty(slots, 2),
        history=_empty(slots, columns, *shape),
        latents=_empty(slots, *shape),
        original=original,
    )


def resources(launch: Launch, capability: int) -> dict[str, int]:
    """Return registers per thread, bytes of shared memory per program, and bytes spilled per thread.

    Raises Triton's errors for a kernel that it cannot compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    compiled = triton.compile(launch.source(), target=GPUTarget("cuda", capability, 32), options=launch.options)
    registers, stack, _, local = _usage(compiled.asm["cubin"])
    return {"registers": registers, "shared_bytes": int(compiled.metadata.shared), "spilled_bytes": stack + local}


def _usage(cubin: bytes) -> tuple[int, ...]:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = _USED.search(output)
    assert match, output
    return tuple(map(int, match.groups()))


def table() -> Table:
    """Return case -> "sm_90" -> resources, with the version of Triton that compiled them."""
    import triton

    kernels = {name: {f"sm_{t}": resources(launch, t) for t in targets_of(launch)} for name, launch in cases()}
    return {"triton": triton.__version__, "kernels": kernels}


def differences(current: Mapping[str, Any], committed: Mapping[str, Any]) -> list[str]:
    """Return one line for each difference of the tables."""
    names = sorted({*current["kernels"], *committed["kernels"]})
    pairs = [(n, current["kernels"].get(n), committed["kernels"].get(n)) for n in names]
    pairs.append(("triton", current["triton"], committed["triton"]))
    return [f"{name}: got {now}; the table has {then}" for name, now, then in pairs if now != then]


def main(arguments: Sequence[str]) -> int:
    """Compare the table with `kernels/resources.json`, or write it; return the exit code."""
    path = Path.cwd() / "kernels" / "resources.json"
    current = table()
    if "--write" in arguments:
        path.write_text(json.dumps(current, indent=1) + "\n")
    changes = differences(current, json.loads(path.read_text()))
    print("\n".join(changes) or f"{path} matches the {len(current['kernels'])} launches.")
    return 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
