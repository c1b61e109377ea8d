"""The forks that tests use in place of child processes."""

import fcntl
import os
import resource
import subprocess
import sys
import time

import pytest

from tests.helpers.fork_server import ForkedPopen


@pytest.mark.parametrize("number", [*range(255, 262), 700])
def test_a_passed_file_has_its_number(number):
    reader, writer = os.pipe()
    passed = fcntl.fcntl(writer, fcntl.F_DUPFD, number)
    os.close(writer)
    command = [sys.executable, "-c", f"import os; os.write({passed}, b'x')"]
    with ForkedPopen(command, pass_fds=(passed,), stdin=subprocess.DEVNULL) as child:
        child.wait()
    os.close(passed)
    assert os.read(reader, 1) == b"x"
    os.close(reader)


def test_a_fork_is_polled_with_many_open_files():
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < 2000:
        pytest.skip("this system does not open so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, 2000), most))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with ForkedPopen([sys.executable, "-c", "raise SystemExit(3)"], stdin=subprocess.DEVNULL) as child:
            while child.poll() is None:
                time.sleep(0.01)
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    assert child.returncode == 3
