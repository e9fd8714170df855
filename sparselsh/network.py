"""Network: layers in order, trained and asked together."""
from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from tqdm import tqdm

from . import _files, _streams, metrics
from . import _validation as check
from ._bfloat import as_float32
from ._csr import CSR
from ._threads import resolve
from ._version import __version__
from .csrfile import CSRFile
from .layers import BatchActive, Linear, Step
from .losses import LOSSES, Loss, MeanSquaredError
from .lsh_layers import LSHLinear
from .optim import SGD, Adam

if TYPE_CHECKING:
    from ._types import PathLike

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._types import Floats, Ids, MatrixLike, RandomState

__all__ = ["Network", "load"]

LAYERS = {"Linear": Linear, "LSHLinear": LSHLinear}
PREDICT_BATCH = 1024  # rows that go through the hidden layers together


class Network:
    """A feed-forward network of linear layers, each dense or sparse by hashing.

    Parameters
    ----------
    layers : sequence of Linear and LSHLinear
        The outputs of one are the inputs of the next.
    loss : {"softmax", "bce", "mse"} or a loss object
        "softmax" for classes and tags, "bce" for independent labels, "mse" for regression.
    random_state : None, int or numpy.random.Generator
        Fixes weights, hashing, the order of samples and the random fill. Results are then the same for any number of
        threads.
    n_threads : int or None
        Threads of the kernels; None for :func:`sparselsh.get_num_threads`.

    Attributes
    ----------
    history : list of dict
        One entry an epoch: epoch, loss, seconds, cpu_seconds, samples_per_second, computed_share and, with
        validation data, p_at_1.
    computed_share : float
        Share of the output neurons that the last `fit` or `topk` computed.

    Examples
    --------
    >>> import numpy as np, sparselsh as sl
    >>> X = np.eye(40, dtype=np.float32)
    >>> net = sl.Network([sl.Linear(40, 16), sl.LSHLinear(16, 40, density=0.5)], random_state=0)
    >>> net.fit(X, np.arange(40), epochs=60, batch_size=8, verbose=False).predict(X[:3])
    array([0, 1, 2], dtype=int32)
    """

    loss: Loss

    def __init__(self, layers: Sequence[Linear], *, loss: str | Loss = "softmax", random_state: RandomState = None,
                 n_threads: int | None = None) -> None:
        if isinstance(layers, Linear):
            raise TypeError(f"layers must be a sequence of layers, got {layers!r}; put it into a list")
        self.layers = list(layers)
        if not self.layers:
            raise ValueError("layers must hold at least one layer, got none")
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, Linear):
                raise TypeError(f"layers[{i}] must be Linear or LSHLinear, got {layer!r}")
            if any(layer is other for other in self.layers[:i]):
                raise ValueError(f"layers[{i}] is a layer that the network holds already; make one for each place")
            if i and self.layers[i - 1].n_out != layer.n_in:
                raise ValueError(f"layers[{i}] takes {layer.n_in} inputs but layers[{i - 1}] gives "
                                 f"{self.layers[i - 1].n_out}; make them equal")
            if isinstance(layer, LSHLinear):
                self._choose_active(layer, i)
        self.loss = loss if isinstance(loss, Loss) else LOSSES[check.choice(loss, "loss", tuple(LOSSES))]()
        self.n_threads = check.threads(n_threads)
        self._rng = check.generator(random_state)
        self._n_steps = 0
        self.optimizer: SGD | Adam | None = None
        self.history: list[dict[str, Any]] = []
        self.computed_share = 1.0

    def _choose_active(self, layer: LSHLinear, i: int) -> None:
        hidden = i < len(self.layers) - 1
        if layer.active is None:
            layer.active = "sample" if hidden else "batch"
        if hidden and layer.active == "batch" and not layer.is_dense:
            raise ValueError(f"layers[{i}] is a hidden layer: its active set must be one a sample; use active='sample'")

    @property
    def n_features(self) -> int:
        """Number of inputs."""
        return self.layers[0].n_in

    @property
    def n_labels(self) -> int:
        """Number of outputs."""
        return self.layers[-1].n_out

    # -- training ---------------------------------------------------------------------------------------------

    def fit(self, X: MatrixLike | CSRFile | Iterable[Any], Y: MatrixLike | None = None, *,
            optimizer: SGD | Adam | None = None, epochs: int = 5, batch_size: int = 256,
            validation: tuple[MatrixLike, MatrixLike] | None = None, shuffle: bool = True,
            window: int = _streams.WINDOW, verbose: bool = True) -> Self:
        """Train.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features), CSRFile, or iterable of (X, Y)
            A file, from :func:`sparselsh.datasets.open_csr`, is read in windows of rows. An iterable gives chunks of
            rows, each as X and Y here, all dense or all sparse; for several epochs its `__iter__` must start anew each
            time, as that of a list does. Neither needs to fit into memory.
        Y : array of int, shape (n_samples,), or sparse or dense matrix of shape (n_samples, n_labels)
            Class ids, or an indicator matrix of labels; for the loss "mse", target values. None where X has them.
        optimizer : SGD, Adam or None
            None for ``Adam(lr=1e-2, schedule="linear")``. An optimizer that is given again goes on with its state.
            If X is an iterable other than a list, its schedule goes by an estimate from `len` in the first epoch,
            and stands still there if X has no `len`.
        epochs, batch_size : int
        validation : None or (X, Y)
            P@1 on it is measured after every epoch.
        shuffle : bool
            Take the samples in a new random order every epoch: all of a matrix, those of a window of a file, those
            of a chunk.
        window : int
            Rows of a file that are held in memory and shuffled at a time. A larger window mixes better, which
            matters where neighbours in the file are alike; a file in random order can do with a small one.
        verbose : bool
            Show a progress bar.

        Returns
        -------
        Network
            Itself.

        Raises
        ------
        ValueError, TypeError
            If an argument does not fit; the message names it.
        """
        epochs = check.integer(epochs, "epochs")
        batch_size = check.integer(batch_size, "batch_size")
        window = check.integer(window, "window")
        source = self._source(X, Y, window, epochs)
        if validation is not None:
            try:
                X_val, Y_val = validation
            except (TypeError, ValueError):
                raise ValueError("validation must be a pair (X, Y)") from None
            validation = self._check_data(X_val, Y_val, "validation[0]", "validation[1]")
        self._begin(source, optimizer if optimizer is not None else Adam(1e-2, schedule="linear"))
        for epoch in range(epochs):
            with tqdm(total=source.n_rows, unit=" samples", desc=f"epoch {epoch + 1}/{epochs}", disable=not verbose,
                      leave=True, mininterval=0.25) as bar:
                entry = self._run_epoch(source, batch_size, shuffle, (epoch, epochs), bar)
                if validation is not None:
                    entry["p_at_1"] = self._precision(*validation)
                bar.set_postfix(self._postfix(entry))
            self.history.append({"epoch": len(self.history) + 1} | entry)
        self.computed_share = entry["computed_share"]
        return self

    def partial_fit(self, X: MatrixLike | CSRFile | Iterable[Any], Y: MatrixLike | None = None, *,
                    batch_size: int = 256) -> Self:
        """Train on the samples once, in their order, with the optimizer of the last `fit` (or Adam(lr=1e-3)).

        Parameters
        ----------
        X, Y
            As for `fit`.
        batch_size : int

        Returns
        -------
        Network
            Itself.
        """
        batch_size = check.integer(batch_size, "batch_size")
        source = self._source(X, Y, _streams.WINDOW, 1)
        self._begin(source, self.optimizer if self.optimizer is not None else Adam(1e-3))
        with tqdm(disable=True) as bar:
            self._run_epoch(source, batch_size, False, None, bar)
        return self

    def _source(self, X: Any, Y: Any, window: int, epochs: int) -> Any:
        source = _streams.source(X, Y, window, epochs, self._check_rows)
        if isinstance(X, CSRFile):
            self._check_file(X)
        if source.n_rows == 0:
            raise ValueError("X must have at least one row, got none")
        return source

    def _check_data(self, X: MatrixLike, Y: MatrixLike, x_name: str = "X",
                    y_name: str = "Y") -> tuple[Floats | CSR, CSR]:
        X, Y = self._check_rows(X, Y, x_name, y_name)
        if X.shape[0] == 0:
            raise ValueError(f"{x_name} must have at least one row, got none")
        return X, Y

    def _check_rows(self, X: MatrixLike, Y: MatrixLike, x_name: str, y_name: str) -> tuple[Floats | CSR, CSR]:
        X = check.matrix(X, x_name, n_columns=self.n_features)
        return X, check.targets(Y, X.shape[0], self.n_labels, values=isinstance(self.loss, MeanSquaredError),
                                name=y_name, x_name=x_name)

    def _check_file(self, file: CSRFile) -> None:
        for what, n, expected in (("features", file.shape[1], self.n_features),
                                  ("labels", file.n_labels, self.n_labels)):
            if n != expected:
                raise ValueError(f"X must have {expected} {what}, got {n} in {file.path!r}")

    def _begin(self, source: Any, optimizer: SGD | Adam) -> None:
        if not isinstance(optimizer, (SGD, Adam)):
            raise TypeError(f"optimizer must be an SGD or Adam object, such as Adam(lr=1e-3), got {optimizer!r}")
        self.optimizer = optimizer
        for i, layer in enumerate(self.layers):
            if not layer.initialized:
                layer.initialize(self._rng, sparse_input=i == 0 and source.is_sparse)

    def _run_epoch(self, source: Any, batch_size: int, shuffle: bool, place: tuple[int, int] | None,
                   bar: tqdm) -> dict[str, Any]:
        """One pass over the rows. `place` is (number of the epoch, of all), None for no schedule."""
        begin, cpu_begin = time.perf_counter(), time.process_time()
        total_loss = total_share = shown = 0.0
        n = 0
        for number, (x, y) in enumerate(_streams.batches(source.blocks(), batch_size, self._rng if shuffle else None)):
            loss, share = self._train_step(x, y, _progress(place, number, source.n_rows, batch_size))
            n += x.shape[0]
            total_loss += loss * x.shape[0]
            total_share += share * x.shape[0]
            bar.total = source.n_rows
            bar.update(x.shape[0])
            now = time.perf_counter()
            if now - shown > 0.25:
                shown = now
                bar.set_postfix(loss=f"{total_loss / n:.3f}", computed=f"{share:.1%}", refresh=False)
        seconds = time.perf_counter() - begin
        return {"loss": total_loss / n, "seconds": seconds, "cpu_seconds": time.process_time() - cpu_begin,
                "samples_per_second": n / max(seconds, 1e-9), "computed_share": total_share / n}

    def _train_step(self, x: Floats | CSR, labels: CSR, progress: float) -> tuple[float, float]:
        n_threads = resolve(self.n_threads)
        last = len(self.layers) - 1
        backward = []
        for i, layer in enumerate(self.layers):
            layer.prepare(self._n_steps)
            step = Step(True, labels if i == last else None, self._n_steps * 64 + i * 8, i > 0, n_threads)
            x, backprop = layer.forward(x, step)
            backward.append(backprop)
        share = _share(x)
        loss, d_out = self.loss(x, labels, n_threads=n_threads)
        pairs_of = []
        for backprop in reversed(backward):
            d_out, pairs = backprop(d_out)
            pairs_of.append(pairs)
        self.optimizer.step([pair for pairs in pairs_of for pair in pairs], progress=progress, n_threads=n_threads)
        for layer, pairs in zip(reversed(self.layers), pairs_of, strict=True):
            layer.updated(pairs)
        self._n_steps += 1
        return loss, share

    @staticmethod
    def _postfix(entry: dict[str, Any]) -> dict[str, str]:
        shown = {"loss": f"{entry['loss']:.3f}", "computed": f"{entry['computed_share']:.1%}"}
        return shown | ({"P@1": f"{entry['p_at_1']:.1%}"} if "p_at_1" in entry else {})

    def _precision(self, X: Floats | CSR, Y: CSR) -> float:
        ids, _ = self._topk(X, 1, False)
        return metrics.precision_at_k(Y.to_scipy(), ids, 1)

    # -- asking -----------------------------------------------------------------------------------------------

    def topk(self, X: MatrixLike, k: int = 5, *, exact: bool = False) -> tuple[Ids, Floats]:
        """The k outputs with the largest scores.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
        k : int
        exact : bool
            Compute every output neuron instead of those that the index finds.

        Returns
        -------
        ids : ndarray of shape (n_samples, k), int32
            Best first; -1 where the network has fewer outputs.
        scores : ndarray of shape (n_samples, k), float32
            The outputs before softmax or sigmoid; exact for the ids given.
        """
        X = check.matrix(X, n_columns=self.n_features)
        self._check_initialized()
        ids, scores = self._topk(X, check.integer(k, "k"), exact)
        self.computed_share = self.layers[-1].share_computed(k, exact=exact)
        return ids, scores

    def _topk(self, X: Floats | CSR, k: int, exact: bool) -> tuple[Ids, Floats]:
        n = X.shape[0]
        n_threads = resolve(self.n_threads)
        ids, scores = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
        for start in range(0, n, PREDICT_BATCH):
            stop = min(start + PREDICT_BATCH, n)
            h = self._hidden(X, start, stop, n_threads)
            ids[start:stop], scores[start:stop] = self.layers[-1].topk(h, k, exact=exact, n_threads=n_threads)
        return ids, scores

    def _hidden(self, X: Floats | CSR, start: int, stop: int, n_threads: int) -> Any:
        x = X.slice(start, stop) if isinstance(X, CSR) else X[start:stop]
        for layer in self.layers[:-1]:
            x, _ = layer.forward(x, Step(n_threads=n_threads))
        return x

    def predict(self, X: MatrixLike, *, exact: bool = False) -> np.ndarray:
        """The output with the largest score for each row: class ids, (n_samples,), int32.

        For the loss "mse" the outputs themselves, (n_samples, n_labels), float32, all computed.
        """
        if not isinstance(self.loss, MeanSquaredError):
            return self.topk(X, 1, exact=exact)[0][:, 0]
        return self.decision_function(X)

    def decision_function(self, X: MatrixLike) -> Floats:
        """All outputs, (n_samples, n_labels), float32: the exact scores of every neuron."""
        X = check.matrix(X, n_columns=self.n_features)
        self._check_initialized()
        n_threads = resolve(self.n_threads)
        out = np.empty((X.shape[0], self.n_labels), np.float32)
        for start in range(0, X.shape[0], PREDICT_BATCH):
            stop = min(start + PREDICT_BATCH, X.shape[0])
            h = self._hidden(X, start, stop, n_threads)
            out[start:stop] = Linear.forward(self.layers[-1], h, Step(n_threads=n_threads))[0]
        return out

    def _check_initialized(self) -> None:
        if not all(layer.initialized for layer in self.layers):
            raise ValueError("this network has no weights yet; call fit, or set_weights on its layers")

    # -- files ------------------------------------------------------------------------------------------------

    def save(self, path: PathLike) -> None:
        """Write weights and configuration as one safetensors file.

        The file is written beside `path` and renamed: a reader sees the old file or the new one. Optimizer state
        is not kept, and hash tables are not either: those of this network are built anew, as loading does, so that
        the loaded one gives the same answers.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        ImportError
            If the package safetensors is missing.
        OSError
            If the file cannot be written.
        """
        self._check_initialized()
        tensors = {}
        for i, layer in enumerate(self.layers):
            layer.settle()
            tensors[f"layers.{i}.weight"] = as_float32(layer._w.value)
            tensors[f"layers.{i}.bias"] = layer.bias
            if isinstance(layer, LSHLinear) and len(layer._inputs):
                tensors[f"layers.{i}.inputs"] = layer._inputs
        config = {
            "version": __version__,
            "loss": next(name for name, kind in LOSSES.items() if isinstance(self.loss, kind)),
            "layers": [{"type": type(layer).__name__, "input_major": layer._w.flipped} | layer.config()
                       for layer in self.layers],
        }
        _files.write(path, tensors, {"format": "sparselsh.network", "config": json.dumps(config)})

    def __repr__(self) -> str:
        body = ",\n         ".join(map(repr, self.layers))
        return f"Network([{body}],\n        loss={self.loss!r})"


