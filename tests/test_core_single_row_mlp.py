"""A single row through the layers of a network, and the check of a row, against NumPy."""
import numpy as np
import pytest
import scipy.sparse as sp
from support import gaussian, read_only, unwritten

import sparselsh as sl
from sparselsh._arrays.bfloat16 import to_float32
from sparselsh._core import _checks, _single_row_mlp
from sparselsh.index import STORAGES, QuantizedRows


def layers_of(rng, storage, sizes):
    """Layers that are alternately input-major and not, and what NumPy computes for an input."""
    steps, meant = [], []
    for i, (n_in, n_out) in enumerate(sizes):
        input_major, relu = i % 2 == 0, i < len(sizes) - 1
        rows = QuantizedRows.of(gaussian(rng, *((n_in, n_out) if input_major else (n_out, n_in))),
                                storage, 1)
        bias = gaussian(rng, n_out)
        values = (to_float32(rows.values) if storage == "bfloat16" else rows.values).astype(float)
        values = values if rows.scales is None else values * rows.scales[:, None]
        meant.append((values if input_major else values.T, bias, relu))
        steps.append((rows.values, rows.scales, bias, input_major, relu))

    def outputs(x):
        for w, bias, relu in meant:
            x = x @ w + bias
            x = np.maximum(x, 0) if relu else x
        return x

    return _single_row_mlp.prepare(steps, None, None, None), outputs


def answer(top_k, mlp, k, *given):
    ids, scores = unwritten((1, k), np.int32), unwritten((1, k), np.float32)
    top_k(mlp, *given, ids, scores)
    return ids[0], scores[0]


@pytest.mark.usefixtures("simd_level")
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("sizes", [[(1, 1)], [(33, 7)], [(20, 65), (65, 19)],
                                   [(5, 40), (40, 3), (3, 21)]], ids=str)
def test_the_network_is_its_layers_one_after_the_other(rng, storage, sizes):
    mlp, outputs = layers_of(rng, storage, sizes)
    x = np.array(gaussian(rng, 1, sizes[0][0]))
    x[0, 1::3] = 0
    z = outputs(x[0].astype(float))
    k = min(4, len(z))
    best = np.argsort(-z)[:k]  # random numbers: no ties
    (row,) = np.nonzero(x[0])
    sparse = read_only(row.astype(np.int32)), read_only(x[0, row])
    for ids, scores in (answer(_single_row_mlp.top_k, mlp, k, read_only(x)),
                        answer(_single_row_mlp.top_k_sparse, mlp, k, *sparse)):
        np.testing.assert_array_equal(ids, best)
        # sums of 65 products of numbers below some tens, three times over, with 24 bits
        np.testing.assert_allclose(scores, z[best], rtol=1e-4, atol=1e-3)


def test_fewer_outputs_than_k_are_filled_up(rng):
    mlp, outputs = layers_of(rng, "float32", [(4, 3)])
    empty_row = np.zeros(0, np.int32), np.zeros(0, np.float32)
    ids, scores = answer(_single_row_mlp.top_k_sparse, mlp, 5, *empty_row)
    assert sorted(ids[:3]) == [0, 1, 2] and list(ids[3:]) == [-1, -1]
    np.testing.assert_allclose(scores[:3], np.sort(outputs(np.zeros(4)))[::-1])
    assert np.isneginf(scores[3:]).all()


