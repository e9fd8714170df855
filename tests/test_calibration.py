"""Probabilities, thresholds, and the one score from which every answer is made."""
import copy

import numpy as np
import pytest
import scipy.sparse as sp
from test_refinement import N_FEATURES, N_LABELS, TEST, TRAIN, network, rows

import sparselsh as sl
from sparselsh import metrics
from sparselsh._arrays.csr import from_scipy
from sparselsh.calibration import (
    Calibration,
    best_threshold,
    fit_calibration,
    plot_reliability,
    thresholds_by_frequency,
)

HELD_OUT = rows(600, 3)
MANY = 4200  # labels: enough for a search by an index


def one_label(part):
    """The rows of a pair with one label of their own each, as class ids."""
    X, Y = part
    return X, Y.indices[Y.indptr[:-1]].astype(np.int64)


@pytest.fixture(scope="module")
def refined():
    net = network().fit(*TRAIN, epochs=3, verbose=False)
    return net.refine(*TRAIN, n_candidates=20, verbose=False)


@pytest.fixture(scope="module")
def labels(refined):
    return copy.deepcopy(refined).calibrate(*HELD_OUT)


@pytest.fixture(scope="module")
def classes():
    net = network().fit(*one_label(TRAIN), epochs=3, verbose=False)
    net.refine(*one_label(TRAIN), n_candidates=20, verbose=False)
    return net.calibrate(*one_label(HELD_OUT))


@pytest.fixture(scope="module")
def wide():
    """A network with an index, and 80 of its labels used."""
    net = sl.Network([sl.Linear(N_FEATURES, 16), sl.LSHLinear(16, MANY, recall=0.9)],
                     random_state=0)
    X, y = one_label(TRAIN)
    net.fit(X, y * 13, epochs=2, verbose=False).refine(X, y * 13, verbose=False)
    X, y = one_label(HELD_OUT)
    return net.calibrate(X, y * 13)


NETWORKS = ("refined", "labels", "classes", "wide")


@pytest.fixture(params=NETWORKS)
def net(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=NETWORKS[1:])
def calibrated(request):
    return request.getfixturevalue(request.param)


# -- one score -----------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("k", [1, 5, 20, 21, 100, N_LABELS])
def test_the_first_labels_do_not_depend_on_k(net, k, exact):
    few = net.topk(TEST[0], 5, exact=exact)
    many = net.topk(TEST[0], k, exact=exact)
    n = min(k, 5)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a[:, :n], b[:, :n])


def test_scores_fall_with_the_rank(net):
    _, scores = net.topk(TEST[0], 200)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_decision_function_is_the_score_of_topk(net):
    ids, scores = net.topk(TEST[0], net.n_labels, exact=True)
    every = net.decision_function(TEST[0])
    np.testing.assert_array_equal(np.take_along_axis(every, ids, axis=1)[:, :20], scores[:, :20])
    np.testing.assert_allclose(np.take_along_axis(every, ids, axis=1), scores, rtol=1e-4, atol=1e-4)


def test_a_label_that_is_no_candidate_ranks_below_all_candidates(refined):
    ids, scores = refined.topk(TEST[0], 60, exact=True)
    plain = copy.deepcopy(refined)
    plain.refinement = None
    candidates = plain.topk(TEST[0], 20, exact=True)[0]
    np.testing.assert_array_equal(np.sort(ids[:, :20], axis=1), np.sort(candidates, axis=1))
    np.testing.assert_array_equal(ids[:, 20:], plain.topk(TEST[0], 60, exact=True)[0][:, 20:])
    assert (scores[:, 20:] <= scores[:, 19:20]).all()


# -- probabilities ---------------------------------------------------------------------------------


def test_the_most_probable_label_is_the_one_predicted(net):
    np.testing.assert_array_equal(net.predict_proba(TEST[0]).argmax(axis=1), net.predict(TEST[0]))


def test_probabilities_of_classes_add_up_to_one(classes, wide):
    for net in (classes, wide):
        np.testing.assert_allclose(net.predict_proba(TEST[0]).sum(axis=1), 1, atol=1e-4)


def test_probabilities_of_labels_add_up_to_their_number(labels):
    p = labels.predict_proba(TEST[0])
    assert p.sum() == pytest.approx(TEST[1].nnz, rel=0.1)


