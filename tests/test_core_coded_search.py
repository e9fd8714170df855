"""The kernel of searches by rows in four bits (sparselsh._core._coded_search)."""
import numpy as np
import pytest
import reference
from support import assert_same_bits, gaussian, on_threads, read_only, unwritten

from sparselsh._arrays.bfloat16 import as_float32, to_bfloat16
from sparselsh._arrays.selection import Selection
from sparselsh._core import _coded_search
from sparselsh.index import CodedRows

pytestmark = pytest.mark.usefixtures("simd_level")

# around a group of 8 inputs, a block of 16 neurons, a pair of them, and a power of two
SHAPES = [(1, 1), (16, 8), (33, 20), (100, 64), (500, 129), (70, 300)]
N_QUERIES = 15  # more than a pass


class Coded:
    """Rows, biases and queries, and the search by codes of the rows."""

    def __init__(self, rng, n, d, kind="usual", euclidean=False):
        self.w, self.bias = np.array(gaussian(rng, n, d)), np.array(gaussian(rng, n))
        self.x = np.array(gaussian(rng, N_QUERIES, d))
        change = {"usual": lambda: None, "equal rows": self.equal, "zero queries": self.zero,
                  "heavy tails": self.heavy, "far from zero": self.far, "tiny": self.tiny,
                  "one is long": self.long}
        change[kind]()
        self.centre = self.w.mean(axis=0, dtype=np.float64).astype(np.float32)
        if euclidean:
            self.bias = (-(self.w.astype(float)**2).sum(axis=1) / 2).astype(np.float32)
        self.rows = CodedRows(self.w, self.bias, self.centre, euclidean, 3, 1)

    def equal(self):
        self.w[:], self.bias[:] = self.w[0], 0

    def zero(self):
        self.x[::2] = 0

    def heavy(self):
        self.w **= 9
        self.x **= 9

    def far(self):
        self.w += 30

    def tiny(self):
        self.w *= np.float32(1e-10)
        self.bias *= np.float32(1e-10)
        self.x *= np.float32(1e-10)

    def long(self):
        self.x *= np.float32(1e6)
        self.w[0] *= 1000

    def search(self, k, deviations=0.0, selection=None, w=None):
        """Ids, scores, counts and doubts, the same bits for 1 and 2 threads."""
        selection = Selection() if selection is None else selection
        w = read_only(self.w) if w is None else w
        return on_threads(lambda n_threads: self.rows.search(
            read_only(self.x), k, w, read_only(self.bias), selection, deviations, n_threads))

    def assert_best(self, found, k, able=None, w=None):
        """The scores are the k best, up to what the order of a sum changes."""
        w = (self.w if w is None else w).astype(float)
        scores = self.x.astype(float) @ w.T + self.bias
        scores = scores if able is None else np.where(able, scores, -np.inf)
        want = -np.sort(-scores, axis=1)[:, :k]
        want = np.pad(want, ((0, 0), (0, k - want.shape[1])), constant_values=-np.inf)
        size = (np.abs(self.x).astype(float) @ np.abs(w).T + np.abs(self.bias)).max(1)[:, None]
        known = np.isfinite(want)
        found = found[0], np.where(known, found[1], 0)
        want = np.where(known, want, 0)
        assert np.array_equal(found[0] >= 0, known)
        bound = 3e-7 * (self.w.shape[1] + 4) * np.broadcast_to(size, want.shape)
        assert np.all(np.abs(found[1] - want)[known] <= bound[known])


@pytest.mark.parametrize("n, d", SHAPES)
@pytest.mark.parametrize("n_x", [1, 7, 12])
def test_scores_of_codes_are_those_of_the_reference(rng, n, d, n_x):
    rows = Coded(rng, n, d).rows
    x = rng.integers(-127, 128, (n_x, 8 * rows.blocks.shape[1])).astype(np.int8)
    factors = abs(gaussian(rng, n_x))
    got = unwritten((n_x, len(rows.scales)), np.float32)
    _coded_search.scores(rows.blocks, rows.scales, rows.offsets, read_only(x), factors, got)
    want = reference.coded_scores(rows.blocks, rows.scales, rows.offsets, x, factors)
    np.testing.assert_allclose(got[:, :n], want[:, :n], rtol=1e-6, atol=1e-5)
    assert np.all(np.isneginf(got[:, n:]))


