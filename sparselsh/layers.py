"""Layers: parameters, forward and backward.

`forward(x, step)` returns `(output, backprop)`; `backprop(d_output)` returns the gradient of x (or None where
it was not asked for) and the list of (parameter, gradient) pairs. The closure keeps just what it needs.

An output is one of
    ndarray (n, n_out)   every neuron;
    BatchActive          the neurons of one set that the batch shares;
    CSR (n, n_out)       one set a sample.
"""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

import numpy as np

from . import _bfloat, _memory
from . import _validation as check
from ._core import _active, _select, _sparse_products
from ._csr import CSR
from ._gradients import DenseGradient, Groups, Parameter, ProductGradient
from ._html import Shown
from ._linalg import column_sums, matmul, row_chunks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from ._gradients import Pair
    from ._types import Floats, Ids
    from .profiling import Tally

__all__ = ["Linear"]


Backprop: TypeAlias = "Callable[[Floats], tuple[Floats | None, list[Pair]]]"


class Step(NamedTuple):
    """What a forward pass needs to know besides its input."""

    training: bool = False
    labels: CSR | None = None  # the labels of the batch, for the output layer
    seed: int = 0
    need_input_gradient: bool = True
    n_threads: int = 1
    tally: Tally | None = None  # counts what is computed


class BatchActive(NamedTuple):
    """Outputs of one active set that all samples share."""

    ids: np.ndarray  # (n_active,) int32, ascending
    values: np.ndarray  # (n, n_active) float32
    n_out: int


