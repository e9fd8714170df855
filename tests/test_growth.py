"""New labels and features in trained networks and taggers; old answers stay."""
import importlib
import threading

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import logsumexp
from support import assert_same_bits

import sparselsh as sl
from sparselsh import metrics
from sparselsh._arrays.csr import CSR
from sparselsh.network import _growth

pytest.importorskip("safetensors")


def rows(rng, n=1500, n_features=60, n_labels=40):
    """Rows whose label is told by three of their features."""
    y = rng.integers(n_labels, size=n)
    typical = np.array([rng.choice(n_features, 3, replace=False) for _ in range(n_labels)])
    X = sp.random_array((n, n_features), density=0.05, rng=rng, dtype=np.float32).tolil()
    for i, label in enumerate(y):
        X[i, typical[label]] = 1
    return sp.csr_array(X.tocsr()), y


def trained(X, y, n_labels=40, density=1.0, hidden=16, **options):
    net = sl.Network([sl.Linear(X.shape[1], hidden),
                      sl.LSHLinear(hidden, n_labels, density=density, **options)], random_state=0)
    return net.fit(X, y, epochs=3, batch_size=64, verbose=False)


def widened(X, n):
    return sp.csr_array(sp.hstack([X, sp.csr_array((X.shape[0], n), dtype=X.dtype)]))


@pytest.mark.parametrize("options", [{}, {"density": 0.3}, {"density": 0.3, "active": "sample"},
                                     {"density": 0.3, "active": "sample", "policy": "sketches"},
                                     {"dtype": "bfloat16"}], ids=str)
def test_old_answers_stay(rng, options):
    X, y = rows(rng)
    net = trained(X, y, **options)
    net.refine(X, y, n_negatives=8, n_candidates=8, verbose=False).calibrate(X, y)
    ids, scores = net.topk(X, 5)
    p = net.predict_proba(X)
    assert net.add_labels(7) is net and net.add_features(9) is net
    assert (net.n_labels, net.n_features) == (47, 69)
    new_ids, new_scores = net.topk(widened(X, 9), 5)
    np.testing.assert_array_equal(new_ids, ids)
    assert_same_bits(new_scores, scores)
    new_p = net.predict_proba(widened(X, 9))
    assert new_p.shape == (1500, 47) and new_p[:, 40:].max() < 0.05
    np.testing.assert_allclose(new_p[:, :40], p, atol=0.02)


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_new_labels_and_features_are_learned(rng, density):
    X, y = rows(rng)
    first = y < 30
    old = sp.csr_array(X[:, :50])
    net = trained(old[first], y[first], 30, density)
    net.add_features(10).add_labels(10)
    net.optimizer = sl.Adam(5e-3)
    for _ in range(8):
        net.partial_fit(X, y, batch_size=64)
    ids, _ = net.topk(X, 1)
    assert metrics.precision_at_k(y[~first], ids[~first], 1) > 0.8
    assert metrics.precision_at_k(y[first], ids[first], 1) > 0.8


def test_moments_grow_with_their_parameters(rng):
    X, y = rows(rng)
    net = trained(X, y)
    before = [[a.copy() for a in net.optimizer.arrays_of(p)] for layer in net.layers
              for p in layer.parameters]
    net.add_labels(3).add_features(2)
    for parameter, old in zip([p for layer in net.layers for p in layer.parameters], before,
                              strict=True):
        for a, b in zip(net.optimizer.arrays_of(parameter), old, strict=True):
            assert a.shape == parameter.value.shape
            np.testing.assert_array_equal(a[:len(b), :b.shape[1]], b)
            assert not a[len(b):].any() and not a[:, b.shape[1]:].any()


def test_the_index_grows_too(rng):
    W = rng.standard_normal((6000, 32)).astype(np.float32)
    H = rng.standard_normal((50, 32)).astype(np.float32)
    hidden = sl.Linear(32, 32).set_weights(np.eye(32))
    net = sl.Network([hidden, sl.LSHLinear.from_dense(W, queries=H, density=0.1)])
    net.topk(H, 5)
    engine = net.layers[1]._search.engine
    assert engine is not None
    net.add_labels(100)
    assert net.layers[1]._search.engine is engine and len(engine.W) == 6100
    ids, _ = net.topk(H, 5)
    np.testing.assert_array_equal(ids, net.topk(H, 5, exact=True)[0])
    net.layers[1].set_weights(np.concatenate([W, 3 * H, H]), np.zeros(6100))
    assert (net.topk(H, 1)[0][:, 0] == np.arange(6000, 6050)).all()


