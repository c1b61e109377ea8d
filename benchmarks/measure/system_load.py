"""What else happened on the machine while something was timed, and what the machine was.

A `Watch` holds the time that the processors were busy against the time that the watched processes used; the rest was
somebody else's. Other files read the clocks, the load, the GPU and the versions of the tools. Reads and never
judges, but for `disturbed`. What a system does not tell is None. Knows nothing of what is timed.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import calotype
from calotype.doctor.machine import inspect_machine

# More than the method errs by, and enough to matter. Held against the clocks of all processes it errs over 1 s by 0.013
# cores (standard deviation; 0.03 at worst), over 3 s by 0.007, over 0.3 s by 0.04; a quiet system's own work is 0.01.
# On two cores 0.10 slows work that is split in halves by up to 10 %, as the slower half is waited for.
DISTURBED_CORES = 0.10
TOOLS = ("torch", "diffusers", "transformers", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "triton")
_TICKS = os.sysconf("SC_CLK_TCK")
_ROOT = Path("/")


@dataclass(frozen=True, kw_only=True)
class Load:
    """Between two marks, in cores: one core busy all the time is 1."""

    seconds: float
    own: float  # the watched processes, their descendants, and this one without its own
    others: float  # everything else, the system's own work too
    steal: float  # taken by the host of a virtual machine

    @property
    def share(self) -> float:
        """What was not ours."""
        return self.others + self.steal


@dataclass(frozen=True, kw_only=True)
class _Mark:
    at_s: float
    idle_s: float  # of all processors together; so is stolen
    stolen_s: float
    own_s: float
    processors: int


class Watch:
    """The load of others, from a `start` to each `stop`, which starts anew. A mark takes a few milliseconds.

    Time is what /proc/stat does not call idle: that is exact where ticks stop when idle, unlike its busy columns, which
    are sampled. Ours is the processes' own clocks, and what children that ended had used. What a watched process
    that is not this one's descendant used before it ended is lost, and counts as others'.
    """

    def __init__(self, pids: Iterable[int] = (), root: Path = _ROOT) -> None:
        self._pids, self._root = {*pids}, root
        self._mark = self._now()

    def start(self) -> None:
        """The first mark."""
        self._mark = self._now()

    def stop(self) -> Load:
        """The second mark, and the first of what follows."""
        before, self._mark = self._mark, self._now()
        now = self._mark
        seconds = max(now.at_s - before.at_s, 1e-9)
        own, stolen = now.own_s - before.own_s, now.stolen_s - before.stolen_s
        busy = seconds * now.processors - (now.idle_s - before.idle_s) - stolen
        others = max(busy - own, 0.0)
        return Load(seconds=seconds, own=own / seconds, others=others / seconds, steal=max(stolen, 0.0) / seconds)

    def _now(self) -> _Mark:
        own = self._own()  # takes the longest: before the others, which then belong together
        columns = (self._root / "proc/stat").read_text().splitlines()
        fields = [int(n) for n in columns[0].split()[1:]]
        return _Mark(
            at_s=time.monotonic(),
            idle_s=(fields[3] + fields[4]) / _TICKS,  # waiting for a disk is idle, too
            stolen_s=fields[7] / _TICKS if len(fields) > 7 else 0.0,
            own_s=own,
            processors=sum(line.startswith("cpu") for line in columns) - 1,
        )

    def _own(self) -> float:
        table = dict(_processes(self._root))
        ours, grown = set(self._pids), True
        while grown:  # whoever's parent is ours
            more = {pid for pid, (parent, _, _) in table.items() if parent in ours} - ours
            ours, grown = ours | more, bool(more)
        used = {pid: _clock_s(pid, table[pid][1]) + table[pid][2] for pid in ours if pid in table}
        # This process alone: its other children may be contenders who should be idle, and are not.
        me = os.getpid()
        return sum(used.values()) + (_clock_s(me, table[me][1]) if me in table and me not in used else 0.0)


def disturbed(share: float) -> bool:
    """Did others use more than DISTURBED_CORES, so that a time is not to be trusted?"""
    return share > DISTURBED_CORES


def _processes(root: Path) -> Iterator[tuple[int, tuple[int, float, float]]]:
    """Each process: its parent, the seconds that it used, and those of its children that ended."""
    for folder in (root / "proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, ValueError, IndexError):  # it ended meanwhile
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                used, ended = (sum(int(n) for n in fields[i : i + 2]) / _TICKS for i in (11, 13))
                yield int(folder.name), (int(fields[1]), used, ended)


def _clock_s(pid: int, sampled: float) -> float:
    """A process' own clock, in nanoseconds where /proc has hundredths (clock_getcpuclockid(3) makes such numbers)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # it has ended, and its parent has not asked for it
        return sampled


