"""Transforms of the vectors that keep the ranking by inner product and make the angles small.

A neuron (w, bias) and an input x become v = A ((w, bias) - c) and q = B (x, 1) with A B = 1. Then
<v, q> = w.x + bias - <c, (x, 1)>: for one input, all inner products shift by the same amount.

Centring (c is the mean neuron) removes what all neurons have in common, which would otherwise give
all of them similar codes. Scaling (A = S^(p/2), B = S^(-p/2), S is the second moment of the inputs)
shortens queries in the directions that most inputs share, relative to the directions in which
inputs differ.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from .._arrays import bfloat16
from .._arrays.linalg import matmul
from .._arrays.portable import double_matmul, eigh, row_products
from .._core import _typed_arrays

if TYPE_CHECKING:
    from .._arrays.types import Floats, Ids

ROWS_PER_BLOCK = 512  # that are summed in float32
MOMENT_SHRINKAGE = 0.3  # of its mean eigenvalue, added to the second moment of the inputs
SCALE_SAMPLE = 4096  # neurons whose largest weight decides whether vectors are scaled
UNSCALED = 1e-12, 1e12  # largest weights for which squares in float32 neither vanish nor overflow
MAX_QUERY_EXPONENT = 40  # of the largest number of a query, as a power of two: squares are added


class Transform:
    """Centring and query-aware scaling.

    Parameters
    ----------
    center : bool
        Subtract the mean neuron, bias included.
    scaling : float
        p above; 0 for none.
    """

    def __init__(self, center: bool = True, scaling: float = 0.5) -> None:
        self.center = center
        self.scaling = scaling
        self.scale_ = 1.0

    def fit(self, W: Floats, bias: Floats, moment: Floats | None = None, n_threads: int = 1,
            neurons: NeuronSums | None = None) -> Self:
        """Take the mean neuron from (W, bias) and the scaling from `moment`.

        `moment` is S, (n_in + 1, n_in + 1) float32, or None for no scaling; `neurons` are the sums
        of more neurons than those of W, or None.
        """
        n_in = W.shape[1]
        if neurons is None:
            neurons = NeuronSums.of(W, bias, n_threads, self.center)
        self.scale_ = vector_scale(neurons.largest)
        self.offset_ = np.zeros(n_in + 1, np.float32)
        if self.center and neurons.n:
            self.offset_[:n_in] = neurons.total[:n_in] / neurons.n
            self.offset_[n_in] = neurons.total[n_in] / neurons.n

        self.neuron_map_ = self.query_map_ = None
        if moment is not None and self.scaling:
            values, vectors = eigh(moment.astype(np.float64))
            # bounds the scale of directions that hardly occur in the sample: without it, inputs
            # that are unlike the sample are estimated worse
            values = np.maximum(values, 0) / max(values.mean(), 1e-300) + MOMENT_SHRINKAGE
            root = values ** (self.scaling / 2)
            self.neuron_map_ = double_matmul(vectors * root, vectors.T).astype(np.float32)
            self.query_map_ = double_matmul(vectors / root, vectors.T).astype(np.float32)
        return self

    @classmethod
    def restored(cls, center: bool, scaling: float, scale: float, n_in: int,
                 tensors: dict[str, np.ndarray]) -> Self:
        """The transform of a file, checked."""
        transform = cls(center, scaling)
        transform.scale_ = scale
        square = (n_in + 1,) * 2
        for name, shape in (("offset", (n_in + 1,)), ("neuron_map", square),
                            ("query_map", square)):
            array = tensors.get(name)
            if array is not None and (array.dtype != np.float32 or array.shape != shape):
                raise ValueError(f"{name} must be float32 of shape {shape}, "
                                 f"got {array.dtype} {array.shape}")
            if array is not None and not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite")
            setattr(transform, name + "_", array)

        has_one_map = (transform.neuron_map_ is None) != (transform.query_map_ is None)
        if transform.offset_ is None or has_one_map:
            raise ValueError("its transform is incomplete")
        return transform

    def neurons(self, W: Floats, bias: Floats, n_threads: int, rows: Ids | None = None) -> Floats:
        """v for the given rows of W, or for all: (n, n_in + 1), float32.

        W is float32, or bfloat16 as uint16.
        """
        rows = np.arange(len(W), dtype=np.int32) if rows is None else rows
        V = np.empty((len(rows), W.shape[1] + 1), np.float32)
        _typed_arrays.centred_rows(W, bias, self.offset_, rows, V, n_threads)
        if self.scale_ != 1:
            V *= np.float32(self.scale_)
        return V if self.neuron_map_ is None else matmul(V, self.neuron_map_, n_threads)

    def directions(self, W: Floats, bias: Floats, n_threads: int,
                   rows: Ids) -> tuple[Floats, Floats, Floats]:
        """The given rows of W for sketches, which know the bias: V, (n, n_in + 1), and two (n,).

        V is `neurons` for neurons without a bias. Then <v, B (x, 0)> = w.x - <c, (x, 0)>. The
        vectors are the biases less that of the mean neuron, and the squared lengths of w - c.
        """
        V = np.empty((len(rows), W.shape[1] + 1), np.float32)
        _typed_arrays.centred_rows(W, bias, self.offset_, rows, V, n_threads)
        if self.scale_ != 1:
            V *= np.float32(self.scale_)
        biases = V[:, -1].copy()
        V[:, -1] = 0
        squares = row_products(V, V)
        if self.neuron_map_ is not None:
            V = matmul(V, self.neuron_map_, n_threads)
        return V, biases, squares

    def queries(self, X: Floats, n_threads: int) -> Floats:
        """q for each row of X: (n, n_in + 1), float32."""
        if self.query_map_ is None:
            Q = np.empty((len(X), X.shape[1] + 1), np.float32)
            Q[:, :-1] = X
            Q[:, -1] = 1
            return Q
        return matmul(X, self.query_map_[:-1], n_threads, bias=self.query_map_[-1])


class NeuronSums(NamedTuple):
    """What a transform reads of all neurons; sums of parts of them can be joined.

    Attributes
    ----------
    n : int
        Number of neurons.
    total : ndarray of shape (n_in + 1,), float64
        Sum of the neurons, bias included.
    largest : float
        The largest absolute weight of a sample.
    """

    n: int
    total: np.ndarray
    largest: float

    @classmethod
    def of(cls, W: np.ndarray, bias: Floats, n_threads: int, with_total: bool = True) -> Self:
        """The sums of the rows of W, float32, or bfloat16 as uint16."""
        total = np.zeros(W.shape[1] + 1)
        if with_total:
            total[:-1] = row_sums(W, n_threads)
            total[-1] = bias.sum(dtype=np.float64)
        return cls(len(W), total, largest_weight(W, bias))

    def joined(self, other: Self) -> Self:
        """The sums of the neurons of both."""
        return type(self)(self.n + other.n, self.total + other.total,
                          max(self.largest, other.largest))


def row_sums(W: np.ndarray, n_threads: int) -> Any:
    """The sum of the rows of W, float32, or bfloat16 as uint16: (n_in,), float64.

    Rows are summed in float32 within blocks, and the blocks in float64, to limit the rounding.
    """
    sums = np.empty((-(-len(W) // ROWS_PER_BLOCK), W.shape[1]), np.float32)
    _typed_arrays.block_sums(W, ROWS_PER_BLOCK, sums, n_threads)
    with np.errstate(invalid="ignore"):  # of infinite sums of both signs
        total = sums.sum(axis=0, dtype=np.float64)
    if not np.isfinite(total).all():  # a block of very large weights
        total = bfloat16.as_float32(W).sum(axis=0, dtype=np.float64)
    return total


def largest_weight(W: np.ndarray, bias: Floats) -> float:
    """The largest absolute weight of a sample of the neurons, or bias of all."""
    sample = bfloat16.as_float32(W[::max(1, len(W) // SCALE_SAMPLE)])
    return max(float(sample.max(initial=0)), -float(sample.min(initial=0)),
               float(bias.max(initial=0)), -float(bias.min(initial=0)))


def vector_scale(largest: float) -> float:
    """The power of two by which neurons are multiplied before they are sketched.

    It is 1 unless their weights are so large or so small that squares of them would overflow or
    vanish in float32.
    """
    if largest == 0 or UNSCALED[0] <= largest <= UNSCALED[1]:
        return 1.0
    return float(np.ldexp(1.0, -int(np.frexp(largest)[1])))


def second_moment(X: Floats, n_threads: int) -> Floats:
    """The mean of (x, 1) (x, 1)^T over the rows of X: (n_in + 1, n_in + 1), float32.

    Times a power of four where squares may overflow: a scaling depends on ratios alone.
    """
    n, n_in = X.shape
    largest = max(float(X.max()), -float(X.min())) if X.size else 0.0
    factor = np.float32(2.0 ** min(MAX_QUERY_EXPONENT - int(np.frexp(largest)[1]), 0))
    if factor != 1:
        X = X * factor
    S = np.empty((n_in + 1, n_in + 1), np.float32)
    S[:-1, :-1] = matmul(X, X, n_threads, transpose_a=True)
    S[-1, :-1] = S[:-1, -1] = X.sum(axis=0) * factor
    S[-1, -1] = n * factor * factor
    S /= max(n, 1)
    return S


def simple_lsh_neurons(W: Floats, *, largest_norm: float | None = None) -> Floats:
    """Neurons on the unit sphere, where the cosine ranks them as the inner product does.

    A neuron w becomes (w / M, sqrt(1 - |w / M|^2)) with M the largest norm, a query x becomes
    (x / |x|, 0) (:func:`simple_lsh_queries`): both have length one, and their inner product is
    <w, x> / (M |x|). A hash for the angle, such as `SimHash`, then finds neurons by inner product.

    Parameters
    ----------
    W : ndarray of shape (n, n_in), float32
        Append the bias as a column, and 1 to the queries, to rank by w.x + bias.
    largest_norm : float or None
        M, for neurons that are passed in parts; None for the largest norm in W. Longer neurons are
        shortened to it.

    Returns
    -------
    ndarray of shape (n, n_in + 1), float32

    Notes
    -----
    With SimHash on top, a neuron with <w, x> = S M |x| agrees with the query in a bit with
    probability 1 - arccos(S) / pi, exactly. For a threshold S in (0, 1) and 0 < c < 1 the hash is
    therefore (S, cS, p1, p2)-sensitive with p1 = 1 - arccos(S) / pi and p2 = 1 - arccos(cS) / pi,
    and a search over n neurons takes O(n^rho log n) with

        rho = log(1 - arccos(S) / pi) / log(1 - arccos(c S) / pi) < 1.

    One hash serves all S and c. Its weakness is a single very long neuron: it makes S small for all
    others, whose last coordinate is then near one and whose angles to a query are all near a right
    angle.

    References
    ----------
    Neyshabur and Srebro, "On symmetric and asymmetric LSHs for inner product search", ICML 2015,
    arXiv 1410.5518: the hash that is called SIMPLE-LSH there.
    """
    norms = np.sqrt(row_products(W, W, dtype=np.float64))
    longest = norms.max(initial=0) if largest_norm is None else largest_norm
    out = np.zeros((len(W), W.shape[1] + 1), np.float32)
    if longest > 0:
        out[:, :-1] = W / np.maximum(norms, longest)[:, None]
        out[:, -1] = np.sqrt(1 - np.minimum(norms / longest, 1) ** 2)
    else:
        out[:, -1] = 1
    return out


def simple_lsh_queries(X: Floats) -> Floats:
    """Queries for :func:`simple_lsh_neurons`: scaled to length one, with a zero appended.

    A zero query stays zero.

    Parameters
    ----------
    X : ndarray of shape (n, n_in), float32

    Returns
    -------
    ndarray of shape (n, n_in + 1), float32
    """
    norms = np.sqrt(row_products(X, X, dtype=np.float64))
    out = np.zeros((len(X), X.shape[1] + 1), np.float32)
    np.divide(X, norms[:, None], out=out[:, :-1], where=norms[:, None] > 0, casting="same_kind")
    return out