class Linear(Shown):
    """``activation(x W^T + b)``, every neuron computed.

    Parameters
    ----------
    n_in, n_out : int
    activation : None or "relu"
    init_scale : float or None
        Expected norm of the weights of one input at the start. None for 2.5 where the input is sparse (an input of
        unit norm then gives hidden units of a useful size whatever n_in is), for He's variance 2 / n_in
        before a ReLU, 1 / n_in else, where it is dense, and for more after a layer that leaves few outputs: so much
        that the outputs of this layer spread as those of that one did.
    dropout : float
        Share of the outputs that is set to zero in training, the others divided by 1 - dropout; for hidden layers.
        What is dropped depends on the step and the place alone, not on the number of threads.
    dtype : {"float32", "bfloat16"}
        How the weights are stored: bfloat16 takes half the memory, and 8 binary digits of each weight. All arithmetic
        is in float32; what an update stores is rounded up or down at random, without a bias, so that small steps
        add up. The bias is float32.

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 2014, section 10.
    He et al., "Delving deep into rectifiers", 2015, equation 10.

    Attributes
    ----------
    weight : ndarray of shape (n_out, n_in), float32
        A view, or for bfloat16 a copy. Where the input is sparse it is stored input-major, so that a feature reads one
        contiguous row.
    bias : ndarray of shape (n_out,), float32
        A view.
    """

    _w: Parameter
    _b: Parameter
    _slot: Ids | None
    _buffers: dict[str, Floats]

    def __init__(self, n_in: int, n_out: int, *, activation: str | None = None, init_scale: float | None = None,
                 dropout: float = 0.0, dtype: str = "float32") -> None:
        self.n_in = check.integer(n_in, "n_in")
        self.n_out = check.integer(n_out, "n_out")
        self.activation = None if activation is None else check.choice(activation, "activation", ("relu",))
        self.init_scale = None if init_scale is None else check.number(init_scale, "init_scale", minimum=0)
        self.dropout = check.number(dropout, "dropout", minimum=0, below=1)
        self.dtype = check.choice(dtype, "dtype", _bfloat.DTYPES)
        self._w = self._b = None
        self.following: Linear | None = None  # the layer that takes the outputs, in a network
        self._slot = None
        self._buffers = {}

    # -- parameters -------------------------------------------------------------------------------------------

    @property
    def weight(self) -> Floats:
        self._check_initialized()
        value = _bfloat.as_float32(self._w.value)
        return value.T if self._w.flipped else value

    @property
    def bias(self) -> Floats:
        self._check_initialized()
        return self._b.value[:, 0]

    @property
    def initialized(self) -> bool:
        """Whether the layer has weights."""
        return self._w is not None

    @property
    def output_share(self) -> float:
        """Share of the outputs that are computed and may differ from zero before the activation."""
        return 1.0

    def initialize(self, rng: np.random.Generator, sparse_input: bool = False, input_share: float = 1.0) -> None:
        """Draw the weights. `input_share` is the `output_share` of the layer before."""
        if self.init_scale is not None:
            sigma = self.init_scale / math.sqrt(self.n_out)
        elif sparse_input:
            sigma = 2.5 / math.sqrt(self.n_out)
        elif input_share < 1:
            sigma = 1 / math.sqrt(self.n_in * _second_moment_of_best(input_share))
        else:
            sigma = math.sqrt((2 if self.activation == "relu" else 1) / self.n_in)
        shape = (self.n_in, self.n_out) if sparse_input else (self.n_out, self.n_in)
        value = _memory.empty(shape)
        rng.random(out=value, dtype=np.float32)  # uniform: a quarter of the time that normal numbers take
        value -= np.float32(0.5)
        value *= np.float32(sigma * math.sqrt(12))
        self._w = Parameter(self._stored(value), flipped=sparse_input)
        self._b = Parameter(np.zeros((self.n_out, 1), np.float32))

    def take_first_weights(self, value: Floats, rng: np.random.Generator) -> None:
        """Start from these weights, input-major in a layer for sparse inputs and neuron-major in an LSHLinear."""
        self._w = Parameter(self._stored(value), flipped=True)
        self._b = Parameter(np.zeros((self.n_out, 1), np.float32))

    def set_weights(self, weight: ArrayLike, bias: ArrayLike | None = None) -> Self:
        """Take weights of shape (n_out, n_in) and a bias of shape (n_out,), as copies in the layer's dtype."""
        weight = check.dense(weight, "weight", n_columns=self.n_in, n_rows=self.n_out)
        bias = np.zeros(self.n_out, np.float32) if bias is None else check.vector(bias, "bias", self.n_out)
        self._w = Parameter(self._stored(weight, copy=True))
        self._b = Parameter(np.array(bias)[:, None])
        return self

    def _stored(self, value: Floats, copy: bool = False) -> np.ndarray:
        return _bfloat.narrow(value) if self.dtype == "bfloat16" else _memory.on_a_line(value, copy)

    def _check_initialized(self) -> None:
        if self._w is None:
            raise ValueError(f"{self!r} has no weights yet; make it part of a Network and fit, or call set_weights")

    # -- forward ----------------------------------------------------------------------------------------------

    def forward(self, x: Floats | CSR, step: Step) -> tuple[Any, Backprop]:
        """The outputs of all neurons, (n, n_out)."""
        out, backprop = self._forward_sparse(x, step) if isinstance(x, CSR) else self._forward_dense(x, step)
        drops = step.training and self.dropout
        positive = None
        if self.activation == "relu":
            np.maximum(out, 0, out=out)
            positive = out > 0 if step.training else None  # a loss writes its gradient over the outputs
        if drops:
            _active.drop_dense(out, step.seed, self.dropout, step.n_threads)
        if positive is None and not drops:
            return out, backprop

        def backprop_activation(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            if drops:
                _active.drop_dense(d_out, step.seed, self.dropout, step.n_threads)
            if positive is not None:
                d_out *= positive
            return backprop(d_out)

        return out, backprop_activation

    def _forward_dense(self, x: Floats, step: Step) -> tuple[Any, Backprop]:
        out = self._buffer("out", (len(x), self.n_out))
        w, flipped, n_threads = self._w.value, self._w.flipped, step.n_threads
        matmul(x, w, n_threads, transpose_b=not flipped, bias=self.bias, out=out)
        if step.tally is not None:
            step.tally.products(len(x) * w.size, w.size, w.size, step)

        def backprop(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            left, right = (x, d_out) if flipped else (d_out, x)
            dw = matmul(left, right, n_threads, transpose_a=True, out=self._buffer("dw", w.shape))
            dx = matmul(d_out, w, n_threads, transpose_b=flipped) if step.need_input_gradient else None
            return dx, [(self._w, DenseGradient(dw)), (self._b, DenseGradient(column_sums(d_out, n_threads)))]

        return out, backprop

    def _forward_sparse(self, x: CSR, step: Step) -> tuple[Any, Backprop]:
        if not self._w.flipped:
            self._w.flip()
        out = self._buffer("out", (x.shape[0], self.n_out))
        _sparse_products.weighted_rows(x.indptr, x.indices, x.data, self._w.value, self.bias, out, step.n_threads)
        if step.tally is not None:
            step.tally.products(x.nnz * self.n_out, x.nnz * self.n_out, len(np.unique(x.indices)) * self.n_out, step)

        def backprop(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            groups = self._group(x, step.n_threads)
            dx = None
            if step.need_input_gradient:
                # dX at the entries of X: the dot products of d_out with the input-major rows
                dx = np.empty(x.nnz, np.float32)
                no_bias = np.zeros(self.n_in, np.float32)
                _sparse_products.sampled_dots(*groups, d_out, self._w.value, no_bias, dx, step.n_threads)
            return dx, [(self._w, ProductGradient(groups, x.data, d_out, x_is_gradient=True)),
                        (self._b, DenseGradient(column_sums(d_out, step.n_threads)))]

        return out, backprop

    def _group(self, s: CSR, n_threads: int) -> Groups:
        """The transpose of a sparse matrix whose columns are rows of the stored weights."""
        n_columns = len(self._w.value)
        if self._slot is None or len(self._slot) != n_columns:
            self._slot = np.full(n_columns, -1, np.int32)
        return Groups.of(s, self._slot, n_threads)

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Floats:
        """Memory that is used again at the next step: large new arrays would be paid for page by page."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = _memory.empty((size + size // 8,))
        return self._buffers[name][:size].reshape(shape)

    # -- the network's other calls ----------------------------------------------------------------------------

    def updated(self, pairs: list[Pair]) -> None:
        """Called after an optimizer step with this layer's (parameter, gradient) pairs."""

    def prepare(self, step_number: int, epoch: int = 0) -> None:
        """Called before a training step, with the steps and whole epochs trained so far."""

    def plan_report(self) -> tuple[str, str]:
        """The plan in use, and why, in words; for :meth:`Network.profile`."""
        return "dense", ""

    def topk(self, x: Floats | CSR, k: int, *, exact: bool = False, n_threads: int = 1) -> tuple[Ids, Floats]:
        """Ids and scores of the k largest outputs of each row, (n, k) each."""
        ids = np.full((x.shape[0], k), -1, np.int32)
        scores = np.full((x.shape[0], k), -np.inf, np.float32)
        for start, stop in row_chunks(x.shape[0], self.n_out):
            part = x.slice(start, stop) if isinstance(x, CSR) else x[start:stop]
            out, _ = Linear.forward(self, part, Step(n_threads=n_threads))
            _select.top_k(out, None, ids[start:stop], scores[start:stop], n_threads)
        return ids, scores

    def share_computed(self, k: int, *, exact: bool = False) -> float:
        """Share of the neurons that topk computes in full."""
        return 1.0

    def settle(self) -> None:
        """Called before saving: bring what is not saved into the state it has after loading."""

    def index_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What the layer has to find neurons by, as it is: arrays by name, and plain values."""
        return {}, {}

    def restore_index(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        """Take what `index_state` gave, from a file, checked."""

    def copy_weights(self) -> list[np.ndarray]:
        """Copies of the weights as they are stored and the bias."""
        return [self._w.value.copy(), self._b.value.copy()]

    def take_weights(self, weight: np.ndarray, bias: Floats) -> None:
        """Copy what `copy_weights` gave into place, so that an optimizer keeps its state."""
        for parameter, value in ((self._w, weight), (self._b, bias)):
            if value.shape != parameter.value.shape or value.dtype != parameter.value.dtype:
                raise ValueError(f"weights of shape {value.shape} do not fit into {self!r}")
            parameter.value[:] = value
        self.settle()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The layer that `config` describes, without weights."""
        return cls(**config)

    def config(self) -> dict[str, Any]:
        """What makes the layer again but for its weights; plain numbers, strings and dicts."""
        return {"n_in": self.n_in, "n_out": self.n_out, "activation": self.activation,
                "init_scale": self.init_scale, "dropout": self.dropout, "dtype": self.dtype}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_buffers": {}, "_slot": None}  # scratch memory

    def __repr__(self) -> str:
        return f"Linear({self.n_in}, {self.n_out}, activation={self.activation!r})"


def _second_moment_of_best(share: float) -> float:
    """E[z^2; z among the largest `share`] of a standard Gaussian: s + t phi(t), t the quantile at 1 - s."""
    from statistics import NormalDist  # for those who stack sparse layers

    normal = NormalDist()
    t = normal.inv_cdf(1 - min(share, 0.5))  # of an output below zero a ReLU leaves nothing
    return min(share, 0.5) + t * normal.pdf(t)