def test_probabilities_keep_the_order_of_the_scores(calibrated):
    ids, _ = calibrated.topk(TEST[0], calibrated.n_labels)
    p = np.take_along_axis(calibrated.predict_proba(TEST[0]), ids, axis=1)
    n = calibrated.calibration.n_ranked
    positive = p[:, :n - 1] > 0
    assert (np.diff(p[:, :n], axis=1)[positive] < 0).all()
    assert (p[:, n:] <= p[:, n - 1:n]).all()


def test_topk_gives_the_probabilities_of_predict_proba(calibrated):
    ids, p = calibrated.topk(TEST[0], 10, probabilities=True)
    every = calibrated.predict_proba(TEST[0])
    np.testing.assert_array_equal(np.take_along_axis(every, ids, axis=1), p)


@pytest.mark.parametrize("threshold", [None, 0.9, 0.5, 0.1, 1e-3, 1e-5, 1e-8])
def test_predicted_labels_are_those_that_reach_the_threshold(net, threshold):
    p = net.predict_proba(TEST[0])
    found = net.predict_labels(TEST[0], threshold)
    if threshold is None:
        threshold = 0.5 if net.calibration is None else net.calibration.threshold
    np.testing.assert_array_equal(found.toarray(), np.where(p >= threshold, p, 0))
    assert found.has_sorted_indices


def test_each_label_may_have_its_own_threshold(refined):
    net = copy.deepcopy(refined).calibrate(*HELD_OUT, thresholds="per-label")
    thresholds = net.calibration.threshold
    assert thresholds.shape == (N_LABELS,)
    assert len(np.unique(thresholds)) > 3
    p = net.predict_proba(TEST[0])
    np.testing.assert_array_equal(net.predict_labels(TEST[0]).toarray(),
                                  np.where(p >= thresholds, p, 0))


def test_calibration_lowers_the_log_loss_and_the_calibration_error(labels, classes):
    for net, truth in ((labels, TEST[1]), (classes, one_label(TEST)[1])):
        plain = copy.deepcopy(net)
        plain.calibration = None
        after, before = net.predict_proba(TEST[0]), plain.predict_proba(TEST[0])
        assert metrics.log_loss(truth, after) < metrics.log_loss(truth, before)
        # 400 rows: of perfect probabilities about 0.05
        assert metrics.expected_calibration_error(truth, after) < 0.1


def test_the_log_loss_is_below_that_of_constant_frequencies(labels):
    frequencies = np.asarray(TRAIN[1].mean(axis=0)).ravel()
    constant = np.broadcast_to(frequencies, TEST[1].shape)
    assert (metrics.log_loss(TEST[1], labels.predict_proba(TEST[0]))
            < metrics.log_loss(TEST[1], constant))


@pytest.mark.parametrize("threads", [1, 2])
def test_files_keep_the_calibration(calibrated, tmp_path, threads):
    calibrated.save(tmp_path / "net")
    loaded = sl.load(tmp_path / "net", n_threads=threads)
    assert repr(loaded.calibration) == repr(calibrated.calibration)
    np.testing.assert_array_equal(loaded.predict_proba(TEST[0]), calibrated.predict_proba(TEST[0]))


def test_a_damaged_calibration_is_refused(labels):
    config = labels.calibration.config()
    for damage in ({"kind": "both"}, {"n_ranked": 0}, {"n_labels": 7}, {"threshold": 2.0},
                   {"threshold": [0.5]}, {"parameters": config["parameters"] | {"rank": [np.nan]}},
                   {"parameters": config["parameters"] | {"rest": [1.0]}}):
        with pytest.raises(ValueError):
            Calibration.from_config(config | damage, N_LABELS)


def test_training_anew_drops_a_calibration_and_partial_fit_keeps_it(labels):
    for change in (lambda net: net.fit(*TRAIN, epochs=1, verbose=False),
                   lambda net: net.refine(*TRAIN, verbose=False),
                   lambda net: net.initialize(*TRAIN)):
        net = copy.deepcopy(labels)
        change(net)
        assert net.calibration is None
    net = copy.deepcopy(labels)
    net.partial_fit(*TRAIN)
    assert net.calibration is not None