def test_a_grown_network_is_saved_and_goes_on(rng, tmp_path):
    X, y = rows(rng)
    net = trained(X, y).add_labels(4).add_features(3)
    net.save(tmp_path / "net", training_state=True)
    other = sl.load(tmp_path / "net")
    wide = widened(X, 3)
    for one in (net, other):
        one.partial_fit(wide, y, batch_size=64)
    assert_same_bits(other.decision_function(wide), net.decision_function(wide))
    assert net.training_progress is None


def test_a_network_of_one_layer_grows(rng):
    X, y = rows(rng)
    net = sl.Network([sl.Linear(60, 40)], random_state=0).fit(X, y, epochs=2, verbose=False)
    ids, _ = net.topk(X, 3)
    net.add_labels(2).add_features(2)
    np.testing.assert_array_equal(net.topk(widened(X, 2), 3)[0], ids)


def test_an_error_leaves_the_network_as_it_was(rng, monkeypatch):
    X, y = rows(rng)
    net = trained(X, y, density=0.3)
    before = net.decision_function(X)
    monkeypatch.setattr(type(net.layers[1]), "take_grown", fail)
    with pytest.raises(MemoryError):
        net.add_labels(3)
    monkeypatch.undo()
    assert net.n_labels == 40
    assert_same_bits(net.decision_function(X), before)
    net.partial_fit(X, y)


def fail(*arguments):
    raise MemoryError


# ---- taggers


def corpus(rng, n, tags):
    texts, names = [], []
    for _ in range(n):
        own = rng.choice(tags, min(len(tags), rng.integers(1, 3)), replace=False)
        words = [f"w{tag}x{rng.integers(6)}" for tag in own for _ in range(3)]
        texts.append(" ".join(rng.permutation(words + [f"c{rng.integers(30)}" for _ in range(4)])))
        names.append([f"tag::{tag}" for tag in own])
    return texts, names


@pytest.fixture(scope="module")
def grown():
    """(before, after, old texts, new texts): a tagger of 24 tags, and one with four more."""
    rng = np.random.default_rng(5)
    texts, tags = corpus(rng, 900, np.arange(24))
    more, more_tags = corpus(rng, 160, np.arange(20, 28))
    before = sl.Tagger(random_state=0, hidden=32).fit(texts, tags)
    after = sl.Tagger(random_state=0, hidden=32).fit(texts, tags).add_tags(more, more_tags)
    return before, after, corpus(rng, 200, np.arange(20)), corpus(rng, 200, np.arange(20, 28))


def test_new_tags_are_found_and_old_ones_stay(grown):
    before, after, old, new = grown
    assert after.tags_[:24].tolist() == before.tags_.tolist()
    assert sorted(after.tags_[24:]) == [f"tag::{j}" for j in range(24, 28)]
    assert abs(after.score(*old) - before.score(*old)) < 0.03
    best = [row[0][0] in true for row, true in zip(after.predict_topk(new[0], 1), new[1],
                                                   strict=True)]
    assert np.mean(best) > 0.9
    # texts without new words have the scores of before
    x = before.vectorizer_.transform(old[0])
    wide = after.vectorizer_.transform(old[0])
    same = np.flatnonzero(np.diff(wide.indptr) == np.diff(x.indptr))
    assert len(same) > 150
    # rows are as before, and the candidates of the classifiers may have become others
    a, b = (t.network_.layers[1].all_outputs(t.network_.layers[0].all_outputs(
        t.vectorizer_.rows([old[0][i] for i in same]), 1).copy(), 1).copy()
        for t in (before, after))
    assert_same_bits(np.ascontiguousarray(b[:, :24]), a)


