"""The store under processes that are killed, stopped, or run in parallel."""

import random
import signal
import time

import pytest

from calotype.errors import InputError
from calotype.export.store.gc import gc, remove
from calotype.export.store.store import STORE

# Like `maker`, in small pieces: about 0.2 s, most of it with an incomplete entry on the disk.
SLOWLY = """
def slowly(folder):
    emit("making")
    (folder / "deep").mkdir()
    for name, data in (("model.onnx", folder.name.removeprefix(".making-").encode()), ("deep/w.bin", bytes(2))):
        with (folder / name).open("wb", buffering=0) as file:
            for _ in range(10):
                file.write(data * 100)
                time.sleep(0.01)
    return {"figure": 1}
"""

# Like `maker`, in ten pieces. Stops before its n-th piece, with an incomplete entry on the disk.
STOPS = """
pieces, n = 0, int(sys.stdin.readline())

def stops(folder):
    global pieces
    (folder / "deep").mkdir()
    for name, data in (("model.onnx", folder.name.removeprefix(".making-").encode()), ("deep/w.bin", bytes(2))):
        with (folder / name).open("wb", buffering=0) as file:
            for _ in range(5):
                if pieces == n:
                    emit("stopped")
                    time.sleep(600)
                file.write(data * 200)
                pieces += 1
    return {"figure": 1}
"""
PIECES = 10

# Kills itself before its n-th operation on the file system.
DIES = """
operations, n = 0, int(sys.stdin.readline())

def count(event, args):
    global operations
    if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.utime", "fcntl.flock") or (
        event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    ):
        operations += 1
        if operations > n:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def check_complete(store, *keys):
    """Check that all entries are intact, `good` among them, and that no others than `keys` exist."""
    faults = {entry.key: entry.fault for entry in STORE.entries()}
    assert set(faults.values()) == {None}
    assert {"good"} <= set(faults) <= {"good", *keys}
    store.run("for entry in STORE.entries():\n    assert right(entry.path)")


def test_a_kill_at_any_moment_leaves_complete_entries(store):
    store.put("good")
    for moment in random.Random(20).sample(range(PIECES + 2), PIECES + 2):
        with store.start(STOPS + "put('k', stops)") as process:
            process.stdin.write(f"{moment}\n")
            process.stdin.flush()
            assert process.stdout.readline() == ("stopped\n" if moment < PIECES else "")
            process.kill()
        assert (store.root / ".making-k").exists() == (moment < PIECES)
        check_complete(store, "k")
        if moment % 4 == 3:  # else the next process starts from the leftovers of this one
            gc(10**9)
            assert store.names() in (["good"], ["good", "k"])
        if moment % 4 == 1:
            store.put("k")
            assert store.names() == ["good", "k"]
            check_complete(store, "k")
        if "k" in store.names():
            remove(["k"])


SCENES = {
    "makes": ("", "put('k')"),
    "makes a damaged one again": ("put('k'); (HOME / 'store/k/model.onnx').write_bytes(b'x')", "put('k')"),
    "sweeps": ("put('k'); os.utime(HOME / 'store/k' / ENTRY, (1, 1))", "gc(5000)"),
    "removes": ("put('k')", "remove(['k'])"),
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_kill_before_any_file_operation_leaves_complete_entries(store, scene):
    prepare, work = SCENES[scene]
    store.put("good")
    for step in range(100):
        store.run(prepare)
        with store.start(DIES + f"sys.addaudithook(count)\n{work}\n") as process:
            process.stdin.write(f"{step}\n")
            process.stdin.flush()
            code = process.wait(timeout=60)
            errors = process.stderr.read()
        if code == 0:
            break
        assert code == -signal.SIGKILL, errors
        damaged = {entry.key for entry in STORE.entries() if entry.fault}
        assert damaged <= ({"k"} if "damaged" in scene else set())  # the entry that was damaged before may still exist
        store.run("assert right(put('k')) and right(put('good'))")
        gc(10**9)
        assert store.names() == ["good", "k"]
        check_complete(store, "k")
        remove(["k"])
    assert step >= 6, "the test counts too few steps"
    assert code == 0


def test_gc_removes_an_unfinished_file(store):
    """The writer is killed between writing a digest and renaming it."""
    store.home.mkdir()
    store.run(
        "from calotype.files.paths import write_atomic\n"
        "if os.fork() == 0:\n"
        "    sys.addaudithook(lambda event, _: event == 'os.rename' and os.kill(os.getpid(), signal.SIGKILL))\n"
        "    write_atomic(HOME / 'digests' / 'x', b'y')\n"
        "os.wait()\n"
        "(unfinished,) = (HOME / 'digests').iterdir()\n"
        "os.utime(unfinished, (1, 1))\n"
    )
    gc(10**9)
    assert list((store.home / "digests").iterdir()) == []


def test_processes_build_one_key_once(store):
    work = """
