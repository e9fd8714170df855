"""Ranking metrics: by hand, against reference implementations, and with wrong arguments."""
import numpy as np
import pytest
import reference
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from sparselsh import metrics

LABEL_METRICS = ["precision_at_k", "recall_at_k", "ndcg_at_k"]

Y3 = sp.csr_array(np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], np.float32))
IDS3 = np.array([[2, 1, 0], [0, 1, -1], [3, 2, 1]])


@st.composite
def rankings(draw):
    """Draw (Y, ids, k): a dense indicator with at least one label, and distinct ids or -1."""
    n, n_labels = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    Y = (rng.random((n, n_labels)) < draw(st.sampled_from([0.1, 0.5]))).astype(np.float32)
    Y[rng.integers(n), rng.integers(n_labels)] = 1
    ids = rng.permuted(np.tile(np.arange(n_labels), (n, 1)), axis=1)
    ids = ids[:, : draw(st.integers(1, n_labels))]
    ids[rng.random(ids.shape) < 0.2] = -1
    return Y, ids, draw(st.integers(1, ids.shape[1]))


def test_metrics_by_hand():
    assert metrics.precision_at_k(Y3, IDS3, 1) == pytest.approx(1 / 3)
    assert metrics.precision_at_k(Y3, IDS3, 3) == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert metrics.recall_at_k(Y3, IDS3, 1) == pytest.approx((1 / 2 + 0) / 2)
    assert metrics.recall_at_k(Y3, IDS3, 3) == 1
    second, third = 1 / np.log2(3), 1 / np.log2(4)
    assert metrics.ndcg_at_k(Y3, IDS3, 3) == pytest.approx(
        ((1 + third) / (1 + second) + second) / 2)
    assert metrics.ndcg_at_k(Y3, IDS3, 1) == pytest.approx(1 / 2)
    p = np.array([0.5, 0.25, 0.125, 1])
    assert metrics.psp_at_k(Y3, IDS3, 1, p) == pytest.approx(8 / (8 + 4))
    assert metrics.psp_at_k(Y3, IDS3, 2, p) == pytest.approx((8 + 4) / (8 + 2 + 4))


@settings(deadline=None)
@given(rankings())
def test_metrics_agree_with_their_reference_implementations(ranking):
    Y, ids, k = ranking
    p = np.random.default_rng(0).uniform(0.05, 1, Y.shape[1])
    for labels in (Y, sp.csr_array(Y), sp.coo_matrix(3 * Y)):
        for name in LABEL_METRICS:
            want = getattr(reference, f"metric_{name}")(Y, ids, k)
            assert getattr(metrics, name)(labels, ids, k) == pytest.approx(want)
        want = reference.metric_psp_at_k(Y, ids, k, p)
        assert metrics.psp_at_k(labels, ids, k, p) == pytest.approx(want)


@pytest.mark.parametrize("name", LABEL_METRICS)
def test_class_ids_are_one_label_per_row(name):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 6, 40)
    ids = rng.permuted(np.tile(np.arange(9), (40, 1)), axis=1)[:, :5].astype(np.int32)
    want = getattr(reference, f"metric_{name}")(y, ids, 4)
    assert getattr(metrics, name)(y, ids, 4) == pytest.approx(want)


def test_psp_of_class_ids_accepts_propensities_of_more_labels():
    y, ids, p = np.array([0, 2]), np.array([[0], [4]]), np.array([0.5, 1, 0.25, 1, 1])
    assert metrics.psp_at_k(y, ids, 1, p) == pytest.approx(2 / (2 + 4))


@settings(deadline=None)
@given(rankings())
def test_an_ideal_ranking_scores_one(ranking):
    Y = ranking[0]
    p = np.random.default_rng(0).uniform(0.05, 1, Y.shape[1])
    k = Y.shape[1]
    # true labels first, rare ones before frequent ones
    ids = np.argsort(-Y / p, axis=1, kind="stable")
    assert metrics.recall_at_k(Y, ids, k) == 1
    for at in range(1, k + 1):
        assert metrics.ndcg_at_k(Y, ids, at) == pytest.approx(1)
        assert metrics.psp_at_k(Y, ids, at, p) == pytest.approx(1)


def test_rows_without_labels_count_as_zero_in_precision_and_are_skipped_elsewhere():
    Y, ids, p = Y3[:2], IDS3[:2], np.full(4, 0.5)
    assert metrics.precision_at_k(Y3, IDS3, 2) == pytest.approx(
        metrics.precision_at_k(Y, ids, 2) * 2 / 3)
    assert metrics.recall_at_k(Y3, IDS3, 2) == metrics.recall_at_k(Y, ids, 2)
    assert metrics.ndcg_at_k(Y3, IDS3, 2) == metrics.ndcg_at_k(Y, ids, 2)
    assert metrics.psp_at_k(Y3, IDS3, 2, p) == metrics.psp_at_k(Y, ids, 2, p)
    assert metrics.precision_at_k(Y3[2:], IDS3[2:], 2) == 0


