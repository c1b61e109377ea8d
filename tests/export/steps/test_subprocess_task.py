"""Child processes: results and errors come back, a crash is an error, and no child outlives its parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from calotype.errors import BuildError, CheckError
from calotype.export.steps import subprocess_task
from calotype.export.steps.subprocess_task import run_in_subprocess

BAD = """
import os, signal, sys, time
from calotype.errors import CheckError
from calotype.export.steps.subprocess_task import report_progress

def add(a, b): return {"sum": a + b}
def refuse(): raise CheckError("it is not right.")
def blunder(): return 1 / 0
def die(number): print("last words", file=sys.stderr, flush=True); os.kill(os.getpid(), number)
def leave(): os._exit(3)
def fill(): raise OSError(28, "No space left on device", "/some/file")
def eat(): data = bytearray(200 << 20); return len(data)
def read(): print("noise on stdout"); return sys.stdin.read()
def chat(path):
    spoken = 0
    while report_progress(f"word {spoken}"): spoken += 1; time.sleep(0.001)
    open(path, "w").write("it ended by itself")
def speak(): return [report_progress(word) for word in ("one", "two")]
def sleep(path): open(path, "w").write(str(os.getpid())); time.sleep(60)
"""


@pytest.fixture(autouse=True)
def functions(tmp_path, monkeypatch):
    (tmp_path / "bad_functions.py").write_text(BAD)
    monkeypatch.setattr(subprocess_task, "subprocess", subprocess)  # fresh interpreters, as users have them
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_result_comes_back_with_its_memory():
    done = run_in_subprocess("adding", "bad_functions:add", a=1, b=2)
    assert done.value == {"sum": 3}
    much = run_in_subprocess("eating", "bad_functions:eat")
    assert 190 << 20 < much.peak_bytes - done.peak_bytes < 230 << 20
    assert run_in_subprocess("reading", "bad_functions:read").value == ""


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "keyword"),
    [
        ("refuse", {}, CheckError, "^it is not right.$"),
        ("blunder", {}, BuildError, "exit code 1.: ZeroDivisionError"),
        ("die", {"number": int(signal.SIGSEGV)}, BuildError, "SIGSEGV.: last words"),
        ("die", {"number": int(signal.SIGKILL)}, BuildError, "SIGKILL.*out of memory"),
        ("leave", {}, BuildError, "exit code 3"),
        ("fill", {}, BuildError, "/some/file: No space left"),
    ],
)
def test_faults_are_errors(name, arguments, kind, keyword):
    with pytest.raises(kind, match=keyword):
        run_in_subprocess("adding", f"bad_functions:{name}", **arguments)


def test_progress_reaches_the_parent_and_a_child_may_end_by_itself_when_the_parent_stops_reading(tmp_path):
    received = []
    assert run_in_subprocess("speaking", "bad_functions:speak", received.append).value == [True, True]
    assert received == ["one", "two"]
    assert run_in_subprocess("speaking", "bad_functions:speak").value == [True, True]

    def interrupt(word):
        received.append(word)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_subprocess("chatting", "bad_functions:chat", interrupt, path=str(tmp_path / "ended"))
    assert received[2:] == ["word 0"]
    assert (tmp_path / "ended").read_text() == "it ended by itself"


def test_a_child_dies_with_a_parent_that_was_killed(tmp_path):
    pid_file = tmp_path / "pid"
    code = (
        "from calotype.export.steps.subprocess_task import run_in_subprocess; "
        f"run_in_subprocess('x', 'bad_functions:sleep', path={str(pid_file)!r})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    child = int(pid_file.read_text())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while time.monotonic() < deadline and os.path.exists(f"/proc/{child}/cmdline"):
        with open(f"/proc/{child}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "Z":
                break
        time.sleep(0.02)
    else:
        assert not os.path.exists(f"/proc/{child}/cmdline")
