"""`calotype cache` as a command, on a terminal and in a pipe."""

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
from calotype.export.commands.cache import bytes_of
from tests.helpers import fork_server

COMMAND = [sys.executable, "-m", "calotype", "cache"]


def run(*arguments):
    return fork_server.run([*COMMAND, *arguments], capture_output=True, text=True)


@pytest.fixture
def two(store):
    """A damaged entry, and an intact one that was used last."""
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


def test_a_list_as_json_has_the_full_entries(two):
    a, b = json.loads(run("ls", "--json").stdout)
    assert set(a) == {"key", "area", "label", "size_bytes", "used", "path"}
    assert (b["key"], b["area"], b["label"]["component"]) == ("b" * 64, "store", "unet")
    assert datetime.fromisoformat(a["used"]) < datetime.fromisoformat(b["used"])


def test_a_terminal_gets_a_table(two):
    leader, follower = pty.openpty()
    with subprocess.Popen([*COMMAND, "ls"], stdout=follower, env={**os.environ, "TERM": "xterm", "COLUMNS": "150"}):
        os.close(follower)
        output = b""
        try:
            while piece := os.read(leader, 4096):
                output += piece
        except OSError:  # how a terminal reports that no process writes to it
            pass
    os.close(leader)
    assert b"\x1b[" in output
    assert b"last used" in output


def test_an_empty_store(store):
    assert run("ls").stdout == f"{store.home} is empty\n"
    assert json.loads(run("ls", "--json").stdout) == []
    assert run("gc", "--max-size", "0B").stdout == "0 bytes remain in the cache\n"


def test_labels_are_plain_text_on_one_line(store):
    store.run("fetch('k', maker, label={'model': 'a [red]b[/] \\n c'})")
    assert "a [red]b[/] c" in run("ls").stdout
    assert len(run("ls").stdout.splitlines()) == 2


def test_removing_by_first_digits(two):
    done = run("rm", "aa", "bbbbbbb")
    assert done.returncode == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["removed", "a" * 12], ["removed", "b" * 12]]
    assert two.names() == []


def test_gc_prints_what_it_removed_and_what_remains(two):
    size = json.loads(run("ls", "--json").stdout)[1]["size_bytes"]
    done = run("gc", "--max-size", f"{size}B")
    assert done.stdout.splitlines()[0].startswith(f"removed {'a' * 12}  unet fp16 aaaa")
    assert done.stdout.splitlines()[1:] == [f"{decimal(size)} remain in the cache"]
    user = two.start(f"put('{'b' * 64}'); emit('ready'); sys.stdin.readline()")
    user.stdout.readline()
    done = run("gc", "--max-size", "0B")
    assert (done.returncode, done.stdout) == (0, f"{decimal(size)} remain in the cache\n")
    assert re.search(f"in use: {'b' * 12} .unet fp16 ", done.stderr)
    assert done.stderr.count("\n") == 1
    done = run("rm", "b")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "in use" in done.stderr
    assert two.names() == ["b" * 64]


@pytest.mark.parametrize(
    ("arguments", "keyword"),
    [
        (["rm", "c"], "begins with 'c'"),
        (["rm", ""], "begins with ''"),
        (["gc", "--max-size", "20"], "'20' is not an amount"),
        (["gc", "--max-size", "lots"], "'lots' is not an amount"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(two, arguments, keyword):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("calotype: ")
    assert keyword in done.stderr
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


@pytest.mark.parametrize("text", AMOUNTS)
def test_amounts_are_read(text):
    assert bytes_of(text) == AMOUNTS[text]


@pytest.mark.parametrize(
    "text",
    ["", "20", "GB", "-1GB", "1e9B", "20G", "20GBs", "1,5GB", "٣GB", "1..5GB", "20iB", "nanGB", "9" * 400 + "GB"],
)
def test_invalid_amounts_are_refused(text):
    with pytest.raises(InputError, match="20GB"):
        bytes_of(text)
