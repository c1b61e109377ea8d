"""A worker that dies, hangs or babbles is a reason in one sentence, never an exception of the system's or a wait."""

import os
import sys
import time
from pathlib import Path

import pytest

from calotype.benchmarks.run.worker import Cannot, Worker, WorkerError

PEER = """
import os, signal, sys, time
import numpy as np

class Peer:
    parts = {"unet": [0.5]}

    def cannot(self, job):
        return job.get("cannot")

    def load(self, job):
        print("a library says hello on stdout")
        self.job = job
        return {"threads": len(os.sched_getaffinity(0)), "artifact_bytes": 1, "versions": {}, **job.get("told", {})}

    def paint(self, prompts, negative, seeds):
        exec(self.job.get("code", ""))
        return np.zeros((len(seeds), 2, 2, 3), np.uint8)

    def device_peak_bytes(self):
        return None
"""


@pytest.fixture
def worker(tmp_path):
    file = tmp_path / "peer.py"
    file.write_text(PEER)
    with Worker(Path(sys.executable), file, threads=1) as worker:
        yield worker


def paint(worker, code="", timeout_s=20.0, **job):
    worker.ask({"op": "load", "job": {"code": code, **job}}, 20.0)
    return worker.ask({"op": "paint", "prompts": ["x"], "negative": None, "seeds": [1], "out": None}, timeout_s)


def test_it_answers(worker):
    told = paint(worker, "time.sleep(0.05)")
    assert 0.05 <= told["seconds"] < 5
    assert told["parts"] == {"unet": [0.5]}


def test_it_has_the_cores_that_it_was_given(worker):
    assert worker.ask({"op": "load", "job": {}}, 20.0)["threads"] == 1


def test_what_was_built_just_now_is_not_part_of_loading(worker):
    assert worker.ask({"op": "load", "job": {"told": {"build_s": 100.0}}}, 20.0)["load_s"] < 0
    told = worker.ask({"op": "load", "job": {"told": {"build_s": 100.0, "build_when": "2026-01-01"}}}, 20.0)
    assert told["load_s"] >= 0


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ValueError('no such layer')", "it failed to paint: ValueError: no such layer"),
        ("sys.exit(3)", "it failed to paint: SystemExit: 3"),
        ("os.write(2, b'the last words\\n'); os._exit(3)", r"its process ended \(exit code 3\): the last words"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed, as the system does where memory runs out"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"its process ended \(signal SIGSEGV\)"),
    ],
)
def test_a_fault_is_one_sentence(worker, code, told):
    with pytest.raises(WorkerError, match=told):
        paint(worker, code)


def test_one_that_hangs_is_ended(worker):
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"did not paint within 0\.3 s, and was ended"):
        paint(worker, "time.sleep(60)", timeout_s=0.3)
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_an_error_leaves_it_alive(worker):
    with pytest.raises(WorkerError):
        paint(worker, "1 / 0")
    assert paint(worker)["ok"]


def test_a_reason_why_not_is_told_apart(worker):
    with pytest.raises(Cannot, match="no such picture"):
        worker.ask({"op": "load", "job": {"cannot": "no such picture"}}, 20.0)


def test_a_file_that_is_no_peer(tmp_path):
    (tmp_path / "peer.py").write_text("import nothing_of_this_name")
    with (
        Worker(Path(sys.executable), tmp_path / "peer.py", threads=1) as worker,
        pytest.raises(WorkerError, match="it failed to load: ModuleNotFoundError: No module named 'nothing_of_this"),
    ):
        worker.ask({"op": "load", "job": {}}, 20.0)


def test_closing_ends_what_it_started(tmp_path):
    file = tmp_path / "peer.py"
    file.write_text(PEER)
    worker = Worker(Path(sys.executable), file, threads=1)
    out = tmp_path / "pid"
    paint(worker, f"import subprocess; open({str(out)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))")
    worker.close()
    child = Path(f"/proc/{out.read_text()}/stat")
    deadline = time.monotonic() + 10
    while child.exists() and ") Z" not in child.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or ") Z" in child.read_text()


def test_it_sees_nobody_elses_packages(worker, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker(Path(sys.executable), tmp_path / "peer.py", threads=1) as other:
        paint(other, "assert 'PYTHONPATH' not in os.environ")
