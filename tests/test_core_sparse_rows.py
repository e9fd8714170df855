"""Rows of a batch and the transpose of a pattern, against reference implementations."""
import numpy as np
import pytest
import reference
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from support import csr_patterns, on_threads, random_csr, read_only, unwritten

from sparselsh._core import _sparse_rows


def group_columns(indptr, indices, n_columns):
    def call(n_threads):
        nnz = len(indices)
        slot = np.full(n_columns, -1, np.int32)
        room = min(nnz, n_columns)
        rows, starts = unwritten(room, np.int32), unwritten(room + 1, np.int64)
        entries, samples = unwritten(nnz, np.int32), unwritten(nnz, np.int32)
        try:
            n_rows = _sparse_rows.group_columns(indptr, indices, slot, rows, starts, entries,
                                                samples, n_threads)
        finally:
            assert np.all(slot == -1), "the scratch array is left as it was"
        return rows[:n_rows], starts[: n_rows + 1], entries, samples

    return on_threads(call)


@given(csr_patterns())
def test_group_columns_lists_the_entries_of_each_touched_column(pattern):
    indptr, indices, n_columns = pattern
    got = group_columns(indptr, indices, n_columns)
    for array, want in zip(got, reference.group_columns(indptr, indices), strict=True):
        np.testing.assert_array_equal(array, want)


def test_group_columns_is_the_transposition_of_scipy(rng):
    indptr, indices, data = random_csr(rng, 50, 80, 0.1)
    rows, starts, entries, samples = group_columns(indptr, indices, 80)
    transposed = scipy.sparse.csr_array((data, indices, indptr), shape=(50, 80)).T.tocsr()
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(np.diff(transposed.indptr)))
    for r, j in enumerate(rows):
        column = slice(*transposed.indptr[j : j + 2])
        group = slice(*starts[r : r + 2])
        np.testing.assert_array_equal(samples[group], transposed.indices[column])
        np.testing.assert_array_equal(data[entries[group]], transposed.data[column])


def test_group_columns_returns_touched_columns_only(rng):
    # ten million columns: only the scratch array, allocated once, is that long
    indptr, indices = read_only(np.array([0, 2, 2, 3], np.int64),
                                np.array([5, 9_999_999, 5], np.int32))
    groups = group_columns(indptr, indices, 10_000_000)
    assert [a.tolist() for a in groups] == [[5, 9_999_999], [0, 2, 3], [0, 2, 1], [0, 2, 0]]


def by_column(rows, starts, entries, samples):
    return {int(j): (entries[a:b].tolist(), samples[a:b].tolist())
            for j, a, b in zip(rows, starts[:-1], starts[1:], strict=True)}


@pytest.mark.parametrize(
    ("n", "m", "density"),
    [(128, 100, 0.9), (256, 3000, 0.02), (5000, 3, 0.9), (1, 9000, 0.9), (900, 20, 1.0)],
    ids=["few columns", "a batch", "long", "one row", "full"],
)
def test_many_entries_are_grouped_in_parts_of_the_columns(rng, n, m, density):
    indptr, indices, _ = random_csr(rng, n, m, density)
    assert len(indices) >= 4096
    got = group_columns(indptr, indices, m)
    assert by_column(*got) == by_column(*reference.group_columns(indptr, indices))
    assert len(np.unique(got[0])) == len(got[0])
    assert got[1][0] == 0 and got[1][-1] == len(indices) and np.all(np.diff(got[1]) > 0)


def test_most_entries_in_one_column_are_grouped_too(rng):
    # all borders between the parts are then the same column: some parts are empty
    columns = [np.union1d([7], rng.integers(0, 50_000, 1 if i % 8 == 0 else 0))
               for i in range(8000)]
    indptr = np.cumsum([0, *map(len, columns)]).astype(np.int64)
    indices = np.concatenate(columns).astype(np.int32)
    got = group_columns(*read_only(indptr, indices), 50_000)
    assert by_column(*got) == by_column(*reference.group_columns(indptr, indices))


@given(csr_patterns(), st.data())
def test_take_rows_copies_rows_in_the_order_asked_for(pattern, data):
    indptr, indices, _ = pattern
    n = len(indptr) - 1
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)) if n else [], np.int64)
    values = np.arange(len(indices), dtype=np.float32)
    out_indptr = unwritten(len(rows) + 1, np.int64)
    _sparse_rows.take_counts(*read_only(indptr, rows), out_indptr)
    assert out_indptr.tolist() == np.cumsum([0, *(indptr[rows + 1] - indptr[rows])]).tolist()
    out_indices = unwritten(out_indptr[-1], np.int32)
    out_values = unwritten(out_indptr[-1], np.float32)
    _sparse_rows.take_rows(indptr, indices, *read_only(values, rows, out_indptr), out_indices,
                           out_values)
    assert out_indices.tolist() == reference.take_rows(indptr, indices, rows)
    assert out_values.tolist() == reference.take_rows(indptr, values, rows)
