"""Votes of past sessions, against their formulas in Python."""
import numpy as np
import pytest
import reference
from support import on_threads, read_only, unwritten

from sparselsh._core import _sessions
from sparselsh.text._sessions import PRIOR, Sessions

N_ITEMS, N_HIDDEN, N_LAST, N_NEIGHBORS = 40, 24, 4, 9


class Case:
    """Sessions, a network, and queries of 0 to 9 items, also of items that no session has."""

    def __init__(self, rng, n_sessions=60, n_queries=50):
        self.sessions = [rng.integers(0, N_ITEMS - 3, rng.integers(2, 9)).tolist()
                         for _ in range(n_sessions)]
        self.queries = [rng.integers(0, N_ITEMS, rng.integers(0, 10)).tolist()
                        for _ in range(n_queries)]
        flat = np.array([item for row in self.sessions for item in row], np.int32)
        lengths = np.array([len(row) for row in self.sessions], np.int32)
        self.made = Sessions(flat, lengths, N_ITEMS)
        self.parameters = PRIOR + rng.normal(0, 0.3, len(PRIOR))
        self.further = rng.integers(-1, N_ITEMS, (n_queries, 3)).astype(np.int32)
        w = [rng.standard_normal((N_ITEMS, N_HIDDEN)).astype(np.float32) for _ in range(2)]
        b = [rng.standard_normal(n).astype(np.float32) for n in (N_HIDDEN, N_ITEMS)]
        self.w, self.b = read_only(*w), read_only(*b)
        self.age_weights, self.input_weights = read_only(
            0.7 ** np.arange(N_LAST, dtype=np.float32), 0.5 ** np.arange(N_LAST, dtype=np.float32))
        self.indptr = np.cumsum([0, *map(len, self.queries)], dtype=np.int64)
        self.flat = np.array([item for row in self.queries for item in row], np.int32)

    def prepared(self, relu=False, n_neighbors=N_NEIGHBORS):
        layers = [(self.w[0], None, self.b[0], relu), (self.w[1], None, self.b[1], False)]
        return _sessions.prepare(self.made.arrays, self.age_weights, self.input_weights,
                                 n_neighbors, layers)

    def expected(self, i, weights, n_best, relu=False, n_neighbors=N_NEIGHBORS):
        """ids, counts, outputs, ages, n_voted of query i."""
        postings = reference.session_postings(self.sessions, N_ITEMS)
        ids, counts, ages, n_voted = reference.session_candidates(
            self.queries[i], self.sessions, postings, self.age_weights.astype(float), weights,
            n_neighbors, n_best, self.further[i].tolist())
        x, known = np.zeros(N_ITEMS), set()
        for age, item in enumerate(self.queries[i][::-1][:N_LAST]):
            if item not in known:
                x[item] = self.input_weights[age]
                known.add(item)
        hidden = x @ self.w[0].astype(float) + self.b[0]
        hidden = np.maximum(hidden, 0) if relu else hidden
        return ids, counts, self.w[1][ids].astype(float) @ hidden + self.b[1][ids], ages, n_voted


def count(case, ranker, weights, n_best, n_threads):
    n, width = len(case.queries), n_best + case.further.shape[1]
    out = (unwritten((n, width), np.int32), unwritten((n, width, 14), np.float32),
           unwritten((n, width), np.float32), unwritten((n, width), np.int32),
           unwritten(n, np.int64))
    _sessions.count(ranker, *read_only(case.indptr, case.flat, case.further, weights), *out,
                    n_threads)
    return out


@pytest.mark.parametrize("n_best, n_neighbors", [(12, 9), (3, 9), (N_ITEMS, 1000)])
@pytest.mark.parametrize("relu", [False, True])
def test_candidates_are_those_of_the_definition(simd_level, rng, n_best, n_neighbors, relu):
    case, weights = Case(rng), np.exp(rng.normal(0, 0.5, 14))
    ranker = case.prepared(relu, n_neighbors)
    ids, counts, outputs, ages, n_voted = on_threads(
        lambda n_threads: count(case, ranker, weights, n_best, n_threads))
    for i in range(len(case.queries)):
        want_ids, want_counts, want_outputs, want_ages, want_voted = case.expected(
            i, weights, n_best, relu, n_neighbors)
        n = len(want_ids)
        assert sorted(ids[i, :n].tolist()) == sorted(want_ids) and (ids[i, n:] == -1).all()
        assert n_voted[i] == want_voted and not counts[i, n:].any()
        order = [ids[i, :n].tolist().index(item) for item in want_ids]
        # some tens of float32 terms, each rounded some times
        np.testing.assert_allclose(counts[i][order], want_counts, rtol=2e-5, atol=1e-7)
        np.testing.assert_allclose(outputs[i][order], want_outputs, rtol=2e-5, atol=2e-5)
        assert ages[i][order].tolist() == want_ages.tolist()