@pytest.mark.parametrize("n, d", SHAPES)
@pytest.mark.parametrize("kind", ["usual", "heavy tails", "far from zero"])
def test_errors_of_rows_are_bounded_and_their_codes_without_bias(rng, n, d, kind):
    coded = Coded(rng, n, d, kind)
    rows, v = coded.rows, coded.w.astype(float) - coded.centre
    v = v[rows.ids]
    levels = reference.unpacked_codes(rows.blocks)[:n] - 7.5
    decoded = rows.scales[:n, None] * levels.astype(float)
    rotated = reference.rotate_halves(v, rows.signs, decoded.shape[1])
    error = np.linalg.norm(decoded - rotated, axis=1)
    assert np.all(error <= rows.errors[:n])
    long = np.linalg.norm(v, axis=1) > 1e-6
    assert np.all(np.linalg.norm(decoded, axis=1)[long] <= 12.0001 * rows.errors[:n][long])
    # the error is orthogonal to the row
    product = np.einsum("ij,ij->i", decoded - rotated, rotated)
    assert np.all(np.abs(product) <= 1e-4 * (rotated**2).sum(axis=1))
    assert np.all(np.diff(np.linalg.norm(v, axis=1)) <= 1e-5 * np.linalg.norm(v[0]))
    np.testing.assert_allclose(rows.lengths, np.linalg.norm(v[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n, d", [(1, 1), (33, 20), (500, 129), (3000, 40)])
@pytest.mark.parametrize("k", [1, 300])
@pytest.mark.parametrize("kind", ["usual", "equal rows", "zero queries", "heavy tails",
                                  "far from zero", "tiny", "one is long"])
@pytest.mark.parametrize("euclidean", [False, True])
def test_nothing_is_missed(rng, n, d, k, kind, euclidean):
    coded = Coded(rng, n, d, kind, euclidean)
    found = coded.search(k)
    coded.assert_best(found, k)
    assert np.all(found[3] == 0)
    if n == 3000 and k == 1 and kind in ("usual", "far from zero"):
        assert found[2].mean() < 0.1 * n


def test_rows_in_bfloat16_are_computed_as_they_are(rng):
    coded = Coded(rng, 500, 64)
    w = to_bfloat16(coded.w)
    coded.w = as_float32(w)
    coded.rows = CodedRows(w, coded.bias, coded.centre, False, 3, 1)
    coded.assert_best(coded.search(5, w=w), 5)


@pytest.mark.parametrize("k", [1, 9, 200])
def test_selections_are_kept(rng, k):
    coded = Coded(rng, 700, 64)
    mask = (rng.random(700) < 0.6).astype(np.uint8)
    listed = rng.random((N_QUERIES, 700)) < 0.4
    listed[0], listed[1] = False, True
    lists = (np.concatenate([[0], np.cumsum(listed.sum(axis=1))]).astype(np.int64),
             np.nonzero(listed)[1].astype(np.int32))
    for base in (None, mask):
        able = np.ones(700, bool) if base is None else base.astype(bool)
        for deviations in (0.0, 6.0):
            coded.assert_best(coded.search(k, deviations, Selection(base)), k, able)
            for only in (True, False):
                found = coded.search(k, deviations, Selection(base, *lists, only))
                coded.assert_best(found, k, able & (listed if only else ~listed))


def test_few_deviations_compute_less_and_doubts_grow(rng):
    coded = Coded(rng, 5000, 128)
    counts, doubts = {}, {}
    for deviations in (0.0, 5.0, 2.0, 1.0):
        _, _, counts[deviations], doubts[deviations] = coded.search(10, deviations)
    assert counts[0].mean() > counts[5].mean() > counts[2].mean() > counts[1].mean()
    assert np.all(doubts[0] == 0) and np.all(doubts[1] >= doubts[2]) and np.all(doubts[5] > 0)


def test_rows_that_change_and_rows_that_are_new_are_followed(rng):
    coded = Coded(rng, 50, 24)
    coded.w = np.concatenate([coded.w, gaussian(rng, 41, 24)])
    coded.bias = np.concatenate([coded.bias, gaussian(rng, 41)])
    coded.w[7:20] *= 3
    changed = np.concatenate([np.arange(7, 20), np.arange(50, 91)]).astype(np.int32)
    coded.rows.refresh(coded.w, coded.bias, changed, 1)
    coded.assert_best(coded.search(6), 6)
    anew = CodedRows(coded.w, coded.bias, coded.centre, False, 3, 2)
    for name in ("scales", "errors", "offsets"):
        assert_same_bits(getattr(coded.rows, name)[coded.rows.slot], getattr(anew, name)[anew.slot])


def test_rows_that_are_removed_are_not_found_until_they_change(rng):
    coded = Coded(rng, 300, 24)
    gone = np.arange(0, 300, 3)
    coded.rows.remove(gone)
    coded.assert_best(coded.search(6), 6, np.arange(300) % 3 > 0)
    coded.rows.refresh(coded.w, coded.bias, gone.astype(np.int32), 1)
    coded.assert_best(coded.search(6), 6)


def test_parts_of_short_rows_are_left_out(rng):
    # the kernel reads what a query needs: the estimates of short rows need not even be finite
    coded = Coded(rng, 9000, 24)
    coded.w[4000:] *= np.float32(0.01)
    coded.rows = CodedRows(coded.w, coded.bias * 0, coded.centre * 0, False, 3, 1)
    coded.bias[:] = 0
    short = coded.rows.ids >= 4000
    assert short[4096:9000].all()
    coded.rows.scales[4096:] = np.nan
    coded.assert_best(coded.search(5), 5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rows_that_cannot_be_rotated_are_not_usable(rng, scale):
    w = gaussian(rng, 40, 9) * np.float32(scale)
    assert not CodedRows(w, np.zeros(40, np.float32), w[0], False, 0, 1).usable


def test_no_queries_are_dealt_with(rng):
    coded = Coded(rng, 40, 8)
    coded.x = coded.x[:0]
    assert all(len(found) == 0 for found in coded.search(3))
