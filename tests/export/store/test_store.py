"""The store in one process: validation, rebuilding, listing and removal."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from calotype.errors import InputError, SourceError
from calotype.export.store.gc import gc, remove
from calotype.export.store.store import ENTRY, STORE, fetch

DATA = {"model.onnx": b"0123456789" * 20, "deep/w.bin": bytes(200)}


class Maker:
    """Fills the folder with content that depends on the key, and counts its calls."""

    def __init__(self, key="k" * 64):
        self.key, self.times = key, 0
        self.data = {name: bytes((b + len(key)) % 256 for b in data) for name, data in DATA.items()}

    def __call__(self, folder: Path):
        self.times += 1
        for name, data in self.data.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        return {"figure": 1e-5, "sizes": ({"batch": 1},)}

    def fetch(self) -> Path:
        folder, notes = fetch(self.key, self, label={"component": "unet", "model": "demo"})
        assert notes == {"figure": 1e-5, "sizes": [{"batch": 1}]}  # as read from JSON, the first time as well
        assert {n: (folder / n).read_bytes() for n in self.data} == self.data
        return folder


@pytest.fixture
def makers(store):
    """Two existing entries of equal sizes and different bytes."""
    two = (Maker(), Maker("m" * 65))
    for maker in two:
        maker.fetch()
    return two


def test_an_entry_is_built_once(makers):
    for maker in makers:
        maker.fetch()
        assert maker.times == 1


def test_an_entry_is_flushed_before_its_rename(store, monkeypatch):
    """A power loss cannot be tested here, but the order of the system calls can."""
    done, fsync, rename = [], os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: [done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)])
    monkeypatch.setattr(Path, "rename", lambda path, to: [done.append("renamed"), rename(path, to)])
    Maker("k").fetch()
    fresh, at = f"{store.root}/.making-k", done.index("renamed")
    written = {f"{fresh}/{name}" for name in (*DATA, ENTRY, "deep")} | {fresh}
    assert set(done[:at]) == written
    assert done[at + 1 :] == [str(store.root)]


def write(path: Path, data: bytes) -> None:
    """Overwrite the file and keep its modification time."""
    before = path.stat()
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    write(path, bytes(data))


def swap(a: Path, b: Path) -> None:
    a.rename(a.with_name("aside"))
    b.rename(a)
    a.with_name("aside").rename(b)


def fill_with(path: Path, make) -> None:
    path.unlink()
    make(path)


FILE_DAMAGES = {
    "truncated": lambda path, other: write(path, path.read_bytes()[:-1]),
    "emptied": lambda path, other: write(path, b""),
    "longer": lambda path, other: write(path, path.read_bytes() + b"x"),
    "a bit flipped": lambda path, other: flip(path),
    "swapped": lambda path, other: swap(path, other),
    "removed": lambda path, other: path.unlink(),
    "a folder": lambda path, other: fill_with(path, Path.mkdir),
    "a pipe": lambda path, other: fill_with(path, os.mkfifo),
    "a link to another's": lambda path, other: fill_with(path, lambda p: p.symlink_to(other)),
    "a broken link": lambda path, other: fill_with(path, lambda p: p.symlink_to("nowhere")),
    "a link to itself": lambda path, other: fill_with(path, lambda p: p.symlink_to(path.name)),
}
FOLDER_DAMAGES = {
    "an extra file": lambda folder, other: (folder / "extra").write_bytes(b""),
    "an extra file within": lambda folder, other: (folder / "deep" / "extra").write_bytes(b""),
    "an extra link to a folder": lambda folder, other: (folder / "link").symlink_to(other),
    "a folder less": lambda folder, other: shutil.rmtree(folder / "deep"),
    "empty": lambda folder, other: [shutil.rmtree(folder), folder.mkdir()],
    "a file": lambda folder, other: [shutil.rmtree(folder), folder.write_bytes(b"x")],
    "another's": lambda folder, other: swap(folder, other),
    "a copy of another's": lambda folder, other: [shutil.rmtree(folder), shutil.copytree(other, folder)],
    "no files listed": lambda folder, other: (folder / ENTRY).write_text(json.dumps(read(folder) | {"files": {}})),
    "no JSON": lambda folder, other: (folder / ENTRY).write_text("{"),
    "an array": lambda folder, other: (folder / ENTRY).write_text("[]"),
    "null": lambda folder, other: (folder / ENTRY).write_text("null"),
    "deeply nested": lambda folder, other: (folder / ENTRY).write_text("[" * 100_000),
    "no text": lambda folder, other: (folder / ENTRY).write_bytes(b"\xff\xfe"),
}


def read(folder: Path) -> dict:
    return json.loads((folder / ENTRY).read_text())


@pytest.fixture(params=[False, True], ids=["read", "cached"])
def large(request, monkeypatch):
    """Run each damage on small files, and on files that count as large, whose digests are cached."""
    if request.param:
        monkeypatch.setattr("calotype.files.digest._LARGE_BYTES", 1)


def check_repaired(makers, capfd):
    damaged, other = makers
    faults = {entry.key: entry.fault for entry in STORE.entries()}
    if damaged.key in faults:  # a plain file is not listed
        assert faults[damaged.key] is not None
    folder = damaged.fetch()
    message = capfd.readouterr().err
    assert damaged.times == 2
    assert message.startswith(f"calotype: {folder}")
    assert "built again" in message
    assert message.count("\n") == 1
    for maker in (damaged, damaged, other):
        maker.fetch()
    assert damaged.times == 2
    assert [entry.fault for entry in STORE.entries()] == [None, None]
    assert sorted(p.name for p in folder.parent.iterdir()) == sorted([damaged.key, other.key])


@pytest.mark.parametrize("name", [*DATA, ENTRY])
@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_a_damaged_file_is_noticed_and_rebuilt(makers, store, large, capfd, name, damage):
    folder, other = (store.root / maker.key for maker in makers)
    FILE_DAMAGES[damage](folder / name, other / name)
    check_repaired(makers, capfd)


@pytest.mark.parametrize("damage", FOLDER_DAMAGES)
def test_a_damaged_folder_is_noticed_and_rebuilt(makers, store, capfd, damage):
    FOLDER_DAMAGES[damage](*(store.root / maker.key for maker in makers))
    check_repaired(makers, capfd)


def test_no_bit_of_entry_json_can_change(makers, store):
    """The only flips without a fault leave the same data: they change white space."""
    path = store.root / makers[0].key / ENTRY
    content, data_before = path.read_bytes(), read(path.parent)
    for at in range(len(content)):
        data = bytearray(content)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        (entry,) = [e for e in STORE.entries() if e.key == makers[0].key]
        assert entry.fault is not None or json.loads(data) == data_before, data


def test_a_failed_rebuild_leaves_the_old_entry(makers, store):
    """A damaged entry is replaced only after the new one is complete."""
    (store.root / makers[0].key / "extra").write_bytes(b"")

    def fail(folder: Path):
        (folder / "half").write_bytes(b"x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fetch(makers[0].key, fail)
    assert store.names() == sorted(maker.key for maker in makers)
    assert (store.root / makers[0].key / "extra").exists()


def test_leftovers_of_a_killed_process_are_cleared(makers, store):
    """The process was killed after the rename, before the old entry was deleted; then the new one was damaged."""
    for name in (f".dropped-{makers[0].key}", f".making-{makers[0].key}"):
        shutil.copytree(store.root / makers[1].key, store.root / name)
    (store.root / makers[0].key / "extra").write_bytes(b"")
    makers[0].fetch()
    assert store.names() == sorted(maker.key for maker in makers)


def test_an_error_names_the_file_that_make_cannot_read(store, tmp_path):
    with pytest.raises(SourceError, match="No such file") as raised:
        fetch("k", lambda _: (tmp_path / "weights.bin").read_bytes())
    assert raised.value.path == tmp_path / "weights.bin"
    assert store.names() == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda p: p.symlink_to(p.parent.parent), lambda p: p.symlink_to("gone")])
def test_special_files_are_refused(store, make):
    with pytest.raises(SourceError, match="odd"):
        fetch("k", lambda folder: make(folder / "odd") or {})
    assert store.names() == []


def test_listed_entries_have_label_size_and_time(store):
    before = time.time()
    store.put("a" * 64, "b" * 64)
    a, b = STORE.entries()
    assert (a.key, a.label) == ("a" * 64, {"component": "unet", "precision": "fp16", "model": "a" * 64})
    assert a.size_bytes == sum(p.stat().st_size for p in a.path.rglob("*") if p.is_file())
    assert before - 1 < a.used < b.used < time.time() + 1
    assert a.fault is None
    (b.path / "model.onnx").write_bytes(b"")
    (b.path / ENTRY).write_text(json.dumps(read(b.path) | {"label": [3]}))
    assert [(e.label, e.fault is None) for e in STORE.entries()] == [(dict(a.label), True), ({}, False)]


def test_an_entry_used_since_the_listing_stays(store, monkeypatch):
    store.put("a", "b")
    before = [replace(entry, used=entry.used - (entry.key == "a")) for entry in STORE.entries()]
    monkeypatch.setattr("calotype.export.store.gc.all_entries", lambda: before)
    swept = gc(0)
    assert ([e.key for e in swept.removed], [e.key for e in swept.busy]) == (["b"], ["a"])
    assert store.names() == ["a"]


def test_an_empty_store_has_no_entries(store):
    assert STORE.entries() == []
    assert gc(0).removed == ()
    assert not store.home.exists()


def test_a_store_that_is_a_file_is_an_error(store):
    store.home.mkdir()
    store.root.write_text("")
    with pytest.raises(SourceError, match="cannot read"):
        STORE.entries()


def test_least_recently_used_entries_are_removed_first(store):
    store.put("a", "b", "c")
    assert [e.key for e in STORE.entries()] == ["a", "b", "c"]
    store.put("a")  # used again
    assert [e.key for e in STORE.entries()] == ["b", "c", "a"]
    b, c, a = (entry.size_bytes for entry in STORE.entries())
    assert gc(a + b + c).removed == ()
    swept = gc(a + b + c - 1)
    assert [e.key for e in swept.removed] == ["b"]
    assert (swept.kept_bytes, swept.busy) == (a + c, ())
    assert store.names() == ["a", "c"]
    assert [e.key for e in gc(0).removed] == ["c", "a"]
    assert store.names() == []


def test_entries_without_entry_json_are_removed(store):
    store.put("a")
    (store.root / "a" / ENTRY).unlink()
    (store.root / "b").mkdir()
    assert {e.key for e in gc(0).removed} <= {"a", "b"}
    remove([e.key for e in STORE.entries()])
    assert store.names() == []


def test_entries_are_removed_by_the_first_digits_of_their_keys(store):
    store.put("aa1", "aa2", "ab", "abc", "c")
    for wrong, keyword in (("aa", "aa1, aa2"), ("x", "begins with 'x'"), ("", "''")):
        with pytest.raises(InputError, match=keyword):
            remove(["c", wrong])
    assert [e.key for e in remove(["aa1", "ab", "c", "c"])] == ["aa1", "ab", "c"]
    assert store.names() == ["aa2", "abc"]


def test_a_key_is_not_a_path(store, tmp_path):
    store.put("a")
    (tmp_path / "precious").mkdir()
    for name in ("../../precious", str(tmp_path / "precious"), ".", "*"):
        with pytest.raises(InputError):
            remove([name])
    assert (tmp_path / "precious").exists()


def test_gc_clears_leftovers_of_killed_processes(store):
    store.put("a")
    for name in (".making-a", ".making-b", ".dropped-c"):
        (store.root / name / "deep").mkdir(parents=True)
        (store.root / name / "deep" / "half").write_bytes(b"x")
    for name in ("a.lock", "d.lock"):
        (store.root / name).write_text("4194999 elsewhere")
    for folder in ("digests", "samplers"):
        (store.home / folder).mkdir(exist_ok=True)
        ages = {".old.1-2": 3600, ".future.1-2": -3600, ".fresh.1-2": 0, "kept.npz": 3600, ".keep": 3600}
        for name, age_s in ages.items():
            path = store.home / folder / name
            path.write_bytes(b"x")
            os.utime(path, (time.time() - age_s,) * 2)
    gc(10**9)
    assert store.names() == ["a"]
    assert STORE.entries()[0].fault is None
    for folder in ("digests", "samplers"):
        assert {p.name for p in (store.home / folder).iterdir()} == {".fresh.1-2", "kept.npz", ".keep"}
