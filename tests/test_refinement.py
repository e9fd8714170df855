"""Weights computed from the data, classifiers of the inputs, and the recipe that uses both."""
import copy
import pickle

import numpy as np
import pytest
import reference
import scipy.sparse as sp
from support import rewrite

import sparselsh as sl
from sparselsh import _recipe, metrics
from sparselsh._arrays.csr import from_scipy
from sparselsh.network import refined as fitted_refinement
from sparselsh.training import _label_vectors

N_FEATURES, N_LABELS, N_HIDDEN = 600, 300, 16


def rows(n, seed, noise=0.15):
    """Make texts about one or two labels: three words belong to each label, others are random."""
    rng = np.random.default_rng(seed)
    labels = [rng.choice(N_LABELS, rng.integers(1, 3), replace=False) for _ in range(n)]
    X = np.zeros((n, N_FEATURES), np.float32)
    for i, own in enumerate(labels):
        X[i, rng.choice(N_FEATURES, 8)] = rng.uniform(0.1, 1, 8)
        for j in own:
            X[i, (7 * j + 11 * rng.integers(0, 3, 2)) % N_FEATURES] = 1
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    Y = np.zeros((n, N_LABELS), np.float32)
    for i, own in enumerate(labels):
        Y[i, own] = 1
    return sp.csr_array(X), sp.csr_array(Y)


TRAIN, TEST = rows(1500, 1), rows(400, 2)


def network(hidden=N_HIDDEN, seed=0, n_threads=None, **layer):
    return sl.Network([sl.Linear(N_FEATURES, hidden), sl.LSHLinear(hidden, N_LABELS, **layer)],
                      random_state=seed, n_threads=n_threads)


def precision(net):
    return metrics.precision_at_k(TEST[1], net.topk(TEST[0], 1)[0], 1)


@pytest.fixture(scope="module")
def trained():
    return network().fit(*TRAIN, epochs=3, verbose=False)


@pytest.fixture(scope="module")
def refined(trained):
    return copy.deepcopy(trained).refine(*TRAIN, verbose=False)


# -- weights computed from the data ----------------------------------------------------------------


@pytest.mark.parametrize(("relu", "shared", "solved", "weighted"), [
    (False, False, False, True), (True, False, False, False), (False, True, False, False),
    (False, True, True, False), (False, False, True, False), (True, False, True, True)])
def test_weights_computed_from_data_follow_their_formula(monkeypatch, relu, shared, solved,
                                                         weighted):
    monkeypatch.setattr(_label_vectors, "ROWS_PER_PART", 400)  # several parts
    monkeypatch.setattr(_label_vectors, "COLUMNS_PER_BLOCK", 5)  # several blocks, the last smaller
    monkeypatch.setattr(_label_vectors, "RIDGE_STEPS", 60)  # to the solution
    monkeypatch.setattr(_label_vectors, "MAX_FEATURES_OF_SOLVED_ROWS", 30 if solved else 3)
    X, Y = TRAIN
    if shared:
        X = sp.csr_array(X[:, :N_LABELS])
    n_features = X.shape[1]
    X = sp.csr_array(X.multiply(np.arange(n_features) != 5))  # no row has feature 5
    Y = sp.csr_array(Y.multiply(np.arange(N_LABELS)[None] != 7))  # no row has label 7
    X.eliminate_zeros()
    Y.eliminate_zeros()
    weight = np.float32(np.arange(X.shape[0]) % 3) if weighted else None  # a third counts nothing
    features, labels = _label_vectors.label_vectors(
        from_scipy(X), from_scipy(Y), N_HIDDEN, relu, shared, np.random.default_rng(3), 2, weight)
    random = np.random.default_rng(3).random((N_LABELS, N_HIDDEN),
                                             dtype=np.float32) - np.float32(0.5)
    expected = reference.label_vectors(
        X.toarray().astype(float), Y.toarray().astype(float), random, relu, shared,
        solved and not shared, _label_vectors.RIDGE,
        np.ones(X.shape[0]) if weight is None else weight / 1.5,  # a mean of 1 of those above 0
        _label_vectors.HIDDEN_NORM, _label_vectors.LABEL_NORM)
    np.testing.assert_allclose(features, expected[0], atol=1e-4)
    np.testing.assert_allclose(labels, expected[1], atol=2e-4)
    assert not features[5].any() and not labels[7].any()


