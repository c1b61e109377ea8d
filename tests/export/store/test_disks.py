"""The store on real disks that are full, read-only, oddly named, or without locks."""

import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys

import pytest

from calotype.errors import CheckError, SourceError
from calotype.export.store.gc import gc
from calotype.export.store.store import STORE, fetch

REMEDY = r"`export CALOTYPE_HOME=FOLDER`\.$"


def fill(size):
    def make(folder):
        for i in range(0, size, 4096):
            with (folder / f"{i // 65536}.bin").open("ab") as file:
                file.write(bytes(min(4096, size - i)))
        return {}

    return make


def fill_in_a_library(folder):
    """Raise an error that keeps only the text of the system's error, as some libraries do."""
    try:
        fill(2 << 20)(folder)
    except OSError as failed:
        message = f"onnxruntime: write failed: {os.strerror(failed.errno)}"
    raise RuntimeError(message)


def fill_and_wrap(folder):
    try:
        fill(2 << 20)(folder)
    except OSError as failed:
        raise CheckError("the unet cannot be traced to ONNX") from failed


@pytest.mark.parametrize("make", [fill(2 << 20), fill_and_wrap, fill_in_a_library], ids=["system", "wrapped", "text"])
def test_a_full_disk_is_an_error_and_leaves_no_files(disk, store_at, make):
    store = store_at(disk)
    store.put("good")
    with pytest.raises(SourceError) as raised:
        fetch("k", make, label={"component": "unet", "precision": "fp16"})
    message = str(raised.value)
    size = r"(1\.\d MB|\d{3}\.\d kB)"
    assert re.search(f"unet fp16.*No space left on device after {size}.* {size} is free.*{REMEDY}", message), message
    assert store.names() == ["good"]
    assert store.run("print(right(put('good', None)))") == "True\n"
    assert list(disk.glob("**/.*")) == []


def test_a_disk_that_is_full_at_any_byte_keeps_only_complete_entries(disk, store_at):
    """The disk fills while the lock, the folder or `entry.json` is written: one page more of space each time."""
    store = store_at(disk)
    store.put("good")
    status = os.statvfs(disk)
    space = status.f_bavail * status.f_frsize
    built, errors = 0, []
    for pages in range(8, -1, -1):
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(space - pages * 4096))
        try:
            fetch(f"k{pages}", fill(2 * 4096))
            built += 1
        except SourceError as failed:
            errors.append(str(failed))
        ballast.unlink()
        assert [entry.fault for entry in STORE.entries()] == [None] * (1 + built)
        assert list(disk.glob("**/.*")) == list(disk.glob("**/*.lock")) == []
        space = os.statvfs(disk).f_bavail * status.f_frsize
    assert built > 0
    assert len(errors) > 2
    assert all(re.search("No space left on device.*" + REMEDY, one) for one in errors)


def test_a_limit_on_file_sizes_is_an_error_and_leaves_no_files(store):
    """Needs no mounted file system: the system refuses to write more than this into a file."""
    store.put("good")
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n"
        "    put('k', lambda folder: (folder / 'x').write_bytes(bytes(10_000)) and {})\n"
        "except CalotypeError as failed:\n"
        "    print(failed)\n"
        "print(right(put('good')))\n"
    )
    message, served = store.run(code).splitlines()
    assert re.search(r"cannot be written \(File too large\).*" + REMEDY, message)
    assert served == "True"
    assert store.names() == ["good"]


def test_a_read_only_disk_serves_its_entries_and_refuses_new_ones(disk, store_at):
    store = store_at(disk)
    store.put("good")
    used = STORE.entries()[0].used
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert store.run("print(right(put('good')))") == "True\n"
    assert [(entry.key, entry.used, entry.fault) for entry in STORE.entries()] == [("good", used, None)]
    refused = r"written \(Read-only file system\), so entry k.*"
    with pytest.raises(SourceError, match=refused + REMEDY):
        fetch("k", fill(1))
    with pytest.raises(SourceError, match=r"cleared.*Read-only"):
        gc(0)
    assert store.names() == ["good"]


