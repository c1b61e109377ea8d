"""What this machine can run, and why not the rest, with the line that mends it: `calotype doctor`.

Every library is asked in a process of its own (`calotype.doctor.probes`), so that one which raises, crashes or hangs
costs its own line and no other. Imports the standard library and `machine` alone: `calotype doctor` works where even
the command line's own packages are broken.
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

TIMEOUT_S = 60.0  # a cold disk takes most of a minute to import torch

_CORE = ("numpy", "PIL", "rich", "tokenizers", "typer")
_TRACING = ("onnx", "onnxscript", "onnx_ir", "scipy", "safetensors", "huggingface_hub")
_BUILD = ("torch", "diffusers", "transformers", *_TRACING)
# question -> its arguments; what is not named here is asked whether it imports.
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
    """One library. `state` is "ready", "missing", "broken", or "no use" where this machine lacks what it is for."""

    name: str
    state: str
    detail: str
    mend: str = ""  # a command


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All findings. `str()` is for a terminal or a bug report, `to_json()` plain data."""

    machine: Machine
    gpu: Mapping[str, Any]
    backends: tuple[Finding, ...]
    packages: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"calotype": __version__, **asdict(self), "gpu": dict(self.gpu)}

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def examine(timeout_s: float = TIMEOUT_S) -> Examination:
    """Ask everything; no answer within `timeout_s` is an answer too. Never raises for what is broken."""
    names = (*_EXTRAS, *_CORE)
    with ThreadPoolExecutor(max_workers=4) as asking:
        gpu_answer = asking.submit(_ask, ("gpu",), timeout_s)
        answers = {n: asking.submit(_ask, _SPECIAL.get(n, ("imported", n)), timeout_s) for n in names}
        gpu = gpu_answer.result()
        told = {name: answer.result() for name, answer in answers.items()}
        wanted = told["onnxruntime"].get("providers", ())
        providers = {p: asking.submit(_ask, ("provider", str(p)), timeout_s) for p in wanted}
        told["onnxruntime"] |= {"opened": {p: answer.result() for p, answer in providers.items()}}
    found = _blamed({name: _judge(name, answer, "devices" in gpu) for name, answer in told.items()}, told)
    found["eager"] = _eager(found, told["torch"])
    backends = ("onnxruntime", "openvino", "eager", *_FOR_GPUS)
    return Examination(
        machine=inspect_machine(),
        gpu=gpu,
        backends=tuple(found[n] for n in backends),
        packages=tuple(found[n] for n in (*_CORE, *_BUILD)),
    )