@pytest.mark.parametrize("weight", [0, 1])
def test_rows_without_features_or_weight_give_weights_of_zero(weight):
    X = sp.csr_array((9, N_FEATURES), dtype=np.float32)
    features, labels = _label_vectors.label_vectors(
        from_scipy(X), from_scipy(TRAIN[1][:9]), N_HIDDEN, False, False,
        np.random.default_rng(3), 1, np.full(9, weight, np.float32))
    assert not features.any() and not labels.any()


@pytest.mark.parametrize("n_labels", [N_LABELS, 200])  # by least squares, by means
@pytest.mark.parametrize("exponent", [-100, -60, -30, 30, 60, 100])
def test_weights_computed_from_data_follow_the_scale_of_the_rows(n_labels, exponent):
    X, Y = from_scipy(TRAIN[0]), from_scipy(TRAIN[1][:, :n_labels])

    def made(factor):
        return _label_vectors.label_vectors(X._replace(data=X.data * np.float32(factor)), Y,
                                            N_HIDDEN, True, False, np.random.default_rng(3), 1)

    # powers of two change no digit of a product
    for expected, found, factor in zip(made(1), made(2.0**exponent), (2.0**exponent, 1),
                                       strict=True):
        np.testing.assert_allclose(found * np.float32(factor), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e6, 1e30])
def test_only_ratios_of_the_weights_of_rows_count_for_weights_from_data(factor):
    weight = np.float32(np.arange(len(TRAIN[0].indptr) - 1) % 3)
    X, Y = map(from_scipy, TRAIN)
    expected, found = (_label_vectors.label_vectors(
        X, Y, N_HIDDEN, True, False, np.random.default_rng(3), 1, weight * np.float32(each))
        for each in (1, factor))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_rows_that_all_have_the_same_labels_give_weights_too():
    X, Y = (from_scipy(rows[:1]) for rows in TRAIN)
    features, _ = _label_vectors.label_vectors(
        X, Y, N_HIDDEN, False, False, np.random.default_rng(3), 1)
    assert features[X.indices].any(axis=1).all()  # else no step would ever change them


def test_weights_computed_from_data_find_labels_before_any_training():
    made = network(64).initialize(*TRAIN)
    # 1/200 by chance; labels with common words are separated only in part
    assert precision(made) > 0.3


def ring_sessions(rng, n, n_items, repeats):
    """Make rows of three successive items of a ring; the label is the next item.

    With probability `repeats` the label is one of the three items instead.
    """
    first = rng.integers(0, n_items, n)
    items = (first[:, None] + np.arange(3)) % n_items
    following = np.where(rng.random(n) < repeats, items[np.arange(n), rng.integers(0, 3, n)],
                         (first + 3) % n_items)
    X = sp.csr_array((np.tile(np.float32([0.64, 0.8, 1]), n), items.ravel(),
                      np.arange(0, 3 * n + 1, 3)),
                     shape=(n, n_items))
    X.sort_indices()
    return X, indicator(following, n_items)


def indicator(ids, n_labels):
    return sp.csr_array((np.ones(len(ids), np.float32), ids, np.arange(len(ids) + 1)),
                        shape=(len(ids), n_labels))


