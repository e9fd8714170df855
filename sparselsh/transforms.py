"""Changes of the vectors that leave the ranking by inner product alone and make the angles small.

A neuron (w, bias) and an input x become v = A ((w, bias) - c) and q = B (x, 1) with A B = 1. Then
<v, q> = w.x + bias - <c, (x, 1)>: for one input all neurons shift alike.

Centring (c, the mean neuron) takes away what all neurons share, which otherwise makes every neuron look
alike to a hash. Scaling (A = S^(p/2), B = S^(-p/2), S the second moment of the inputs) takes length from the
directions that most inputs share and gives it to those that tell them apart.
"""
import numpy as np

from ._linalg import matmul


class Transform:
    """Centring and query-aware scaling.

    Parameters
    ----------
    center : bool
        Subtract the mean neuron, bias included.
    scaling : float
        p above; 0 for none.
    """

    def __init__(self, center=True, scaling=0.5):
        self.center = center
        self.scaling = scaling

    def fit(self, W, bias, moment=None):
        """Take the mean neuron from (W, bias) and the scaling from `moment`, S of shape (n_in + 1, n_in + 1)."""
        n_in = W.shape[1]
        self.offset_ = np.zeros(n_in + 1, np.float32)
        if self.center and len(W):
            self.offset_[:n_in] = W.mean(axis=0, dtype=np.float64 if len(W) < 4096 else np.float32)
            self.offset_[n_in] = bias.mean(dtype=np.float64)
        self.neuron_map_ = self.query_map_ = None
        if moment is not None and self.scaling:
            from scipy.linalg import eigh  # a tenth of a second to import, for those who scale

            values, vectors = eigh(moment.astype(np.float64), driver="evr")  # five times as fast as numpy's
            # directions that the sample hardly has would be blown up without limit
            values = np.maximum(values, max(values[-1], 1e-30) * 1e-6) + values.mean() * 1e-2
            values /= values.mean()
            root = values ** (self.scaling / 2)
            self.neuron_map_ = ((vectors * root) @ vectors.T).astype(np.float32)
            self.query_map_ = ((vectors / root) @ vectors.T).astype(np.float32)
        return self

    def neurons(self, W, bias, n_threads):
        """v for each row of W: (n, n_in + 1), float32."""
        V = np.empty((len(W), W.shape[1] + 1), np.float32)
        np.subtract(W, self.offset_[:-1], out=V[:, :-1])
        np.subtract(bias, self.offset_[-1], out=V[:, -1])
        return V if self.neuron_map_ is None else matmul(V, self.neuron_map_, n_threads)

    def queries(self, X, n_threads):
        """q for each row of X: (n, n_in + 1), float32."""
        if self.query_map_ is None:
            Q = np.empty((len(X), X.shape[1] + 1), np.float32)
            Q[:, :-1] = X
            Q[:, -1] = 1
            return Q
        return matmul(X, self.query_map_[:-1], n_threads, bias=self.query_map_[-1])


def second_moment(X, n_threads):
    """The mean of (x, 1) (x, 1)^T over the rows of X: (n_in + 1, n_in + 1), float32."""
    n, n_in = X.shape
    S = np.empty((n_in + 1, n_in + 1), np.float32)
    S[:-1, :-1] = matmul(X, X, n_threads, transpose_a=True)
    S[-1, :-1] = S[:-1, -1] = X.sum(axis=0)
    S[-1, -1] = n
    S /= max(n, 1)
    return S
