"""ServedNetwork: a trained network, for inference only, without the ways to make one."""
from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from .. import _validation as check
from .._arrays.csr import CSR
from .._arrays.linalg import row_chunks
from .._arrays.scipy import sp
from .._core import _single_row_mlp
from .._files import with_prefix
from .._threads import resolve
from ..calibration import entries_above, ranked_for, softmax
from ..index import BATCH_PLAN_MIN_ROWS, MIN_NEURONS_PER_CANDIDATE
from ..refinement import refined_topk
from . import _file
from ._layer import sparse_rows
from ._refined import StoredRefinement, refined_outputs
from .readers.affine import Affine
from .readers.torch import build_module, kept_refinement

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from scipy.sparse import csr_array
    from torch import nn

    from .._arrays.selection import Selection
    from .._arrays.types import Floats, Ids, MatrixLike, PathLike
    from ..calibration import Calibration
    from ..refinement import Refinement
    from ._layer import ServedLayer
    from ._report import ConversionReport

ROWS_PER_CHUNK = 1024  # that go through the hidden layers together
# Up to here one thread computes a layer for one row before other threads are awake:
SINGLE_THREAD_MAX_WEIGHTS = 1 << 18  # of a neuron-major layer
SINGLE_THREAD_MAX_OUTPUTS = 2048  # of an input-major layer