def test_shared_ids_are_detected_by_rows_whose_label_repeats_a_feature(rng):
    def are_shared(X, Y):
        return _label_vectors.ids_are_shared(from_scipy(X), from_scipy(Y))

    X, Y = ring_sessions(rng, 3000, 500, repeats=0.2)
    assert are_shared(X, Y)
    assert not are_shared(X, Y[:, rng.permutation(500)])  # the same items with other label ids
    assert not are_shared(X[:, :499], Y)
    # without repeats there is no evidence
    assert not are_shared(*ring_sessions(rng, 3000, 500, repeats=0.0))
    # frequent features coincide with frequent labels by chance
    often = (500 * rng.random((2, 3000)) ** 8).astype(int)
    assert not are_shared(indicator(often[0], 500), indicator(often[1], 500))
    empty = sp.csr_array((0, 7), dtype=np.float32)
    assert not are_shared(empty, empty)


def test_shared_ids_give_similar_weights_to_items_that_occur_together(rng):
    X, Y = ring_sessions(rng, 1000, 200, repeats=0.2)

    def weights(shared_ids):
        net = sl.Network([sl.Linear(200, 64), sl.LSHLinear(64, 200)], random_state=0)
        return net.initialize(X, Y, shared_ids=shared_ids).layers[0].weight.T

    def cosine(v, distance):
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
        return (v * np.roll(v, distance, axis=0)).sum(axis=1).mean()

    shared, separate = weights(True), weights(False)
    for distance in (1, 2, 3):  # items that occur in the same sessions
        assert cosine(shared, distance) > cosine(separate, distance) + 0.1
    assert abs(cosine(shared, 50)) < 0.1
    np.testing.assert_array_equal(weights("auto"), shared)


def test_the_recipe_uses_dropout_in_long_trainings_unless_dropout_is_given():
    def dropout(n_steps, **options):
        net = network()
        _recipe.begin(net, *TRAIN, n_steps, **options)
        return net.layers[0].dropout

    assert dropout(1999) == 0 and dropout(2000) == 0.2
    assert dropout(1999, dropout=0.4) == 0.4 and dropout(2000, dropout=0) == 0


def test_training_starts_from_weights_computed_from_data():
    made = network().initialize(*TRAIN)
    first = made.layers[1].weight.copy()
    made.fit(*TRAIN, epochs=1, optimizer=sl.SGD(1e-6, momentum=0), verbose=False)
    np.testing.assert_allclose(made.layers[1].weight, first, atol=1e-4)
    np.testing.assert_array_equal(made.layers[0].weight.shape, (N_HIDDEN, N_FEATURES))


def test_an_epoch_from_weights_computed_from_data_reaches_a_higher_precision():
    assert precision(network().initialize(*TRAIN).fit(*TRAIN, epochs=1, verbose=False)) > precision(
        network().fit(*TRAIN, epochs=1, verbose=False)) + 0.1


def test_threads_do_not_change_weights_computed_from_data():
    one, two = (network(n_threads=n).initialize(*TRAIN) for n in (1, 2))
    for a, b in zip(one.layers, two.layers, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)


def test_weights_computed_from_data_are_stored_in_bfloat16():
    net = sl.Network([sl.Linear(N_FEATURES, 8, dtype="bfloat16"),
                      sl.LSHLinear(8, N_LABELS, dtype="bfloat16")],
                     random_state=0).initialize(*TRAIN)
    exact = network(8).initialize(*TRAIN)
    np.testing.assert_allclose(net.layers[1].weight, exact.layers[1].weight, rtol=2**-8)


@pytest.mark.parametrize("output", [sl.Linear, sl.LSHLinear])
def test_any_output_layer_can_begin_with_weights_from_data(rng, output):
    X = sp.random(300, 200, 0.1, format="csr", dtype=np.float32, random_state=0)
    Y = sp.csr_array((rng.random((300, 40)) < 0.05).astype(np.float32))
    net = sl.Network([sl.Linear(200, 16), output(16, 40)], random_state=0).initialize(X, Y)
    assert net.layers[1].weight.shape == (40, 16)
    before = net.decision_function(X)
    other = sl.Network([sl.Linear(200, 16), sl.LSHLinear(16, 40)], random_state=0).initialize(X, Y)
    np.testing.assert_allclose(before, other.decision_function(X), rtol=1e-5, atol=1e-6)
    net.fit(X, Y, epochs=2, verbose=False).refine(X, Y)
    assert net.topk(X, 3)[0].shape == (300, 3)


