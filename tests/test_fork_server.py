"""The forks that tests use in place of child processes."""

import fcntl
import os
import subprocess
import sys

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
