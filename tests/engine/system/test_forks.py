"""A forked child generates too, with libraries loaded again and free locks."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")  # Python warns of forks beside threads
import calotype

def images(pipe):
    return pipe("a red ring on a white background", steps=2, seed=1, output_type="np")

pipe = calotype.load("demo", backend={backend!r})
expected = images(pipe).images.tobytes()
hold = threading.Thread(target=pipe._guard.__enter__)  # a thread of the parent has a lock
hold.start()
hold.join()
for anew in (False, True):
    child = os.fork()
    if child == 0:
        result = images(calotype.load("demo", backend={backend!r}) if anew else pipe)
        print(len(result.images.tobytes()) == len(expected), abs(result.images.mean() - {mean}) < 1e-3, flush=True)
        os._exit(0)
    if status := os.waitpid(child, 0)[1]:
        sys.exit(f"the child with anew={{anew}} ended with {{status}}")
"""


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "eager"])
def test_children_of_a_process_that_has_generated_generate_too(pipes, backend):
    """With the parent's pipeline, and with one of their own."""
    mean = float(pipes["eager"]("a red ring on a white background", steps=2, seed=1, output_type="np").images.mean())
    script = SCRIPT.format(backend=backend, mean=mean)
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 4


BUSY = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")
import calotype
from calotype.errors import BackendError

pipe = calotype.load("demo", backend="onnxruntime")
inside, stop = threading.Event(), threading.Event()
run = pipe.component("unet").runner._session.run

class Session:
    def run(self, *arguments):
        inside.set()
        stop.wait()
        return run(*arguments)

pipe.component("unet").runner._session = Session()
thread = threading.Thread(target=pipe, args=("a red ring on a white background",), kwargs={"steps": 1})
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    for attempt in (lambda: pipe("x"), lambda: pipe.stream("x"), lambda: calotype.load("demo", backend="onnxruntime")):
        try:
            attempt()
        except BackendError as error:
            print("spawn" in str(error), flush=True)
    os._exit(0)
stop.set()
thread.join()
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_child_that_was_forked_while_a_thread_generated_raises_at_once(pipes):
    done = subprocess.run([sys.executable, "-P", "-c", BUSY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 3
