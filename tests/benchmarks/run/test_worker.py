"""Tests that a worker that dies, hangs or prints nonsense becomes a `WorkerError`, never a wait or another error."""

import os
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from calotype.benchmarks.run.worker import UnsupportedCase, Worker, WorkerError

PEER = """
import os, signal, sys, time
import numpy as np

class Peer:
    parts = {"unet": [0.5]}

    def unsupported_reason(self, job):
        return job.get("cannot")

    def load(self, job):
        print("a library says hello on stdout")
        self.job = job
        return {"threads": len(os.sched_getaffinity(0)), "artifact_bytes": 1, "versions": {}, **job.get("report", {})}

    def generate(self, prompts, negative, seeds):
        exec(self.job.get("code", ""))
        return np.zeros((len(seeds), 2, 2, 3), np.uint8)

    def device_peak_bytes(self):
        return None
"""


@pytest.fixture
def worker(tmp_path):
    file = tmp_path / "peer.py"
    file.write_text(PEER)
    with closing(Worker(Path(sys.executable), file, threads=1)) as worker:
        yield worker


def generate(worker, code="", timeout_s=20.0, **job):
    worker.ask({"op": "load", "job": {"code": code, **job}}, 20.0)
    return worker.ask({"op": "generate", "prompts": ["x"], "negative": None, "seeds": [1], "out": None}, timeout_s)


def test_it_answers(worker):
    keyword = generate(worker, "time.sleep(0.05)")
    assert 0.05 <= keyword["seconds"] < 5
    assert keyword["parts"] == {"unet": [0.5]}


def test_it_uses_the_requested_number_of_cores(worker):
    assert worker.ask({"op": "load", "job": {}}, 20.0)["threads"] == 1


def test_a_build_in_this_run_is_not_part_of_loading(worker):
    assert worker.ask({"op": "load", "job": {"report": {"build_s": 100.0}}}, 20.0)["load_s"] < 0
    keyword = worker.ask({"op": "load", "job": {"report": {"build_s": 100.0, "build_when": "2026-01-01"}}}, 20.0)
    assert keyword["load_s"] >= 0


@pytest.mark.parametrize(
    ("code", "keyword"),
    [
        ("raise ValueError('no such layer')", "ValueError: no such layer"),
        ("sys.exit(3)", "SystemExit: 3"),
        ("os.write(2, b'the last words\\n'); os._exit(3)", "the last words"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    ],
)
def test_a_failure_is_a_worker_error(worker, code, keyword):
    with pytest.raises(WorkerError, match=keyword):
        generate(worker, code)


def test_a_worker_that_hangs_is_ended(worker):
    began = time.monotonic()
    with pytest.raises(WorkerError, match="within"):
        generate(worker, "time.sleep(60)", timeout_s=0.3)
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_an_error_leaves_it_alive(worker):
    with pytest.raises(WorkerError):
        generate(worker, "1 / 0")
    assert generate(worker)["ok"]


def test_an_unsupported_case_has_its_own_error(worker):
    with pytest.raises(UnsupportedCase, match="no such image"):
        worker.ask({"op": "load", "job": {"cannot": "no such image"}}, 20.0)


def test_a_file_without_a_peer(tmp_path):
    (tmp_path / "peer.py").write_text("import nothing_of_this_name")
    with (
        closing(Worker(Path(sys.executable), tmp_path / "peer.py", threads=1)) as worker,
        pytest.raises(WorkerError, match="nothing_of_this_name"),
    ):
        worker.ask({"op": "load", "job": {}}, 20.0)


def test_closing_ends_what_it_started(tmp_path):
    file = tmp_path / "peer.py"
    file.write_text(PEER)
    worker = Worker(Path(sys.executable), file, threads=1)
    out = tmp_path / "pid"
    generate(worker, f"import subprocess; open({str(out)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))")
    worker.close()
    child = Path(f"/proc/{out.read_text()}/stat")
    deadline = time.monotonic() + 10
    while child.exists() and ") Z" not in child.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or ") Z" in child.read_text()


def test_it_does_not_see_foreign_packages(worker, monkeypatch, tmp_path):
    """Another environment has its own packages. The same name elsewhere is another environment."""
    foreign = tmp_path / "bin" / "python"
    foreign.parent.mkdir()
    foreign.symlink_to(sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with closing(Worker(foreign, tmp_path / "peer.py", threads=1)) as other:
        generate(other, "assert 'PYTHONPATH' not in os.environ")


def test_our_own_interpreter_keeps_the_path_of_packages(worker, monkeypatch, tmp_path):
    """On a machine to which the packages were carried, they are nowhere else."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with closing(Worker(Path(sys.executable), tmp_path / "peer.py", threads=1)) as other:
        generate(other, f"assert os.environ['PYTHONPATH'] == {str(tmp_path)!r}")
