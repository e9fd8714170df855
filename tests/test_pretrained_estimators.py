"""Classifiers of scikit-learn and matrix factorizations, converted for inference."""
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

import sparselsh as sl


def rows(rng, n=300, d=20, n_classes=7):
    """Rows around the centres of their classes, which have names."""
    centres = rng.standard_normal((n_classes, d))
    y = rng.integers(0, n_classes, n)
    X = (centres[y] + 0.5 * rng.standard_normal((n, d))).astype(np.float32)
    return X, np.array([f"class{i}" for i in range(n_classes)])[y]


def quietly(estimator, X, y):
    with warnings.catch_warnings():  # that few iterations do not converge
        warnings.simplefilter("ignore")
        return estimator.fit(X, y)


def classifiers():
    from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import LinearSVC

    return {
        "LogisticRegression": LogisticRegression(), "RidgeClassifier": RidgeClassifier(),
        "LinearSVC": LinearSVC(), "SGDClassifier": SGDClassifier(random_state=0),
        "without intercept": LinearSVC(fit_intercept=False),
        "OneVsRestClassifier": OneVsRestClassifier(LinearSVC()),
        "MLPClassifier": MLPClassifier((30,), max_iter=20, random_state=0),
        **{f"MLPClassifier {name}": MLPClassifier((9, 8), name, max_iter=20, random_state=0)
           for name in ("identity", "tanh", "logistic")}}


@pytest.mark.parametrize("name", [
    "LogisticRegression", "RidgeClassifier", "LinearSVC", "SGDClassifier", "without intercept",
    "OneVsRestClassifier", "MLPClassifier", "MLPClassifier identity", "MLPClassifier tanh",
    "MLPClassifier logistic"])
def test_classes_and_scores_are_those_of_the_estimator(rng, name):
    pytest.importorskip("sklearn")
    X, y = rows(rng)
    estimator = quietly(classifiers()[name], X, y)
    fast = sl.from_sklearn(estimator, X, error=0, random_state=0)
    np.testing.assert_array_equal(fast.classes_, estimator.classes_)
    np.testing.assert_array_equal(fast.predict(X), estimator.predict(X))
    classes, scores = fast.topk(X, 3)
    np.testing.assert_array_equal(classes[:, 0], estimator.predict(X))
    assert scores.shape == (300, 3) and (np.diff(scores) <= 0).all()
    if hasattr(estimator, "decision_function"):
        # weights rounded to 24 bits, scores below 1000
        np.testing.assert_allclose(fast.decision_function(X), estimator.decision_function(X),
                                   rtol=1e-4, atol=1e-3)


def test_sparse_coefficients_and_rows_are_taken(rng):
    pytest.importorskip("sklearn")
    from sklearn.linear_model import SGDClassifier

    X, y = rows(rng)
    X = sp.csr_matrix(np.where(np.abs(X) > 1.2, X, 0))
    estimator = quietly(SGDClassifier(penalty="l1", random_state=0), X, y).sparsify()
    assert sp.issparse(estimator.coef_)
    for calibration in (X, X.toarray(), None):
        fast = sl.from_sklearn(estimator, calibration)
        np.testing.assert_array_equal(fast.predict(X), estimator.predict(X))
    assert sl.from_sklearn(estimator, X).report.layers[0].plan["single"] == "rows"