def test_what_has_no_probabilities_says_so(refined):
    with pytest.raises(ValueError, match="call calibrate"):
        refined.topk(TEST[0], 5, probabilities=True)
    with pytest.raises(ValueError, match="have probabilities of their own"):
        copy.deepcopy(refined).calibrate(*HELD_OUT).topk(TEST[0], 200, probabilities=True)
    values = sl.Network([sl.Linear(N_FEATURES, 3)], loss="mse")
    values.fit(TRAIN[0], np.zeros((1500, 3), np.float32), epochs=1, verbose=False)
    for call in (values.predict_proba, values.predict_labels):
        with pytest.raises(ValueError, match="'mse'"):
            call(TEST[0])


@pytest.mark.parametrize("is_refined", [True, False])
def test_a_converted_network_keeps_the_probabilities(refined, tmp_path, is_refined):
    net = copy.deepcopy(refined)
    if not is_refined:
        net.refinement = None
    net.calibrate(*HELD_OUT)
    X = TEST[0]
    served = sl.InferenceNetwork.from_network(net, TRAIN[0][:400])
    served.save(tmp_path / "served.safetensors")
    net.save(tmp_path / "net.safetensors")
    for other in (served, sl.InferenceNetwork.load(tmp_path / "served.safetensors"),
                  sl.from_file(tmp_path / "net.safetensors", TRAIN[0][:400])):
        np.testing.assert_allclose(other.predict_proba(X, exact=True),
                                   net.predict_proba(X, exact=True), rtol=1e-3, atol=1e-6)
        ids, p = other.topk(X, 5, probabilities=True)
        every = other.predict_proba(X)
        np.testing.assert_allclose(p, np.take_along_axis(every, ids, 1), rtol=1e-5, atol=1e-7)
        for threshold, fewest in ((None, 1), (1e-5, 100)):  # beyond the labels that are ranked
            labels = other.predict_labels(X, threshold)
            limit = net.calibration.threshold if threshold is None else threshold
            np.testing.assert_array_equal(labels.toarray() > 0, every >= np.float32(limit))
            np.testing.assert_allclose(labels.toarray()[labels.toarray() > 0],
                                       every[every >= np.float32(limit)], rtol=1e-5)
            assert np.diff(labels.indptr).max() >= fewest
        assert other.predict_labels(X[:0]).shape == (0, net.n_labels)
        with pytest.raises(ValueError, match="have probabilities of their own"):
            other.topk(X, 200, probabilities=True)
        with pytest.raises(ValueError, match="without allow and exclude"):
            other.topk(X, 3, probabilities=True, allow=[1, 2, 3])


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_probabilities_of_rounded_weights_are_nearly_those_of_before(refined, storage):
    net = copy.deepcopy(refined).calibrate(*HELD_OUT)
    served = sl.InferenceNetwork.from_network(net, TRAIN[0][:400], storage=storage)
    want, got = (model.predict_proba(TEST[0], exact=True) for model in (net, served))
    # scores that are off by a hundredth change log odds by some hundredths
    assert abs(got - want).mean(axis=1).max() < 0.002
    assert (got.argmax(axis=1) == want.argmax(axis=1)).mean() > 0.95


def test_a_converted_network_without_probabilities_says_so(refined):
    served = sl.InferenceNetwork.from_network(refined)
    assert served.calibration is None
    for call in (lambda: served.topk(TEST[0], 5, probabilities=True),
                 lambda: served.predict_proba(TEST[0]), lambda: served.predict_labels(TEST[0])):
        with pytest.raises(ValueError, match="before the network is converted"):
            call()


# -- the map ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 5, 40])
@pytest.mark.parametrize("factor", [0.2, 1, 5])
def test_a_known_temperature_is_found(rng, n_classes, factor):
    """Scores are true logits times a factor; the log-loss must come close to that of the truth."""
    logits = 2 * rng.standard_normal((12_000, n_classes))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    y = (rng.random((len(p), 1)) > p.cumsum(axis=1)).sum(axis=1).clip(max=n_classes - 1)
    Y = sp.csr_array((np.ones(len(y), np.float32), (np.arange(len(y)), y)), shape=p.shape)
    scores = (factor * logits).astype(np.float32)
    ids = np.argsort(-scores, axis=1).astype(np.int32)
    ranked = np.take_along_axis(scores, ids, axis=1)

    half = len(p) // 2
    fitted = fit_calibration(ids[:half], ranked[:half], from_scipy(Y[:half]), "classes", None)
    got = fitted.every(ids[half:], ranked[half:], scores[half:].copy())
    assert metrics.log_loss(y[half:], got) < metrics.log_loss(y[half:], p[half:]) + 0.02
    assert metrics.expected_calibration_error(y[half:], got) < 0.02