def _progress(place: tuple[int, int] | None, number: int, n_rows: int | None, batch_size: int) -> float:
    """Share of the training that is done before a batch; without a number of rows, that at the head of the epoch."""
    if place is None:
        return 0.0
    epoch, n_epochs = place
    if n_rows is None:
        return epoch / n_epochs
    n_batches = -(-n_rows // batch_size)
    return epoch / n_epochs + min(number, n_batches) * (1 / (n_epochs * n_batches))


def _share(output: Floats | BatchActive | CSR) -> float:
    """Share of the neurons that an output holds."""
    if isinstance(output, BatchActive):
        return len(output.ids) / output.n_out
    if isinstance(output, CSR):
        return output.nnz / max(1, output.shape[0] * output.shape[1])
    return 1.0


def load(path: PathLike, *, n_threads: int | None = None) -> Network:
    """Read a network that :meth:`Network.save` wrote.

    Parameters
    ----------
    path : str or path-like
    n_threads : int or None

    Returns
    -------
    Network

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no safetensors file, is cut short, or holds no network of this library.
    ImportError
        If the package safetensors is missing.
    """
    n_threads = check.threads(n_threads)
    tensors, metadata = _files.read(path, "sparselsh.network")
    try:
        config = json.loads(metadata["config"])
        layers = []
        for i, entry in enumerate(config["layers"]):
            kind, flipped = LAYERS[entry.pop("type")], entry.pop("input_major")
            layers.append(_load_layer(kind.from_config(entry), i, tensors, flipped))
        return Network(layers, loss=config["loss"], n_threads=n_threads)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the network in this file is damaged or from another version "
                         f"({type(error).__name__}: {error}); save it again") from error


def _load_layer(layer: Any, i: int, tensors: dict[str, np.ndarray], flipped: bool) -> Linear:
    weight = tensors[f"layers.{i}.weight"]
    layer.set_weights(weight.T if flipped else weight, tensors[f"layers.{i}.bias"])
    if flipped:
        layer._w.flip()
    if f"layers.{i}.inputs" in tensors:
        layer._inputs = check.dense(tensors[f"layers.{i}.inputs"], "inputs", n_columns=layer.n_in)
    return layer