def test_a_store_in_an_overlay_is_read_repaired_and_cleared(disk, store_at, tmp_path):
    """An overlay, as in a container: folders of its lower layer cannot be renamed."""
    image = store_at(tmp_path / "image")
    image.put("good", "bad", "old")
    (image.root / "bad" / "model.onnx").write_bytes(b"")
    for name in ("upper", "work"):
        (disk / name).mkdir()
    (tmp_path / "seen").mkdir()
    layers = f"lowerdir={tmp_path / 'image'},upperdir={disk / 'upper'},workdir={disk / 'work'}"
    if subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", tmp_path / "seen"], check=False).returncode:
        pytest.skip("no overlay file system here")
    try:
        store = store_at(tmp_path / "seen")
        store.run("assert right(put('good', None)) and right(put('bad'))")
        store.run("remove(['old'])")
        assert store.names() == ["bad", "good"]
        assert [entry.fault for entry in STORE.entries()] == [None, None]
        assert len(gc(0).removed) == 2
        assert store.names() == []
    finally:
        subprocess.run(["umount", tmp_path / "seen"], check=True)


AS_ANOTHER_USER = """
os.getuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))  # root may write anywhere
print(right(put("good")))
for work in (lambda: put("k"), lambda: gc(0)):
    try:
        work()
    except CalotypeError as failed:
        print(failed)
"""


def test_another_users_store_serves_its_entries_and_refuses_new_ones(store, tmp_path):
    store.put("good")
    for folder in (tmp_path, *tmp_path.parents[:3]):  # pytest's own folders are closed to others
        folder.chmod(0o755)
    for folder in (store.home, store.root):
        folder.chmod(0o555)
    try:
        served, refused, uncleared = store.run(AS_ANOTHER_USER).splitlines()
    finally:
        for folder in (store.home, store.root):
            folder.chmod(0o755)
    assert served == "True"
    assert re.search(r"written \(Permission denied\), so unet fp16 k.*" + REMEDY, refused)
    assert re.search(r"cannot be cleared \(.*: Permission denied\)", uncleared)
    assert store.names() == ["good"]


@pytest.mark.parametrize("name", ["with spaces", "ünïcödé 石版", "new\nline", "-rf", "[red]%s{0}", "x" * 200])
def test_any_folder_name_works(store_at, tmp_path, name):
    store = store_at(tmp_path / name)
    store.put("k")
    store.run("assert right(put('k', None))")
    assert [entry.fault for entry in STORE.entries()] == [None]
    assert [entry.key for entry in gc(0).removed] == ["k"]


@pytest.mark.parametrize("linked", ["home", "home/store"])
def test_a_store_may_be_a_link(store, tmp_path, linked):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / linked).parent.mkdir(exist_ok=True)
    (tmp_path / linked).symlink_to(tmp_path / "elsewhere")
    store.put("k")
    store.run("assert right(put('k', None))")
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
    assert [entry.key for entry in gc(0).removed] == ["k"]


def test_a_store_may_be_moved_and_copied(store, store_at, tmp_path):
    store.put("k")
    shutil.copytree(store.home, tmp_path / "copy")
    store.home.rename(tmp_path / "moved")
    for name in ("copy", "moved"):
        store_at(tmp_path / name).run("assert right(put('k', None))")


@pytest.mark.parametrize("home", ["a link to nowhere", "a file", "beyond a file", "too long"])
def test_an_unusable_home_is_an_error(store_at, tmp_path, home):
    (tmp_path / "a link to nowhere").symlink_to(tmp_path / "nowhere" / "deep")
    (tmp_path / "a file").write_text("")
    where = {"beyond a file": "a file/store", "too long": "x" * 300}.get(home, home)
    store_at(tmp_path / where)
    with pytest.raises(SourceError, match=REMEDY):
        fetch("k", fill(1))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_serves_its_entries_and_refuses_new_ones(store, monkeypatch, code):
    """No such file system is available here, so the test replaces the system call."""
    store.put("good")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert fetch("good", fill(1))[1] == {"figure": 1}
    for work in (lambda: fetch("k", fill(1)), lambda: gc(0)):
        with pytest.raises(SourceError, match=f"{os.strerror(code)}.*" + REMEDY):
            work()
    assert [entry.key for entry in STORE.entries()] == ["good"]


def test_the_command_line_reports_an_unreadable_store(store):
    store.home.mkdir()
    store.root.write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "calotype", "cache", "ls"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cache" in done.stderr
