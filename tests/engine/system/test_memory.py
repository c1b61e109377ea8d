"""A call that needs too much memory raises before it starts, with both figures."""

import pytest

from calotype.errors import InputError
from calotype.system.memory import Load, available_bytes, check_memory, peak_bytes


def test_attention_grows_with_the_fourth_power_of_the_side():
    loads = (Load(pixels=16, width=4, squared=True, guided=True),)
    small, large = (peak_bytes(loads, batch=1, height=s, width=s, guided=True) for s in (512, 1024))
    assert large == 16 * small
    assert small == 2 * peak_bytes(loads, batch=1, height=512, width=512, guided=False)


def test_the_error_has_both_figures():
    check_memory(2**30, None)
    check_memory(2**30, 2**30)
    with pytest.raises(InputError, match=r"3\.0 GiB.*1\.0 GiB"):
        check_memory(3 * 2**30, 2**30)


def test_a_pipeline_raises_before_it_starts(fake, monkeypatch):
    monkeypatch.setattr("calotype.generator.available_bytes", lambda: 2**20)
    with pytest.raises(InputError, match="memory"):
        fake.stream("x", num_images=4)


def test_the_lower_limit_of_machine_and_cgroup_applies(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert available_bytes(tmp_path) == 5000 * 1024
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("3900\n")
    (tmp_path / "sys/fs/cgroup/memory.stat").write_text("anon 100\ninactive_file 2900\n")
    assert available_bytes(tmp_path) == 5000 * 1024
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("4000\n")
    assert available_bytes(tmp_path) == 3000
    assert available_bytes(tmp_path / "nowhere") is None
