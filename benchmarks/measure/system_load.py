"""Load of other programs while something is timed, and facts about the machine.

A `LoadMonitor` compares the time that the processors were busy with the time that the watched processes used; the rest
belongs to other programs. The other functions read clocks, caches, the GPU and the versions of the tools. A
value that the system does not report is None. This module does not know what is timed.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import calotype
from calotype.doctor.machine import inspect_machine
from calotype.system.memory import proc_bytes

# Larger than the error of the method, and large enough to matter. Compared with the clocks of all processes, the error
# over 1 s is 0.013 cores (standard deviation; 0.03 at worst), over 3 s 0.007, over 0.3 s 0.04. An idle system has 0.01.
# On two cores, 0.10 slows work that is split in halves by up to 10 %, because the faster half waits.
DISTURBED_CORES = 0.10
TOOLS = ("torch", "diffusers", "transformers", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "triton")
_TICKS = os.sysconf("SC_CLK_TCK")
_ROOT = Path("/")


@dataclass(frozen=True, kw_only=True)
class LoadSample:
    """The load between two marks, in cores: one core that is always busy is 1."""

    seconds: float
    own: float  # the watched processes, their descendants, and this process without its other children
    others: float  # everything else, including the system
    steal: float  # taken by the host of the virtual machine

    @property
    def share(self) -> float:
        """Return the load that was not ours."""
        return self.others + self.steal

    @property
    def disturbs(self) -> bool:
        """Return whether others used more than DISTURBED_CORES, so that a time is not reliable."""
        return self.share > DISTURBED_CORES


@dataclass(frozen=True, kw_only=True)
class _Mark:
    at_s: float
    idle_s: float  # sum over all processors, as is stolen_s
    stolen_s: float
    own_s: float
    processors: int


class LoadMonitor:
    """The load of other programs, from the start to each `stop`, which starts anew. A mark takes a few milliseconds.

    Busy time is what /proc/stat does not count as idle. Idle time is exact on kernels that stop the tick when idle,
    unlike the busy columns, which are sampled. Our time is that of the processes' own clocks, plus the time of children
    that ended. If a watched process is not a descendant of this one, the time that it used before it ended is lost and
    counts as others'.
    """

    def __init__(self, pids: Iterable[int] = (), root: Path = _ROOT) -> None:
        self._pids, self._root = {*pids}, root
        self._mark = self._now()

    def stop(self) -> LoadSample:
        """Return the load since the last mark, and set the first mark of the next sample."""
        before, now = self._mark, self._now()
        self._mark = now
        seconds = max(now.at_s - before.at_s, 1e-9)
        own, stolen = now.own_s - before.own_s, now.stolen_s - before.stolen_s
        busy = seconds * now.processors - (now.idle_s - before.idle_s) - stolen
        others = max(busy - own, 0.0)
        return LoadSample(seconds=seconds, own=own / seconds, others=others / seconds, steal=max(stolen, 0.0) / seconds)

    def _now(self) -> _Mark:
        own = self._own()  # the slowest call comes first, so that the other values belong together
        columns = (self._root / "proc/stat").read_text().splitlines()
        fields = [int(n) for n in columns[0].split()[1:]]
        return _Mark(
            at_s=time.monotonic(),
            idle_s=(fields[3] + fields[4]) / _TICKS,  # waiting for a disk counts as idle
            stolen_s=fields[7] / _TICKS if len(fields) > 7 else 0.0,
            own_s=own,
            processors=sum(line.startswith("cpu") for line in columns) - 1,
        )

    def _own(self) -> float:
        table = dict(_processes(self._root))
        ours, grown = set(self._pids), True
        while grown:  # add processes whose parent is ours
            more = {pid for pid, (parent, _, _) in table.items() if parent in ours} - ours
            ours, grown = ours | more, bool(more)
        used = {pid: _clock_s(pid, table[pid][1]) + table[pid][2] for pid in ours if pid in table}
        # This process without its children: they may be contenders that should be idle and are not.
        me = os.getpid()
        return sum(used.values()) + (_clock_s(me, table[me][1]) if me in table and me not in used else 0.0)


def _processes(root: Path) -> Iterator[tuple[int, tuple[int, float, float]]]:
    """Yield each process with its parent, the seconds that it used, and those of its children that ended."""
    for folder in (root / "proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, ValueError, IndexError):  # the process ended
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                used, ended = (sum(int(n) for n in fields[i : i + 2]) / _TICKS for i in (11, 13))
                yield int(folder.name), (int(fields[1]), used, ended)


def _clock_s(pid: int, sampled: float) -> float:
    """Return the process' CPU clock, exact to nanoseconds; /proc has hundredths. See clock_getcpuclockid(3)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # it has ended, and its parent has not waited for it
        return sampled


