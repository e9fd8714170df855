"""Linear: a layer whose neurons are all computed.

`forward(x, step)` returns `(output, backprop)`. `backprop(d_output)` returns the gradient of x, or
None where it is not needed, and the list of (parameter, gradient) pairs. The closure keeps only
what it needs. An output is one of

    ndarray (n_samples, n_out)   every neuron;
    BatchActive                  the neurons of one set that the batch shares;
    CSR (n_samples, n_out)       one set per sample.
"""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _validation as check
from .._arrays import aligned, bfloat16
from .._arrays.csr import CSR
from .._arrays.linalg import Transposed, column_sums, log_sum_exp, matmul, row_chunks
from .._core import _active, _estimates, _select, _sparse_products
from .._display import HtmlRepr
from .._gradients import DenseGradient, Groups, Parameter, ProductGradient
from .._signals import held
from .._threads import Lock, one_at_a_time
from ._step import OUTPUT, Place, Step

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .._arrays.selection import Selection
    from .._arrays.types import Floats, Ids
    from .._gradients import Pair
    from ._step import Backprop
    from ._tally import Tally


class Linear(HtmlRepr):
    """``activation(x W^T + b)``, every neuron computed.

    Parameters
    ----------
    n_in, n_out : int
    activation : None or "relu"
    init_scale : float or None
        Expected norm of the initial weights of one input. None depends on the input. For sparse
        inputs it is 2.5, so that an input of unit norm gives hidden units of a useful size for any
        n_in. For dense inputs the variance is that of He, 2 / n_in, before a ReLU [2]_, and 1 /
        n_in without one. After a layer with few active outputs it is larger, so that the variance
        of the outputs is preserved.
    dropout : float
        Fraction of the outputs of a hidden layer that is set to zero in training; the others are
        divided by 1 - dropout [1]_. What is dropped depends on the step and on the place of the
        output, and not on the number of threads.
    dtype : {"float32", "bfloat16"}
        Dtype of the stored weights. bfloat16 takes half the memory and keeps 8 binary digits of
        each weight. All arithmetic is in float32. Updates use stochastic rounding, which is
        unbiased, so that small steps add up. The bias is float32.

    Attributes
    ----------
    weight : ndarray of shape (n_out, n_in), float32
        A read-only view, or for bfloat16 a copy; `set_weights` changes the weights, and what is
        computed from them. For sparse input the weights are stored input-major, so that a feature
        reads one contiguous row.
    bias : ndarray of shape (n_out,), float32
        A read-only view.

    References
    ----------
    .. [1] Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting",
       JMLR 2014, section 10.
    .. [2] He et al., "Delving deep into rectifiers", 2015, equation 10.
    """

    _w: Parameter
    _b: Parameter

    def __init__(self, n_in: int, n_out: int, *, activation: str | None = None,
                 init_scale: float | None = None, dropout: float = 0.0,
                 dtype: str = "float32") -> None:
        self.n_in = check.integer(n_in, "n_in")
        self.n_out = check.integer(n_out, "n_out")
        if activation is not None:
            activation = check.choice(activation, "activation", ("relu",))
        self.activation = activation
        if init_scale is not None:
            init_scale = check.number(init_scale, "init_scale", minimum=0)
        self.init_scale = init_scale
        self.dropout = check.number(dropout, "dropout", minimum=0, below=1)
        self.dtype = check.choice(dtype, "dtype", bfloat16.DTYPES)
        self.initialized = False
        self._slot: Ids | None = None
        self._buffers: dict[str, Floats] = {}
        self._lock = Lock()

    # -- parameters ---------------------------------------------------------------------------

    @property
    def weight(self) -> Floats:
        self._check_initialized()
        value = bfloat16.as_float32(self._w.value)
        return aligned.read_only(value.T if self._w.input_major else value[:])

    @property
    def bias(self) -> Floats:
        self._check_initialized()
        return aligned.read_only(self._b.value[:, 0])

    @property
    def _bias(self) -> Floats:
        """`bias` for kernels, of which some calls take microseconds: without a check and a flag."""
        return self._b.value[:, 0]

    @property
    def parameters(self) -> tuple[Parameter, Parameter]:
        """Weight and bias as the optimizer trains them."""
        self._check_initialized()
        return self._w, self._b

    def output_fraction(self) -> float:
        """Fraction of the outputs of a hidden layer that may differ from zero before a ReLU."""
        return 1.0

    def initialize(self, rng: np.random.Generator, sparse_input: bool = False,
                   input_fraction: float = 1.0) -> None:
        """Draw the weights. `input_fraction` is the `output_fraction` of the layer before."""
        shape = (self.n_in, self.n_out) if sparse_input else (self.n_out, self.n_in)
        value = aligned.empty(shape)
        self._draw(rng, value, self._first_deviation(sparse_input, input_fraction))
        self._set_parameters(self._stored(value), sparse_input)

    def _first_deviation(self, sparse_input: bool, input_fraction: float) -> float:
        """The standard deviation of the weights that `initialize` draws."""
        if self.init_scale is not None:
            return self.init_scale / math.sqrt(self.n_out)
        if sparse_input:
            return 2.5 / math.sqrt(self.n_out)
        if input_fraction < 1:
            return 1 / math.sqrt(self.n_in * _second_moment_of_best(input_fraction))
        return math.sqrt((2 if self.activation == "relu" else 1) / self.n_in)

    @staticmethod
    def _draw(rng: np.random.Generator, out: Floats, deviation: float) -> None:
        rng.random(out=out, dtype=np.float32)  # uniform: a quarter of the time of normal numbers
        out -= np.float32(0.5)
        out *= np.float32(deviation * math.sqrt(12))

    def first_weights(self, value: Floats) -> np.ndarray:
        """Weights that `take_first_weights` takes, from float32 ones, which may be their memory."""
        return self._stored(value)

    def take_first_weights(self, stored: np.ndarray, rng: np.random.Generator,
                           input_major: bool) -> None:
        """Start from what `first_weights` gave: input-major for a layer of sparse inputs."""
        self._set_parameters(stored, input_major)

    def forget_weights(self) -> None:
        """Return to the state before `initialize`."""
        self.initialized = False
        self._w = self._b = None  # type: ignore[assignment]  # not read until there are new ones
        self.drop_indexes()

    @one_at_a_time
    def set_weights(self, weight: ArrayLike, bias: ArrayLike | None = None) -> Self:
        """Copy weights into the layer, in its dtype.

        Parameters
        ----------
        weight : array of shape (n_out, n_in)
        bias : array of shape (n_out,) or None
            None for zeros.

        Returns
        -------
        Linear
            Itself.

        Raises
        ------
        ValueError
            If a shape does not fit or a value is not finite.
        """
        weight = check.dense(weight, "weight", n_columns=self.n_in, n_rows=self.n_out)
        if bias is not None:
            bias = np.array(check.vector(bias, "bias", self.n_out))
        stored = self._stored(weight, copy=True)
        with held():
            self.drop_indexes()
            self._set_parameters(stored, False, bias)
        return self

    def _set_parameters(self, value: np.ndarray, input_major: bool,
                        bias: Floats | None = None) -> None:
        bias = np.zeros(self.n_out, np.float32) if bias is None else bias
        w, b = Parameter(value, input_major), Parameter(bias[:, None])
        self.__dict__.update(_w=w, _b=b, initialized=True)  # in one instruction, or not at all

    def grown(self, inputs: Floats, weight: Floats, bias: Floats) -> tuple[np.ndarray, Floats]:
        """The weights and the bias with more inputs or neurons, for `take_grown`.

        `inputs`, (n_out, n_new_in), are the weights of the new inputs; `weight`,
        (n_new, n_in + n_new_in), and `bias`, (n_new,), are of the new neurons.
        """
        n_in, n_out = self.n_in + inputs.shape[1], self.n_out + len(weight)
        old, is_input_major = self._w.value, self._w.input_major
        value = np.empty((n_in, n_out) if is_input_major else (n_out, n_in), old.dtype)
        view = value.T if is_input_major else value
        view[:self.n_out, :self.n_in] = old.T if is_input_major else old
        view[:self.n_out, self.n_in:] = self._stored(inputs)
        view[self.n_out:] = self._stored(weight)
        return aligned.aligned(value), np.concatenate([self._bias, bias])

    def take_grown(self, value: np.ndarray, bias: Floats, n_threads: int) -> None:
        """Take what `grown` gave; the parameters stay the same objects."""
        n_in, n_out = value.shape if self._w.input_major else value.shape[::-1]
        self.__dict__.update(n_in=n_in, n_out=n_out, _slot=None, _buffers={})
        self._w.value, self._b.value = value, bias[:, None]

    def is_finite(self) -> bool:
        """Whether all weights are finite."""
        return all(bfloat16.is_finite(parameter.value) for parameter in self.parameters)

    def share_lock(self, lock: Lock) -> None:
        """Use the lock of a network, whose calls then exclude those of the layer."""
        self._lock = lock

    def own(self) -> None:
        """Copy arrays that cannot be written, such as those that joblib has mapped from a file."""
        for parameter in self.parameters:
            parameter.own()

    def _stored(self, value: Floats, copy: bool = False) -> np.ndarray:
        if self.dtype == "bfloat16":
            return bfloat16.to_bfloat16(value)
        return aligned.aligned(value, copy)

    def _check_initialized(self) -> None:
        if not self.initialized:
            raise ValueError(f"{self!r} has no weights yet; make it part of a Network and fit, "
                             "or call set_weights")

    # -- forward ------------------------------------------------------------------------------

    def forward(self, x: Floats | CSR, step: Step) -> tuple[Any, Backprop]:
        """The outputs of x, (n_samples, n_in), and `backprop`; see the module docstring."""
        return self._forward_all(x, step)

    def all_outputs(self, x: Floats | CSR, n_threads: int) -> Floats:
        """The outputs of every neuron, (n_samples, n_out), without a backward pass."""
        return self._forward_all(x, Step(n_threads=n_threads))[0]

    def _forward_all(self, x: Floats | CSR, step: Step) -> tuple[Floats, Backprop]:
        if isinstance(x, CSR):
            out, backprop = self._forward_sparse(x, step)
        else:
            out, backprop = self._forward_dense(x, step)

        drops = step.training and self.dropout
        positive = None
        if self.activation == "relu":
            np.maximum(out, 0, out=out)
            positive = out > 0 if step.training else None  # a loss overwrites the outputs
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
        w, input_major, n_threads = self._w.value, self._w.input_major, step.n_threads
        in_bfloat16 = step.in_bfloat16
        matmul(x, w, n_threads, transpose_b=not input_major, bias=self._bias, out=out,
               in_bfloat16=in_bfloat16)
        if step.tally is not None:
            step.tally.products(len(x) * w.size, w.size, w.size, step.training,
                                step.need_input_gradient)

        def backprop(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            left, right = (x, d_out) if input_major else (d_out, x)
            dw = matmul(left, right, n_threads, transpose_a=True, out=self._buffer("dw", w.shape),
                        in_bfloat16=in_bfloat16)
            dx = None
            if step.need_input_gradient:
                dx = matmul(d_out, w, n_threads, transpose_b=input_major, in_bfloat16=in_bfloat16)
            db = column_sums(d_out, n_threads)
            return dx, [(self._w, DenseGradient(dw)), (self._b, DenseGradient(db))]

        return out, backprop

    def _forward_sparse(self, x: CSR, step: Step) -> tuple[Any, Backprop]:
        if not self._w.input_major:
            self._w.transpose()
        out = self._buffer("out", (x.shape[0], self.n_out))
        _sparse_products.weighted_rows(x.indptr, x.indices, x.data, self._w.value, self._bias, out,
                                       step.n_threads)
        if step.tally is not None:
            step.tally.products(x.nnz * self.n_out, x.nnz * self.n_out,
                                len(np.unique(x.indices)) * self.n_out, step.training,
                                step.need_input_gradient)

        def backprop(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            groups = self._group(x, step.n_threads)
            dx = None
            if step.need_input_gradient:
                # dX at the entries of X: the dot products of d_out with the input-major rows
                dx = np.empty(x.nnz, np.float32)
                no_bias = np.zeros(self.n_in, np.float32)
                _sparse_products.sampled_dots(*groups, d_out, self._w.value, no_bias, dx,
                                              step.n_threads)
            dw = ProductGradient(groups, x.data, d_out, x_is_gradient=True)
            db = column_sums(d_out, step.n_threads)
            return dx, [(self._w, dw), (self._b, DenseGradient(db))]

        return out, backprop

    def _group(self, s: CSR, n_threads: int) -> Groups:
        """The transpose of a sparse matrix whose columns are rows of the stored weights."""
        n_columns = len(self._w.value)
        if self._slot is None or len(self._slot) != n_columns:
            self._slot = np.full(n_columns, -1, np.int32)
        return Groups.of(s, self._slot, n_threads)

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Floats:
        """Memory that is used again at the next step: a new array costs a page fault per page."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers[name] = aligned.empty((size + size // 8,))
        return self._buffers[name][:size].reshape(shape)

    # -- training -----------------------------------------------------------------------------

    def prepare(self, step_number: int, epoch: int = 0, place: Place = OUTPUT) -> None:
        """Called before a training step, with the steps and whole epochs trained so far."""

    def updated(self, pairs: list[Pair], n_threads: int, tally: Tally | None = None) -> None:
        """Called after the optimizer has applied this layer's (parameter, gradient) pairs.

        Where an error ends it, it is called again.
        """

    def begin_count(self) -> None:
        """Called at the start of a training: `useless_options` then counts from here."""

    def useless_options(self, batch_size: int) -> str | None:
        """Why options of the layer have had no effect since `begin_count`; None if they had one."""
        return None

    def step_state(self) -> Any:
        """What `prepare` and `forward` of a step change, for `undo_step`."""
        return None

    def undo_step(self, state: Any) -> None:
        """Return to a `step_state`, after `prepare` and `forward` of a step that did not happen."""

    def dense_input_cost(self, n: int, n_active: int, place: Place) -> float:
        """Nanoseconds that n samples with every input take longer than with n_active inputs."""
        return 0.0

    def plan_report(self, place: Place = OUTPUT) -> tuple[str, str]:
        """The plan in use, and why, in words; for :meth:`Network.profile`."""
        return "dense", ""

    # -- inference ----------------------------------------------------------------------------

    def topk(self, x: Floats | CSR, k: int, *, exact: bool = False, n_threads: int = 1,
             selection: Selection | None = None) -> tuple[Ids, Floats]:
        """Ids and scores of the k largest outputs of each row, (n_samples, k) each.

        `exact` makes a layer with an index compute every output; `selection` is which of them may
        be found.
        """
        ids = np.full((x.shape[0], k), -1, np.int32)
        scores = np.full((x.shape[0], k), -np.inf, np.float32)
        for start, stop in row_chunks(x.shape[0], self.n_out):
            part = x.slice(start, stop) if isinstance(x, CSR) else x[start:stop]
            out = self.all_outputs(part, n_threads)
            if selection is not None:
                out = selection.slice(start, stop).exclude_from(out)
            _select.top_k(out, None, ids[start:stop], scores[start:stop], n_threads)
        if selection is not None:
            ids[np.isneginf(scores)] = -1
        return ids, scores

    def negatives(self, x: Floats | CSR, k: int, n_threads: int) -> Ids:
        """Ids of k outputs of each row that are large, (n_samples, k); best first.

        A training on them needs no exact choice.
        """
        return self.topk(x, k, n_threads=n_threads)[0]

    def stored(self) -> tuple[np.ndarray, Floats]:
        """Weights and bias as they are stored."""
        return self._w.value, self._b.value

    def single_row_step(self) -> tuple[Any, ...]:
        """The layer as a step of the kernel for single rows (_core/_single_row_mlp.pyx)."""
        return self._w.value, None, self._bias, self._w.input_major, self.activation == "relu"

    def single_row_search(self, k: int) -> tuple[Any, bool]:
        """The search of `topk` for a single row, as the core runs it, and whether `topk` searches.

        It is valid until the index or the weights change; None where the core cannot run it.
        """
        return None, False

    def score(self, x: Floats | CSR, ids: Ids, n_threads: int) -> Floats:
        """The outputs ids[i] of row i, (n_samples, n_ids); -inf for the id -1."""
        if self._w.input_major or self.activation is not None:
            z = np.take_along_axis(self.all_outputs(x, n_threads), np.maximum(ids, 0), 1)
            z[ids < 0] = -np.inf
            return z
        out = np.empty(ids.shape, np.float32)
        x = x.to_dense() if isinstance(x, CSR) else x
        _estimates.score(ids, x, self._w.value, self._bias, out, n_threads)
        return out

    def log_sum_exp(self, x: Floats | CSR, wanted: float,
                    n_threads: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The logarithm of the sum of exp(output) per row, and its error, at most about `wanted`.

        (n_samples,) each.
        """
        return log_sum_exp(self.all_outputs(x, n_threads), x, self._rows, n_threads)

    def _rows(self, ids: Ids) -> Floats:
        w = self._w.value
        return bfloat16.as_float32(np.ascontiguousarray(w[:, ids].T if self._w.input_major
                                                        else w[ids]))
    def lowest_output(self, n_threads: int) -> float:
        """An output below which there is none for the inputs of the last steps, about."""
        return float(min(self._bias.min(initial=0), 0))

    def computed_fraction(self, k: int, *, exact: bool = False) -> float:
        """Fraction of the neurons that `topk` computes in full."""
        return 1.0

    # -- state --------------------------------------------------------------------------------

    def drop_indexes(self) -> None:
        """Discard what can be rebuilt from the weights, as a file without indexes does."""

    def index_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The indexes of the layer as they are: arrays by name, and plain values."""
        return {}, {}

    def restore_indexes(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        """Take what `index_state` gave, from a file; it is checked."""

    def copy_weights(self) -> list[np.ndarray]:
        """Copies of the weights as they are stored, and of the bias."""
        return [parameter.value.copy() for parameter in self.parameters]

    def load_weights(self, weight: np.ndarray, bias: Floats) -> None:
        """Copy what `copy_weights` gave into place, so that an optimizer keeps its state."""
        self.check_weights(weight, bias)
        self.own()
        self.drop_indexes()
        for parameter, value in zip(self.parameters, (weight, bias), strict=True):
            parameter.value[:] = value

    def check_weights(self, weight: np.ndarray, bias: Floats) -> None:
        """Raise ValueError if `load_weights` cannot take these arrays."""
        for parameter, value in zip(self.parameters, (weight, bias), strict=True):
            if value.shape != parameter.value.shape or value.dtype != parameter.value.dtype:
                raise ValueError(f"weights of shape {value.shape} do not fit into {self!r}")

    def tensors(self, as_stored: bool = False) -> dict[str, Any]:
        """The arrays of a file: the weights in float32, and the bias.

        The weights are called "weight" and are (n_out, n_in), or with `as_stored` the array that
        the layer has: where that is input-major, "weight_input_major" of shape (n_in, n_out).
        """
        value: Any = self._w.value
        if value.dtype == np.uint16:
            value = bfloat16.Widened(value)
        if not self._w.input_major:
            return {"weight": value, "bias": self._bias}
        if as_stored:
            return {"weight_input_major": value, "bias": self._bias}
        return {"weight": Transposed(value), "bias": self._bias}

    def load_tensors(self, tensors: dict[str, np.ndarray], input_major: bool) -> None:
        """Take what `tensors` gave, and store the weights in this order; they are checked."""
        if "weight_input_major" in tensors:
            weight = tensors["weight_input_major"].T
        else:
            weight = tensors["weight"]
        self.set_weights(weight, tensors["bias"])
        if input_major:
            self._w.transpose()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The layer that `config` describes, without weights."""
        return cls(**config)

    def config(self, place: Place = OUTPUT) -> dict[str, Any]:
        """What restores the layer, but for its weights: plain numbers, strings and dicts."""
        return {"n_in": self.n_in, "n_out": self.n_out, "activation": self.activation,
                "init_scale": self.init_scale, "dropout": self.dropout, "dtype": self.dtype}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_buffers": {}, "_slot": None}  # scratch memory

    def repr_at(self, place: Place) -> str:
        """The layer in words, with the defaults of its place."""
        return repr(self)

    def __repr__(self) -> str:
        return f"Linear({self.n_in}, {self.n_out}, activation={self.activation!r})"


def _second_moment_of_best(fraction: float) -> float:
    """E[z^2; z among the largest `fraction`] of a standard Gaussian z.

    With s the fraction and t the quantile at 1 - s it is s + t phi(t).
    """
    from statistics import NormalDist  # needed for stacked sparse layers only

    normal = NormalDist()
    t = normal.inv_cdf(1 - min(fraction, 0.5))  # a ReLU sets outputs below zero to zero
    return min(fraction, 0.5) + t * normal.pdf(t)