def test_stored_zeros_and_repeated_entries_add_no_labels():
    Y = sp.csr_array((np.array([0.0, 1, 1]), np.array([0, 1, 1]), np.array([0, 3])), shape=(1, 3))
    assert metrics.precision_at_k(Y, np.array([[0, 1]]), 2) == 0.5
    assert metrics.recall_at_k(Y, np.array([[0, 1]]), 2) == 1
    assert Y.nnz == 3


def test_psp_with_constant_propensities_is_precision_over_the_best_precision():
    rng = np.random.default_rng(1)
    Y = (rng.random((50, 8)) < 0.3).astype(np.float32)
    ids = rng.permuted(np.tile(np.arange(8), (50, 1)), axis=1)
    best = np.minimum(Y.sum(axis=1), 3).mean() / 3
    got = metrics.psp_at_k(Y, ids, 3, np.full(8, 0.3))
    assert got == pytest.approx(metrics.precision_at_k(Y, ids, 3) / best)


def test_propensities_follow_the_published_formula():
    Y = np.zeros((100, 3))
    Y[:40, 0] = Y[:1, 1] = 1
    p = metrics.propensities(sp.csr_array(Y), a=0.6, b=2.6)
    C = (np.log(100) - 1) * 3.6**0.6
    np.testing.assert_allclose(1 / p, 1 + C * (np.array([40, 1, 0]) + 2.6) ** -0.6)
    assert p.dtype == np.float64 and np.all(np.diff(p) < 0)
    np.testing.assert_array_equal(metrics.propensities(Y), metrics.propensities(Y, a=0.55, b=1.5))
    y = np.repeat([0, 1], [60, 40])
    np.testing.assert_array_equal(metrics.propensities(y), metrics.propensities(np.eye(2)[y]))


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 6), st.integers(1, 6))
def test_neighbour_recall_agrees_with_its_reference_implementation(seed, n_rows, n, k):
    rng = np.random.default_rng(seed)
    ids = rng.integers(-1, 10, (n_rows, n))
    true_ids = rng.permuted(np.tile(np.arange(10), (n_rows, 1)), axis=1)[:, :k]
    true_ids[rng.random(true_ids.shape) < 0.2] = -1
    true_ids[0, 0] = 9 if 9 not in true_ids[0] else true_ids[0, 0]
    if (true_ids >= 0).any():
        want = reference.metric_neighbour_recall(ids, true_ids)
        assert metrics.neighbour_recall(ids, true_ids) == pytest.approx(want)


def test_neighbour_recall_by_hand():
    assert metrics.neighbour_recall([[5, 3, -1], [1, 1, 1], [7, 8, 9]],
                                    [[3, 4], [1, -1], [-1, -1]]) == 0.75


@pytest.mark.parametrize("Y, ids, k, exception, says", [
    (Y3, IDS3, 0, ValueError, "k must be at least 1, got 0"),
    (Y3, IDS3, 4, ValueError, "k=4 exceeds the 3 columns of ids; lower k"),
    (Y3, IDS3, 1.0, TypeError, "k must be an integer, got 1.0"),
    (Y3, IDS3, True, TypeError, "k must be an integer, got True"),
    (Y3, IDS3[:2], 1, ValueError, r"ids has shape \(2, 3\); give \(3, k\)"),
    (Y3, IDS3[0], 1, ValueError, r"ids has shape \(3,\)"),
    (Y3, IDS3.astype(float), 1, TypeError, "ids has dtype float64; give integer ids"),
    (Y3, IDS3 + 1, 3, ValueError, "ids holds 4, but Y_true has 4 labels"),
    (Y3, IDS3 - 1, 3, ValueError, "ids holds the id -2"),
    (Y3, np.array([[0, 1], [2, 2], [0, 1]]), 2, ValueError, "ids holds 2 twice in row 1"),
    (Y3[:0], IDS3[:0], 1, ValueError, "Y_true has no rows"),
    (np.array([0, -1, 2]), IDS3, 1, ValueError, "Y_true holds the class id -1"),
    (np.array([0.0, 1.0, 2.0]), IDS3, 1, TypeError, "Y_true has dtype float64"),
    (np.array(["a", "b", "c"]), IDS3, 1, TypeError, "Y_true has dtype <U1"),
    (np.zeros((3, 1, 1)), IDS3, 1, ValueError, r"Y_true has shape \(3, 1, 1\)"),
    (np.where(np.eye(3, 4), np.nan, 0), IDS3, 1, ValueError, "Y_true holds NaN; give 0 or 1"),
    (sp.csr_array(np.where(np.eye(3, 4), np.nan, 0)), IDS3, 1, ValueError, "Y_true holds NaN"),
    (np.ma.masked_array(np.eye(3, 4), mask=np.eye(3, 4)), IDS3, 1, ValueError,
     "Y_true is masked at 3 entries"),
    (sp.csr_array(np.eye(3, 4) * 1j), IDS3, 1, TypeError, "Y_true has dtype complex128"),
    ([[1], [1, 2], [3]], IDS3, 1, ValueError, "Y_true must be a rectangular array"),
    (Y3, [[0], [1, 2], [3]], 1, ValueError, "ids must be a rectangular array"),
    (Y3, np.ma.masked_array(IDS3, mask=IDS3 == 1), 1, ValueError, "ids is masked at"),
    (Y3, IDS3.astype(np.uint64) - np.uint64(1), 1, ValueError, "ids holds the id 18446744073709"),
])
@pytest.mark.parametrize("name", [*LABEL_METRICS, "psp_at_k"])
def test_bad_arguments_are_refused(name, Y, ids, k, exception, says):
    extra = (np.ones(4),) if name == "psp_at_k" else ()
    with pytest.raises(exception, match=says):
        getattr(metrics, name)(Y, ids, k, *extra)