def test_independent_labels_get_their_own_probabilities(rng):
    """Labels with known probabilities, more of them than are ranked."""
    n_labels, n_ranked = 300, 50
    logits = rng.standard_normal((8000, n_labels)) * 1.5 - 4
    p = 1 / (1 + np.exp(-logits))
    Y = sp.csr_array((rng.random(p.shape) < p).astype(np.float32))
    scores = (3 * logits).astype(np.float32)
    ids = np.argsort(-scores, axis=1)[:, :n_ranked].astype(np.int32)
    ranked = np.take_along_axis(scores, ids, axis=1)

    half = len(p) // 2
    some = np.arange(0, half, 10)
    fitted = fit_calibration(ids[:half], ranked[:half], from_scipy(Y[:half]), "labels",
                             (some, scores[some]))
    got = fitted.every(ids[half:], ranked[half:], scores[half:].copy())
    truth = Y[half:]
    assert got.sum() == pytest.approx(truth.nnz, rel=0.03)
    assert metrics.expected_calibration_error(truth, got, k=5) < 0.02
    assert metrics.log_loss(truth, got) < 1.02 * metrics.log_loss(truth, p[half:])


def test_rows_for_which_the_search_found_little_are_served(labels):
    n = labels.calibration.n_ranked
    scores = np.full((3, n), -np.inf, np.float32)
    scores[1, 0], scores[2, :3] = 4, [3, 2, 1]
    ids = np.full((3, n), -1, np.int32)
    ids[1, 0], ids[2, :3] = 8, [1, 2, 3]
    p = labels.calibration.every(ids, scores, np.zeros((3, N_LABELS), np.float32))
    assert np.isfinite(p).all()
    assert p.min() >= 0
    assert p.max() <= 1
    assert p[1].argmax() == 8
    assert p[2].argmax() == 1


def test_the_best_threshold_is_that_of_a_search_over_all(rng):
    p = rng.random((50, 8)).astype(np.float32).round(2)
    hit = rng.random(p.shape) < p
    n_true = int(hit.sum()) + 10

    def f1(threshold):
        chosen = p >= threshold
        return 2 * (chosen & hit).sum() / (chosen.sum() + n_true)

    assert f1(best_threshold(p, hit, n_true)) == max(f1(value) for value in np.unique(p))


def test_thresholds_by_frequency_find_the_slope_that_there_is(rng):
    """Probabilities of rare labels are too small, by the root of their frequency."""
    n_labels, n = 40, 3000
    counts = np.geomspace(10, 10_000, n_labels).round()
    logits = rng.standard_normal((n, n_labels)) * 2 - 2
    Y = sp.csr_array((rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32))
    shifted = logits + 0.3 * (np.log1p(counts) - np.log1p(counts).mean())
    order = np.argsort(-shifted, axis=1)
    ids = order.astype(np.int32)
    truth = from_scipy(Y)

    def f1(p, limits):
        named = p >= np.broadcast_to(limits, n_labels)[ids]
        hit = np.take_along_axis(Y.toarray() > 0, order, axis=1)
        return 2 * (named & hit).sum() / (named.sum() + Y.nnz)

    def common_and_own(values):
        p = np.take_along_axis(1 / (1 + np.exp(-values)), order, axis=1).astype(np.float32)
        hit = np.take_along_axis(Y.toarray() > 0, order, axis=1)
        common = best_threshold(p, hit, Y.nnz)
        return p, common, thresholds_by_frequency(ids, p, truth, counts, common)

    p, common, own = common_and_own(shifted)
    assert own.dtype == np.float32 and (np.diff(own) > 0).all()
    slope = np.polyfit(np.log1p(counts), np.log(own / (1 - own)), 1)[0]
    assert slope == pytest.approx(0.3, abs=0.11)  # one step of the slopes that are tried
    assert f1(p, own) > f1(p, common) + 0.01
    # without a slope the one threshold stays
    assert common_and_own(logits)[2] == common_and_own(logits)[1]


# -- the factor of the classifiers -----------------------------------------------------------------


