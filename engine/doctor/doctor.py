"""`calotype doctor`: list the backends that this machine can run, and for the others the reason and a fix.

A separate process probes each library (`calotype.doctor.probes`), so that a library that raises, crashes or hangs only
affects its own line. This file imports only the standard library and `machine`: `calotype doctor` works even if the
command line's own packages are broken.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..system.memory import in_words
from ..system.version import __version__
from .machine import Machine, inspect_machine
from .probes import MARK

TIMEOUT_S = 60.0  # importing torch from a cold disk takes most of a minute

_CORE = ("numpy", "PIL", "rich", "tokenizers", "typer")
_TRACING = ("onnx", "onnxscript", "onnx_ir", "scipy", "safetensors", "huggingface_hub")
_BUILD = ("torch", "diffusers", "transformers", *_TRACING)
# library -> arguments of its probe; for other libraries the probe imports them.
_SPECIAL = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "torch": ("torch",),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt_rtx": ("tensorrt", "tensorrt_rtx"),
}
_EXTRAS = {"onnxruntime": "cpu", "openvino": "cpu", "triton": "gpu", "tensorrt": "tensorrt"}
_EXTRAS |= {"tensorrt_rtx": "tensorrt-rtx", **dict.fromkeys(_BUILD, "build")}
_FOR_GPUS = ("triton", "tensorrt", "tensorrt_rtx")
_ON_PYPI = {"PIL": "pillow", "tensorrt": "tensorrt-cu13", "tensorrt_rtx": "tensorrt-rtx-cu13"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The state of one library: "ready", "missing", "broken", or "no use" if this machine lacks the hardware for it."""

    name: str
    state: str
    detail: str
    mend: str = ""  # a command that fixes it


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All findings. `str()` formats them for a terminal or a bug report; `to_json()` returns plain data."""

    machine: Machine
    gpu: Mapping[str, Any]
    backends: tuple[Finding, ...]
    packages: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"calotype": __version__, **asdict(self), "gpu": dict(self.gpu)}

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def examine(timeout_s: float = TIMEOUT_S) -> Examination:
    """Probe all libraries. A probe that exceeds `timeout_s` counts as broken. Broken libraries raise no error."""
    names = (*_EXTRAS, *_CORE)
    with ThreadPoolExecutor(max_workers=4) as pool:
        gpu_probe = pool.submit(_run_probe, ("gpu",), timeout_s)
        probes = {n: pool.submit(_run_probe, _SPECIAL.get(n, ("imported", n)), timeout_s) for n in names}
        gpu = gpu_probe.result()
        results = {name: probe.result() for name, probe in probes.items()}
        available = results["onnxruntime"].get("providers", ())
        providers = {p: pool.submit(_run_probe, ("provider", str(p)), timeout_s) for p in available}
        results["onnxruntime"] |= {"opened": {p: probe.result() for p, probe in providers.items()}}
    findings = {name: _judge(name, result, "devices" in gpu) for name, result in results.items()}
    findings = _with_root_causes(findings, results)
    findings["eager"] = _eager(findings, results["torch"])
    backends = ("onnxruntime", "openvino", "eager", *_FOR_GPUS)
    return Examination(
        machine=inspect_machine(),
        gpu=gpu,
        backends=tuple(findings[n] for n in backends),
        packages=tuple(findings[n] for n in (*_CORE, *_BUILD)),
    )


def _run_probe(probe: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """Run a probe in a child process and return its result, or an `error` as text."""
    # -P: do not import from the current folder. -W: override PYTHONWARNINGS, so that warnings do not fail the probe.
    command = [sys.executable, "-P", "-W", "ignore", "-m", "calotype.doctor.probes", *probe]
    try:
        # A new session: `_kill` ends the child and all processes that it started.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
    except (OSError, ValueError) as error:
        return {"error": f"cannot start Python ({error})"}
    late = False
    try:
        out, _ = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as expired:  # the probe may have finished, but left a process behind
        late, out = True, expired.output or b""
        _kill(child)
    line = next((n for n in reversed(out.decode(errors="replace").splitlines()) if n.startswith(MARK)), None)
    if line is not None:
        result: dict[str, Any] = json.loads(line.removeprefix(MARK))
        return result
    return {"error": f"it did not respond in {timeout_s:g} s" if late else f"it {_ended(child.returncode)}"}


def _kill(child: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a process that left the session may keep the pipe open
        child.communicate(timeout=5)


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended the process (exit code {code})"
    try:
        return f"crashed ({signal.Signals(-code).name})"
    except ValueError:
        return f"crashed (signal {-code})"


def _judge(name: str, result: Mapping[str, Any], has_gpu: bool) -> Finding:
    if "error" not in result and "absent" not in result:
        return _working(name, result)
    if result.get("missing") != name:
        reason = str(result.get("error", result.get("absent")))
        reinstall = f"pip install --force-reinstall {_ON_PYPI.get(name, name)}"
        return Finding(name=name, state="broken", detail=reason, mend=reinstall)
    if name in _FOR_GPUS and not has_gpu:
        return Finding(name=name, state="no use", detail="not installed, and this machine has no NVIDIA GPU")
    extra = f"'calotype[{_EXTRAS[name]}]'" if name in _EXTRAS else "calotype"
    return Finding(name=name, state="missing", detail="not installed", mend=f"pip install {extra}")


def _with_root_causes(findings: Mapping[str, Finding], results: Mapping[str, Mapping[str, Any]]) -> dict[str, Finding]:
    """Use the fix of the cause for a library that is broken by a missing package or by a broken torch."""
    updated = dict(findings)
    for name, finding in findings.items():
        dependency = str(results[name].get("missing"))
        if finding.state != "broken":
            continue
        if dependency in findings:
            updated[name] = replace(finding, detail=f"needs {dependency}", mend=findings[dependency].mend)
        elif finding.detail == findings["torch"].detail:
            updated[name] = replace(finding, mend=findings["torch"].mend)
    return updated


def _working(name: str, result: Mapping[str, Any]) -> Finding:
    detail = [str(result.get("version") or "installed")]
    opened = result.get("opened", {})
    for provider, outcome in opened.items():
        reason = outcome.get("error", outcome.get("absent"))
        detail.append(f"no {provider} ({reason})" if reason else f"opens {provider}")
    if name == "openvino":
        detail.append(f"{', '.join(result['devices'])} in {', '.join(result['computes'])}")
    if name == "torch":
        detail.append(f"CUDA {result['cuda_runtime']}" if result["cuda_runtime"] else "without CUDA")
        detail.extend(result["devices"] or (["finds no GPU"] if result["cuda_runtime"] else []))
    if name == "onnxruntime" and not any(outcome == {} for outcome in opened.values()):
        reinstall = "pip install --force-reinstall onnxruntime"
        return Finding(name=name, state="broken", detail=", ".join(detail), mend=reinstall)
    return Finding(name=name, state="ready", detail=", ".join(detail))


def _eager(findings: Mapping[str, Finding], torch: Mapping[str, Any]) -> Finding:
    required = [findings[n] for n in ("torch", "diffusers", "transformers")]
    unusable = [f for f in required if f.state != "ready"]
    if not unusable:
        return Finding(name="eager", state="ready", detail=f"PyTorch {torch['version']}")
    detail = ", ".join(f"{f.name} is {f.state}" for f in unusable)
    return Finding(name="eager", state=unusable[0].state, detail=detail, mend=unusable[0].mend)


def _lines(examination: Examination) -> Iterator[str]:
    m = examination.machine
    yield f"calotype {__version__}, Python {m.python}, {m.system}"
    yield "\nmachine"
    absent = f"; no {', '.join(m.lacking)}" if m.lacking else ""
    quota = "no quota" if m.quota is None else f"a quota of {m.quota:g}"
    yield f"  processor     {m.processor}: {', '.join(m.features) or 'unknown vector features'}{absent}"
    yield f"  threads       {m.threads} of {m.cores} cores ({m.affinity} by affinity, {quota})"
    yield f"  memory        {_size(m.memory_free_bytes)} free of {_size(m.memory_bytes)}"
    locked = "" if m.store_writable else ", NOT WRITABLE: set CALOTYPE_HOME to a writable folder"
    size = "not created yet" if m.store_bytes is None else _size(m.store_bytes)
    yield f"  cache         {m.store} ({size}; {_size(m.disk_free_bytes)} free){locked}"
    yield from (f"  gpu           {line}" for line in _gpu_lines(examination.gpu))
    for title, findings in (("backends", examination.backends), ("packages", examination.packages)):
        yield f"\n{title}"
        yield from (f"  {f.name:<15} {f.state:<8} {f.detail}".rstrip() for f in findings)
    fixes: dict[str, list[str]] = {}
    for f in (*examination.backends, *examination.packages):
        if f.mend and f.name not in fixes.setdefault(f.mend, []):
            fixes[f.mend].append(f.name)
    if fixes:
        yield "\nto fix"
        yield from (f"  {command:<42} {', '.join(names)}" for command, names in fixes.items())


def _gpu_lines(gpu: Mapping[str, Any]) -> list[str]:
    if "devices" not in gpu:
        return [str(gpu.get("absent", gpu.get("error")))]
    driver = f"driver {gpu['driver'] or 'of unknown version'}, CUDA up to {gpu['cuda']}"
    return [
        f"{d['name']}, compute capability {d['capability']}, {_size(d['memory_bytes'])}; {driver}"
        for d in gpu["devices"]
    ] or [f"none; {driver}"]


def _size(count: int | None) -> str:
    return "unknown" if count is None else in_words(count)


def main(*, as_json: bool = False) -> None:
    """Print the examination."""
    examination = examine()
    text = json.dumps(examination.to_json(), indent=1) if as_json else str(examination)
    sys.stdout.write(text.encode(sys.stdout.encoding or "ascii", "replace").decode(sys.stdout.encoding or "ascii"))
    sys.stdout.write("\n")
    sys.stdout.flush()