class ServedNetwork:
    """Layers with plans, refinement, calibration; see :class:`InferenceNetwork`."""

    # What outputs stand for where there is no calibration: one class per row, or nothing known.
    uncalibrated: Literal["classes"] | None = None

    def __init__(self, layers: list[ServedLayer], report: ConversionReport,
                 n_threads: int | None = None, refinement: StoredRefinement | None = None,
                 calibration: Calibration | None = None) -> None:
        self.layers = layers
        self.report = report
        self.n_threads = n_threads
        self.calibration = calibration
        self._refinement = refinement
        self._chain: tuple[int, Any, bool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_chain": None}

    @property
    def n_features(self) -> int:
        """Number of inputs; of an embedding, the number of ids."""
        return self.layers[0].n_in

    @property
    def n_labels(self) -> int:
        """Number of outputs."""
        return self.layers[-1].n_out

    @property
    def refinement(self) -> Refinement | None:
        """The classifiers that rank the best labels again, as they are served; None without any."""
        return None if self._refinement is None else self._refinement.refinement

    # -- inference ----------------------------------------------------------------------------

    def topk(self, X: MatrixLike | CSR, k: int = 5, *, exact: bool = False,
             probabilities: bool = False, allow: MatrixLike | None = None,
             exclude: MatrixLike | None = None) -> tuple[Ids, Floats]:
        """The k outputs with the largest scores.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features), or array of ids
            Where the first layer is an embedding: ids of shape (n_samples, n_ids), or for an
            EmbeddingBag also a sparse matrix whose values are the weights of the ids.
        k : int
        exact : bool
            Compute every neuron of every layer in float32.
        probabilities : bool
            Return probabilities instead of scores. It needs a `calibration`, and k may be at most
            the number of labels that it ranks.
        allow, exclude : array or sparse matrix, or None
            Outputs that may, or may not, be returned: a bool mask of shape (n_labels,), an array of
            ids, or a sparse matrix of shape (n_samples, n_labels) with the outputs of each row.

        Returns
        -------
        ids : ndarray of shape (n_samples, k), int32
            Best first; -1 if fewer outputs may be returned.
        scores : ndarray of shape (n_samples, k), float32
            The outputs of these ids, computed in float32 from the activations that reach the last
            layer; -inf where there is none. With a refinement, the refined scores; with
            `probabilities`, these.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit; the message names it.
        """
        x, k = self._validated_queries(X), check.integer(k, "k")
        selection = check.selection(allow, exclude, x.shape[0], self.n_labels)
        if probabilities:
            n = ranked_for(self.calibration, k, selection)
            ids, scores = self._answers(x, n, exact)
            return ids[:, :k], self.calibration.ranked(scores)[:, :k]
        return self._answers(x, k, exact, selection)

    def _answers(self, x: np.ndarray | CSR, k: int, exact: bool = False,
                 selection: Selection | None = None) -> tuple[Ids, Floats]:
        """`topk` for checked input."""
        refinement = self.refinement
        if refinement is None:
            return self._layer_answers(x, k, exact, selection)
        n_found = min(max(k, refinement.n_candidates), self.n_labels)
        ids, z = self._layer_answers(x, n_found, exact, selection)
        n_threads = resolve(self.n_threads) if x.shape[0] > 1 else 1
        return refined_topk(refinement, sparse_rows(x), ids, z, k, n_threads)

    def _layer_answers(self, x: np.ndarray | CSR, k: int, exact: bool,
                       selection: Selection | None) -> tuple[Ids, Floats]:
        """The k best outputs of the layers."""
        n = x.shape[0]
        if n == 1 and not exact and selection is None and (found := self._single_row(x, k)):
            return found
        if n <= ROWS_PER_CHUNK:
            return self._topk(x, k, exact, selection)
        ids, scores = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
        for start in range(0, n, ROWS_PER_CHUNK):
            stop = min(start + ROWS_PER_CHUNK, n)
            some = None if selection is None else selection.slice(start, stop)
            ids[start:stop], scores[start:stop] = self._topk(_part(x, start, stop), k, exact, some)
        return ids, scores

    def _topk(self, x: np.ndarray | CSR, k: int, exact: bool,
              selection: Selection | None = None) -> tuple[Ids, Floats]:
        n_threads = resolve(self.n_threads)
        h = self._hidden(x, exact=exact)
        return self.layers[-1].topk(h, k, _kind(h), n_threads, exact, selection)

    def _plans_changed(self) -> None:
        """Discard what was prepared for earlier plans; to be called when plans have changed."""
        self._chain = None

    def _single_row(self, x: Any, k: int) -> tuple[Ids, Floats] | None:
        """`topk` of one row by one call to the core, or None where that is not possible or slower.

        A call takes longer than a small layer.
        """
        if self._chain is None or self._chain[0] != k:
            self._chain = k, *self._new_chain(k)
        _, chain, is_large = self._chain
        is_sparse = isinstance(x, CSR)
        if (chain is None or (is_large and resolve(self.n_threads) > 1)
                or (is_sparse and not self.layers[0].input_major)):
            return None

        ids, scores = np.empty((1, k), np.int32), np.empty((1, k), np.float32)
        if is_sparse:
            _single_row_mlp.top_k_sparse(chain, x.indices, x.data, ids, scores)
        else:
            _single_row_mlp.top_k(chain, x, ids, scores)
        return ids, scores

    def _new_chain(self, k: int) -> tuple[Any, bool]:
        """The layers as the core takes them for one row, or None; whether threads pay off."""
        last, search = self.layers[-1], None
        is_searched = k <= last.n_out // MIN_NEURONS_PER_CANDIDATE
        if last.plan["single"] == "lsh":
            search = last.index.single_query_search(k) if is_searched else None
            if search is None:
                return None, False

        layers = self.layers if search is None else self.layers[:-1]
        is_cut = any(before.kept is not None and after.plan["single"] == "rows"
                     for before, after in itertools.pairwise(self.layers))
        steps: list[Any] = [layer.step() for layer in layers]
        if is_cut or None in steps or (not steps and last.input_major):
            return None, False

        is_large = any(layer.n_out > SINGLE_THREAD_MAX_OUTPUTS if layer.input_major
                       else layer.n_in * layer.n_out > SINGLE_THREAD_MAX_WEIGHTS
                       for layer in layers)
        return _single_row_mlp.prepare(steps, search, None, None), is_large

    def predict(self, X: MatrixLike | CSR, *, exact: bool = False) -> Ids:
        """The output with the largest score for each row.

        Parameters
        ----------
        X, exact
            As for :meth:`topk`.

        Returns
        -------
        ndarray of shape (n_samples,), int32
            Ids.

        Raises
        ------
        TypeError, ValueError
            If X does not fit.
        """
        return self.topk(X, 1, exact=exact)[0][:, 0]

    def decision_function(self, X: MatrixLike | CSR, *, exact: bool = False) -> Floats:
        """All outputs: every output neuron, from the hidden activations as planned.

        With a refinement they are the refined scores: the candidates have theirs, and the others
        follow them in the order of the layers.

        Parameters
        ----------
        X
            As for :meth:`topk`.
        exact : bool
            Compute every hidden neuron too, in float32.

        Returns
        -------
        ndarray of shape (n_samples, n_labels), float32

        Raises
        ------
        TypeError, ValueError
            If X does not fit.
        """
        x = self._validated_queries(X)
        n_threads = resolve(self.n_threads)
        out = np.empty((x.shape[0], self.n_labels), np.float32)
        last = self.layers[-1]
        for start in range(0, len(out), ROWS_PER_CHUNK):
            stop = min(start + ROWS_PER_CHUNK, len(out))
            part = _part(x, start, stop)
            h = self._hidden(part, exact=exact)
            kind = _kind(h)
            z = last.outputs(h, kind, n_threads, exact or last.is_partial(kind))
            if self.refinement is not None:
                z = refined_outputs(self.refinement, sparse_rows(part), z, n_threads)
            out[start:stop] = z
        return out

    def _estimates(self, x: np.ndarray | CSR, k: int) -> Floats:
        """All outputs for checked rows: the k largest exact, others as the last layer estimates."""
        out = np.empty((x.shape[0], self.n_labels), np.float32)
        for start, stop in self._chunks(x.shape[0]):
            h = self._hidden(_part(x, start, stop))
            out[start:stop] = self.layers[-1].estimates(h, k, _kind(h), resolve(self.n_threads))
        return out

    def predict_proba(self, X: MatrixLike | CSR, *, exact: bool = False) -> Floats:
        """The probabilities of all labels, by the calibration of the network that was converted.

        Parameters
        ----------
        X, exact
            As for :meth:`topk`.

        Returns
        -------
        ndarray of shape (n_samples, n_labels), float32
            As of :meth:`Network.predict_proba <sparselsh.Network.predict_proba>`, for the scores of
            this network.

        Raises
        ------
        TypeError, ValueError
            If X does not fit, or there is no `calibration`.
        """
        x = self._validated_queries(X)
        is_calibrated = self.calibration is not None or self.uncalibrated is None
        n = ranked_for(self.calibration, 1, None) if is_calibrated else 0
        out = np.empty((x.shape[0], self.n_labels), np.float32)
        for start, stop in self._chunks(x.shape[0]):
            part = _part(x, start, stop)
            if not is_calibrated:
                out[start:stop] = softmax(self.decision_function(part, exact=exact))
                continue
            ids, scores = self._answers(part, n, exact)
            out[start:stop] = self.calibration.every(ids, scores,
                                                     self.decision_function(part, exact=exact))
        return out

    def predict_labels(self, X: MatrixLike | CSR, threshold: float | ArrayLike | None = None, *,
                       exact: bool = False) -> csr_array:
        """The labels whose probability is at least the threshold.

        Parameters
        ----------
        X, exact
            As for :meth:`topk`.
        threshold : float, array of shape (n_labels,) or None
            None for that of the `calibration`.

        Returns
        -------
        csr_array of shape (n_samples, n_labels), float32
            The probabilities of these labels, sorted by label in each row. A row may be empty.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit, or there is no `calibration`.
        """
        x = self._validated_queries(X)
        if self.calibration is None and self.uncalibrated is not None:
            limits = check.thresholds(0.5 if threshold is None else threshold, self.n_labels)
            return sp.vstack(
                [sp.csr_array((0, self.n_labels), dtype=np.float32)]
                + [entries_above(self.predict_proba(_part(x, *chunk), exact=exact), limits)
                   for chunk in self._chunks(x.shape[0])], format="csr")
        n = ranked_for(self.calibration, 1, None)
        limits = check.thresholds(self.calibration.threshold if threshold is None else threshold,
                                  self.n_labels)
        parts = [sp.csr_array((0, self.n_labels), dtype=np.float32)]
        for start, stop in self._chunks(x.shape[0]):
            part = _part(x, start, stop)

            def every(rows: np.ndarray, part: np.ndarray | CSR = part) -> Floats:
                return self.predict_proba(_rows(part, rows), exact=exact)

            parts.append(self.calibration.labels_above(*self._answers(part, n, exact), limits,
                                                       every))
        return sp.vstack(parts, format="csr")

    def score(self, X: MatrixLike | CSR, ids: ArrayLike) -> Floats:
        """Exact scores of given outputs. If the layer has an index, no others are computed.

        Parameters
        ----------
        X
            As for :meth:`topk`.
        ids : array of shape (n_ids,) or (n_samples, n_ids)
            The same outputs for all rows, or the outputs of each row; -1 for none.

        Returns
        -------
        ndarray of shape (n_samples, n_ids), float32
            As returned by `topk`; -inf for none. With a refinement, all outputs are computed for
            it.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit.
        """
        x = self._validated_queries(X)
        ids = check.neuron_table(ids, "ids", x.shape[0], self.n_labels)
        out = np.empty(ids.shape, np.float32)
        for start, stop in self._chunks(x.shape[0]):
            part = _part(x, start, stop)
            if self.refinement is not None:
                z = self.decision_function(part)
                out[start:stop] = np.take_along_axis(z, np.maximum(ids[start:stop], 0), 1)
                continue
            h = self._hidden(part)
            out[start:stop] = self.layers[-1].score(h, ids[start:stop], _kind(h),
                                                    resolve(self.n_threads))
        out[ids < 0] = -np.inf
        return out

    def logsumexp(self, X: MatrixLike | CSR, *,
                  error: float = 0.01) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The logarithm of the sum of exp(output) over all outputs, and its error.

        Parameters
        ----------
        X
            As for :meth:`topk`.
        error : float
            Largest allowed error, above 0.

        Returns
        -------
        values, errors : ndarray of shape (n_samples,), float64
            As returned by :meth:`sparselsh.LSHIndex.logsumexp`. If the last layer has an index, it
            estimates the sum for fewer than 32 rows; otherwise all outputs are computed.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit, or the network has a refinement, whose scores do not
            determine probabilities.
        """
        x = self._validated_queries(X)
        error = check.number(error, "error", above=0)
        if self.refinement is not None:
            raise ValueError("logsumexp is of the outputs of the layers, and this network has a "
                             "refinement; convert it without one")
        values, errors = np.empty(x.shape[0]), np.empty(x.shape[0])
        for start, stop in self._chunks(x.shape[0]):
            h = self._hidden(_part(x, start, stop))
            values[start:stop], errors[start:stop] = self.layers[-1].log_sum_exp(
                h, error, _kind(h), resolve(self.n_threads))
        return values, errors

    def _chunks(self, n_rows: int) -> list[tuple[int, int]]:
        """Ranges of rows whose outputs are held in memory together."""
        return [(first, min(first + ROWS_PER_CHUNK, stop))
                for start, stop in row_chunks(n_rows, self.n_labels)
                for first in range(start, stop, ROWS_PER_CHUNK)]

    def _validated_queries(self, X: MatrixLike | CSR) -> np.ndarray | CSR:
        """X as the first layer takes it: a float32 array, a CSR, or the ids of an embedding."""
        first = self.layers[0]
        if first.kind == "linear":
            return check.matrix(X, n_columns=first.n_in)
        if first.kind == "embedding_bag" and (isinstance(X, CSR) or sp.issparse(X)):
            weighted = check.matrix(X, n_columns=first.n_in, what="ids")
            if isinstance(weighted, CSR) and first.mode == "mean":
                return _means(weighted)
            return weighted

        ids = np.asarray(X)
        if ids.ndim == 1 and first.width == 1 and first.kind == "embedding":
            ids = ids[:, None]
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            wanted = "a sparse matrix or " if first.kind == "embedding_bag" else ""
            raise ValueError(f"X must be {wanted}an array of ids of shape (n_samples, n_ids), "
                             f"got shape {ids.shape} and dtype {ids.dtype}")
        if first.kind == "embedding" and ids.shape[1] != first.width:
            raise ValueError(f"X must have {first.width} ids per row, got {ids.shape[1]}")

        flat = check.ids(ids.ravel(), "X", first.n_in)
        if first.kind == "embedding":
            return flat.reshape(ids.shape)

        kept = np.ones(ids.shape, bool) if first.padding is None else ids != first.padding
        indptr = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(kept.sum(axis=1), out=indptr[1:])
        rows = CSR(indptr, flat[kept.ravel()], np.ones(indptr[-1], np.float32), first.n_in)
        return rows if first.mode == "sum" else _means(rows)

    def _hidden(self, x: np.ndarray | CSR, upto: int = -1, *,
                exact: bool = False) -> np.ndarray | CSR:
        """The input of layer number `upto`, for checked x: an array, or CSR of activations kept."""
        n_threads = resolve(self.n_threads)
        upto = upto % len(self.layers)
        kind = _kind(x)
        for i, layer in enumerate(self.layers[:upto]):
            keep = not exact and self.layers[i + 1].plan[kind] == "rows"
            x = layer.forward(x, kind, n_threads, keep=keep, exact=exact)
        return x

    # -- export -------------------------------------------------------------------------------

    def architecture(self) -> list[Affine]:
        """The layers as plain affine maps, with the weights as they were given, bit for bit.

        Weights that are stored in fewer bits alone are given as these stand for them. A refinement
        is not a layer and is not included.

        Returns
        -------
        list of Affine
            Named tuples with name, weight, bias and activation, among others.
        """
        return [Affine(layer.name, layer.weight, layer.true_bias, layer.activation, layer.kind,
                       layer.mode, layer.padding, layer.width) for layer in self.layers]

    def to_torch(self, *, refinement: str = "keep") -> nn.Module:
        """The network as a ``torch.nn.Module``, with the weights as converted, bit for bit.

        Parameters
        ----------
        refinement : {"keep", "drop"}
            With "keep", the module of a refined network returns the refined scores of all labels,
            as `decision_function` does. "drop" returns the layers alone.

        Returns
        -------
        torch.nn.Sequential, or torch.nn.Module where there is a refinement
            In evaluation mode.

        Raises
        ------
        ImportError
            If torch is missing.
        ValueError
            If `refinement` is neither.
        """
        return build_module(self.architecture(),
                            kept_refinement(self.refinement, refinement))

    # -- files --------------------------------------------------------------------------------

    def save(self, path: PathLike) -> None:
        """Write weights, plans, indexes and report as one safetensors file, whole or not at all.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        _file.write(path, self.layers, self.report, self._refinement, self.calibration)

    @classmethod
    def load(cls, path: PathLike, *, mmap: bool = False, n_threads: int | None = None) -> Self:
        """Read a network that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
        mmap : bool
            Leave the weights of the layers in the file and map them into memory: only the parts
            that are read take memory, which with a `storage` of fewer bits is little. The file must
            then not change. The classifiers of a refinement are copied in any case.
        n_threads : int or None

        Returns
        -------
        InferenceNetwork

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is cut short, damaged, or holds no such network.
        """
        return load_served(cls, path, "", mmap=mmap, n_threads=n_threads)[0]

    def __repr__(self) -> str:
        lines = [f"{layer.name}: {layer.kind} {layer.n_in} -> {layer.n_out}"
                 + (f", {layer.activation}" if layer.activation else "")
                 + f", {' and '.join(dict.fromkeys(layer.plan.values()))}"
                 for layer in self.layers]
        if self._refinement is not None:
            lines.append(f"refinement: {self._refinement}")
        return "InferenceNetwork(\n  " + "\n  ".join(lines) + ")"


def _kind(x: np.ndarray | CSR) -> str:
    return "batch" if x.shape[0] >= BATCH_PLAN_MIN_ROWS else "single"


def _part(x: np.ndarray | CSR, start: int, stop: int) -> np.ndarray | CSR:
    if start == 0 and stop == x.shape[0]:
        return x
    return x.slice(start, stop) if isinstance(x, CSR) else x[start:stop]


def _rows(x: np.ndarray | CSR, rows: np.ndarray) -> np.ndarray | CSR:
    return x.take(rows.astype(np.int64)) if isinstance(x, CSR) else x[rows]


def _means(rows: CSR) -> CSR:
    """Each row divided by the number of its entries."""
    counts = np.diff(rows.indptr)
    return rows._replace(data=rows.data / np.repeat(counts, counts).astype(np.float32))


def save_served(network: ServedNetwork, path: PathLike, tensors: dict[str, np.ndarray],
                config: dict[str, Any]) -> None:
    """`InferenceNetwork.save`, with arrays and entries of the configuration of others."""
    _file.write(path, network.layers, network.report, network._refinement, network.calibration,
                tensors=tensors, config=config)


def load_served(kind: type[ServedNetwork], path: PathLike, name: str, *, mmap: bool,
                n_threads: int | None
                ) -> tuple[Any, dict[str, np.ndarray], dict[str, Any] | None]:
    """`InferenceNetwork.load`, and the arrays and the entry, or None, that `save_served` added."""
    n_threads = check.threads(n_threads)
    whole = _file.read_whole(path, mmap, n_threads)
    network = kind(whole.layers, whole.report, n_threads, whole.refinement, whole.calibration)
    return network, with_prefix(whole.tensors, f"{name}."), whole.config.get(name)
