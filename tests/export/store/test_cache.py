"""All areas of the cache: one listing, one eviction rule and one verification."""

import errno
import hashlib
import json
import os
import sys
import time
from dataclasses import replace

import pytest

from calotype.errors import InputError
from calotype.export.store.gc import AREAS, CONVERTED, ENVIRONMENTS, PLANS, all_entries, gc, remove
from calotype.export.store.store import STORE, fetch
from calotype.files import digest
from calotype.files.cache import DIGESTS, FILE_AREAS, OPENVINO, SAMPLERS
from tests.helpers import fork_server


def key(word) -> str:
    return hashlib.sha256(str(word).encode()).hexdigest()


def age(area, word, seconds_ago):
    (entry,) = [entry for entry in area.entries() if entry.key in (word, key(word))]
    path = entry.path / area.mark if entry.path.is_dir() else entry.path
    os.utime(path, (time.time() - seconds_ago,) * 2)


def names(entries) -> list[tuple[str, str]]:
    return [(entry.area.name, entry.key) for entry in entries]


def folder_in(area, name):
    (area.root / name).mkdir(parents=True)
    (area.root / name / "data").write_bytes(bytes(1000))
    (area.root / name / area.mark).touch()
    area.hold(name)


def command(*arguments):
    return fork_server.run([sys.executable, "-m", "calotype", "cache", *arguments], capture_output=True, text=True)


@pytest.fixture
def one_of_each(store):
    """An entry in every area. Another process created the folders, so this one does not use them."""
    store.put(key("store"))
    for area in FILE_AREAS:
        area.write(key(area.name), b"0123456789" * 100)
    store.run(
        "from calotype.export.store.gc import CONVERTED, ENVIRONMENTS, PLANS\n"
        "for area, name in ((CONVERTED, 'one-model'), (ENVIRONMENTS, 'one-1.0'), (PLANS, 'plan')):\n"
        "    (area.root / name).mkdir(parents=True)\n"
        "    (area.root / name / 'data').write_bytes(bytes(1000))\n"
        "    area.hold(name)\n"
    )
    return store


def test_every_area_is_listed(one_of_each):
    listed = json.loads(command("ls", "--json").stdout)
    assert {entry["area"] for entry in listed} == {area.name for area in AREAS}
    assert len(listed) == len(AREAS)
    on_disk = sum(path.stat().st_size for path in one_of_each.home.rglob("*") if path.is_file())
    assert sum(entry["size_bytes"] for entry in listed) == on_disk
    for entry in listed:
        assert os.path.exists(entry["path"])
        assert entry["key"][:12] in command("ls").stdout


def test_everything_is_removed_from_every_area(one_of_each):
    swept = gc(0)
    assert {entry.area.name for entry in swept.removed} == {area.name for area in AREAS}
    assert (swept.busy, swept.kept_bytes) == ((), 0)
    assert [path for path in one_of_each.home.rglob("*") if path.is_file()] == []


def test_least_recently_used_entries_of_all_areas_are_removed_first(one_of_each):
    order = [(SAMPLERS, "samplers"), (PLANS, "plan"), (OPENVINO, "openvino"), (STORE, "store")]
    for hours, (area, word) in enumerate(reversed(order), start=1):
        age(area, word, hours * 3600)
    sizes = [entry.size_bytes for entry in all_entries()]
    assert names(all_entries())[:4] == [(area.name, word if area is PLANS else key(word)) for area, word in order]
    swept = gc(sum(sizes) - sum(sizes[:2]) - 1)
    assert [entry.area for entry in swept.removed] == [SAMPLERS, PLANS, OPENVINO]
    assert swept.kept_bytes == sum(sizes[3:])


@pytest.mark.parametrize("future_s", [3600, 1e6, 1e12])
def test_a_time_in_the_future_counts_as_the_oldest(store, future_s):
    """Else a file with a time in the future would stay forever."""
    store.put(key("store"), key("wrong clock"))
    OPENVINO.write(key("blob"), b"x")
    OPENVINO.write(key("blob of a wrong clock"), b"x")
    age(OPENVINO, "blob", 7200)
    age(STORE, "wrong clock", -future_s)
    age(OPENVINO, "blob of a wrong clock", -future_s)
    wrong = {key("wrong clock"), key("blob of a wrong clock")}
    assert {entry.key for entry in all_entries()[:2]} == wrong
    assert command("ls").returncode == command("ls", "--json").returncode == 0
    left = sum(entry.size_bytes for entry in all_entries() if entry.key not in wrong)
    assert {entry.key for entry in gc(left).removed} == wrong


def test_a_use_corrects_a_wrong_time(store):
    SAMPLERS.write(key("a"), b"x")
    age(SAMPLERS, "a", -3600)
    assert SAMPLERS.read(key("a")) == b"x"
    assert all(entry.used <= time.time() for entry in SAMPLERS.entries())


@pytest.mark.parametrize("area", [STORE, *FILE_AREAS, PLANS], ids=lambda area: area.name)
def test_verify_finds_a_flipped_byte_in_every_area(one_of_each, area):
    remove(["plan"])  # it is not a real plan
    assert command("verify").returncode == 0
    if area is PLANS:
        folder_in(PLANS, "plan")
    (entry,) = area.entries()
    path = entry.path / "model.onnx" if area is STORE else entry.path
    if path.is_file():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    done = command("verify")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("damaged")]
    assert line.split()[:3] == ["damaged", entry.key[:12], area.name]


def test_verify_names_areas_without_digests(one_of_each):
    (last,) = [line for line in command("verify").stdout.splitlines() if line.startswith("not verified")]
    assert CONVERTED.name in last
    assert ENVIRONMENTS.name in last


