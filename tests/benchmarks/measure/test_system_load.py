"""Tests of the load of other programs, on a machine made of files and on this one; and of facts about the machine."""

import importlib.metadata
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from calotype.benchmarks.measure import system_load
from calotype.benchmarks.measure.system_load import LoadMonitor, LoadSample

TICKS = os.sysconf("SC_CLK_TCK")
BURN = "import time\nwhile time.process_time() < {}: pass"


def machine(root, *, idle_s, steal_s, processes, cores=4):
    """Write a /proc. `processes` are (pid, parent, seconds used, seconds of ended children)."""
    proc = root / "proc"
    proc.mkdir(exist_ok=True)
    lines = [f"cpu 1 2 3 {round(idle_s * TICKS)} 0 5 6 {round(steal_s * TICKS)} 0 0"]
    (proc / "stat").write_text("\n".join([*lines, *(f"cpu{i} 0 0 0 0 0 0 0 0 0 0" for i in range(cores)), "intr 1"]))
    for pid, parent, used, ended in processes:
        (proc / str(pid)).mkdir(exist_ok=True)
        numbers = [parent, *[0] * 9, round(used * TICKS), 0, round(ended * TICKS), 0, 0]
        (proc / str(pid) / "stat").write_text(f"{pid} (a (odd) name) S " + " ".join(map(str, numbers)))


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets. The CPU clocks of processes are those of /proc."""

    def none_such(_):
        raise OSError

    now = [100.0]
    monkeypatch.setattr(system_load.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(system_load.time, "clock_gettime", none_such)
    return now


def test_the_rest_of_the_busy_time_belongs_to_others(tmp_path, clock):
    machine(
        tmp_path,
        idle_s=50,
        steal_s=1,
        processes=[(1000, 1, 10, 2), (1001, 1000, 3, 0), (1002, 1001, 1, 0), (7, 1, 9, 0)],
    )
    seen = LoadMonitor([1000], tmp_path)
    clock[0] += 10
    # 40 s on four cores: 12 idle, 2 stolen; ours 5 + 3 + 2, including a grandchild that ended.
    machine(tmp_path, idle_s=62, steal_s=3, processes=[(1000, 1, 15, 2), (1001, 1000, 6, 3), (7, 1, 25, 0)])
    (tmp_path / "proc/1002/stat").unlink()
    load = seen.stop()
    assert load.seconds == 10
    assert load.own == pytest.approx((5 + 3 + 3 - 1) / 10)
    assert load.steal == pytest.approx(0.2)
    assert load.others == pytest.approx((40 - 12 - 2 - 10) / 10)
    assert load.share == pytest.approx(1.8)


def test_each_stop_starts_the_next_sample(tmp_path, clock):
    machine(tmp_path, idle_s=0, steal_s=0, processes=[])
    seen = LoadMonitor((), tmp_path)
    loads = []
    for idle in (40, 78, 118):
        clock[0] += 10
        machine(tmp_path, idle_s=idle, steal_s=0, processes=[])
        loads.append(seen.stop())
    assert [load.share for load in loads] == pytest.approx([0, 0.2, 0])
    assert [load.disturbs for load in loads] == [False, True, False]


def test_a_tenth_of_a_core_disturbs():
    assert not LoadSample(seconds=1, own=1, others=0.05, steal=0.0499).disturbs
    assert LoadSample(seconds=1, own=1, others=0.05, steal=0.0501).disturbs


def test_children_that_ended_belong_to_the_watched_process():
    seen = LoadMonitor([os.getpid()])
    subprocess.run([sys.executable, "-c", BURN.format(0.4)], check=True)
    load = seen.stop()
    assert 0.3 <= load.own * load.seconds < 0.4 + 0.5  # plus the start of Python


def test_a_process_of_someone_else_is_others():
    """The parent of an orphan is init, so it is not ours. How much time it gets depends on the scheduler."""
    seen = LoadMonitor()
    subprocess.run(f"({sys.executable} -c '{BURN.format(0.4)}' &)", shell=True, check=True)
    time.sleep(0.8)
    load = seen.stop()
    assert load.share > 0.1
    assert load.disturbs
    assert load.own < 0.3


def test_a_child_that_is_not_watched_is_others():
    """A contender that should be idle while another one generates."""
    burner = subprocess.Popen([sys.executable, "-c", BURN.format(5)])
    try:
        time.sleep(0.2)
        seen = LoadMonitor()
        time.sleep(0.5)
        load = seen.stop()
    finally:
        burner.kill()
        burner.wait()
    assert load.own < 0.1
    assert load.others > 0.1


def test_the_peak_memory_of_a_process():
    assert 10 << 20 < system_load.peak_bytes(os.getpid()) < 1 << 40
    assert system_load.peak_bytes(2**22 + 1) is None


def test_clocks_and_caches_are_read(tmp_path):
    cpu = tmp_path / "sys/devices/system/cpu/cpu0"
    for folder in (cpu / "cpufreq", cpu / "cache/index0", cpu / "cache/index3", tmp_path / "proc"):
        folder.mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\ncpu MHz\t\t: 2596.100\n\nprocessor : 1\ncpu MHz : 3000.0\n")
    assert system_load.clocks(tmp_path) == {"mhz": [2596.1, 3000.0], "governor": None}
    (cpu / "cpufreq/scaling_cur_freq").write_text("3700000\n")
    (cpu / "cpufreq/scaling_governor").write_text("performance\n")
    assert system_load.clocks(tmp_path) == {"mhz": [3700.0], "governor": "performance"}
    for index, (kind, level, size) in {"index0": ("Data", 1, "48K"), "index3": ("Unified", 3, "32M")}.items():
        for name, value in (("type", kind), ("level", level), ("size", size)):
            (cpu / "cache" / index / name).write_text(f"{value}\n")
    assert system_load.cache_bytes(tmp_path) == 32 << 20
    assert system_load.cache_bytes(tmp_path / "nothing") is None
    assert system_load.clocks(tmp_path / "nothing") == {"mhz": None, "governor": None}


def test_a_commit_is_marked_where_files_changed(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    assert system_load.commit(tmp_path) == ""
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    clean = system_load.commit(tmp_path)
    assert len(clean) >= 12
    (tmp_path / "stray").write_text("nothing that git knows")
    assert system_load.commit(tmp_path) == clean
    (tmp_path / "file").write_text("two")
    assert system_load.commit(tmp_path) == clean + "+"


def test_versions_are_those_of_what_is_installed():
    data = system_load.versions(["numpy", "no-such-package"])
    assert data == {"calotype": system_load.calotype.__version__, "numpy": importlib.metadata.version("numpy")}


class NVMLError(Exception):
    pass


def unsupported(*_):
    raise NVMLError("Not Supported")


NVML = {
    **{"NVMLError": NVMLError, "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0},
    **{"nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlSystemGetDriverVersion": lambda: "580.1"},
    "nvmlDeviceGetHandleByIndex": lambda i: f"card {i}",
    "nvmlDeviceGetName": lambda h: f"{h} of NVIDIA",
    "nvmlDeviceGetClockInfo": lambda h, kind: 1000 * kind,
    "nvmlDeviceGetTemperature": lambda h, kind: 41,
    "nvmlDeviceGetPowerUsage": lambda h: 70_500,
    "nvmlDeviceGetTotalEnergyConsumption": unsupported,
    "nvmlDeviceGetCurrentClocksThrottleReasons": lambda h: 1,
}


def test_facts_that_a_gpu_lacks_are_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**NVML))
    card = system_load.gpu()
    assert (card["name"], card["driver"], card["celsius"], card["watts"]) == ("card 0 of NVIDIA", "580.1", 41, 70.5)
    assert (card["sm_mhz"], card["memory_mhz"], card["energy_j"]) == (1000, 2000, None)
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**{**NVML, "nvmlDeviceGetHandleByIndex": unsupported}))
    assert system_load.gpu() is None
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**{**NVML, "nvmlInit": unsupported}))
    assert system_load.gpu() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert system_load.gpu() is None


def test_the_machine_is_plain_data():
    import json

    data = json.loads(json.dumps(system_load.machine()))
    assert data["cores"] == os.cpu_count()
    assert set(data) >= {
        "processor",
        "features",
        "memory_bytes",
        "cache_bytes",
        "mhz",
        "governor",
        "load_average",
        "gpu",
    }
