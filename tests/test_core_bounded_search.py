"""The kernel of a search by a bound (sparselsh._core._bounded_search).

With a bound that reaches everything it computes all neurons; with one that reaches nothing, those
with the best estimates in the first cells.
"""
import numpy as np
import pytest
from support import assert_same_bits, eighths, gaussian, on_threads, read_only, unwritten

from sparselsh._arrays.bfloat16 import to_bfloat16
from sparselsh._core import _bounded_search, _sketches
from sparselsh.index import QuantizedRows

BLOCK = _sketches.NEURONS_PER_BLOCK
N, D, BITS, CELLS, K = 700, 24, 64, 10, 4
EVERYTHING, NOTHING = 1e6, -1e6
ALL_CELLS, FEW_CELLS = -1.0, 1.0  # shares of the best estimates in the second half of the cells
pytestmark = pytest.mark.usefixtures("simd_level")


class Index:
    """Arrays of a search; all that is multiplied is in eighths, so that no sum is rounded."""

    def __init__(self, rng, n_late=0, n_short=0, n_cells=CELLS, n_spread=0):
        self.w, self.bias, self.x = eighths(rng, N, D), eighths(rng, N), eighths(rng, 6, D)
        self.rows = eighths(rng, BITS + n_cells + n_spread, D)
        ids = rng.permutation(N).astype(np.int32)
        self.short, ids = np.sort(ids[:n_short]), ids[n_short:]
        self.n = len(ids)
        self.cell = rng.integers(0, max(n_cells - 1, 1), self.n).astype(np.int32)  # the last: empty
        self.cell[:self.n - n_late].sort()
        self.cell_start = np.zeros(1, np.int32)
        if n_cells:
            self.cell_start = np.searchsorted(self.cell[:self.n - n_late],
                                              np.arange(n_cells + 1)).astype(np.int32)
        self.ids = ids.copy()
        self.ids[::11] = -1  # slots that are no longer used
        n_blocks = -(-self.n // BLOCK)
        self.blocks = np.zeros((n_blocks, BITS // 4 * 16), np.uint8)
        _sketches.pack(gaussian(rng, self.n, BITS), np.arange(self.n, dtype=np.int32), self.blocks)
        self.factors, self.errors = np.zeros((2, n_blocks * BLOCK), np.float32)
        self.factors[:self.n] = abs(gaussian(rng, self.n))
        self.errors[:self.n] = 1 + abs(gaussian(rng, self.n))
        self.projected = read_only((self.x @ self.rows.T).astype(np.float32))
        self.n_cells, self.n_spread = n_cells, n_spread
        self.sizes = rng.integers(0, 90, n_cells).astype(np.int32)
        self.scales, self.variances = (0.5 + rng.random(n_cells)).astype(np.float32), (0.1, 0.5)
        self.tails = np.sort(rng.random(_bounded_search.TAIL_LENGTH) ** 4)[::-1].astype(np.float32)

    def prepared(self, sketches, share, short=EVERYTHING, storage="float32", n_missing=0.0):
        """The search with these bounds."""
        norms = np.linspace(2, 1, len(self.short)).astype(np.float32)
        one, none = np.ones(self.n_cells, np.float32), np.zeros(0, np.float32)
        rows = QuantizedRows.of(self.w, storage, 1)
        coarse = (rows.values, rows.scales) if rows.is_quantized else (None, None)
        slot = np.full(N, -1, np.int32)
        slot[self.ids[self.ids >= 0]] = np.flatnonzero(self.ids >= 0)
        return _bounded_search.prepare(
            to_bfloat16(self.rows), np.zeros(len(self.rows), np.float32), None, BITS, D + 1,
            self.cell_start,
            self.cell, 0 * one, self.sizes, self.scales, self.tails, self.n_spread,
            *self.variances, self.blocks, self.factors, self.errors, none, self.ids, self.n,
            slot, self.short, norms, np.zeros(D + 1, np.float32), 1.0, self.w, self.bias, *coarse,
            sketches, share, 8, n_missing, short, False)

    def answer(self, search, able=None, indptr=None, listed=None, only=False, k=K):
        """Ids, scores and counts, the same bits for 1 and 2 threads."""
        def call(n_threads):
            n = len(self.x)
            out = (unwritten((n, k), np.int32), unwritten((n, k), np.float32),
                   unwritten((n, 3), np.int64))
            _bounded_search.top_k_batch(search, self.x, self.projected, able, indptr, listed, only,
                                        *out, n_threads)
            return out

        return on_threads(call)

    def exact(self, able, k=K):
        """The best of the able neurons, (6, N) or (N,), by all of their inner products."""
        scores = np.where(able, self.x @ self.w.T + self.bias, -np.inf)
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(scores, ids, 1)
        return np.where(np.isneginf(scores), -1, ids), scores

    def known(self):
        """A mask of the neurons in slots, and of those without a sketch."""
        mask = np.zeros(N, bool)
        mask[self.ids[self.ids >= 0]] = mask[self.short] = True
        return mask


def assert_finds(got, want):
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("k", [1, K, 50, 690])
@pytest.mark.parametrize("n_late, n_short, n_cells",
                         [(0, 0, CELLS), (70, 0, CELLS), (70, 300, CELLS), (0, 0, 0), (0, 90, 0)])
def test_a_bound_that_reaches_everything_finds_the_best_of_all(rng, n_late, n_short, n_cells, k):
    index = Index(rng, n_late, n_short, n_cells)
    got = index.answer(index.prepared(EVERYTHING, ALL_CELLS), k=k)
    assert_finds(got, index.exact(index.known(), k))
    assert np.all(got[2][:, 0] == index.known().sum()) and np.all(got[2][:, 2] == n_short)


@pytest.mark.parametrize("n_late", [0, 70])
def test_a_bound_that_reaches_nothing_computes_the_best_estimates_of_the_first_cells(rng, n_late):
    index = Index(rng, n_late)
    n_first = 6  # after four rounds of 3, 4, 5 and 6 cells, which find enough
    got = index.answer(index.prepared(NOTHING, FEW_CELLS, NOTHING))
    assert np.all(got[2][:, 0] == 2 * K + 8)
    for i in range(len(index.x)):
        want = best_in_first_cells(index, i, n_first)
        assert_finds([a[i] for a in got], want)


def best_in_first_cells(index, i, n_cells):
    """Ids and scores of the best of the neurons with the best estimates in the first cells."""
    probed = np.argsort(-index.projected[i, BITS:BITS + CELLS], kind="stable")[:n_cells]
    ids = np.where(np.isin(index.cell, probed), index.ids, -1)
    best = unwritten((1, 2 * K + 8), np.int32), unwritten((1, 2 * K + 8), np.float32)
    _sketches.scan(read_only(index.projected[i:i + 1, :BITS]), index.blocks, index.factors, None,
                   read_only(ids), index.n, *best, 1)
    able = np.zeros(N, bool)
    able[best[0][best[0] >= 0]] = True
    return [a[i] for a in index.exact(able)]


@pytest.mark.parametrize("n_late", [0, 70])
@pytest.mark.parametrize("n_spread", [1, 5])
def test_cells_are_scanned_until_few_neurons_are_expected_in_the_others(rng, n_late, n_spread):
    stops = set()
    for n_missing in (1e-6, 1.0, 4.0, 16.0, 1e6):
        index = Index(rng, n_late, n_spread=n_spread)
        got = index.answer(index.prepared(NOTHING, FEW_CELLS, NOTHING, n_missing=n_missing))
        for i, q in enumerate(index.projected.astype(float)):
            means = q[BITS:BITS + CELLS]
            order = np.argsort(-means, kind="stable")
            square = (q[:BITS] ** 2).sum() * (D + 1) / BITS
            variance = index.variances[0] * square + index.variances[1]
            variance += (q[BITS + CELLS:] ** 2).sum()
            for n_first in (6, 7, 9, 10):  # cells after the fourth round and later
                kth = best_in_first_cells(index, i, n_first)[1][-1]
                z = (kth - means[order[n_first:]]) * index.scales[order[n_first:]]
                z /= np.sqrt(variance)
                place = np.maximum(z * _bounded_search.TAIL_STEPS, 0).astype(int)
                tails = np.append(index.tails, 0)[np.minimum(place, len(index.tails))]
                if (index.sizes[order[n_first:]] * tails).sum() <= n_missing * K:
                    break
            stops.add(n_first)
            assert_finds([a[i] for a in got], best_in_first_cells(index, i, n_first))
    assert stops >= {6, 10}, "the data are constructed so"


def test_a_few_queries_get_the_same_answers_as_a_batch(rng):
    for index in (Index(rng), Index(rng, 70, 100)):
        for sketches in (NOTHING, 0.5, 2.0):
            search = index.prepared(sketches, 0.2)
            want = index.answer(search)
            got = unwritten((6, K), np.int32), unwritten((6, K), np.float32)
            _bounded_search.top_k(search, index.x, None, None, None, False, *got)
            for a, b in zip(got, want, strict=False):
                assert_same_bits(a, b)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("only", [False, True, None])
def test_a_few_queries_among_some_neurons_get_the_answers_of_a_batch(rng, with_mask, only):
    index = Index(rng)
    n = len(index.w)
    search = index.prepared(0.5, 0.2)
    mask = (rng.random(n) < 0.6).astype(np.uint8) if with_mask else None
    lists = (None, None, False)
    if only is not None:
        rows = [np.sort(rng.permutation(n)[:size]) for size in (0, 1, n // 50, n // 3, n - 5, n)]
        indptr = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
        lists = indptr, np.concatenate(rows).astype(np.int32), only
    want = index.answer(search, mask, *lists)
    got = unwritten((6, K), np.int32), unwritten((6, K), np.float32)
    _bounded_search.top_k(search, index.x, mask, *lists, *got)
    for a, b in zip(got, want, strict=False):
        assert_same_bits(a, b)


def test_wider_bounds_compute_more_and_lose_nothing(rng):
    index = Index(rng, 70, 50)
    before = np.zeros(6), np.full((6, K), -np.inf)
    for sketches in (NOTHING, 0.0, 0.5, 1.0, 2.0, 4.0, EVERYTHING):
        _, scores, counts = index.answer(index.prepared(sketches, 0.2))
        assert np.all(counts[:, 0] >= before[0]) and np.all(scores >= before[1])
        before = counts[:, 0], scores


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_rows_of_fewer_bits_choose_and_float32_scores(rng, storage):
    index = Index(rng, 30, 100)
    ids, scores, _ = index.answer(index.prepared(EVERYTHING, ALL_CELLS, storage=storage))
    want = index.exact(index.known())
    # eighths up to 2 are exact in bfloat16; in int8 an entry is off by 1/127, and the best 4 k + 12
    # contain the best k
    np.testing.assert_array_equal(ids, want[0])
    np.testing.assert_array_equal(scores, want[1])


@pytest.mark.parametrize("n_listed", [3, 600])
@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_only_neurons_that_may_be_found_are(rng, with_mask, only, n_listed):
    index = Index(rng, 30, 100)
    mask = (rng.random(N) < 0.5) if with_mask else np.ones(N, bool)
    listed = [np.sort(rng.permutation(N)[:n_listed if i else 0]).astype(np.int32) for i in range(6)]
    able = np.zeros((6, N), bool)
    for i, ids in enumerate(listed):
        able[i, ids] = True
    able = (able if only else ~able) & mask & index.known()
    if only and n_listed == 3:  # a short list is computed without a look at the slots
        listed = [ids[index.known()[ids]] for ids in listed]
    indptr = np.cumsum([0] + [len(ids) for ids in listed]).astype(np.int64)
    got = index.answer(index.prepared(EVERYTHING, ALL_CELLS),
                       mask.astype(np.uint8) if with_mask else None, indptr,
                       np.concatenate(listed), only)
    assert_finds(got, index.exact(able))


def test_short_neurons_are_computed_as_far_as_their_norms_reach(rng):
    index = Index(rng, 0, 300)
    search = index.prepared(EVERYTHING, ALL_CELLS, short=NOTHING)
    with_sketch = index.known()
    with_sketch[index.short] = False
    assert_finds(index.answer(search), index.exact(with_sketch))


def test_no_queries_and_no_neighbours_are_dealt_with(rng):
    index = Index(rng)
    search = index.prepared(1.0, 1.0)
    _bounded_search.top_k(search, index.x[:0], None, None, None, False, unwritten((0, K), np.int32),
                          unwritten((0, K), np.float32))
    _bounded_search.top_k(search, index.x, None, None, None, False, unwritten((6, 0), np.int32),
                          unwritten((6, 0), np.float32))
    index.x = index.x[:0]
    assert index.answer(search)[0].shape == (0, K)
