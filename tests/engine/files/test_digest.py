"""Digests of large files are cached, and a cached digest always matches the current content."""

import hashlib
import os
import shutil

import pytest

from calotype.errors import SourceError
from calotype.files import digest
from calotype.files.digest import file_digest, rereading


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "_LARGE_BYTES", 1)
    monkeypatch.setenv("CALOTYPE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def readings(monkeypatch):
    """Counts how often a file was read."""
    calls, read = [], digest._read
    monkeypatch.setattr(digest, "_read", lambda path: calls.append(path) or read(path))
    return calls


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"0123456789" * 1000)
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_read_once(file, readings):
    assert file_digest(file) == file_digest(file) == sha256(file)
    assert len(readings) == 1


def test_small_files_are_read_each_time(file, readings, monkeypatch):
    monkeypatch.setattr(digest, "_LARGE_BYTES", 64 << 20)
    assert file_digest(file) == file_digest(file) == sha256(file)
    assert len(readings) == 2


def test_a_renamed_file_keeps_its_digest(file, readings, tmp_path):
    file_digest(file)
    (tmp_path / "making").mkdir()
    moved = file.rename(tmp_path / "making" / "weights")  # the file itself: its change time moves
    file_digest(moved)
    (tmp_path / "making").rename(tmp_path / "final")  # its folder, as the store does
    assert file_digest(tmp_path / "final" / "weights") == sha256(tmp_path / "final" / "weights")
    assert len(readings) <= 2


def test_a_change_that_keeps_size_and_time_is_detected(file):
    before, status = file_digest(file), file.stat()
    with file.open("r+b") as opened:
        opened.write(b"1")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    assert before != file_digest(file) == sha256(file)


def test_an_immediate_second_write_is_detected(file):
    """Two writes within one tick of the kernel's clock have equal times, so the first digest must not be cached."""
    for i in range(25):
        for data in (b"a%d" % i, b"b%d" % i):
            with file.open("r+b") as opened:
                opened.write(data)
            assert file_digest(file) == sha256(file)


def test_a_write_during_reading_is_detected(file, monkeypatch):
    read = digest._read

    def slow(path):
        digest = read(path)
        with path.open("r+b") as opened:
            opened.write(b"x")
        return digest

    monkeypatch.setattr(digest, "_read", slow)
    file_digest(file)
    monkeypatch.setattr(digest, "_read", read)
    assert file_digest(file) == sha256(file)


def test_a_file_from_the_future_is_not_cached(file, readings, monkeypatch):
    """After a clock was set back, a later write may have the same time."""
    now = digest.time.time
    monkeypatch.setattr(digest.time, "time", lambda: now() - 3600)
    assert file_digest(file) == file_digest(file) == sha256(file)
    assert len(readings) == 2


def test_a_replaced_file_is_detected(file, tmp_path):
    before = file_digest(file)
    other = tmp_path / "other"
    other.write_bytes(b"9876543210" * 1000)
    shutil.copystat(file, other)
    other.replace(file)
    assert before != file_digest(file) == sha256(file)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b"\xff", b"null"])
def test_a_damaged_cache_entry_is_ignored(file, home, readings, damage):
    file_digest(file)
    (entry,) = (home / "digests").iterdir()
    entry.write_bytes(damage)
    assert file_digest(file) == file_digest(file) == sha256(file)
    assert len(readings) == 2


def test_without_a_cache_the_file_is_read_again(file, home, readings):
    home.write_text("no folder")
    assert file_digest(file) == file_digest(file) == sha256(file)
    assert len(readings) == 2


def test_rereading_ignores_the_cache(file, readings):
    """`calotype cache verify` uses it: damage on the disk changes no time."""
    file_digest(file)
    with rereading():
        assert file_digest(file) == sha256(file)
    file_digest(file)
    assert len(readings) == 2


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: p.symlink_to(p), lambda p: None])
def test_a_path_that_is_not_a_file_is_refused(tmp_path, make):
    make(tmp_path / "odd")
    with pytest.raises(SourceError, match=r"cannot read .*odd"):
        file_digest(tmp_path / "odd")
