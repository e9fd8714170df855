"""An index that changes: after any operations it equals brute force and a new index."""
import copy

import numpy as np
import pytest
from support import assert_same_bits, trained

import sparselsh as sl
from sparselsh._core import _bounded_search
from sparselsh.index._sketches import Sketches
from sparselsh.index._tables import Tables

D = 12
KINDS = {
    "sketches": {"plan": "sketches"},
    "exact": {"plan": "exact"},
    "tables": {"family": sl.SimHash(3, 4), "sketch_bits": 0},
    "tables with room": {"family": sl.SimHash(3, 4), "sketch_bits": 0, "dynamic": True},
    "both": {"family": sl.SimHash(3, 4), "plan": "sketches"},
    "both, scaled": {"family": sl.SimHash(3, 4), "scaling": 0.5, "plan": "sketches",
                     "dynamic": True},
    "both with room": {"family": sl.CrossPolytope(1, 5, dims=4), "plan": "sketches",
                       "dynamic": True},
}


def eighths(rng, *shape, largest=16):
    """Return multiples of 1/8: inner products are exact in float32, so that ties occur."""
    return (rng.integers(-largest, largest + 1, shape) / 8).astype(np.float32)


def neurons(rng, n):
    """Return neurons; about two in three are short, with entries up to 1/8 instead of 2."""
    return np.where(rng.random(n)[:, None] < 2 / 3, eighths(rng, n, D, largest=1),
                    eighths(rng, n, D))


class BruteForceIndex:
    """The reference implementation: weights, a mask of the rows in the index, and brute force."""

    def __init__(self, rng, n):
        self.rng = rng
        self.W, self.bias = neurons(rng, n), eighths(rng, n, largest=4)
        self.present = np.ones(n, bool)
        self.reads_bias = True  # whether the index reads the array `bias`

    def add(self, index):
        n_new = self.rng.integers(0, 6)
        rows, with_bias = neurons(self.rng, n_new), self.rng.random() < 0.8
        new = eighths(self.rng, n_new, largest=4) if with_bias else np.zeros(n_new, np.float32)
        self.W, self.bias = np.concatenate([self.W, rows]), np.concatenate([self.bias, new])
        self.present = np.concatenate([self.present, np.ones(n_new, bool)])
        self.reads_bias = False  # the index has its own copy from now on
        assert index.add(rows, new if with_bias else None) is index
        assert len(index) == self.present.sum()

    def rows(self, most):
        return self.rng.permutation(len(self.W))[:self.rng.integers(0, most + 1)]

    def update(self, index, rows=None):
        rows = self.rows(8) if rows is None else rows
        if self.rng.random() < 0.3:
            self.W = self.W.copy()  # another array
        self.W[rows] = neurons(self.rng, len(rows))
        if self.reads_bias:
            self.bias[rows] = eighths(self.rng, len(rows), largest=4)
        if self.rng.random() < 0.3 and len(rows) < len(self.W):
            index.update(self.W[rows], rows)  # the index copies what it did not own
            self.reads_bias = False
        else:
            index.update(self.W, rows)
        self.present[rows] = True

    def bring_back(self, index):
        self.update(index, self.rng.permutation(np.flatnonzero(~self.present))[:3])

    def remove(self, index):
        rows = self.rows(6) if self.rng.random() < 0.98 else np.arange(len(self.W))
        index.remove(rows)
        self.present[rows] = False

    def counts(self, index, X, n_probes=1):
        """Return, per query, in how many tables each neuron is in a probed bucket: (len(X), n)."""
        family, transform = index._engine.tables.family, index._engine.transform
        probes = family.probe(transform.queries(X, 1), n_probes)
        codes = family.hash(transform.neurons(self.W, self.bias, 1))
        return (codes[None, :, :, None] == probes[:, None]).any(axis=3).sum(axis=2) * self.present

    def query(self, index):
        if index.family is None:
            return
        X = eighths(self.rng, 2, D)
        min_count, n_probes = self.rng.integers(1, 4, 2)
        want = self.counts(index, X, n_probes)
        active = index.query(X, n=len(self.W), min_count=min_count, n_probes=n_probes)
        np.testing.assert_array_equal(active.toarray(), np.where(want >= min_count, want, 0))

    def search(self, index):
        X, k = eighths(self.rng, 2, D), int(self.rng.integers(1, 9))
        n_candidates = max(k, len(self.W))
        if index.plan == "exact" and self.rng.random() < 0.5:
            n_candidates, able = None, np.tile(self.present, (2, 1))
        elif not index._engine.has_sketches and k < len(self.W):
            able, n_candidates = self.counts(index, X) > 0, len(self.W) - 1
            if able.all(axis=1).any():
                return  # one that is found in a table would be left out
        else:
            able = np.tile(self.present, (2, 1))
        ids, scores = index.search(X, k=k, n_candidates=n_candidates)
        want = X @ self.W.T + self.bias
        for i in range(2):
            best = np.flatnonzero(able[i])
            best = best[np.lexsort((best, -want[i, best]))][:k]
            np.testing.assert_array_equal(ids[i], np.append(best, [-1] * (k - len(best))))
            np.testing.assert_array_equal(scores[i],
                                          np.append(want[i, best], [-np.inf] * (k - len(best))))