def peak_bytes(pid: int) -> int | None:
    """Return the peak memory of a living process so far."""
    return proc_bytes(Path(f"/proc/{pid}/status"), "VmHWM")


def clocks(root: Path = _ROOT) -> dict[str, Any]:
    """Return the current MHz of each core, and the governor. Most virtual machines report a nominal clock."""
    cores = root / "sys/devices/system/cpu"
    mhz, governor = [], None
    with suppress(OSError, ValueError):
        lines = (root / "proc/cpuinfo").read_text().splitlines()
        mhz = [round(float(line.partition(":")[2]), 1) for line in lines if line.startswith("cpu MHz")]
    with suppress(OSError, ValueError):
        files = sorted(cores.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        mhz = [round(int(file.read_text()) / 1000, 1) for file in files] or mhz
        governor = (cores / "cpu0/cpufreq/scaling_governor").read_text().strip()
    return {"mhz": mhz or None, "governor": governor}


def clock_mhz(device: str) -> float | None:
    """Return one clock: the mean of the cores, or that of the GPU's multiprocessors."""
    if device == "cuda":
        return None if (card := gpu()) is None else card["sm_mhz"]
    each = clocks()["mhz"]
    return sum(each) / len(each) if each else None


def cache_bytes(root: Path = _ROOT) -> int | None:
    """Return the size of the first core's cache of level 3."""
    for level in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/level"):
        with suppress(OSError, ValueError):
            if level.read_text().strip() == "3":
                size = (level.parent / "size").read_text().strip()
                return int(size.rstrip("KM")) * {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
    return None


def gpu() -> dict[str, Any] | None:
    """Return the state of the first GPU.

    `energy_j` counts since the driver was loaded; `throttled` is NVML's bit mask of the reasons, and 1 is idle. None
    without a GPU or without NVML (pip install nvidia-ml-py).
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # not installed, or no driver: NVML's own error has no type without the library
        return None

    def query(function: str, *arguments: Any, scale: float | None = None) -> Any:
        try:
            value = getattr(nvml, function)(handle, *arguments)
        except (nvml.NVMLError, AttributeError):  # this GPU does not report it
            return None
        return value if scale is None else value / scale

    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(0)
        return {
            "name": str(query("nvmlDeviceGetName")),
            "driver": str(nvml.nvmlSystemGetDriverVersion()),
            "sm_mhz": query("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "memory_mhz": query("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            "celsius": query("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            "watts": query("nvmlDeviceGetPowerUsage", scale=1000),
            "energy_j": query("nvmlDeviceGetTotalEnergyConsumption", scale=1000),
            "throttled": query("nvmlDeviceGetCurrentClocksThrottleReasons"),
        }
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def versions(names: Iterable[str] = TOOLS) -> dict[str, str]:
    """Return the versions of the installed packages among these."""
    versions_by_name = {"calotype": calotype.__version__}
    for name in names:
        with suppress(PackageNotFoundError):
            versions_by_name[name] = version(name)
    return versions_by_name


def commit(folder: Path | None = None) -> str:
    """Return the commit of the repository, with "+" if a tracked file was changed; "" outside a checkout."""
    file = folder or Path(calotype.__file__).resolve()
    git = ["git", "-C", str(file if file.is_dir() else file.parent)]
    # An installed copy must not return the commit of the user's own repository.
    tracked = [*git, "ls-files", "--error-unmatch", file.name] if file.is_file() else None
    described = [*git, "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        for command in filter(None, (tracked, described)):
            output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
        return output
    except (OSError, subprocess.SubprocessError):
        return ""


def machine() -> Mapping[str, Any]:
    """Return all facts about the machine that a run records, as plain data."""
    info = inspect_machine()
    names = ("system", "python", "processor", "features", "cores", "affinity", "quota", "memory_bytes")
    return {
        **{name: getattr(info, name) for name in names},
        "cache_bytes": cache_bytes(),
        **clocks(),
        "load_average": round(os.getloadavg()[0], 2),
        "gpu": gpu(),
    }
