"""Views of bytes that begin anywhere are taken everywhere, and kernels read copies."""
import struct

import numpy as np
import pytest
import scipy.sparse as sp

import sparselsh as sl
from sparselsh import _validation as check


def anywhere(array):
    """A view that does not begin at a multiple of the size of a number."""
    array = np.ascontiguousarray(array)
    view = np.frombuffer(b"x" + array.tobytes(), array.dtype, array.size, 1).reshape(array.shape)
    assert not view.flags.aligned
    return view


def rows_anywhere(matrix):
    out = matrix.copy()
    out.data, out.indices, out.indptr = map(anywhere, (matrix.data, matrix.indices, matrix.indptr))
    return out


def sparse(rng, n, m):
    return sp.random_array((n, m), density=0.2, format="csr", dtype=np.float32, rng=rng)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("n", [1, 20])
def test_checked_arrays_are_aligned(rng, dtype, n):
    dense = (8 * rng.standard_normal((n, 30))).astype(dtype)
    rows = sparse(rng, n, 30).astype(dtype)
    checked = [check.dense(anywhere(dense), "X", n_columns=30),
               check.vector(anywhere(dense[0]), "v", 30),
               check.ids(anywhere(np.arange(5, dtype=np.int32)), "ids", 9),
               *check.sparse(rows_anywhere(rows), "X", n_columns=30)[:3]]
    assert all(array.flags.aligned for array in checked)
    np.testing.assert_array_equal(checked[0], dense.astype(np.float32))
    np.testing.assert_array_equal(checked[-1], rows.data.astype(np.float32))


@pytest.mark.parametrize("n", [1, 60])
def test_answers_are_those_of_aligned_arrays(rng, n):
    X, Y = sparse(rng, 60, 40), np.arange(60) % 12
    net = sl.Network([sl.Linear(40, 8), sl.LSHLinear(8, 12)], random_state=0)
    net.fit(rows_anywhere(X), anywhere(Y), epochs=1, verbose=False)
    same = sl.Network([sl.Linear(40, 8), sl.LSHLinear(8, 12)], random_state=0)
    same.fit(X, Y, epochs=1, verbose=False)
    np.testing.assert_array_equal(net.topk(rows_anywhere(X[:n]), 3)[1], same.topk(X[:n], 3)[1])
    W, H = (rng.standard_normal((m, 16)).astype(np.float32) for m in (900, n))
    index = sl.LSHIndex(random_state=0).fit(anywhere(W), queries=anywhere(H))
    same = sl.LSHIndex(random_state=0).fit(W, queries=H)
    np.testing.assert_array_equal(index.search(anywhere(H), 5)[0], same.search(H, 5)[0])


def test_matrices_of_fasttext_begin_anywhere(rng, tmp_path):
    from sparselsh.inference.readers.fasttext import read_fasttext

    values = rng.standard_normal((4, 3)).astype(np.float32)
    out = rng.standard_normal((2, 3)).astype(np.float32)
    for name in (b"a", b"ab", b"abc"):
        words = [b"</s>", name, b"c", b"d"]
        entries = [struct.pack("<qb", 1, 0)] * 4 + [struct.pack("<qb", 1, 1)] * 2
        names = [*words, b"__label__x", b"__label__y"]
        content = struct.pack("<ii", 793712314, 12)
        content += struct.pack("<12id", 3, 5, 5, 1, 5, 1, 3, 3, 0, 0, 0, 100, 1e-4)
        content += struct.pack("<iiiqq", 6, 4, 2, 6, -1)
        content += b"".join(n + b"\0" + e for n, e in zip(names, entries, strict=True))
        for matrix in (values, out):
            content += struct.pack("<?qq", False, *matrix.shape) + matrix.tobytes()
        (tmp_path / "model.bin").write_bytes(content)
        model = read_fasttext(tmp_path / "model.bin")
        assert all(layer.weight.flags.aligned for layer in model.layers)
        np.testing.assert_array_equal(model.layers[1].weight, out)