@pytest.mark.parametrize("n_outputs", [1 << 24, 1 << 10])
def test_rare_tags_do_not_rank_above_those_of_before(n_outputs, monkeypatch):
    # they have two texts each; with few outputs a sample of the rows is what they are told from
    monkeypatch.setattr(_growth, "MAX_OUTPUTS", n_outputs)
    monkeypatch.setattr(_growth, "MIN_CONTRAST_ROWS", 300)
    rng = np.random.default_rng(7)
    texts, tags = corpus(rng, 900, np.arange(24))
    old = corpus(rng, 300, np.arange(24))
    more, more_tags = texts[:120], [[*row, f"rare {i // 2}"] for i, row in enumerate(tags[:120])]
    tagger = sl.Tagger(random_state=0, hidden=32).fit(texts, tags)
    before = precision(tagger, *old)
    tagger.add_tags(more, more_tags)
    assert len(tagger.tags_) == 24 + 60
    best = [row[0][0] for row in tagger.predict_topk(old[0], 1)]
    assert np.mean([name.startswith("rare") for name in best]) < 0.03
    assert precision(tagger, *old) > before - 0.02
    found = [[name for name, _ in row] for row in tagger.predict_topk(more, 5)]
    assert np.mean([row[-1] in names for row, names in zip(more_tags, found, strict=True)]) > 0.9


def precision(tagger, texts, tags):
    return np.mean([row[0][0] in true for row, true in zip(tagger.predict_topk(texts, 1), tags,
                                                           strict=True)])


@pytest.mark.parametrize("scale", [1, 30, 3000])
def test_totals_of_outputs_are_almost_those_of_all_labels(rng, scale):
    # labels of the rows and the frequent ones make most of the sum; exponentials overflowed
    n_labels, h = 3000, rng.standard_normal((400, 8)).astype(np.float32)
    W = rng.standard_normal((n_labels, 8)).astype(np.float32)
    bias = np.where(np.arange(n_labels) < 100, 3, -4).astype(np.float32)
    labels = np.where(np.arange(400) % 2, np.arange(400) % 100, 100 + np.arange(400)).astype(
        np.int32)
    W[labels[::2]] += 2 * h[::2]
    h *= scale
    y = CSR(np.arange(401, dtype=np.int64), labels, np.ones(400, np.float32), n_labels + 5)
    exact = logsumexp(h.astype(np.float64) @ W.T + bias, axis=1)
    found = _growth._totals(h, y, W, bias, 1)
    assert (found <= exact + 1e-4 * scale).all() and np.mean(exact - found) < 0.1 * scale


@pytest.mark.parametrize("shift", [0, 100, 5000, -5000])
def test_biases_make_probabilities_right_on_average(rng, shift):
    margins = np.sort(rng.standard_normal((6, 40)) * 3 - 4)[:, ::-1]
    weights = rng.uniform(1, 5, (6, 40))
    label = np.repeat(np.arange(6), 3)
    own, own_weights = rng.standard_normal(18), rng.uniform(1, 2, 18)
    tails, wanted = rng.uniform(0, 0.1, 6), rng.uniform(0.5, 3, 6)
    # outputs that are all larger have biases that are smaller
    b = shift + _growth._solved(margins + shift, weights, (label, own + shift, own_weights),
                                np.log(tails) + shift, wanted).astype(np.float64)
    p = (weights / (1 + np.exp(-margins - b[:, None]))).sum(axis=1) + tails * np.exp(b)
    p += np.bincount(label, own_weights / (1 + np.exp(-own - b[label])))
    np.testing.assert_allclose(p, wanted, rtol=1e-3)


def test_sums_of_exponentials_are_finite_in_logarithms(rng):
    z, weights = rng.standard_normal((5, 7)) * 400, rng.uniform(1, 2, 7).astype(np.float32)
    z[1], z[2] = -np.inf, z[2] + 5000
    want = logsumexp(z, axis=1, b=weights)
    np.testing.assert_allclose(_growth._log_sums(z, weights), want, rtol=1e-6)


def test_new_words_are_listed_behind_the_known_ones(grown):
    before, after, _, _ = grown
    known = before.vectorizer_.get_feature_names_out().tolist()
    names = after.vectorizer_.get_feature_names_out().tolist()
    assert names[:len(known)] == known and "w27x1" in names[len(known):]
    assert after.explain("w27x1 w3x1", "tag::27")[0][0] == "w27x1"


