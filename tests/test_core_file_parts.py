"""Checksums and transposed parts of files, against zlib and NumPy."""
import zlib

import numpy as np
import pytest
from support import assert_same_bits, read_only

from sparselsh import _files
from sparselsh._arrays.linalg import MAX_TRANSPOSED_BYTES, Transposed
from sparselsh._core import _file_parts


def data(n):
    return np.random.default_rng(n).integers(0, 256, n).astype(np.uint8)


@pytest.mark.parametrize("n", [*range(64, 64 + 16 * 12, 16), 1 << 20])
def test_checksums_are_those_of_zlib(n):
    if not _file_parts.is_fast():
        pytest.skip("the processor has no products without carry")
    bytes_ = read_only(data(n))
    for before in (0, 1, 0xFFFFFFFF, zlib.crc32(b"before")):
        assert _file_parts.crc32(bytes_, before) == zlib.crc32(bytes_, before)


@pytest.mark.parametrize("by", ["this processor", "zlib"])
def test_a_checksum_of_any_number_of_bytes_at_any_address_is_that_of_zlib(by, monkeypatch):
    if by == "zlib":
        monkeypatch.setattr(_file_parts, "is_fast", lambda: False)
    whole = data(1000)
    for first in (0, 1, 7):
        for n in (0, 1, 15, 16, 63, 64, 65, 79, 80, 500, 900):
            part = whole[first:first + n].data
            assert _files.crc32(part, 3) == zlib.crc32(part, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (300, 1), (16, 16), (513, 70), (0, 3), (3, 0)])
def test_a_transpose_has_the_same_numbers(shape):
    a = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    wide = np.zeros((shape[0], shape[1] + 9), np.float32)
    wide[:, 4:4 + shape[1]] = a
    for given in (a, wide[:, 4:4 + shape[1]]):
        out = np.full(shape[::-1], 7, np.float32)
        _file_parts.transpose(read_only(given), out)
        assert_same_bits(out, np.ascontiguousarray(a.T))


@pytest.mark.parametrize("n_rows, part_rows", [(1, 32), (100_000, 32), (200_000, 16),
                                               (1_000_000, 4), (MAX_TRANSPOSED_BYTES, 1)])
def test_a_part_of_a_transpose_takes_little_memory(n_rows, part_rows):
    whole = Transposed(np.broadcast_to(np.float32(1), (n_rows, 64)))
    assert whole.part_rows == part_rows and whole.shape == (64, n_rows)