@pytest.mark.parametrize(("net", "X", "words"), [
    (sl.Network([sl.Linear(N_FEATURES, 4), sl.Linear(4, 4), sl.Linear(4, N_LABELS)]),
     TRAIN[0], "has 3 layers"),
    (network(), TRAIN[0].toarray(), "X must be sparse"),
    (sl.Network([sl.LSHLinear(N_FEATURES, 4), sl.LSHLinear(4, N_LABELS)]),
     TRAIN[0], r"layers\[0\] must be Linear"),
])
def test_networks_that_cannot_be_initialized_from_data_are_refused(net, X, words):
    with pytest.raises(ValueError, match=words):
        net.initialize(X, TRAIN[1])


def test_shared_ids_are_refused_where_labels_and_features_differ_in_number():
    with pytest.raises(
            ValueError,
            match=f"shared_ids=True needs as many labels as features, got {N_LABELS} and"):
        network().initialize(*TRAIN, shared_ids=True)
    with pytest.raises(ValueError, match="shared_ids must be True, False or 'auto', got 'yes'"):
        network().initialize(*TRAIN, shared_ids="yes")


# -- refinement ------------------------------------------------------------------------------------


def test_refinement_raises_the_precision(trained, refined):
    assert precision(refined) > precision(trained) + 0.1


@pytest.mark.parametrize("normalized", [True, False])
def test_outputs_are_sums_of_those_of_the_layers_and_of_the_classifiers(trained, refined,
                                                                        normalized):
    """Those of the candidates; every other label follows in the order of the layers."""
    assert refined.refinement.normalized
    refined = copy.deepcopy(refined)
    refined.refinement.normalized = normalized  # False in files of before
    r = refined.refinement
    z = trained.decision_function(TEST[0])
    if normalized:
        z -= reference.log_sum_exp(np.sort(z, axis=1)[:, -r.n_candidates:])[:, None]
    sums = z + r.scale * (TEST[0] @ r.weight.T + r.bias)
    candidates = np.argsort(-z, axis=1, kind="stable")[:, :r.n_candidates]
    last_z, last = (np.take_along_axis(a, candidates, 1).min(axis=1, keepdims=True)
                    for a in (z, sums))
    expected = last + np.minimum(z - last_z, 0)
    np.put_along_axis(expected, candidates, np.take_along_axis(sums, candidates, 1), axis=1)
    outputs = refined.decision_function(TEST[0])
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    ids, scores = refined.topk(TEST[0], 7, exact=True)
    np.testing.assert_array_equal(scores, np.sort(outputs, axis=1)[:, :-8:-1])
    np.testing.assert_array_equal(np.take_along_axis(outputs, ids, 1), scores)


