"""Checksums of weights: every change of values or their order counts, and mapped pages are not read."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calotype.drop_in.memory import checksums, mapped_pages
from calotype.drop_in.memory.checksums import checksum
from calotype.drop_in.memory.mapped_pages import mapped, unchanged_checksum


@pytest.fixture
def weight():
    return torch.randn(1024, 512, generator=torch.Generator().manual_seed(1))  # larger than the columns of the sums


CHANGES = {
    "one number": lambda w: w[777, 3].add_(1e-7),
    "its lowest bit": lambda w: w.view(torch.int32)[5, 5].bitwise_xor_(1),
    "the last number": lambda w: w[-1, -1].mul_(1.1),
    "all signs": lambda w: w.neg_(),
    "a factor": lambda w: w.mul_(2),
    "the order of rows": lambda w: w.copy_(w.flip(0)),
    "the order of columns": lambda w: w.copy_(w.flip(1)),
    "two rows": lambda w: (
        w[[3, 700]].clone().flip(0).split(1) and w.index_copy_(0, torch.tensor([700, 3]), w[[3, 700]])
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_counts(weight, change):
    before = checksum(weight)
    assert checksum(weight.clone()) == before
    CHANGES[change](weight)
    assert checksum(weight) != before


@pytest.mark.parametrize("tensor", [torch.tensor(1.5), torch.empty(0), torch.randn(3, 5).t(), torch.randn(7)[1:]])
def test_odd_tensors(tensor):
    assert checksum(tensor) == checksum(tensor.clone())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems read the pages")
def test_pages_are_not_read_until_they_are_written(tmp_path):
    path, values = tmp_path / "weights", np.arange(1 << 16, dtype=np.float32)
    values.tofile(path)
    bytes_of_page = 4096 * 16
    pages = mapped(path, {(0, bytes_of_page): 5, (bytes_of_page, bytes_of_page): 6})
    first, second = (pages[i * bytes_of_page : (i + 1) * bytes_of_page].view(torch.float32) for i in range(2))
    assert float(first.sum() + second.sum()) > 0  # reading leaves pages to the file
    assert (unchanged_checksum(first), unchanged_checksum(second)) == (5, 6)
    assert unchanged_checksum(first[8:]) is None  # it is no tensor of the mapping
    second.data[7] += 1
    assert (unchanged_checksum(first), unchanged_checksum(second)) == (5, None)
    assert checksum(second) == checksum(second.clone())
    assert np.array_equal(np.fromfile(path, np.float32), values)


def test_a_system_that_does_not_tell_reads(tmp_path, monkeypatch):
    np.zeros(64, np.float32).tofile(tmp_path / "weights")
    pages = mapped(tmp_path / "weights", {(0, 256): 5})
    monkeypatch.setattr(mapped_pages, "_PAGEMAP", Path("/nowhere"))
    assert unchanged_checksum(pages) is None
    assert checksums.checksum(pages) != 5