def _ask(question: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """The child's answer; an `error` in words where it gave none."""
    # -P: nothing is imported from the folder that we stand in. Warnings break nothing, whatever PYTHONWARNINGS says.
    command = [sys.executable, "-P", "-W", "ignore", "-m", "calotype.doctor.probes", *question]
    try:
        # A session of its own: whatever the child started ends with it.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
    except (OSError, ValueError) as failed:
        return {"error": f"there is no Python to ask with ({failed})"}
    late = False
    try:
        out, _ = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as expired:  # perhaps it answered, and left a process of its own behind
        late, out = True, expired.output or b""
        _kill(child)
    line = next((n for n in reversed(out.decode(errors="replace").splitlines()) if n.startswith(MARK)), None)
    if line is not None:
        answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
        return answer
    if late:
        return {"error": f"it gave no answer in {timeout_s:g} s"}
    return {"error": f"it {_ended(child.returncode)} while it was asked"}


def _kill(child: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # what left the session may hold the pipe for ever
        child.communicate(timeout=5)


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended the process (exit code {code})"
    try:
        return f"crashed ({signal.Signals(-code).name})"
    except ValueError:
        return f"crashed (signal {-code})"


def _judge(name: str, answer: Mapping[str, Any], has_gpu: bool) -> Finding:
    if "error" not in answer and "absent" not in answer:
        return _working(name, answer)
    if answer.get("missing") != name:
        why = str(answer.get("error", answer.get("absent")))
        again = f"pip install --force-reinstall {_ON_PYPI.get(name, name)}"
        return Finding(name=name, state="broken", detail=why, mend=again)
    if name in _FOR_GPUS and not has_gpu:
        return Finding(name=name, state="no use", detail="not installed, and there is no NVIDIA GPU here")
    extra = f"'calotype[{_EXTRAS[name]}]'" if name in _EXTRAS else "calotype"
    return Finding(name=name, state="missing", detail="not installed", mend=f"pip install {extra}")


def _blamed(found: Mapping[str, Finding], told: Mapping[str, Mapping[str, Any]]) -> dict[str, Finding]:
    """What is broken by another package is mended with that: by one that it lacks, or by a torch that is broken."""
    blamed = dict(found)
    for name, finding in found.items():
        lacks = str(told[name].get("missing"))
        if finding.state != "broken":
            continue
        if lacks in found:
            blamed[name] = replace(finding, detail=f"needs {lacks}", mend=found[lacks].mend)
        elif finding.detail == found["torch"].detail:
            blamed[name] = replace(finding, mend=found["torch"].mend)
    return blamed


def _working(name: str, answer: Mapping[str, Any]) -> Finding:
    detail = [str(answer.get("version") or "installed")]
    opened = answer.get("opened", {})
    for provider, took in opened.items():
        why_not = took.get("error", took.get("absent"))
        detail.append(f"no {provider} ({why_not})" if why_not else f"opens {provider}")
    if name == "openvino":
        detail.append(f"{', '.join(answer['devices'])} in {', '.join(answer['computes'])}")
    if name == "torch":
        detail.append(f"CUDA {answer['cuda_runtime']}" if answer["cuda_runtime"] else "without CUDA")
        detail.extend(answer["devices"] or (["sees no GPU"] if answer["cuda_runtime"] else []))
    if name == "onnxruntime" and not any(took == {} for took in opened.values()):
        again = "pip install --force-reinstall onnxruntime"
        return Finding(name=name, state="broken", detail=", ".join(detail), mend=again)
    return Finding(name=name, state="ready", detail=", ".join(detail))


def _eager(found: Mapping[str, Finding], torch: Mapping[str, Any]) -> Finding:
    needs = [found[n] for n in ("torch", "diffusers", "transformers")]
    lacking = [f for f in needs if f.state != "ready"]
    if not lacking:
        return Finding(name="eager", state="ready", detail=f"PyTorch {torch['version']}")
    said = ", ".join(f"{f.name} is {f.state}" for f in lacking)
    return Finding(name="eager", state=lacking[0].state, detail=said, mend=lacking[0].mend)


def _lines(seen: Examination) -> Iterator[str]:
    m = seen.machine
    yield f"calotype {__version__}, Python {m.python}, {m.system}"
    yield "\nmachine"
    lacking = f"; no {', '.join(m.lacking)}" if m.lacking else ""
    quota = "no quota" if m.quota is None else f"a quota of {m.quota:g}"
    yield f"  processor     {m.processor}: {', '.join(m.features) or 'no vector features told'}{lacking}"
    yield f"  threads       {m.threads} of {m.cores} cores ({m.affinity} by affinity, {quota})"
    yield f"  memory        {_size(m.memory_free_bytes)} free of {_size(m.memory_bytes)}"
    locked = "" if m.store_writable else ", NOT WRITABLE: set CALOTYPE_HOME to a folder that is"
    made = "not made yet" if m.store_bytes is None else _size(m.store_bytes)
    yield f"  cache         {m.store} ({made}; {_size(m.disk_free_bytes)} free){locked}"
    yield from (f"  gpu           {line}" for line in _gpu_lines(seen.gpu))
    for title, findings in (("backends", seen.backends), ("packages", seen.packages)):
        yield f"\n{title}"
        yield from (f"  {f.name:<15} {f.state:<8} {f.detail}".rstrip() for f in findings)
    mends: dict[str, list[str]] = {}
    for f in (*seen.backends, *seen.packages):
        if f.mend and f.name not in mends.setdefault(f.mend, []):
            mends[f.mend].append(f.name)
    if mends:
        yield "\nto mend"
        yield from (f"  {command:<42} {', '.join(names)}" for command, names in mends.items())


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
    seen = examine()
    text = json.dumps(seen.to_json(), indent=1) if as_json else str(seen)
    sys.stdout.write(text.encode(sys.stdout.encoding or "ascii", "replace").decode(sys.stdout.encoding or "ascii"))
    sys.stdout.write("\n")
    sys.stdout.flush()
