"""`calotype cache`, run as people run it, on a terminal and in a pipe."""

import json
import os
import pty
import re
import subprocess
import sys
from datetime import datetime

import pytest
from rich.filesize import decimal

from calotype.errors import InputError
from calotype.export.store.sizes import bytes_of

COMMAND = [sys.executable, "-m", "calotype", "cache"]


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def two(store):
    """A whole entry, used last, and a damaged one."""
    store.put("a" * 64, "b" * 64)
    (store.root / ("a" * 64) / "model.onnx").write_bytes(b"")
    return store


def test_a_list_in_a_pipe_is_plain_and_aligned(two):
    done = run("ls")
    assert (done.returncode, done.stderr) == (0, "")
    head, a, b = done.stdout.splitlines()
    assert re.split("  +", head) == ["key", "area", "what", "size", "last used"]
    assert (a.split()[:2], b.split()[:2]) == (["a" * 12, "store"], ["b" * 12, "store"])
    assert head.index("what") == a.index("unet fp16") == b.index(f"unet fp16 {'b' * 64}")


def test_a_list_as_json_says_all(two):
    a, b = json.loads(run("ls", "--json").stdout)
    assert set(a) == {"key", "area", "label", "size_bytes", "used", "path"}
    assert (b["key"], b["area"], b["label"]["component"]) == ("b" * 64, "store", "unet")
    assert datetime.fromisoformat(a["used"]) < datetime.fromisoformat(b["used"])


def test_a_terminal_gets_a_table(two):
    leader, follower = pty.openpty()
    with subprocess.Popen([*COMMAND, "ls"], stdout=follower, env={**os.environ, "TERM": "xterm", "COLUMNS": "150"}):
        os.close(follower)
        told = b""
        try:
            while piece := os.read(leader, 4096):
                told += piece
        except OSError:  # how a terminal says that nobody writes any more
            pass
    os.close(leader)
    assert b"\x1b[" in told
    assert b"last used" in told


def test_an_empty_store(store):
    assert run("ls").stdout == f"{store.home} is empty\n"
    assert json.loads(run("ls", "--json").stdout) == []
    assert run("gc", "--max-size", "0B").stdout == "0 bytes are kept\n"


def test_labels_are_no_markup_and_one_line(store):
    store.run("fetch('k', maker, label={'model': 'a [red]b[/] \\n c'})")
    assert "a [red]b[/] c" in run("ls").stdout
    assert len(run("ls").stdout.splitlines()) == 2


def test_removing_by_first_digits(two):
    done = run("rm", "aa", "bbbbbbb")
    assert done.returncode == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["removed", "a" * 12], ["removed", "b" * 12]]
    assert two.names() == []


def test_sweeping_says_what_went_and_what_stays(two):
    size = json.loads(run("ls", "--json").stdout)[1]["size_bytes"]
    done = run("gc", "--max-size", f"{size}B")
    assert done.stdout.splitlines()[0].startswith(f"removed {'a' * 12}  unet fp16 aaaa")
    assert done.stdout.splitlines()[1:] == [f"{decimal(size)} are kept"]
    user = two.start(f"put('{'b' * 64}'); say('ready'); sys.stdin.readline()")
    user.stdout.readline()
    done = run("gc", "--max-size", "0B")
    assert (done.returncode, done.stdout) == (0, f"{decimal(size)} are kept\n")
    assert done.stderr.startswith(f"calotype: in use, so not removed: {'b' * 12} (unet fp16 ")
    assert done.stderr.count("\n") == 1
    done = run("rm", "b")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "in use" in done.stderr
    assert two.names() == ["b" * 64]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rm", "c"], "no entry's key begins with 'c'; `calotype cache ls` lists them."),
        (["rm", ""], "no entry's key begins with ''"),
        (["gc", "--max-size", "20"], "'20' is no amount of bytes; write it as 20GB, 500MB or 1.5GiB."),
        (["gc", "--max-size", "lots"], "'lots' is no amount"),
    ],
)
def test_faults_are_one_plain_message_and_exit_code_1(two, arguments, told):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("calotype: ")
    assert told in done.stderr
    assert len(two.names()) == 2


@pytest.mark.parametrize("arguments", [[], ["rm"], ["gc"], ["ls", "x"], ["lst"]])
def test_wrong_usage_is_exit_code_2(store, arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


AMOUNTS = {
    "20GB": 20 * 10**9,
    "500MB": 500 * 10**6,
    "1GiB": 2**30,
    "1.5GiB": 3 * 2**29,
    "2 kB": 2000,
    "2KB": 2000,
    "3kib": 3072,
    "1.1TB": 1_100_000_000_000,
    "1TiB": 2**40,
    " 7b ": 7,
    "0B": 0,
    "0.1B": 0,
}


@pytest.mark.parametrize("said", AMOUNTS)
def test_amounts_are_read(said):
    assert bytes_of(said) == AMOUNTS[said]


@pytest.mark.parametrize(
    "said",
    ["", "20", "GB", "-1GB", "1e9B", "20G", "20GBs", "1,5GB", "٣GB", "1..5GB", "20iB", "nanGB", "9" * 400 + "GB"],
)
def test_amounts_that_are_none_are_refused(said):
    with pytest.raises(InputError, match="write it as 20GB, 500MB or"):
        bytes_of(said)
