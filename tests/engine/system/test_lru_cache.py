"""The one cache in memory: what was used last is kept, by number or by size."""

from calotype.system.lru_cache import LruCache


def test_the_least_recently_used_gives_way():
    memory = LruCache(2)
    for key in "abac":
        memory(key, lambda key=key: key * 2)
    assert [memory.get(key) for key in "abc"] == ["aa", None, "cc"]
    assert (len(memory), memory.size) == (2, 2)


def test_sizes_count_and_the_newest_stays_however_large():
    memory = LruCache(100, len)
    memory.put("a", "x" * 40)
    memory.put("b", "x" * 60)
    assert memory.size == 100
    memory.put("a", "x" * 30)  # another value of a key that is there
    assert (memory.size, len(memory)) == (90, 2)
    memory.put("large", "x" * 500)
    assert (memory.size, len(memory)) == (500, 1)
    memory.put("c", "x")
    assert memory.get("large") is None


def test_what_gives_way_does_so_before_the_next_is_made():
    """The buffers on a device of both at once may be too much."""
    memory = LruCache(2)
    kept = []
    for key in "abc":
        memory(key, lambda: kept.append(len(memory)) or "value")
    assert kept == [0, 1, 1]