def test_a_grown_tagger_is_saved_and_grows_again(grown, tmp_path, rng):
    _, after, _, new = grown
    after.save(tmp_path / "t")
    other = sl.load(tmp_path / "t")
    assert other.predict(new[0]) == after.predict(new[0])
    texts, tags = corpus(rng, 80, np.arange(27, 31))
    other.add_tags(texts, tags)
    assert len(other.tags_) == 31
    found = other.predict_topk(texts, 1)
    assert np.mean([row[0][0] in true for row, true in zip(found, tags, strict=True)]) > 0.9


def test_partial_fit_begins_and_goes_on(rng):
    texts, tags = corpus(rng, 700, np.arange(12))
    more, more_tags = corpus(rng, 300, np.arange(14))
    tagger = sl.Tagger(random_state=0, hidden=16).partial_fit(texts, tags)
    assert tagger.partial_fit(more, more_tags) is tagger and len(tagger.tags_) == 14
    assert tagger.score(*corpus(rng, 200, np.arange(14))) > 0.85


def test_hashed_texts_and_single_tags_grow(rng):
    texts, tags = corpus(rng, 600, np.arange(10))
    more, more_tags = corpus(rng, 100, np.arange(10, 12))
    tagger = sl.Tagger(sl.TextVectorizer(n_features=2**14), hidden=16, random_state=0)
    tagger.fit(texts, [row[0] for row in tags]).add_tags(more, [row[0] for row in more_tags])
    found = tagger.predict(more)
    assert np.mean([name in true for name, true in zip(found, more_tags, strict=True)]) > 0.8


def test_what_cannot_be_added_is_refused(grown):
    before = grown[0]
    with pytest.raises(ValueError, match="holds no tag that the model does not know; call part"):
        before.add_tags(["w3x1"], [["tag::3"]])
    with pytest.raises(TypeError, match="tags must be a list per text, as in fit, got one string"):
        before.add_tags(["w3x1"], ["other"])
    with pytest.raises(ValueError, match="not trained yet; call fit"):
        sl.Tagger().add_tags(["xx"], [["a"]])
    assert len(before.tags_) == 24


def test_an_error_leaves_the_tagger_as_it_was(grown, monkeypatch):
    before, _, old, new = grown
    monkeypatch.setattr(type(before.network_), "grow", fail)
    with pytest.raises(MemoryError):
        before.add_tags(*new)
    monkeypatch.undo()
    assert len(before.tags_) == 24 and before.network_.n_labels == 24
    before.predict(old[0])


@pytest.mark.parametrize("kind", ["tagger", "recommender"])
def test_another_thread_sees_the_parts_grow_together(kind, monkeypatch, rng):
    # the network had grown, and the vocabulary and the names had not
    if kind == "tagger":
        texts, tags = corpus(rng, 60, range(4))
        model = sl.Tagger(hidden=8, epochs=1, random_state=0).fit(texts, tags)
        module = "sparselsh.text._tagger"

        def grow():
            model.add_tags([f"new word{j} " + texts[0] for j in range(3)] * 2, [["new"]] * 6)

        calls = [lambda: model.predict_topk(texts, 99), lambda: model.predict_topk(texts[:1], 99),
                 lambda: model.predict(texts), lambda: model.predict_proba(texts),
                 lambda: model.score(texts, tags), lambda: model.explain(texts[0], "new")]
    else:
        rows = [["a", "b", "c"], ["b", "c", "d"]] * 10
        model = sl.Recommender(hidden=8, neighbors=0, random_state=0).fit(rows)
        module = "sparselsh.text._recommender"

        def grow():
            model.add_items([["a", "new"], ["new", "b"]])

        calls = [lambda: model.recommend(["a"], k=99, exclude_seen=False),
                 lambda: model.recommend(rows, k=99), lambda: model.score(rows, k=99)]

    def then_asked(*arguments):
        grow_from_rows(*arguments)
        for call in calls:
            thread = threading.Thread(target=ask, args=(call,), daemon=True)
            thread.start()
            threads.append(thread)
        threads[0].join(0.2)

    def ask(call):
        try:
            answers.append(call())
        except Exception as error:
            errors.append(error)

    threads, answers, errors = [], [], []
    grow_from_rows = importlib.import_module(module).grow_from_rows
    monkeypatch.setattr(f"{module}.grow_from_rows", then_asked)
    grow()
    for thread in threads:
        thread.join()
    assert errors == [] and len(answers) == len(calls)
    assert "new" in (model.tags_ if kind == "tagger" else model.items_)