def peak_bytes(pid: int | None = None, root: Path = _ROOT) -> int | None:
    """The most memory that a living process held so far; None names this one."""
    with suppress(OSError, IndexError, ValueError):
        status = (root / "proc" / ("self" if pid is None else str(pid)) / "status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return None


def clocks(root: Path = _ROOT) -> dict[str, Any]:
    """MHz of each core, now, and the governor. A virtual machine mostly tells a nominal clock."""
    cores = root / "sys/devices/system/cpu"
    mhz: list[float] = []
    with suppress(OSError, ValueError):
        mhz = [int(p.read_text()) / 1000 for p in sorted(cores.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    with suppress(OSError, ValueError):
        lines = [] if mhz else (root / "proc/cpuinfo").read_text().splitlines()
        mhz += [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    governor = None
    with suppress(OSError):
        governor = (cores / "cpu0/cpufreq/scaling_governor").read_text().strip()
    return {"mhz": [round(each, 1) for each in mhz] or None, "governor": governor}


def clock_mhz(device: str = "cpu", root: Path = _ROOT) -> float | None:
    """One figure: the mean of the cores, or the GPU's multiprocessors."""
    if device == "cuda":
        card = gpu()
        return None if card is None else card.sm_mhz
    each = clocks(root)["mhz"]
    return sum(each) / len(each) if each else None


def has_gpu(root: Path = _ROOT) -> bool:
    """Has the machine an NVIDIA GPU that its driver shows?"""
    return (root / "dev/nvidiactl").exists()


def cache_bytes(level: int = 3, root: Path = _ROOT) -> int | None:
    """The size of the first core's cache of that level."""
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        with suppress(OSError, ValueError):
            kind, size = (folder / "type").read_text().strip(), (folder / "size").read_text().strip()
            if kind != "Instruction" and int((folder / "level").read_text()) == level:
                unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
                return int(size.rstrip("KM")) * unit
    return None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU, now."""

    name: str
    driver: str
    sm_mhz: int | None
    memory_mhz: int | None
    celsius: int | None
    watts: float | None
    energy_j: float | None  # since the driver was loaded: a run's is the difference of two
    throttled: int | None  # NVML's bits of the reasons; 1 is idle


def gpu(which: int | str = 0) -> Gpu | None:
    """By NVML's number, or the UUID, which CUDA shares; None without NVML (pip install nvidia-ml-py) or a GPU."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        by = nvml.nvmlDeviceGetHandleByUUID if isinstance(which, str) else nvml.nvmlDeviceGetHandleByIndex
        return _gpu(nvml, by(which))
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> Gpu:
    def told(question: str, *which: Any) -> Any:
        try:
            return getattr(nvml, question)(handle, *which)
        except (nvml.NVMLError, AttributeError):  # this GPU does not tell
            return None

    milliwatts, millijoules = told("nvmlDeviceGetPowerUsage"), told("nvmlDeviceGetTotalEnergyConsumption")
    return Gpu(
        name=str(told("nvmlDeviceGetName")),
        driver=str(nvml.nvmlSystemGetDriverVersion()),
        sm_mhz=told("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        memory_mhz=told("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
        celsius=told("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        watts=None if milliwatts is None else milliwatts / 1000,
        energy_j=None if millijoules is None else millijoules / 1000,
        throttled=told("nvmlDeviceGetCurrentClocksThrottleReasons"),
    )


def versions(names: Iterable[str] = TOOLS) -> dict[str, str]:
    """Of those packages that are installed."""
    found = {"calotype": calotype.__version__}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def commit(folder: Path | None = None) -> str:
    """The repository's commit, with "+" where a file that git knows was changed; "" where this is no checkout."""
    file = folder or Path(calotype.__file__).resolve()
    where = file if file.is_dir() else file.parent
    try:
        if file.is_file():  # else an installed copy would tell the commit of whatever repository its user sits in
            _git(where, "ls-files", "--error-unmatch", file.name)
        return _git(where, "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(where: Path, *words: str) -> str:
    command = ["git", "-C", str(where), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()


def machine() -> Mapping[str, Any]:
    """All that a run records of the machine, as plain data."""
    seen, card = inspect_machine(), gpu()
    names = ("system", "python", "processor", "features", "cores", "affinity", "quota", "memory_bytes")
    return {
        **{name: getattr(seen, name) for name in names},
        "cache_bytes": cache_bytes(),
        **clocks(),
        "load_average": round(os.getloadavg()[0], 2),
        "gpu": None if card is None else asdict(card),
    }