def test_verify_ignores_cached_digests(store, monkeypatch):
    """Digests of large files are cached, and stay so if bytes change on the disk without a write."""
    monkeypatch.setattr(digest, "_LARGE_BYTES", 1000)
    store.put("k")
    (entry,) = STORE.entries()
    file = entry.path / "model.onnx"
    intact = digest.file_digest(file)
    file.write_bytes(b"r" + file.read_bytes()[1:])
    DIGESTS.write(digest._key(file.stat()), intact.encode())  # as if the file's times had not changed
    assert entry.fault is None
    with digest.rereading():
        assert "model.onnx" in entry.fault
    times = []
    fetch("k", lambda folder: times.append(folder) or {})  # from now on every use notices it as well
    assert len(times) == 1


def test_an_entry_of_any_area_is_removed_by_the_first_digits_of_its_key(one_of_each):
    for area in (OPENVINO, SAMPLERS, STORE):
        (entry,) = area.entries()
        assert names(remove([entry.key[:10]])) == [(area.name, entry.key)]
        assert area.entries() == []
    with pytest.raises(InputError, match="2 keys"):
        remove(["one-"])


def test_a_file_mapped_by_another_process_stays_and_is_named(store):
    OPENVINO.write(key("used"), b"x" * 1000)
    OPENVINO.write(key("free"), b"x" * 1000)
    user = store.start(
        f"from calotype.files.cache import OPENVINO\ndata = OPENVINO.read('{key('used')}'); emit('ready')\n"
        "sys.stdin.readline(); del data; emit('gone'); sys.stdin.readline()"
    )
    assert user.stdout.readline() == "ready\n"
    swept = gc(0)
    assert ([e.key for e in swept.removed], [e.key for e in swept.busy]) == ([key("free")], [key("used")])
    assert key("used")[:12] in command("gc", "--max-size", "0B").stderr
    with pytest.raises(InputError, match="in use"):
        remove([key("used")])
    user.stdin.write("\n")
    user.stdin.flush()
    assert user.stdout.readline() == "gone\n"
    assert [e.key for e in gc(0).removed] == [key("used")]


def test_a_folder_in_use_stays(store):
    folder_in(ENVIRONMENTS, "one-1.0")  # by this process, until it ends
    swept = gc(0)
    assert ([e.key for e in swept.removed], [e.key for e in swept.busy]) == ([], ["one-1.0"])
    assert (ENVIRONMENTS.root / "one-1.0" / "data").exists()


def test_foreign_files_are_neither_removed_nor_counted(one_of_each):
    home = one_of_each.home
    foreign = [home / "notes.txt", home / "mine" / "x.blob", home / "bench" / "run.jsonl", home / "digests" / "README"]
    foreign += [home / "openvino" / "mine.blob", home / "samplers" / ".keep", home / "store" / "list.txt"]
    foreign += [home / "samplers" / f"{key(1)}.npz.bak", home / "openvino" / "sub" / "y.txt"]
    before = len(all_entries())
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 10_000)
        os.utime(path, (1, 1))
    (home / "openvino" / key("link")).symlink_to(foreign[0])
    os.mkfifo(home / "samplers" / key("pipe"))
    assert len(all_entries()) == before
    swept = gc(0)
    assert len(swept.removed) == before
    assert all(path.exists() for path in foreign)
    assert command("verify").returncode == 0


def test_blobs_in_the_folders_of_older_versions_are_listed_and_removed(store):
    OPENVINO.write(key("a"), b"x" * 1000)
    (entry,) = OPENVINO.entries()
    (entry.path.parent / "2026.1").mkdir()
    entry.path.rename(entry.path.parent / "2026.1" / entry.path.name)
    assert names(gc(0).removed) == [("openvino", key("a"))]


DAMAGES = {
    "emptied": lambda path: path.write_bytes(b""),
    "shorter than a seal": lambda path: path.write_bytes(b"x"),
    "a seal alone": lambda path: path.write_bytes(hashlib.sha256(b"").digest()),
    "a pipe": lambda path: [path.unlink(), os.mkfifo(path)],
    "a folder": lambda path: [path.unlink(), path.mkdir()],
    "a link to itself": lambda path: [path.unlink(), path.symlink_to(path.name)],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unreadable_entry_counts_as_absent(store, damage):
    SAMPLERS.write(key("a"), b"x")
    (entry,) = SAMPLERS.entries()
    DAMAGES[damage](entry.path)
    assert SAMPLERS.read(key("a")) is None
    assert gc(0).busy == ()


def test_an_area_with_a_limit_evicts_for_new_entries(store):
    area = replace(OPENVINO, limit_bytes=3500)
    for number in range(5):
        area.write(key(number), bytes(1000))
        age(area, number, 100 - number)
    assert {entry.key for entry in area.entries()} == {key(n) for n in (2, 3, 4)}
    used = [area.read(key(n)) for n in (2, 3, 4)]
    area.write(key("late"), bytes(1000))  # all other entries are in use
    assert {entry.key for entry in area.entries()} == {key(n) for n in (2, 3, 4)}
    del used
    area.write(key("late"), bytes(1000))
    area.write(key("larger than all"), bytes(4000))
    assert key("larger than all") not in {entry.key for entry in area.entries()}


def test_a_read_only_cache_is_read(store, monkeypatch):
    SAMPLERS.write(key("a"), b"x")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    assert SAMPLERS.read(key("a")) == b"x"


def test_an_invalid_home_is_not_an_error(monkeypatch):
    monkeypatch.setenv("CALOTYPE_HOME", "~no-such-user/home")
    SAMPLERS.write(key("a"), b"x")
    assert SAMPLERS.read(key("a")) is None
