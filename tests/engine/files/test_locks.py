"""Locks on files that are removed or replaced after a process has opened and before it has locked them."""

import fcntl
import os

import pytest

from calotype.files import locks


def before_the_next_lock(monkeypatch, action):
    """Call a function once, just before the next lock is taken."""
    flock = fcntl.flock

    def interrupted(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        action()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", interrupted)


def is_locked(path):
    """Tell whether a process holds a lock on the file of this name."""
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_lock_on_a_removed_file_does_not_count(tmp_path, monkeypatch, change):
    path = tmp_path / "k.lock"
    before_the_next_lock(monkeypatch, lambda: [path.unlink(), change == "replaced" and path.touch()])
    with locks.exclusive(path) as locked:
        assert not locked
    before_the_next_lock(monkeypatch, lambda: [path.unlink(), change == "replaced" and path.touch()])
    with locks.exclusive(path, wait_for="it") as locked:
        assert locked
        assert is_locked(path)
    assert not path.exists()


def test_the_lock_file_of_another_process_is_kept(tmp_path):
    """A user removed our lock file, and another process created a new one."""
    path = tmp_path / "k.lock"
    with locks.exclusive(path):
        path.unlink()
        path.touch()
    assert path.exists()


def test_an_entry_that_is_removed_during_opening_is_not_used(tmp_path, monkeypatch):
    path = tmp_path / "k" / "entry.json"
    path.parent.mkdir()
    path.touch()
    before_the_next_lock(monkeypatch, lambda: path.parent.rename(tmp_path / "dropped"))
    assert not locks.use(path)
    assert not is_locked(tmp_path / "dropped" / "entry.json")


def test_an_entry_in_use_holds_one_descriptor(tmp_path):
    path = tmp_path / "entry.json"
    path.touch()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        assert locks.use(path)
        assert is_locked(path)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    with locks.unused(path) as free:
        assert not free


def test_without_wait_for_no_process_waits(tmp_path, capfd):
    path = tmp_path / "k.lock"
    with locks.exclusive(path) as first, locks.exclusive(path) as second:
        assert (first, second) == (True, False)
        assert path.read_text() == f"{os.getpid()} {os.uname().nodename}"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "holder"),
    [("", "another process"), ("17", "another process"), ("x y", "another process"), ("17 afar", "process 17 on afar")],
)
def test_the_holder_is_described_from_the_lock_file(tmp_path, content, holder):
    (tmp_path / "k.lock").write_text(content.replace("x y", f"x {os.uname().nodename}"))
    assert locks._holder(tmp_path / "k.lock") == holder