def new_index(index):
    """Return a new index over the rows in `index`, with its transform, norm floor and seed."""
    new, old = copy.copy(index), index._engine
    engine = new._engine = copy.copy(old)
    n, rows = len(old.W), np.flatnonzero(~old.removed).astype(np.int32)
    V = old.transform.neurons(old.W[rows], old.bias[rows], 1)
    if old.has_tables:
        engine.tables = Tables(index.family, n, D + 1, index.dynamic, old.seed)
        engine.tables.codes[rows] = engine.tables.family.hash(V)
        engine.tables.build(1)
    if old.has_sketches:
        engine.sketches = Sketches(old.sketches.rotation, n, old.sketches.norm_floor)
        engine.sketches.set_bounds(old.sketches.bounds)
        engine.sketches.prepare(old.transform).update(rows, *old.directions(rows, 1), 1)
    return new


def answers(index, X):
    """Return answers by default and with few candidates, where sketches and ties matter."""
    said = [*index.search(X), *index.search(X, k=3, n_candidates=6)]
    if index.family is not None:
        for options in ({}, {"n": 4}, {"n": 5, "policy": "score", "n_probes": 2},
                        {"n": 5, "policy": "vanilla"}):
            active = index.query(X, **options)
            said += [active.indptr, active.indices, active.data]
    return said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(17))
def test_after_a_hundred_operations_answers_equal_brute_force_and_a_new_index(kind, seed):
    # 7 kinds x 17 sequences x 100 operations: 11,900 in all
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    reference = BruteForceIndex(rng, int(rng.integers(1, 90)))
    queries = eighths(rng, 40, D) if seed % 4 else None
    index = sl.LSHIndex(random_state=seed, n_threads=1 + seed % 2,
                        **KINDS[kind]).fit(reference.W, reference.bias, queries)
    index._engine.methods = dict.fromkeys(index._engine.methods,
                                          "exact" if index.plan == "exact" else "sketches")
    operations = [reference.add, reference.update, reference.update, reference.remove,
                  reference.bring_back, reference.query, reference.search]
    for _ in range(100):
        operations[rng.integers(len(operations))](index)
    reference.query(index)
    reference.search(index)
    X = eighths(rng, 9, D)
    for one, other in zip(answers(index, X), answers(new_index(index), X), strict=True):
        assert_same_bits(one, other)
    found = index.search(X)[0]
    assert not np.isin(found, np.flatnonzero(~reference.present)).any(), "a removed neuron is found"


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_short_sequences_agree_with_brute_force(kind):
    # 7 kinds x 1,430 sequences of 6 operations over few neurons, so that edge cases
    # occur: 10,010 sequences
    for seed in range(1430):
        rng = np.random.default_rng([seed, 99, list(KINDS).index(kind)])
        reference = BruteForceIndex(rng, int(rng.integers(1, 12)))
        index = sl.LSHIndex(random_state=seed, n_threads=1, **KINDS[kind]).fit(
            reference.W, reference.bias)
        index._engine.methods = dict.fromkeys(index._engine.methods,
                                              "exact" if index.plan == "exact" else "sketches")
        operations = [reference.add, reference.update, reference.remove,
                      reference.bring_back, reference.query, reference.search]
        for operation in rng.integers(len(operations), size=5):
            operations[operation](index)
        (reference.query if index.family is not None and seed % 2 else reference.search)(index)


@pytest.mark.parametrize("kind", ["sketches", "exact", "both", "both with room"])
def test_the_random_sequences_have_a_norm_floor(kind):
    # the test above relies on this: with queries, most of these neurons are too short to be found
    rng = np.random.default_rng(0)
    reference = BruteForceIndex(rng, 90)
    index = sl.LSHIndex(random_state=0, **KINDS[kind]).fit(
        reference.W, reference.bias, eighths(rng, 40, D))
    assert index._engine.sketches.norm_floor > 0
    assert index.report()["n_sketched"] < 60