def once(folder):
    with open(HOME / "log", "a") as log:
        log.write("x")
    return slowly(folder)
wait_for(HOME / "go")
assert right(put("k", once))
"""
    started = [store.start(SLOWLY + work) for _ in range(4)]
    store.home.mkdir(exist_ok=True)
    (store.home / "go").touch()
    assert [(p.communicate(timeout=60)[1], p.returncode) for p in started] == [("", 0)] * 4
    assert (store.home / "log").read_text() == "x"
    assert store.names() == ["k"]


def test_two_processes_build_two_keys_in_parallel(store):
    """Each finishes only after the other has begun."""
    work = """
def together(folder):
    (HOME / "{0}-began").touch()
    wait_for(HOME / "{1}-began")
    return maker(folder)
assert right(put("{0}", together))
"""
    started = [store.start(work.format(*keys)) for keys in ("ab", "ba")]
    assert [(p.communicate(timeout=90)[1], p.returncode) for p in started] == [("", 0)] * 2
    assert store.names() == ["a", "b"]


@pytest.mark.parametrize("sent", [signal.SIGCONT, signal.SIGKILL])
def test_waiting_for_a_stopped_process_is_reported_once(store, sent):
    holder = store.start(SLOWLY + "put('k', slowly)")
    assert holder.stdout.readline() == "making\n"
    holder.send_signal(signal.SIGSTOP)
    waiter = store.start("assert right(put('k'))")
    line = waiter.stderr.readline()
    wait = f"calotype: waiting for process {holder.pid}, stopped until `kill -CONT {holder.pid}`, "
    assert line == wait + "which is busy with unet fp16 k\n"
    time.sleep(1.5)
    assert waiter.poll() is None
    holder.send_signal(sent)
    assert waiter.communicate(timeout=60)[1] == ""
    assert waiter.returncode == 0
    holder.wait(timeout=60)
    assert store.names() == ["k"]


def test_entries_in_use_or_being_built_are_not_removed(store):
    store.put("old")
    user = store.start("folder = put('used'); emit('ready'); sys.stdin.readline(); assert right(folder)")
    builder = store.start(
        "def make(folder):\n    emit('ready'); sys.stdin.readline(); return maker(folder)\nput('new', make)"
    )
    for process in (user, builder):
        assert process.stdout.readline() == "ready\n"
    swept = gc(0)
    assert ([e.key for e in swept.removed], [e.key for e in swept.busy]) == (["old"], ["used"])
    assert swept.kept_bytes == STORE.entries()[0].size_bytes
    assert store.names() == [".making-new", "new.lock", "used"]
    with pytest.raises(InputError, match="in use: used"):
        remove(["used"])
    for process in (user, builder):
        assert (process.communicate("\n", timeout=60)[1], process.returncode) == ("", 0)
    assert store.names() == ["new", "used"]
    assert [e.key for e in gc(0).removed] == ["used", "new"]


def test_a_damaged_entry_in_use_is_rebuilt_while_its_user_runs(store):
    """A rebuild does not wait for users, or a server would keep a damaged entry forever."""
    user = store.start("folder = put('k'); emit('ready'); sys.stdin.readline()")
    assert user.stdout.readline() == "ready\n"
    (store.root / "k" / "model.onnx").write_bytes(b"x")
    store.run("assert right(put('k'))")
    user.communicate("\n")
    assert STORE.entries()[0].fault is None


def test_gc_under_many_users_removes_nothing_in_use(store):
    """Short processes build, use and collect at random: an entry that a process fetched stays intact until it ends."""
    life = """
import random
rng = random.Random({seed})
for _ in range(6):
    if rng.random() < 0.4:
        gc(rng.choice([0, 6000]))
    else:
        folder = put(rng.choice("abcd"))
        for _ in range(5):
            assert right(folder)
            time.sleep(0.002)
"""
    for batch in range(6):
        started = [store.start(life.format(seed=10 * batch + i)) for i in range(6)]
        assert [(p.communicate(timeout=120)[1], p.returncode) for p in started] == [("", 0)] * 6
    gc(10**9)
    assert all(len(name) == 1 for name in store.names())
    assert all(entry.fault is None for entry in STORE.entries())