@pytest.mark.parametrize("name", ["recall_at_k", "ndcg_at_k", "psp_at_k"])
def test_targets_without_any_label_are_refused(name):
    extra = (np.ones(4),) if name == "psp_at_k" else ()
    with pytest.raises(ValueError, match="Y_true has no labels in any row"):
        getattr(metrics, name)(Y3[2:], IDS3[2:], 1, *extra)


@pytest.mark.parametrize("p, says", [
    (np.ones(3), r"propensities has shape \(3,\); give one for each of the 4 labels"),
    (np.ones(5), r"propensities has shape \(5,\)"),
    (np.ones((4, 1)), r"propensities has shape \(4, 1\)"),
    (np.array([1, 1, 0, 1]), r"propensities holds values outside \(0, 1\]"),
    (np.array([1, 1, np.nan, 1]), "outside"),
    (np.array([1, 1, 2, 1]), "outside"),
])
def test_bad_propensities_are_refused(p, says):
    with pytest.raises(ValueError, match=says):
        metrics.psp_at_k(Y3, IDS3, 1, p)


@pytest.mark.parametrize("Y, arguments, says", [
    (np.eye(2), {}, "Y_train has 2 rows"),
    (np.eye(3), {"a": 0}, "a must be above 0, got 0"),
    (np.eye(3), {"b": np.nan}, "b must be above 0, got nan"),
    (np.eye(3), {"b": -1.5}, "b must be above 0, got -1.5"),
])
def test_bad_arguments_of_propensities_are_refused(Y, arguments, says):
    with pytest.raises(ValueError, match=says):
        metrics.propensities(Y, **arguments)


@pytest.mark.parametrize("ids, true_ids, exception, says", [
    (np.ones((2, 3), int), np.ones((3, 1), int), ValueError,
     r"ids has shape \(2, 3\); give \(3, k\)"),
    (np.ones((2, 3), int), np.ones(2, int), ValueError, r"true_ids has shape \(2,\)"),
    (np.ones((2, 3)), np.ones((2, 1), int), TypeError, "ids has dtype float64"),
    (np.ones((2, 3), int), np.ones((2, 2), int), ValueError, "true_ids holds 1 twice in row 0"),
    (np.ones((2, 3), int), -np.ones((2, 2), int), ValueError, "true_ids holds no id"),
    (np.ones((2, 3), int), np.full((2, 1), -2), ValueError, "true_ids holds the id -2"),
    (np.ones((0, 3), int), np.ones((0, 1), int), ValueError, "true_ids holds no id"),
])
def test_bad_arguments_of_neighbour_recall_are_refused(ids, true_ids, exception, says):
    with pytest.raises(exception, match=says):
        metrics.neighbour_recall(ids, true_ids)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.uint64, np.float16,
                                   np.float32, np.float64, np.longdouble])
def test_metrics_are_the_same_for_any_dtype(dtype):
    Y = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1]])
    p = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(metrics.calibration_curve(Y, p.astype(dtype), n_bins=2),
                                  [[0, 1], [0, 2 / 3], [0, 3]])
    for metric in (metrics.brier_score, metrics.log_loss, metrics.expected_calibration_error):
        assert metric(Y.astype(dtype), p.astype(dtype)) == metric(Y, p.astype(float))
    assert metrics.precision_at_k(Y.astype(dtype), [[0], [0], [2]], 1) == 2 / 3


def test_sparse_probabilities_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"probabilities is a sparse matrix.*probabilities\.toarr"):
        metrics.brier_score(np.eye(2), sp.csr_array(np.eye(2)))