def test_a_row_crosses_the_norm_floor_in_both_directions(rng):
    W = 0.01 * rng.standard_normal((400, D)).astype(np.float32)
    W[:40] *= 100
    index = sl.LSHIndex(random_state=0, plan="sketches").fit(
        W, queries=rng.standard_normal((100, D)))
    assert index.report()["n_sketched"] == 40
    W[[0, 399]] = W[[399, 0]]
    index.update(W, [0, 399])
    assert index.report()["n_sketched"] == 40
    found = index.search(rng.standard_normal((5, D)), k=40, n_candidates=40)[0]
    np.testing.assert_array_equal(np.sort(found), [[*range(1, 40), 399]] * 5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_may_lose_and_regain_all_its_neurons(rng, kind):
    W, X = neurons(rng, 70), eighths(rng, 40, D)
    index = sl.LSHIndex(random_state=0, **KINDS[kind]).fit(W, queries=X)
    before = answers(index, X)
    index.remove(np.arange(70))
    ids, scores = index.search(X)
    assert np.all(ids == -1) and np.all(scores == -np.inf)
    if index.family is not None:
        for policy in ("top", "score", "vanilla"):
            assert index.query(X, policy=policy).nnz == 0
    if index._engine.has_sketches:
        assert copy.deepcopy(index).tune(X)[-1]["recall"] == 1, "there are no neighbours to miss"
    index.remove([3, 5])  # removed twice
    index.update(W, np.arange(70))
    for one, other in zip(before, answers(index, X), strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_added_neurons_give_the_same_index_as_a_fit_of_all(rng, kind):
    # without centring and queries the transform does not depend on the
    # weights: scaling needs queries
    W, bias, X = neurons(rng, 300), eighths(rng, 300, largest=4), eighths(rng, 30, D)
    options = {"center": False, "random_state": 0} | KINDS[kind]
    whole, grown = sl.LSHIndex(**options).fit(W, bias), sl.LSHIndex(**options).fit(W[:1], bias[:1])
    for n in (1, 2, 33, 190, 300):
        at = len(grown)
        grown.add(W[at:n], bias[at:n])
    for one, other in zip(answers(grown, X), answers(whole, X), strict=True):
        assert_same_bits(one, other)


def test_a_failed_change_leaves_the_index_as_it_was(rng):
    W, X = neurons(rng, 60), eighths(rng, 9, D)
    index = sl.LSHIndex(random_state=0, **KINDS["both with room"]).fit(W)
    before = answers(index, X)
    nan = np.full((1, D), np.nan, np.float32)
    for call in (lambda: index.add(W), lambda: index.add(nan),
                 lambda: index.add(W[:9], np.zeros(8)),
                 lambda: index.remove([3, 60]), lambda: index.remove([3, 3])):
        with pytest.raises(ValueError):
            call()
        for one, other in zip(before, answers(index, X), strict=True):
            assert_same_bits(one, other)


def test_more_neurons_in_the_cells_may_not_hold_more_of_the_best(rng, monkeypatch):
    # the number that may be expected in the cells left out is for the neurons that were counted
    monkeypatch.setattr("sparselsh.index._build.CELLS_MIN_NEURONS", 64)
    monkeypatch.setattr("sparselsh.index._build.MAX_SCANNED_IN_CELLS", 20.0)
    prepare, given = _bounded_search.prepare, []

    def recorded(*arguments):
        given.append(arguments[-3])
        return prepare(*arguments)

    W, X = trained(rng, n=2000)
    index = sl.LSHIndex(plan="sketches", recall=0.9, random_state=0).fit(W[:500], queries=X)
    monkeypatch.setattr("sparselsh.index._sketches._bounded_search.prepare", recorded)
    index._engine.sketches.set_bounds(index._engine.sketches.bounds)
    index.search(X[:1], 5)
    counted = index._engine.sketches.n_live
    index.add(W[500:])
    index.search(X[:1], 5)
    live = index._engine.sketches.n_live
    index.remove(np.arange(1000, 2000))
    index.search(X[:1], 5)
    fewer = index._engine.sketches.n_live
    np.testing.assert_allclose(given, given[0] * counted / np.array([counted, live, fewer]))
    assert live > 2 * counted
