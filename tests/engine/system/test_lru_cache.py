"""The LRU cache in memory, limited by number or by size."""

from calotype.system.lru_cache import LruCache


def test_the_least_recently_used_value_is_evicted():
    memory = LruCache(2)
    for key in "abac":
        memory(key, lambda key=key: key * 2)
    assert [memory.get(key) for key in "abc"] == ["aa", None, "cc"]
    assert (len(memory), memory.size) == (2, 2)


def test_sizes_count_and_a_large_new_value_stays():
    memory = LruCache(100, len)
    memory.put("a", "x" * 40)
    memory.put("b", "x" * 60)
    assert memory.size == 100
    memory.put("a", "x" * 30)  # a new value of an existing key
    assert (memory.size, len(memory)) == (90, 2)
    memory.put("large", "x" * 500)
    assert (memory.size, len(memory)) == (500, 1)
    memory.put("c", "x")
    assert memory.get("large") is None


def test_eviction_comes_before_the_next_value_is_created():
    """A device may not have memory for the buffers of both."""
    memory = LruCache(2)
    lengths = []
    for key in "abc":
        memory(key, lambda: lengths.append(len(memory)) or "value")
    assert lengths == [0, 1, 1]


def test_trim_evicts_the_least_recently_used_values():
    memory = LruCache(4)
    assert memory.last is None
    for key in "abc":
        memory.put(key, key.upper())
    memory.get("a")
    assert (memory.last, memory.values()) == ("A", ["B", "C", "A"])
    memory.trim(1)
    assert memory.values() == ["A"]
