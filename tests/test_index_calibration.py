"""Calibration of an index on queries: candidates, norm floor, scaling, plan, probes, tables."""
import json

import numpy as np
import pytest
from support import clustered, exact, recall, trained

import sparselsh as sl
from sparselsh._arrays.linalg import exact_topk
from sparselsh.index import IndexEngine
from sparselsh.index import _table_choice as choice
from sparselsh.index import _tuning as calibration
from sparselsh.index._bounds import ALL_CELLS, Bounds

METHODS = {"exact": "exact", "sketches": "by_sketches", "probes": "by_probes"}


def gaussian(rng, n, d, scales=1.0):
    return (rng.standard_normal((n, d)) * scales).astype(np.float32)


def of_method(trials, method):
    return [trial for trial in trials if trial["method"] == method]


# ---- candidates


@pytest.mark.parametrize("data", [clustered, trained])
@pytest.mark.parametrize("wanted", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_fit_widens_its_bounds_until_the_queries_reach_the_recall(data, wanted, seed):
    W, X = data(np.random.default_rng(seed))
    index = sl.LSHIndex(recall=wanted, plan="sketches", random_state=0).fit(W, queries=X)
    trials = index.report()["trials"]
    assert trials[-1]["recall"] >= wanted
    assert index.n_candidates is None and index.report()["n_computed"] >= 18
    # the trials report the recall against brute force
    assert recall(index, W, X) == pytest.approx(trials[-1]["recall"], abs=1e-9)
    reach = [trial["deviations"] for trial in trials]
    assert reach == sorted(reach) and reach[0] == Bounds.of_recall(wanted).sketches_for(5)


def test_cells_are_raised_for_each_k_that_needs_more():
    floor = Bounds.of_recall(0.95)
    most = {1: 0.01, 5: 1.0, 50: floor.cells / 2}  # the share with which a k reaches the recall

    def short_of(bounds, ks):
        return [k for k in ks if bounds.cells_for(k)[0] > most[k]]

    bounds = calibration.widen(floor, list(most), short_of)
    assert not short_of(bounds, most)
    assert bounds.cells_for(5) == floor.cells_for(5)
    assert floor.cells_for(5)[:2] == (floor.cells, floor.evidence)
    assert bounds.cells_for(50)[:2] == (floor.cells / 2, floor.evidence)
    assert bounds.cells_for(50)[2] == floor.cells_for(5)[2] / 2 > bounds.cells_for(1)[2]
    # between two, and beyond the last, the wider one of the nearest
    assert bounds.cells_for(3) == bounds.cells_for(1) != floor.cells_for(1)
    assert bounds.cells_for(20) == bounds.cells_for(50) == bounds.cells_for(1000)
    assert Bounds.restored(json.loads(json.dumps(bounds.plain()))) == bounds
    assert calibration.widen(floor, [1, 5], lambda bounds, ks: []) is floor


def test_all_cells_are_scanned_where_no_raise_is_enough():
    bounds = calibration.widen(Bounds.of_recall(0.95), [1, 5],
                               lambda bounds, ks: [k for k in ks if bounds.cells_for(k)[0] >= 0])
    assert bounds.cells_for(1)[0] == bounds.cells_for(5)[0] == ALL_CELLS


def test_bounds_that_suffice_are_not_widened(rng, monkeypatch):
    W, X = trained(rng)
    narrow = Bounds.of_recall(0.98).wider(0.1)
    monkeypatch.setattr(Bounds, "of_recall", classmethod(lambda cls, _: narrow))
    trials = sl.LSHIndex(recall=0.98, plan="sketches",
                         random_state=0).fit(W, queries=X).report()["trials"]
    assert len(trials) > 1 and trials[-1]["recall"] >= 0.98
    # each is tried with all cells, and the last with fewer of them
    reach = np.unique([t["deviations"] for t in trials])
    np.testing.assert_allclose(reach, narrow.sketches_for(5) * 1.1 ** np.arange(len(reach)))
    assert len(reach) > 5


def test_tune_for_more_neighbours_or_more_recall_computes_more(rng):
    W, X = trained(rng)
    index = sl.LSHIndex(plan="sketches", random_state=0).fit(W, queries=X)
    needed = []
    for k, wanted in ((1, 0.9), (5, 0.9), (5, 0.98), (50, 0.98)):
        trials = index.tune(X, k=k, recall=wanted)
        assert trials == index.report()["trials"] and trials[-1]["recall"] >= wanted
        ids = index.search(X, k=k)[0]
        assert sl.metrics.neighbour_recall(ids, exact(W, X, k)[0]) >= wanted
        needed.append(index.report()["n_computed"])
    assert needed == sorted(needed) and needed[0] < needed[-1]


def test_tune_uses_up_to_1024_evenly_spaced_queries(rng):
    queries = np.arange(4000, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(calibration.sample(queries), queries[::4])
    assert len(calibration.sample(queries[:1024])) == 1024
    assert len(calibration.sample(queries[:1])) == 1
    # fewer where all inner products with them would take long, but 256
    assert len(calibration.sample(queries, 2**27)) == 250
    np.testing.assert_array_equal(calibration.few(queries), queries[::16])


def test_a_number_of_candidates_that_is_set_is_kept_to(rng):
    W, X = trained(rng)
    index = sl.LSHIndex(plan="sketches", random_state=0).fit(W, queries=X)
    by_bound = index.search(X)
    index.n_candidates = 30
    for a, b in zip(index.search(X), index.search(X, n_candidates=30), strict=True):
        np.testing.assert_array_equal(a, b)
    assert index.report()["n_candidates"] == 30 and (index.search(X)[0] != by_bound[0]).any()
    index.n_candidates = None
    np.testing.assert_array_equal(index.search(X)[0], by_bound[0])


def test_without_queries_the_expected_cost_depends_on_the_neurons_and_k(rng):
    index = sl.LSHIndex(random_state=0).fit(gaussian(rng, 20_000, 4))
    assert index.report()["n_candidates"] is None and index.report()["trials"] == []
    assert [index._engine.default_candidates(k) for k in (1, 5, 100)] == [200, 200, 2000]


# ---- norm floor


@pytest.mark.parametrize("seed", range(3))
def test_the_norm_floor_excludes_neurons_that_are_too_short_to_be_neighbours(seed):
    # 200 neurons of 2,000 are ten times as long as the rest; the queries' true
    # neighbours are all among them
    rng = np.random.default_rng(seed)
    W, X = gaussian(rng, 2000, 32), gaussian(rng, 200, 32)
    W[200:] *= np.float32(0.1)
    index = sl.LSHIndex(plan="sketches", random_state=0).fit(W, queries=X)
    # a few of the 200 may be excluded too, and a few of the others included: nine queries of ten
    # are to find their 50 best without a neuron that has no sketch
    assert 180 <= index.report()["n_sketched"] <= 300
    assert recall(index, W, X) >= 0.98
    assert sl.metrics.neighbour_recall(index.search(X, k=240)[0], exact(W, X, 240)[0]) >= 0.98


@pytest.mark.parametrize("seed", range(3))
def test_there_is_no_floor_where_norms_are_alike(seed):
    rng = np.random.default_rng(seed)
    W = gaussian(rng, 2000, 32)
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    index = sl.LSHIndex(plan="sketches", random_state=0).fit(W, queries=gaussian(rng, 200, 32))
    assert index.report()["n_sketched"] == 2000


def test_there_is_no_floor_without_queries(rng):
    W = gaussian(rng, 500, 8) * np.logspace(-6, 0, 500, dtype=np.float32)[:, None]
    assert sl.LSHIndex(random_state=0).fit(W).report()["n_sketched"] == 500


def test_a_floor_costs_at_most_a_tenth_of_the_misses_and_must_exclude_a_third():
    true_norms, norms = np.arange(1.0, 1001), np.linspace(0, 30, 1000)
    needed = np.full(100, 500.0)
    floor = calibration.norm_floor(true_norms, needed, norms, 0.9)
    assert (true_norms < floor).mean() <= 0.01
    assert floor == pytest.approx(0.98 * np.quantile(true_norms, 0.01))
    assert (norms < floor).mean() > 1 / 3
    needed[:11] = floor * 0.95
    assert calibration.norm_floor(true_norms, needed, norms, 0.9) == pytest.approx(floor * 0.95), \
        "more than a tenth of the queries would compute short neurons"
    assert (calibration.norm_floor(true_norms, needed, norms * 4, 0.9)
            == 0), "it would exclude too few neurons to be worth it"


def test_a_floor_that_makes_searches_compute_many_short_neurons_is_given_up(rng, monkeypatch):
    W, X = gaussian(rng, 2000, 32), gaussian(rng, 200, 32)
    W[200:] *= np.float32(0.1)
    monkeypatch.setattr("sparselsh.index._bounds.MIN_SHORT_DEVIATIONS", 1e3)
    index = sl.LSHIndex(plan="sketches", random_state=0).fit(W, queries=X)
    assert index.report()["n_sketched"] == 2000


# ---- scaling


@pytest.mark.parametrize("seed", range(3))
def test_scaling_is_chosen_where_neurons_are_long_in_dimensions_in_which_inputs_are_short(seed):
    # in 24 of 32 dimensions the neurons have noise and the inputs are close to 0;
    # measured with 16 candidates: 0.83 to 0.85 with scaling, 0.52 to 0.53 without
    rng = np.random.default_rng(seed)
    noise = np.arange(32) >= 8
    W, X = (gaussian(rng, 2000, 32, np.where(noise, 8, 1)),
            gaussian(rng, 300, 32, np.where(noise, 0.02, 1)))
    assert_auto_takes(0.5, W, X, by=0.2)


@pytest.mark.parametrize("seed", range(3))
def test_no_scaling_is_chosen_where_one_direction_dominates_neurons_and_inputs(seed):
    # scaling makes that direction even longer in the neurons, and its error hides the others;
    # measured with 16 candidates: 0.91 to 0.92 without scaling, 0.84 with
    rng = np.random.default_rng(seed)
    one = np.arange(64) < 1
    W, X = (gaussian(rng, 2000, 64, np.where(one, 10, 1)),
            gaussian(rng, 300, 64, np.where(one, 3, 1)))
    assert_auto_takes(0.0, W, X, by=0.05)


def assert_auto_takes(scaling, W, X, by):
    found = {}
    for given in (0.0, 0.5, "auto"):
        index = sl.LSHIndex(scaling=given, plan="sketches", random_state=0).fit(W, queries=X)
        found[given] = recall(index, W, X, n_candidates=16)
    assert found[scaling] >= found[0.5 - scaling] + by, "the data are constructed so"
    assert index.report()["scaling"] == scaling and found["auto"] == found[scaling]


def test_auto_does_not_scale_the_tables_and_needs_queries(rng):
    W, X = trained(rng, n=500)
    assert sl.LSHIndex(random_state=0).fit(W).report()["scaling"] == 0
    assert sl.LSHIndex(scaling=0.5, random_state=0).fit(W).report()["scaling"] == 0
    assert sl.LSHIndex(sl.SimHash(5, 8), random_state=0).fit(W, queries=X).report()["scaling"] == 0
    assert sl.LSHIndex(sl.SimHash(5, 8), scaling=0.3,
                       random_state=0).fit(W, queries=X).report()["scaling"] == 0.3


# ---- plan


def calls_of(monkeypatch):
    """Return a list to which each later search of the index appends its method."""
    called = []

    def counted(name, method):
        def call(*arguments):
            called.append(name)
            return method(*arguments)

        return call

    for name, attribute in METHODS.items():
        monkeypatch.setattr(IndexEngine, attribute, counted(name, getattr(IndexEngine, attribute)))
    return called


@pytest.mark.parametrize("plan", METHODS)
@pytest.mark.parametrize("with_queries", [True, False])
def test_a_given_plan_is_used(rng, monkeypatch, plan, with_queries):
    W, X = clustered(rng, n=500)
    index = sl.LSHIndex(sl.SimHash(5, 8), plan=plan, random_state=0).fit(
        W, queries=X if with_queries else None)
    called = calls_of(monkeypatch)
    index.search(X[:1])
    index.search(X)
    assert called == [plan, plan]
    report = index.report()["plan"]
    assert (report
            == {kind: {"use": plan, "microseconds": {}} for kind in ("single",
                                                                     "batch")}), "nothing is timed"


def test_given_candidates_are_searched_even_where_the_plan_is_exact(rng, monkeypatch):
    W, X = clustered(rng, n=500)
    index = sl.LSHIndex(plan="exact", random_state=0).fit(W)
    called = calls_of(monkeypatch)
    index.search(X, n_candidates=20)
    assert called == ["sketches"]


@pytest.mark.parametrize("fastest", METHODS)
def test_auto_takes_the_method_with_the_shortest_reported_time(rng, monkeypatch, fastest):
    W, X = clustered(rng, n=1000)
    clock = iter(range(10**6))
    slow = [name for name in METHODS if name != fastest]
    index = sl.LSHIndex(sl.SimHash(6, 12), recall=0.9, random_state=0)
    running = calls_of(monkeypatch)

    def timed(call, *arguments):
        before = len(running)
        result = call(*arguments)
        return result, (2 if set(running[before:]) & set(slow) else 1) + 1e-9 * next(clock)

    monkeypatch.setattr(calibration, "timed", timed)
    index.fit(W, queries=X)
    for kind, plan in index.report()["plan"].items():
        assert set(plan["microseconds"]) == set(METHODS), kind
        assert plan["use"] == min(plan["microseconds"], key=plan["microseconds"].get) == fastest
    del running[:]
    index.search(X[:1])
    index.search(X)
    assert running == [fastest] * 2


def test_single_queries_and_batches_have_separate_plans(rng, monkeypatch):
    W, X = clustered(rng, n=500)
    index = sl.LSHIndex(random_state=0).fit(W, queries=X)
    index._engine.methods = {"single": "sketches", "batch": "exact"}
    called = calls_of(monkeypatch)
    for n in (1, 31, 32, 200):
        index.search(X[:n])
    assert called == ["sketches", "sketches", "exact", "exact"]


def test_auto_takes_no_method_that_misses_the_recall(rng):
    # tables of one bit, with two buckets each, find too little with any number of probes
    W, X = clustered(rng, n=1000)
    index = sl.LSHIndex(sl.SimHash(1, 1), recall=0.98, random_state=0).fit(W, queries=X)
    probes = of_method(index.report()["trials"], "probes")
    assert probes and all(trial["recall"] < 0.98 for trial in probes)
    assert all(set(plan["microseconds"]) == {"exact", "sketches"}
               for plan in index.report()["plan"].values())


# ---- probing


@pytest.mark.parametrize("seed", range(3))
def test_probing_reaches_the_recall_on_clusters_with_a_fraction_of_the_neurons(seed):
    # measured: 8 buckets of each table are probed, which hold a third of the neurons; the
    # sketches of 64 are compared
    W, X = clustered(np.random.default_rng(seed))
    index = sl.LSHIndex(sl.SimHash(8, 12), plan="probes", random_state=0).fit(W, queries=X)
    assert recall(index, W, X) >= 0.98
    trials = of_method(index.report()["trials"], "probes")
    assert trials[-1]["recall"] >= 0.98 and trials[-1]["n_probes"] == index.n_probes
    assert [trial["n_probes"] for trial in trials] == [2**i for i in range(len(trials))]
    fraction = index.query(X, n=len(W), n_probes=index.n_probes).nnz / (len(X) * len(W))
    assert 0.05 <= fraction <= 0.5


def test_each_call_of_tune_begins_with_one_probe(rng):
    W, X = clustered(rng)
    index = sl.LSHIndex(sl.SimHash(8, 12), plan="probes", random_state=0).fit(W, queries=X)
    assert index.n_probes > 1
    index.tune(X, recall=0.3)
    assert index.n_probes == 1


@pytest.mark.parametrize("family", [sl.SimHash(5, 8), sl.CrossPolytope(1, 2, dims=16)])
def test_where_no_number_of_probes_reaches_the_recall_the_best_one_is_kept(rng, family):
    # if all buckets are probed, every neuron is found in every table, and none is preferred
    W, X = clustered(rng)
    index = sl.LSHIndex(family, plan="probes", recall=0.999, random_state=0).fit(W, queries=X)
    trials = of_method(index.report()["trials"], "probes")
    assert (max(trial["n_probes"] for trial in trials) == family.n_buckets
            and trials[-1]["recall"] < 0.2)
    best = max(trials, key=lambda trial: trial["recall"])
    assert (index.n_probes == best["n_probes"]
            and recall(index, W, X) == pytest.approx(best["recall"]))


def test_a_family_without_a_probing_order_gets_one_probe(rng):
    W, X = ((rng.random((n, 40)) < 0.3).astype(np.float32) for n in (500, 50))
    index = sl.LSHIndex(sl.MinHash(1, 12), plan="probes", center=False,
                        random_state=0).fit(W, queries=X)
    assert index.n_probes == 1 and len(of_method(index.report()["trials"], "probes")) == 1


# ---- number of bits (K) and tables (L)


def test_auto_starts_at_the_closed_form_and_takes_the_cheapest_tables_that_reach_the_recall(rng):
    W, X = clustered(rng)
    index = sl.LSHIndex("auto", plan="probes", recall=0.9, random_state=0).fit(W, queries=X)
    Q, V = (index._engine.transform.queries(X, 1),
            index._engine.transform.neurons(W, np.zeros(len(W), np.float32), 1))
    Q, V = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (Q, V))
    truth, _ = exact_topk(X, W, np.zeros(len(W), np.float32), 5, 1)
    cosine = float(np.median(np.einsum("nd,nkd->nk", Q, V[truth])))
    trials = of_method(index.report()["trials"], "probes")
    first = (trials[0]["bits"], trials[0]["tables"])
    assert first == sl.choose_bits_and_tables(
        choice.MAX_FOUND_FRACTION, len(W), similarity=cosine, recall=0.9)
    settings = {(trial["bits"], trial["tables"]) for trial in trials}
    most = int(np.log2(2 * len(W)))  # with more buckets than that, most are empty
    assert (len(settings) == 9
            and {bits for bits, _ in settings} == {first[0] - 2, first[0], min(first[0] + 2, most)})
    taken = trials[-1]
    assert (index.family_.bits, index.family_.tables, index.n_probes) == \
        (taken["bits"], taken["tables"], taken["n_probes"])

    def cost(trial):
        return choice.cost(trial, *W.shape, 4 * trial["n_candidates"])

    reached = [trial for trial in trials if trial["recall"] >= 0.9]
    assert len(reached) > 1 and cost(taken) == min(cost(trial) for trial in reached)
    # the tables in use and the recall are those of the trial
    assert index._engine.tables.codes.shape == (len(W), taken["tables"])
    assert recall(index, W, X) == pytest.approx(taken["recall"], abs=1e-9)


def test_auto_keeps_the_tables_nearest_to_the_recall_where_none_reaches_it(rng):
    W, X = trained(rng)  # queries and their neighbours are about 60 degrees apart
    index = sl.LSHIndex("auto", plan="probes", recall=0.999, random_state=0).fit(W, queries=X)
    trials = of_method(index.report()["trials"], "probes")
    assert max(trial["recall"] for trial in trials) < 0.999
    ends = {}
    for trial in trials:
        setting = trial["bits"], trial["tables"]
        ends[setting] = max(ends.get(setting, 0), trial["recall"])
    assert trials[-1]["recall"] == max(ends.values())


def test_auto_without_queries_assumes_a_similarity():
    W = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
    index = sl.LSHIndex("auto", random_state=0).fit(W)
    expected = sl.choose_bits_and_tables(
        choice.MAX_FOUND_FRACTION, 3000, similarity=choice.DEFAULT_SIMILARITY,
        recall=index.recall)
    assert (index.family_.bits, index.family_.tables) == expected


def test_removed_neurons_stay_removed_when_tune_takes_other_tables(rng):
    W, X = clustered(rng)
    index = sl.LSHIndex("auto", plan="probes", recall=0.9, random_state=0).fit(W, queries=X)
    best = np.unique(index.search(X, 1)[0])
    index.remove(best)
    index.tune(X)
    assert ((index._engine.tables.codes[best] == -1).all()
            and not np.isin(index.search(X, 5)[0], best).any())
    assert not np.isin(index.query(X, 50).indices, best).any()


def test_an_auto_index_is_saved_with_the_family_it_chose(rng, tmp_path):
    pytest.importorskip("safetensors")
    W, X = clustered(rng)
    index = sl.LSHIndex("auto", plan="probes", recall=0.9, random_state=0).fit(W, queries=X)
    index.save(tmp_path / "index")
    other = sl.LSHIndex.load(tmp_path / "index", W)
    assert (other.family == "auto"
            and repr(other.family_) == repr(index.family_) == other.report()["family"])
    np.testing.assert_array_equal(other.search(X, 5)[0], index.search(X, 5)[0])


# ---- errors and report


@pytest.mark.parametrize("call, error, message", [
    (lambda index, X: index.tune(X[:0]), ValueError, "queries must have at least one row"),
    (lambda index, X: index.tune(X[:, :3]), ValueError, "queries must have 64 columns, got 3"),
    (lambda index, X: index.tune(X, k=0), ValueError, "k must be at least 1"),
    (lambda index, X: index.tune(X, recall=1), ValueError, "recall must be above 0 and below 1"),
    (lambda index, X: index.tune(X, recall=0), ValueError, "recall must be above 0 and below 1"),
    (lambda index, X: index.tune(X, recall="high"), TypeError, "recall must be a number"),
    (lambda index, X: sl.LSHIndex(sl.SimHash(), sketch_bits=0).fit(X).tune(X),
     ValueError, "tune needs sketches"),
    (lambda index, X: sl.LSHIndex().tune(X), ValueError, r"call fit\(W\) first"),
])
def test_tune_refuses_wrong_arguments(rng, call, error, message):
    W, X = clustered(rng, n=300)
    index = sl.LSHIndex(random_state=0, plan="sketches").fit(W, queries=X)
    before = index.report()
    with pytest.raises(error, match=message):
        call(index, X)
    assert index.report() == before


def test_an_empty_array_of_queries_is_treated_as_no_queries(rng):
    W, X = clustered(rng, n=300)
    assert (sl.LSHIndex(random_state=0).fit(W, queries=X[:0]).report()
            == sl.LSHIndex(random_state=0).fit(W).report())


def test_recall_counts_true_neighbours_at_any_position():
    truth = np.array([[1, 2], [3, -1], [-1, -1]])
    assert (calibration.recall_of(np.array([[2, 9], [-1, -1], [4, 5]]), truth)
            == pytest.approx(1 / 3))
    assert calibration.recall_of(np.array([[9, 2, 1], [8, 3, -1], [4, 5, 6]]), truth) == 1
    assert (calibration.recall_of(truth[2:], truth[2:])
            == 1), "the recall is 1 where there are no neighbours to find"


def test_the_calibration_s_exact_neighbours_are_those_of_brute_force(rng):
    W, X = clustered(rng, n=300)
    ids, _ = exact_topk(X, W, np.zeros(300, np.float32), 5, 1)
    np.testing.assert_array_equal(ids, exact(W, X, 5)[0])


def test_long_neurons_may_be_missing_in_the_sample(rng):
    W = rng.standard_normal((9000, 16)).astype(np.float32)
    W[np.flatnonzero(np.arange(9000) % 3)[:200]] *= 1000  # every third neuron is sampled
    X = rng.standard_normal((200, 16)).astype(np.float32)
    index = sl.LSHIndex(plan="sketches", random_state=0).fit(W, queries=X)  # without a warning
    assert index.report()["n_sketched"] < 9000
    assert recall(index, W, X) >= 0.98


def test_sketches_are_as_long_as_the_queries_need(rng):
    centres, far, noise = (rng.standard_normal((n, 64)).astype(np.float32)
                           for n in (1000, 200, 20_000))
    W = np.repeat(centres, 20, axis=0) + np.float32(0.1) * noise
    near = centres[:200]  # whose best 20 are far above all others
    bits = {}
    for name, X in (("near", near), ("far", far)):
        index = sl.LSHIndex(plan="sketches", scaling=0, random_state=0).fit(W, queries=X)
        bits[name] = index.report()["sketch_bits"]
        assert index.nbytes / len(W) <= 40 + 16  # also what is not a sketch
    assert bits["near"] == 128 < bits["far"] == 192
    assert sl.LSHIndex(sketch_bits=64, random_state=0).fit(W, queries=far).report()[
        "sketch_bits"] == 64


@pytest.mark.parametrize("options, n_bits", [({}, 128), ({"family": sl.SimHash(5, 8)}, 128),
                                             ({"family": sl.SimHash(5, 8), "sketch_bits": 0}, 0)])
def test_the_report_shows_what_was_chosen(rng, options, n_bits):
    W, X = clustered(rng, n=300)
    index = sl.LSHIndex(random_state=0, **options).fit(W, queries=X)
    report = index.report()
    assert list(report) == ["n_neurons", "n_in", "metric", "scaling", "sketch_bits",
                            "n_sketched", "n_candidates", "n_computed", "deviations", "n_probes",
                            "family", "bytes_per_neuron", "trials", "plan"]
    assert (report["n_neurons"], report["n_in"], report["sketch_bits"]) == (300, 64, n_bits)
    assert report["n_sketched"] == (300 if n_bits else 0)
    assert (report["bytes_per_neuron"] == index.nbytes / 300
            and report["family"] == repr(index.family))
    for trial in report["trials"]:
        probed = {"n_probes"}
        if trial["method"] == "sketches":
            probed = {"deviations", "n_scanned"}
        assert set(trial) == {"method", "n_candidates", "recall", "microseconds"} | probed
    assert (
        f"LSHIndex({index.family!r}, center=True, scaling='auto', sketch_bits={index.sketch_bits}, "
            f"300 neurons x 64, n_candidates={index.n_candidates}, single: ") in repr(index)
    report["trials"].append(3)
    report["plan"]["single"]["use"] = "guess"
    assert index.report() != report, "a report is a copy"


@pytest.mark.parametrize("d, n_bits", [(16, 192), (160, 192), (256, 384), (500, 512), (1000, 768)])
def test_sketches_have_3_bits_per_4_dimensions_or_what_40_bytes_or_a_16th_of_the_weights_hold(
        rng, d, n_bits):
    assert sl.LSHIndex(random_state=0).fit(gaussian(rng, 3, d)).report()["sketch_bits"] == n_bits
