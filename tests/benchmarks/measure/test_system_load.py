"""The load of others, on a machine made up of files and on this one; and what is read of the machine."""

import importlib.metadata
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from calotype.benchmarks.measure import system_load as watch
from calotype.benchmarks.measure.system_load import Watch, disturbed

TICKS = os.sysconf("SC_CLK_TCK")
BURN = "import time\nwhile time.process_time() < {}: pass"


def machine(root, *, idle_s, steal_s, processes, cores=4):
    """A /proc: `processes` are (pid, parent, seconds used, seconds of ended children)."""
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
    """Time by hand; processes' own clocks are those of /proc."""

    def none_such(_):
        raise OSError

    now = [100.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watch.time, "clock_gettime", none_such)
    return now


def test_what_is_not_ours_is_others(tmp_path, clock):
    machine(
        tmp_path,
        idle_s=50,
        steal_s=1,
        processes=[(1000, 1, 10, 2), (1001, 1000, 3, 0), (1002, 1001, 1, 0), (7, 1, 9, 0)],
    )
    seen = Watch([1000], tmp_path)
    clock[0] += 10
    # Of 40 s on four cores: 12 idle, 2 stolen; ours 5 + 3 + 2, of which a grandchild's that ended.
    machine(tmp_path, idle_s=62, steal_s=3, processes=[(1000, 1, 15, 2), (1001, 1000, 6, 3), (7, 1, 25, 0)])
    (tmp_path / "proc/1002/stat").unlink()
    load = seen.stop()
    assert load.seconds == 10
    assert load.own == pytest.approx((5 + 3 + 3 - 1) / 10)
    assert load.steal == pytest.approx(0.2)
    assert load.others == pytest.approx((40 - 12 - 2 - 10) / 10)
    assert load.share == pytest.approx(1.8)


def test_each_stop_begins_anew(tmp_path, clock):
    machine(tmp_path, idle_s=0, steal_s=0, processes=[])
    seen = Watch((), tmp_path)
    shares = []
    for idle in (40, 78, 118):
        clock[0] += 10
        machine(tmp_path, idle_s=idle, steal_s=0, processes=[])
        shares.append(seen.stop().share)
    assert shares == pytest.approx([0, 0.2, 0])
    assert [disturbed(s) for s in shares] == [False, True, False]


def test_a_tenth_of_a_core_disturbs():
    assert not disturbed(0.0999)
    assert disturbed(0.1001)


def test_children_that_came_and_went_belong_to_the_process_that_is_watched():
    seen = Watch([os.getpid()])
    subprocess.run([sys.executable, "-c", BURN.format(0.4)], check=True)
    load = seen.stop()
    assert 0.3 <= load.own * load.seconds < 0.4 + 0.5  # and what Python takes to start


def test_a_process_of_someone_else_is_others():
    """An orphan's parent is init, so it is not ours; how much it gets of a busy machine is the scheduler's."""
    seen = Watch()
    subprocess.run(f"({sys.executable} -c '{BURN.format(0.4)}' &)", shell=True, check=True)
    time.sleep(0.8)
    load = seen.stop()
    assert load.share > 0.1
    assert disturbed(load.share)
    assert load.own < 0.3


def test_a_child_that_is_not_watched_is_others():
    """A contender that should be idle while another one paints."""
    burner = subprocess.Popen([sys.executable, "-c", BURN.format(5)])
    try:
        time.sleep(0.2)
        seen = Watch()
        time.sleep(0.5)
        load = seen.stop()
    finally:
        burner.kill()
        burner.wait()
    assert load.own < 0.1
    assert load.others > 0.1


def test_the_most_memory_of_a_process():
    own = watch.peak_bytes()
    assert own == watch.peak_bytes(os.getpid())
    assert 10 << 20 < own < 1 << 40
    assert watch.peak_bytes(2**22 + 1) is None


def test_clocks_and_caches_are_read(tmp_path):
    cpu = tmp_path / "sys/devices/system/cpu/cpu0"
    for folder in (cpu / "cpufreq", cpu / "cache/index0", cpu / "cache/index3", tmp_path / "proc"):
        folder.mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\ncpu MHz\t\t: 2596.100\n\nprocessor : 1\ncpu MHz : 3000.0\n")
    assert watch.clocks(tmp_path) == {"mhz": [2596.1, 3000.0], "governor": None}
    (cpu / "cpufreq/scaling_cur_freq").write_text("3700000\n")
    (cpu / "cpufreq/scaling_governor").write_text("performance\n")
    assert watch.clocks(tmp_path) == {"mhz": [3700.0], "governor": "performance"}
    for index, (kind, level, size) in {"index0": ("Data", 1, "48K"), "index3": ("Unified", 3, "32M")}.items():
        for name, value in (("type", kind), ("level", level), ("size", size)):
            (cpu / "cache" / index / name).write_text(f"{value}\n")
    assert watch.cache_bytes(root=tmp_path) == 32 << 20
    assert watch.cache_bytes(1, root=tmp_path) == 48 << 10
    assert watch.cache_bytes(2, root=tmp_path) is None
    assert watch.clocks(tmp_path / "nothing") == {"mhz": None, "governor": None}


def test_a_commit_is_marked_where_files_changed(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    assert watch.commit(tmp_path) == ""
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    clean = watch.commit(tmp_path)
    assert len(clean) >= 12
    (tmp_path / "stray").write_text("nothing that git knows")
    assert watch.commit(tmp_path) == clean
    (tmp_path / "file").write_text("two")
    assert watch.commit(tmp_path) == clean + "+"


def test_versions_are_those_of_what_is_installed():
    told = watch.versions(["numpy", "no-such-package"])
    assert told == {"calotype": watch.calotype.__version__, "numpy": importlib.metadata.version("numpy")}


class NVMLError(Exception):
    pass


def unsupported(*_):
    raise NVMLError("Not Supported")


NVML = {
    **{"NVMLError": NVMLError, "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0},
    **{"nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlSystemGetDriverVersion": lambda: "580.1"},
    "nvmlDeviceGetHandleByIndex": lambda i: f"card {i}",
    "nvmlDeviceGetHandleByUUID": unsupported,
    "nvmlDeviceGetName": lambda h: f"{h} of NVIDIA",
    "nvmlDeviceGetClockInfo": lambda h, kind: 1000 * kind,
    "nvmlDeviceGetTemperature": lambda h, kind: 41,
    "nvmlDeviceGetPowerUsage": lambda h: 70_500,
    "nvmlDeviceGetTotalEnergyConsumption": unsupported,
    "nvmlDeviceGetCurrentClocksThrottleReasons": lambda h: 1,
}


def test_a_gpu_tells_what_it_can(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**NVML))
    card = watch.gpu()
    assert (card.name, card.driver, card.celsius, card.watts) == ("card 0 of NVIDIA", "580.1", 41, 70.5)
    assert (card.sm_mhz, card.memory_mhz, card.energy_j) == (1000, 2000, None)
    assert watch.gpu("GPU-none-such") is None
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**{**NVML, "nvmlInit": unsupported}))
    assert watch.gpu() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert watch.gpu() is None


def test_the_machine_is_plain_data():
    import json

    told = json.loads(json.dumps(watch.machine()))
    assert told["cores"] == os.cpu_count()
    assert set(told) >= {
        "processor",
        "features",
        "memory_bytes",
        "cache_bytes",
        "mhz",
        "governor",
        "load_average",
        "gpu",
    }
