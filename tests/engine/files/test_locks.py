"""Locks on files that are removed and made anew between a process's opening them and its locking them."""

import fcntl
import os

import pytest

from calotype.files import locks


@pytest.fixture
def between(monkeypatch):
    """Does something once, just before the next lock is taken."""
    flock = fcntl.flock

    def arrange(doing):
        def interrupted(descriptor, how):
            monkeypatch.setattr(fcntl, "flock", flock)
            doing()
            flock(descriptor, how)

        monkeypatch.setattr(fcntl, "flock", interrupted)

    return arrange


def held(path):
    """Does somebody hold the file that has this name now?"""
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True


@pytest.mark.parametrize("doing", ["removed", "made anew"])
def test_a_lock_on_a_file_that_lost_its_name_is_none(tmp_path, between, doing):
    path = tmp_path / "k.lock"
    between(lambda: [path.unlink(), doing == "made anew" and path.touch()])
    with locks.exclusive(path) as mine:
        assert not mine
    between(lambda: [path.unlink(), doing == "made anew" and path.touch()])
    with locks.exclusive(path, wait_for="it") as mine:
        assert mine
        assert held(path)
    assert not path.exists()


def test_anothers_lock_file_is_left_alone(tmp_path):
    """Somebody removed ours by hand, and somebody else made a new one."""
    path = tmp_path / "k.lock"
    with locks.exclusive(path):
        path.unlink()
        path.touch()
    assert path.exists()


def test_an_entry_that_leaves_while_it_is_opened_is_not_used(tmp_path, between):
    path = tmp_path / "k" / "entry.json"
    path.parent.mkdir()
    path.touch()
    between(lambda: path.parent.rename(tmp_path / "dropped"))
    assert not locks.use(path)
    assert not held(tmp_path / "dropped" / "entry.json")


def test_an_entry_once_used_stays_in_use_however_often(tmp_path):
    path = tmp_path / "entry.json"
    path.touch()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        assert locks.use(path)
        assert held(path)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    with locks.unused(path) as free:
        assert not free


def test_nobody_waits_who_does_not_want_to(tmp_path, capfd):
    path = tmp_path / "k.lock"
    with locks.exclusive(path) as mine, locks.exclusive(path) as again:
        assert (mine, again) == (True, False)
        assert path.read_text() == f"{os.getpid()} {os.uname().nodename}"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("said", "told"),
    [("", "another process"), ("17", "another process"), ("x y", "another process"), ("17 afar", "process 17 on afar")],
)
def test_who_holds_it_is_told_as_far_as_it_is_known(tmp_path, said, told):
    (tmp_path / "k.lock").write_text(said.replace("x y", f"x {os.uname().nodename}"))
    assert locks._holder(tmp_path / "k.lock") == told