@pytest.mark.parametrize("by_feature", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_classifiers_rank_the_best_outputs_again(rng, by_feature, normalized):
    layers = [(gaussian(rng, 20, 9), None, gaussian(rng, 9), True, False),
              (gaussian(rng, 30, 9), None, gaussian(rng, 30), False, False)]
    w = sp.random_array((30, 20), density=0.3, rng=rng, dtype=np.float32, format="csr")
    bias, n_candidates, scale = gaussian(rng, 30), 12, 2.0
    stored = w.T.tocsr() if by_feature else w
    arrays = stored.indptr.astype(np.int64), stored.indices.astype(np.int32), stored.data
    work = np.zeros((1, 30 if by_feature else 20), np.float32)
    mlp = _single_row_mlp.prepare(layers, None, (*read_only(*arrays), bias, scale, by_feature,
                                                 normalized, work, n_candidates), None)
    for k in (1, 5, 12):
        x = np.zeros(20)
        x[rng.permutation(20)[:4]] = gaussian(rng, 4)
        (row,) = np.nonzero(x)
        z = ((x @ layers[0][0] + layers[0][2]) @ layers[1][0].T + layers[1][2]).astype(float)
        found = np.argsort(-z)[:n_candidates]
        scores = z[found] + scale * (w @ x + bias)[found]
        if normalized:
            scores -= np.log(np.exp(z[found]).sum())
        order = np.argsort(-scores)[:k]
        ids, values = answer(_single_row_mlp.top_k_sparse, mlp, k,
                             *read_only(row.astype(np.int32), x[row].astype(np.float32)))
        np.testing.assert_array_equal(ids, found[order])
        np.testing.assert_allclose(values, scores[order], rtol=1e-4, atol=1e-4)  # as above
        assert not work.any()


@pytest.mark.usefixtures("simd_level")
@pytest.mark.parametrize("text", ["red apple pie", "A fast, red car", "none of these", "",
                                  "naïve 日本"])
def test_a_text_is_answered_as_its_row(rng, text):
    texts = ["red apple pie", "fast red car", "naïve 日本"]
    vectorizer = sl.TextVectorizer(min_df=1).fit(texts)
    mlp, _ = layers_of(rng, "float32", [(vectorizer.n_columns, 8), (8, 30)])
    names = [f"name {j}" for j in range(30)]
    x = vectorizer.rows([text])
    ids, scores = answer(_single_row_mlp.top_k_sparse, mlp, 6, x.indices, x.data)
    plan, blob = vectorizer.as_kernels_take(text)
    found = _single_row_mlp.top_k_text(mlp, plan, blob, names, 6, -np.inf)
    assert found == [(names[j], float(score)) for j, score in zip(ids, scores, strict=True)]
    least = found[2][1]
    assert _single_row_mlp.top_k_text(mlp, plan, blob, names, 6, least) == found[:3]


def test_a_text_that_leaves_outputs_out_names_no_more(rng):
    vectorizer = sl.TextVectorizer(min_df=1).fit(["red apple"])
    mlp, _ = layers_of(rng, "float32", [(vectorizer.n_columns, 3)])
    given = vectorizer.as_kernels_take("apple")
    found = _single_row_mlp.top_k_text(mlp, *given, ["a", "b", "c"], 5, -np.inf)
    assert sorted(name for name, _ in found) == ["a", "b", "c"]


GOOD = [0, 3], [1, 4, 9], [1.0, -2.0, 0.0]


@pytest.mark.parametrize("indptr, indices, data, is_one", [
    (*GOOD, True),
    ([0, 0], [], [], True),
    ([0, 2], [0, 9], [1, 1], True),
    ([0, 2], *GOOD[1:], False),  # more entries than the row has
    ([1, 3], *GOOD[1:], False),
    ([0, 1, 3], *GOOD[1:], True),  # two rows
    ([0, 1, 3], [4, 1, 9], GOOD[2], True),
    ([0, 2, 3], [1, 4, 10], GOOD[2], False),
    ([0, 2, 3], [4, 1, 9], GOOD[2], False),
    ([0, 2, 1, 3], *GOOD[1:], False),
    ([0, 9, 3], *GOOD[1:], False),
    ([0], [], [], True),
    ([], [], [], False),
    (GOOD[0], [1, 4, 10], GOOD[2], False),
    (GOOD[0], [-1, 4, 9], GOOD[2], False),
    (GOOD[0], [4, 1, 9], GOOD[2], False),
    (GOOD[0], [1, 1, 9], GOOD[2], False),
    (GOOD[0], GOOD[1], [1, 2], False),
    (GOOD[0], GOOD[1], [1, np.nan, 2], False),
    (GOOD[0], GOOD[1], [1, 2, -np.inf], False),
    (GOOD[0], GOOD[1], [3e38, 3e38, 3e38], True),  # finite, though their sum is not
])
def test_rows_have_ids_in_order_and_finite_values(indptr, indices, data, is_one):
    arrays = np.array(indptr, np.int32), np.array(indices, np.int32), np.array(data, np.float32)
    assert _checks.are_rows(*read_only(*arrays), 10) is is_one