def test_a_pipeline_of_texts_keeps_its_vectorizer(rng):
    pytest.importorskip("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    words = np.array([f"w{i}" for i in range(60)])
    y = rng.integers(0, 6, 200)
    texts = [" ".join(words[rng.integers(10 * c, 10 * c + 12, 8) % 60]) for c in y]
    pipeline = make_pipeline(TfidfVectorizer(), make_pipeline("passthrough", LinearSVC()))
    pipeline.fit(texts, y)
    fast = sl.from_sklearn(pipeline, texts)
    np.testing.assert_array_equal(fast.predict(texts), pipeline.predict(texts))
    assert fast.report.layers[0].plan["single"] == "rows"


@pytest.mark.parametrize("n_classes", [7, 90])
def test_rows_with_several_labels_get_all_of_them(rng, n_classes):
    pytest.importorskip("sklearn")
    from sklearn.linear_model import RidgeClassifier
    from sklearn.multiclass import OneVsRestClassifier

    X, _ = rows(rng)
    Y = (X @ rng.standard_normal((20, n_classes)) > -0.5).astype(int)
    Y[:, 2] = 1  # a constant estimator, as scikit-learn makes it
    estimator = quietly(OneVsRestClassifier(RidgeClassifier()), X, Y)
    fast = sl.from_sklearn(estimator, X)
    got, want = fast.predict(X), estimator.predict(X)
    assert got.shape == want.shape and (got.sum(axis=1) > 40).any() == (n_classes == 90)
    # a score within rounding of 0 may fall on the other side
    assert (got.toarray() == np.asarray(want)).mean() > 0.999


@pytest.mark.parametrize("form", [np.asarray, list, sp.csr_array, sp.coo_array, "DataFrame"])
@pytest.mark.parametrize("name", ["RidgeClassifier", "of regressors", "after a constant", "MLP"])
def test_labels_are_those_of_the_estimator(rng, name, form, tmp_path):
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LinearRegression, RidgeClassifier
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neural_network import MLPClassifier

    if form == "DataFrame":
        form = pytest.importorskip("pandas").DataFrame
    X, _ = rows(rng)
    Y = (X @ rng.standard_normal((20, 40)) > -6).astype(int)
    if name == "after a constant":
        Y[:, 0] = 1  # whose threshold, 0.5, OneVsRestClassifier takes for all
    estimator = {"RidgeClassifier": RidgeClassifier(), "MLP": MLPClassifier(9, random_state=0),
                 "of regressors": OneVsRestClassifier(LinearRegression()),
                 "after a constant": OneVsRestClassifier(RidgeClassifier())}[name]
    fast = sl.from_sklearn(quietly(estimator, X, Y))
    want = np.asarray(estimator.predict(X))
    assert (want.sum(axis=1) > 32).any()  # more than are looked for first
    fast.save(tmp_path / "labels")
    for network in (fast, type(fast).load(tmp_path / "labels")):
        got = network.predict(form(X)).toarray()
        assert got.shape == want.shape
        # a score within rounding of the threshold may fall on the other side
        assert (got == want).mean() > 0.999


def test_columns_in_another_order_are_refused(rng, tmp_path):
    pytest.importorskip("sklearn")
    pd = pytest.importorskip("pandas")
    from sklearn.svm import LinearSVC

    X, y = rows(rng, d=3)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    fast = sl.from_sklearn(LinearSVC().fit(frame, y), frame)
    fast.save(tmp_path / "named")
    for network in (fast, type(fast).load(tmp_path / "named")):
        np.testing.assert_array_equal(network.predict(frame), network.predict(X))
        for columns in (["a", "c", "b"], ["a"], ["a", "d", "c"]):
            with pytest.raises(ValueError, match=r"X must have the columns of fit.*column 1 is"):
                network.predict(frame.reindex(columns=columns))


def test_many_classes_get_an_index(rng):
    W = rng.standard_normal((9000, 32)) * rng.gamma(3, 1 / 3, (9000, 1))
    estimator = SimpleNamespace(coef_=W, intercept_=np.zeros(9000), classes_=np.arange(9000) * 2)
    X = rng.standard_normal((600, 32)).astype(np.float32)
    fast = sl.from_sklearn(estimator, X, random_state=0)
    want = 2 * (X @ W.T).argmax(1)
    # recall 0.99 of the five best
    assert (fast.predict(X) == want).mean() >= 0.99


def of_three(m):
    """Rows of three classes, which have three pairs: as many outputs as classes."""
    X, y = m.data
    kept = np.isin(y, ["class0", "class1", "class2"])
    return X[kept], y[kept]


def of_two_kinds(m):
    estimator = quietly(m.multiclass.OneVsRestClassifier(m.svm.LinearSVC()), *m.data)
    estimator.estimators_[1] = m.tree.DecisionTreeClassifier()
    return estimator


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("make, error, message", [
    (lambda m: m.tree.DecisionTreeClassifier(), TypeError, "got DecisionTreeClassifier; from_sk"),
    (lambda m: m.svm.LinearSVC(), ValueError, "LinearSVC is not fitted; call fit first"),
    (lambda m: m.svm.LinearSVC().fit(m.data[0], m.data[1] == "class1"), ValueError,
     "LinearSVC has two classes and one output.*use the estimator itself"),
    (lambda m: m.svm.SVC(kernel="linear").fit(*m.data), ValueError,
     "SVC has an output for each pair of classes, which are no scores of the classes"),
    (lambda m: m.pipeline.make_pipeline(m.tree.DecisionTreeClassifier()), TypeError,
     r"got DecisionTreeClassifier \(step 'decisiontreeclassifier'\)"),
    (lambda m: m.multiclass.OneVsRestClassifier(m.tree.DecisionTreeClassifier()).fit(*m.data),
     ValueError, "OneVsRestClassifier: its estimators are DecisionTreeClassifier, which has no"),
    (lambda m: of_two_kinds(m), ValueError,
     "its estimator 1 is a DecisionTreeClassifier, which has no coef_"),
    (lambda m: m.neural_network.MLPClassifier(4, max_iter=1).fit(m.data[0], m.data[1] == "class1"),
     ValueError, "MLPClassifier has two classes and one output.*use the estimator itself"),
    (lambda m: m.svm.SVC(kernel="linear").fit(*of_three(m)), ValueError,
     "SVC has an output for each pair of classes.*take LinearSVC"),
    (lambda m: m.neural_network.MLPRegressor(hidden_layer_sizes=4, max_iter=1).fit(m.data[0],
                                                                                   m.data[0]),
     TypeError, "got MLPRegressor; from_sk"),
    (lambda m: m.linear_model.RidgeClassifier().fit(m.data[0], m.data[1] == "class1"), ValueError,
     "RidgeClassifier has two classes and one output"),
    (lambda m: m.multiclass.OneVsRestClassifier(m.linear_model.PoissonRegressor()).fit(*m.data),
     ValueError, "its estimators are PoissonRegressor, whose predictions are no linear scores"),
    (lambda m: m.model_selection.GridSearchCV(m.svm.LinearSVC(), {"C": [1]}).fit(*m.data),
     TypeError, "got GridSearchCV; give its best_estimator_; from_sk"),
    (lambda m: SimpleNamespace(coef_=sp.csr_array((300_000, 30_000)), intercept_=np.zeros(300_000),
                               classes_=np.arange(300_000)),
     ValueError, r"coef_ is sparse, and takes 33\.5 GiB when it is dense; leave features out"),
])
def test_other_estimators_are_refused_by_name(rng, make, error, message):
    pytest.importorskip("sklearn")
    from sklearn import (
        linear_model,
        model_selection,
        multiclass,
        neural_network,
        pipeline,
        svm,
        tree,
    )

    modules = SimpleNamespace(linear_model=linear_model, model_selection=model_selection,
                              tree=tree, svm=svm, neural_network=neural_network, pipeline=pipeline,
                              multiclass=multiclass, data=rows(rng))
    with pytest.raises(error, match=message):
        sl.from_sklearn(make(modules))


# --- matrix factorizations ------------------------------------------------------------------------


@pytest.fixture
def factors(rng):
    items = rng.standard_normal((9000, 24)) * rng.gamma(3, 1 / 3, (9000, 1))
    return SimpleNamespace(item_factors=items.astype(np.float32),
                           user_factors=rng.standard_normal((500, 24)).astype(np.float32))


def test_recommendations_leave_out_what_a_user_has(rng, factors):
    fast = sl.from_implicit(factors, random_state=0)
    users = np.arange(40, 60)
    scores = factors.user_factors[users] @ factors.item_factors.T
    best = np.argsort(-scores, axis=1)
    liked = sp.csr_matrix((np.ones(60), (np.repeat(np.arange(20), 3), best[:, :3].ravel())),
                          shape=scores.shape)
    for unwanted in (None, best[:, 3]):
        wanted = scores.copy()
        np.put_along_axis(wanted, best[:, :3], -np.inf, 1)
        if unwanted is not None:
            wanted[:, unwanted] = -np.inf
        want = np.argsort(-wanted, axis=1)[:, :10]
        ids, values = fast.recommend(users, liked, 10, filter_items=unwanted, exact=True)
        np.testing.assert_array_equal(ids, want)
        # sums of 24 products below 10
        np.testing.assert_allclose(values, np.take_along_axis(wanted, want, 1), rtol=0, atol=1e-4)
        found, _ = fast.recommend(users, liked, 10, filter_items=unwanted)
        assert (found[:, :, None] == want[:, None]).any(-1).mean() > 0.95  # recall 0.99
    ids, values = fast.recommend(40, liked[:1])
    assert ids.shape == values.shape == (10,)


def test_factors_of_new_users_are_taken(rng, factors):
    fast = sl.from_implicit(factors.item_factors, factors.user_factors, random_state=0)
    ids, _ = fast.recommend(factors.user_factors[:5], filter_items=[3])
    assert ids.shape == (5, 10) and not (ids == 3).any()


def test_wrong_users_and_items_are_refused(factors):
    fast = sl.from_implicit(factors, random_state=0)
    with pytest.raises(ValueError, match=r"user_items must be a sparse .* shape \(2, 9000\)"):
        fast.recommend([1, 2], sp.csr_array((3, 9000)))
    with pytest.raises(ValueError, match="users"):
        fast.recommend([500])
    with pytest.raises(ValueError, match=r"model\.user_factors is None; call fit first"):
        sl.from_implicit(SimpleNamespace(item_factors=np.ones((3, 2)), user_factors=None))


def test_values_of_user_items_do_not_cancel_filter_items(rng):
    factors = rng.standard_normal((20, 4)).astype(np.float32)
    net = sl.from_implicit(factors)
    disliked = sp.csr_array(([-1.0], ([0], [3])), shape=(1, 20))
    ids, _ = net.recommend(factors[3:4], disliked, 19, filter_items=[3])
    assert 3 not in ids