def with_all_items(case):
    """The case, with every item among the candidates of each query."""
    case.further = np.tile(np.arange(N_ITEMS, dtype=np.int32), (len(case.queries), 1))
    return case


@pytest.mark.parametrize(("k", "every"), [(1, False), (5, False), (30, False), (N_ITEMS, True)])
def test_probabilities_are_those_of_the_definition(simd_level, rng, k, every):
    case, n_best = Case(rng), 12
    if every:
        case, n_best = with_all_items(case), N_ITEMS
    ranker, n = case.prepared(), len(case.queries)

    def ranked(n_threads):
        out = unwritten((n, k), np.int32), unwritten((n, k), np.float32), unwritten(n, np.int64)
        _sessions.rank(ranker, *read_only(case.indptr, case.flat, case.further, case.parameters,
                                          case.made.trends), n_best, *out, n_threads)
        return out

    found, p, _ = on_threads(ranked)
    for i in range(n):
        ids, counts, outputs, ages, _ = case.expected(i, np.exp(case.parameters[13:]), n_best)
        scores = reference.session_scores(counts, outputs, ages, case.made.trends[ids],
                                          case.parameters)
        weights = np.exp(scores)
        others = 0 if every else np.exp(case.parameters[5])
        want = weights / (weights.sum() + others)
        size = min(len(ids), k)
        assert (found[i, size:] == -1).all() and not p[i, size:].any()
        # neighbors in rank may differ by less than the rounding
        np.testing.assert_allclose(p[i, :size], np.sort(want)[::-1][:size], rtol=1e-4)
        places = [ids.index(item) for item in found[i, :size].tolist()]
        np.testing.assert_allclose(p[i, :size], want[places], rtol=1e-4)


@pytest.mark.parametrize("every", [False, True])
def test_losses_and_their_derivatives_are_those_of_the_formula(rng, every):
    case, n_best = Case(rng), 12
    if every:
        case, n_best = with_all_items(case), N_ITEMS
    found = count(case, case.prepared(), np.exp(PRIOR[13:]), n_best, 1)[:4]
    labels = read_only(rng.integers(0, N_ITEMS, len(case.queries)).astype(np.int32))
    gradient = unwritten(len(PRIOR), np.float64)
    arguments = (*read_only(*found), labels, read_only(case.made.trends))

    def loss(parameters):
        total = 0.0
        for ids, counts, outputs, ages, label in zip(*found, labels, strict=True):
            is_there = ids >= 0
            scores = reference.session_scores(
                counts[is_there].astype(float), outputs[is_there].astype(float), ages[is_there],
                case.made.trends[ids[is_there]], parameters)
            of_all = np.append(scores, -np.inf if every else parameters[5])
            hit = np.append(ids[is_there] == label, not (ids == label).any())
            total += np.log(np.exp(of_all).sum()) - of_all[hit][0]
        return total / len(labels)

    value = _sessions.losses(*arguments, case.parameters, gradient)
    assert value == pytest.approx(loss(case.parameters), rel=1e-9)
    step = 1e-5  # errors of central differences fall with its square, those of rounding rise
    for j in range(len(PRIOR)):
        shift = np.zeros(len(PRIOR))
        shift[j] = step
        slope = (loss(case.parameters + shift) - loss(case.parameters - shift)) / (2 * step)
        assert gradient[j] == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_only_the_latest_sessions_with_an_item_are_read():
    sessions = [[0, 1]] * 600 + [[0, 2]] * 450
    flat = np.array([item for row in sessions for item in row], np.int32)
    made = Sessions(flat, np.full(len(sessions), 2, np.int32), 3)
    runs, session = made.arrays[2], made.arrays[3]
    assert np.diff(runs).tolist() == [500, 500, 450]
    assert session[:500].tolist() == list(range(550, 1050))
    assert session[500:1000].tolist() == list(range(100, 600))


def test_there_may_be_no_query_and_no_session():
    case = Case(np.random.default_rng(0), n_sessions=1, n_queries=0)
    ids, counts, *_ = count(case, case.prepared(), np.ones(14), 5, 2)
    assert ids.shape == (0, 8) and counts.shape == (0, 8, 14)
    nothing = Sessions(np.zeros(0, np.int32), np.zeros(0, np.int32), N_ITEMS)
    case = Case(np.random.default_rng(0), n_queries=4)
    case.made = nothing
    ids, counts, _, _, n_voted = count(case, case.prepared(), np.ones(14), 5, 2)
    assert not n_voted.any() and not counts.any()
    assert [set(row[row >= 0]) for row in ids] == [set(row[row >= 0]) for row in case.further]