def test_classifiers_of_noise_are_removed(rng):
    shuffled = TRAIN[1][rng.permutation(TRAIN[1].shape[0])]
    net = network().fit(*TRAIN, epochs=3, verbose=False).refine(TRAIN[0], shuffled, verbose=False)
    assert net.tune_refinement(*HELD_OUT).refinement is None


def test_the_best_factor_is_taken(refined):
    net = copy.deepcopy(refined)
    net.tune_refinement(*HELD_OUT)

    def value(scale):
        net.refinement.scale = scale
        ids = net.topk(HELD_OUT[0], 5)[0]
        return (metrics.precision_at_k(HELD_OUT[1], ids, 1)
                + metrics.ndcg_at_k(HELD_OUT[1], ids, 5))

    chosen = net.refinement.scale
    assert value(chosen) == pytest.approx(max(map(value, (2, 4, 8, 16, 32))), abs=2e-3)


# -- metrics ---------------------------------------------------------------------------------------


def test_metrics_of_probabilities_follow_their_formulas(rng):
    p = rng.dirichlet(np.ones(6), 200).astype(np.float32)
    y = rng.integers(6, size=200)
    one_hot = np.eye(6)[y]
    assert metrics.log_loss(y, p) == pytest.approx(-np.log(p[np.arange(200), y]).mean(), rel=1e-5)
    assert metrics.brier_score(y, p) == pytest.approx(((p - one_hot)**2).sum(axis=1).mean())
    several = rng.random(p.shape) < 0.4
    expected = -(np.log(np.where(several, p, 1 - p))).sum(axis=1).mean()
    assert metrics.log_loss(sp.csr_array(several), p) == pytest.approx(expected, rel=1e-4)
    assert metrics.brier_score(several.astype(int), p) == pytest.approx(
        ((p - several)**2).sum(axis=1).mean(), rel=1e-5)

    best = p.argmax(axis=1)
    error = 0.0
    for b in range(15):
        own = np.minimum((p.max(axis=1) * 15).astype(int), 14) == b
        if own.any():
            error += abs((best == y)[own].sum() - p.max(axis=1)[own].sum()) / 200
    assert metrics.expected_calibration_error(y, p) == pytest.approx(error, rel=1e-4)


def test_the_debiased_error_does_not_depend_on_the_number_of_rows(rng):
    def square(n_rows, shift):
        p = 0.5 + 0.4 * rng.random((n_rows, 1))
        true = (rng.random((n_rows, 1)) < p - shift).astype(int)
        error = metrics.expected_calibration_error
        return error(true, p), error(true, p, debiased=True)**2

    plain, debiased = np.mean([square(300, 0.1) for _ in range(300)], axis=0)
    assert debiased == pytest.approx(0.1**2, rel=0.1)  # its standard error is 3 %
    plain, debiased = np.mean([square(300, 0.0) for _ in range(300)], axis=0)
    assert plain > 0.05
    # above 0, because there are no negative squares: 0.4 of their standard deviation, 0.0024
    assert debiased < 0.0015
    assert metrics.expected_calibration_error([0], [[0.5, 0.5]], debiased=True) == 0


def test_f1_is_that_of_all_pairs():
    true = np.array([[1, 1, 0], [0, 0, 1]])
    predicted = np.array([[1, 0, 1], [0, 0, 1]])
    assert metrics.micro_f1(true, predicted) == pytest.approx(4 / 6)
    assert metrics.micro_f1(np.array([0, 2]), np.array([0, 1])) == 0.5


def test_a_reliability_diagram_shows_the_curve(classes):
    pytest.importorskip("matplotlib")
    p = classes.predict_proba(TEST[0])
    ax = plot_reliability(one_label(TEST)[1], p)
    stated, observed, counts = metrics.calibration_curve(one_label(TEST)[1], p)
    np.testing.assert_allclose(ax.lines[1].get_xydata(),
                               np.stack([stated, observed], axis=1)[counts > 0])


@pytest.mark.parametrize("largest", [np.inf, np.nan, 1e300])
def test_scores_that_are_not_finite_are_refused(rng, largest):
    ids, scores = np.tile(np.arange(3), (30, 1)), np.tile([largest, 1.0, 0.5], (30, 1))
    with pytest.raises(ValueError, match="scores must be finite and fall"):
        sl.calibration.calibrate(ids, scores, rng.integers(3, size=30))