def test_only_the_best_labels_of_the_layers_are_reranked(trained, refined):
    net = copy.deepcopy(refined)
    net.refinement.n_candidates = 12
    found = trained.topk(TEST[0], 12)[0]
    ids, scores = net.topk(TEST[0], 5)
    assert all(set(best) <= set(of) for best, of in zip(ids, found, strict=True))
    np.testing.assert_allclose(scores, np.take_along_axis(net.decision_function(TEST[0]), ids, 1),
                               atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (ids != refined.topk(TEST[0], 5)[0]).any()


def test_topk_gives_as_many_answers_as_requested(refined):
    ids, scores = refined.topk(TEST[0][:3], 50)
    assert (ids.shape == (3, 50) and all(len(set(row)) == 50 for row in ids)
            and np.isfinite(scores).all())


def test_a_scale_of_zero_gives_the_network_without_refinement(trained, refined):
    net = copy.deepcopy(refined)
    net.refinement.scale = 0
    np.testing.assert_array_equal(net.topk(TEST[0], 5)[0], trained.topk(TEST[0], 5)[0])


def test_dense_rows_get_the_same_answers_as_sparse_rows(refined):
    for a, b in zip(refined.topk(TEST[0], 5), refined.topk(TEST[0].toarray(), 5), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_threads_do_not_change_the_classifiers(trained):
    nets = [copy.deepcopy(trained) for _ in range(2)]
    for n, net in enumerate(nets, 1):
        net.n_threads = n
        net.refine(*TRAIN, verbose=False)
    one, two = (net.refinement for net in nets)
    np.testing.assert_array_equal(one.weight.toarray(), two.weight.toarray())
    np.testing.assert_array_equal(one.bias, two.bias)


def test_blocks_of_labels_do_not_change_the_classifiers(trained, refined, monkeypatch):
    monkeypatch.setattr(sl.refinement, "MAX_WEIGHTS_PER_BLOCK", 5000)
    other = copy.deepcopy(trained).refine(*TRAIN, verbose=False).refinement
    # passes in another order: the optimum is reached only within the tolerance
    difference = other.weight.toarray() - refined.refinement.weight.toarray()
    assert np.linalg.norm(difference) < 0.2 * np.linalg.norm(other.weight.toarray())


def test_rows_of_weight_zero_are_ignored(trained):
    weight = np.ones(1500)
    weight[1000:] = 0
    some = copy.deepcopy(trained).refine(*TRAIN, sample_weight=weight, verbose=False).refinement
    first = copy.deepcopy(trained).refine(TRAIN[0][:1000], TRAIN[1][:1000],
                                          verbose=False).refinement
    np.testing.assert_array_equal(some.weight.toarray(), first.weight.toarray())


def test_the_threshold_drops_small_weights(trained, refined):
    few = copy.deepcopy(trained).refine(*TRAIN, threshold=0.5, verbose=False).refinement.weight
    assert 0 < few.nnz < refined.refinement.weight.nnz and np.abs(few.data).min() >= 0.5


def test_a_larger_c_gives_larger_weights(trained, refined):
    loose = copy.deepcopy(trained).refine(*TRAIN, C=0.01, threshold=0,
                                          verbose=False).refinement.weight
    assert np.abs(loose.data).max() < 0.2 * np.abs(refined.refinement.weight.data).max()


def test_files_copies_and_pickles_give_the_same_answers(refined, tmp_path):
    pytest.importorskip("safetensors")
    refined.save(tmp_path / "net.safetensors")
    expected = refined.topk(TEST[0], 5)
    for other in (sl.load(tmp_path / "net.safetensors"), copy.deepcopy(refined),
                  pickle.loads(pickle.dumps(refined))):
        for a, b in zip(expected, other.topk(TEST[0], 5), strict=True):
            np.testing.assert_array_equal(a, b)
        assert repr(other.refinement) == repr(refined.refinement)


@pytest.mark.parametrize(("name", "damage"), [
    ("indices", lambda a: a + N_FEATURES), ("indptr", lambda a: a[::-1].copy()),
    ("indptr", lambda a: a[:-1].copy()), ("data", lambda a: a * np.nan),
    ("data", lambda a: a.astype(np.float64)), ("bias", lambda a: a[1:].copy()),
])
def test_a_damaged_file_is_refused(refined, tmp_path, name, damage):
    refined.save(tmp_path / "bad.safetensors")
    key = f"refinement.{name}"
    rewrite(tmp_path / "bad.safetensors",
            lambda tensors, _: tensors.update({key: np.ascontiguousarray(damage(tensors[key]))}))
    with np.errstate(all="ignore"), pytest.raises(
            ValueError, match="damaged or from another version") as error:
        sl.load(tmp_path / "bad.safetensors")
    assert "checksum" not in str(error.value)


def test_fit_drops_a_refinement_and_partial_fit_keeps_it(refined):
    net = copy.deepcopy(refined)
    assert net.partial_fit(TRAIN[0][:64], TRAIN[1][:64]).refinement is not None
    assert net.fit(TRAIN[0][:64], TRAIN[1][:64], epochs=1, verbose=False).refinement is None


def test_a_csr_file_gives_the_same_refinement(tmp_path):
    place = tmp_path / "rows.csr"
    sl.datasets.write_csr(place, *TRAIN)
    with sl.datasets.open_csr(place) as file:
        a = network().initialize(file).fit(*TRAIN, epochs=1, verbose=False).refine(
            file, verbose=False)
    b = network().initialize(*TRAIN).fit(*TRAIN, epochs=1, verbose=False).refine(
        *TRAIN, verbose=False)
    np.testing.assert_array_equal(a.topk(TEST[0], 5)[0], b.topk(TEST[0], 5)[0])


@pytest.mark.parametrize(("options", "words"), [
    ({"n_negatives": 0}, "n_negatives must be at least 1, got 0"), ({"C": 0}, "C must be above 0"),
    ({"threshold": -1}, "threshold must be at least 0"),
    ({"scale": -1}, "scale must be at least 0"),
    ({"n_candidates": 0}, "n_candidates must be at least 1"),
    ({"sample_weight": [1.0]}, "sample_weight"),
    ({"logistic": -1}, "logistic must be at least 0"),
    ({"logistic": 1}, r"row .* of Y has 2 labels; logistic > 0 needs one in each row"), ])
def test_bad_options_are_refused_by_name(trained, options, words):
    with pytest.raises(ValueError, match=words):
        copy.deepcopy(trained).refine(*TRAIN, **options)


def one_label(part):
    """The rows with one label, and its id."""
    X, Y = part
    one = np.flatnonzero(np.diff(Y.indptr) == 1)
    return X[one], Y.indices[Y.indptr[one]]


def test_a_logistic_regression_is_added_to_the_classifiers(trained):
    X, y = one_label(TRAIN)
    costs = np.where(np.arange(len(y)) < 3, 0, 1)

    def refined(logistic, threshold=0.0):
        net = copy.deepcopy(trained)
        return net.refine(X, y, logistic=logistic, threshold=threshold, C=0.4, verbose=False,
                          sample_weight=costs).refinement

    alone, both = refined(0), refined(0.5)
    added = (both.weight - alone.weight).toarray().T / 0.5
    rows, targets = X[3:].toarray(), y[3:]

    def objective(factor):
        bias = (both.bias - alone.bias) / 0.5
        return reference.multinomial(factor * added, factor * bias, rows, targets,
                                     np.full(len(rows), 4.0))

    # near its minimum, of which the least objective in this direction is a part
    values = [objective(factor) for factor in (0, 0.8, 0.9, 1, 1.1, 1.2)]
    assert np.argmin(values) in (2, 3, 4)
    pruned = refined(0.5, 0.1).weight
    assert np.abs(pruned.data).min() >= 0.1 and 0 < pruned.nnz < both.weight.nnz


def test_a_row_without_weight_may_have_any_number_of_labels(trained):
    X, Y = TRAIN
    weight = (np.diff(Y.indptr) == 1).astype(np.float32)
    net = copy.deepcopy(trained).refine(X, Y, logistic=0.5, sample_weight=weight, verbose=False)
    own = copy.deepcopy(trained).refine(*one_label(TRAIN), logistic=0.5, verbose=False)
    np.testing.assert_allclose(net.refinement.weight.toarray(), own.refinement.weight.toarray(),
                               atol=0.1)  # the order of the rows differs, and so do passes


def test_a_logistic_regression_of_too_many_weights_is_refused(trained, monkeypatch):
    monkeypatch.setattr("sparselsh.network._network.MAX_LOGISTIC_WEIGHTS", 1000)
    with pytest.raises(ValueError, match=r"at most 1000 weights.*give logistic=0"):
        copy.deepcopy(trained).refine(*one_label(TRAIN), logistic=1)
    monkeypatch.undo()
    monkeypatch.setattr("sparselsh.network._network.MAX_LOGISTIC_DUALS", 1000)
    with pytest.raises(ValueError, match=r"at most 1000 dual variables.*give logistic=0"):
        copy.deepcopy(trained).refine(*one_label(TRAIN), logistic=1)


def test_networks_that_cannot_be_refined_are_refused():
    with pytest.raises(ValueError, match="no weights yet"):
        network().refine(*TRAIN)
    values = sl.Network([sl.Linear(N_FEATURES, N_LABELS)], loss="mse", random_state=0)
    values.fit(*TRAIN, epochs=1, verbose=False)
    with pytest.raises(ValueError, match="predicts values"):
        values.refine(*TRAIN)


# -- the recipe ------------------------------------------------------------------------------------


def sessions(n, seed):
    """Make rows of one item each, followed by one of 12 at random: labels are not separable."""
    rng = np.random.default_rng(seed)
    item = rng.integers(0, N_LABELS, n)
    following = (item + 1 + rng.integers(0, 12, n)) % N_LABELS
    return (sp.csr_array((np.ones(n, np.float32), (np.arange(n), item)), shape=(n, N_FEATURES)),
            sp.csr_array((np.ones(n, np.float32), (np.arange(n), following)), shape=(n, N_LABELS)))


def test_classifiers_are_kept_for_texts_and_dropped_for_sessions(trained):
    texts = network(64).initialize(*TRAIN)
    assert _recipe.refine(texts, *TRAIN, verbose=False) and texts.refinement is not None
    clicks = network().fit(*sessions(3000, 5), epochs=1, verbose=False)
    assert (not _recipe.refine(clicks, *sessions(3000, 5), verbose=False)
            and clicks.refinement is None)


@pytest.mark.parametrize("warm", [False, True])
def test_classifiers_are_trained_again_on_all_rows(trained, warm):
    X, Y = TRAIN
    some = np.arange(0, X.shape[0], 2)
    rest = np.setdiff1d(np.arange(X.shape[0]), some)
    net = copy.deepcopy(trained)
    assert _recipe.refine(net, X[some], Y[some], (X[rest], Y[rest]), verbose=False,
                          again=warm)
    assert (net.refinement.training is not None) == warm
    net.calibrate(X[rest], Y[rest])
    scale, calibration, first = net.refinement.scale, net.calibration, net.refinement
    _recipe.refine_again(net, X, Y, rows=some if warm else None, verbose=False)
    assert net.refinement.training is None
    assert net.calibration is calibration and net.refinement is not first
    whole = copy.deepcopy(trained)
    whole.refine(X, Y, verbose=False, **_recipe._options(whole, X, Y, "default"))
    assert (net.refinement.scale, net.refinement.n_candidates) == (scale, first.n_candidates)
    # another order of the rows in the passes: weights are the same but for the tolerance
    difference = abs(net.refinement.weight - whole.refinement.weight).max()
    assert difference < 0.2 * abs(whole.refinement.weight).max()


@pytest.mark.parametrize("logistic", [0.0, 0.1])
def test_a_training_from_another_one_takes_few_passes(trained, logistic, monkeypatch):
    X, Y = one_label(TRAIN) if logistic else TRAIN
    Y = indicator(Y, N_LABELS) if logistic else Y
    some = np.setdiff1d(np.arange(X.shape[0]), np.arange(0, X.shape[0], 10)).astype(np.int32)
    options = {"n_negatives": 50, "C": 1.0, "n_candidates": 50, "logistic": logistic,
               "verbose": False}
    net = copy.deepcopy(trained)
    fitted_refinement(net, X[some], Y[some], keep=True, **options)
    again = copy.copy(net.refinement.training)
    weight = copy.deepcopy(again.weight)
    found = []
    negatives = sl.LSHLinear.negatives
    monkeypatch.setattr(sl.LSHLinear, "negatives",
                        lambda layer, x, *a: found.append(x.shape[0]) or negatives(layer, x, *a))
    fitted_refinement(net, X, Y, rows=some, **options)
    assert sum(found) == X.shape[0] - len(some)  # labels for the others are known
    whole = copy.deepcopy(trained).refine(X, Y, **options)
    start = copy.deepcopy(trained).refine(X[some], Y[some], **options)
    distance = [abs(one.refinement.weight - whole.refinement.weight).sum() for one in (net, start)]
    assert distance[0] < 0.5 * distance[1]  # nearer to that of all rows than to that of some
    np.testing.assert_array_equal(again.weight, weight)  # and may start from it once more
    assert pickle.loads(pickle.dumps(net)).refinement.training is None


def test_rows_with_one_of_few_labels_get_a_logistic_regression(trained, monkeypatch):
    X, y = one_label(TRAIN)

    def factor(Y):
        return _recipe._options(trained, X, Y, "default")["logistic"]

    assert factor(y) == factor(indicator(y, N_LABELS)) == _recipe.LOGISTIC > 0
    assert factor(None) == factor(TRAIN[1]) == 0  # a file, and rows with several labels
    monkeypatch.setattr(_recipe, "MIN_LABELS", N_LABELS)
    assert factor(y) == 0
    monkeypatch.undo()
    monkeypatch.setattr(_recipe, "MAX_LOGISTIC_WEIGHTS", N_FEATURES * N_LABELS - 1)
    assert factor(y) == 0
    monkeypatch.undo()
    monkeypatch.setattr(_recipe, "MAX_LOGISTIC_DUALS", len(y) * N_LABELS - 1)
    assert factor(y) == 0


def test_the_effort_sets_what_a_refinement_costs(trained, monkeypatch):
    given = []
    monkeypatch.setattr(sl.Network, "refine", lambda net, X, Y, **options: given.append(options))
    for effort in _recipe.EFFORTS:
        _recipe.refine(trained, *TRAIN, effort=effort, verbose=False)
    numbers = [(options["n_negatives"], options["n_candidates"]) for options in given]
    assert numbers == [(50, 50), (200, 50), (400, 100)]


def test_few_labels_of_short_rows_have_a_larger_cost_and_factor(refined, monkeypatch):
    assert [_recipe.refinement_cost(*case) for case in
            ((10, 999), (10, 1000), (31, 999), (31, 1000))] == [0.4, 0.3, 1, 1]
    given = []
    monkeypatch.setattr(sl.Network, "refine", lambda net, X, Y, **options: None)
    monkeypatch.setattr(sl.Network, "tune_refinement", lambda net, X, Y, **o: given.append(o))
    _recipe.refine(refined, *TRAIN, TEST, verbose=False)
    assert max(given[0]["scales"]) == 96


def test_the_learning_rate_falls_with_the_number_of_steps_within_bounds():
    assert _recipe.rate(_recipe.steps(41_902, 256, 2)) == pytest.approx(3.3 / 328)
    assert _recipe.rate(1) == 2e-2 and _recipe.rate(10**6) == 5e-4


def test_the_recipe_applies_to_sparse_inputs_and_many_labels():
    wide = [sl.Linear(50, 8), sl.LSHLinear(8, 2000)]
    X = sp.csr_array((3, 50))
    assert _recipe.suits(sl.Network(wide), X)
    assert not _recipe.suits(sl.Network(wide), X.toarray())
    assert not _recipe.suits(sl.Network(wide, loss="bce"), X)
    assert not _recipe.suits(sl.Network([sl.Linear(50, 8), sl.LSHLinear(8, 999)]), X)
    assert not _recipe.suits(sl.Network([sl.Linear(50, 2000)]), X)
