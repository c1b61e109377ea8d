"""The row of a process: its seconds, the memory of its whole family, and what it prints."""

import sys

import pytest

from calotype.benchmarks.scripts.first_use import _timed
from calotype.errors import BackendError

PARENT = """
import subprocess, sys
held = bytearray(b"1") * (100 << 20)
subprocess.run([sys.executable, "-c", 'import time; held = bytearray(b"1") * (150 << 20); time.sleep(1)'], check=True)
print("a line\\n" + '{"load_s": 2.5}')
"""


def test_memory_counts_children_and_the_last_line_is_read():
    row = _timed([sys.executable, "-c", PARENT], {})
    assert row["load_s"] == 2.5
    assert row["seconds"] >= 1
    assert 250 << 20 < row["peak_bytes"] < 400 << 20


def test_a_command_that_fails_has_no_row():
    with pytest.raises(BackendError, match="no room"):
        _timed([sys.executable, "-c", "raise SystemExit('no room')"], {})
