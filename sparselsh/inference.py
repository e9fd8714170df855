"""InferenceNetwork: a trained network that answers questions and does not learn."""
from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from . import _architecture as architecture
from . import _files
from . import _validation as check
from ._core import _single_row_mlp
from ._csr import CSR
from ._scipy import sp
from ._served import BATCH, PLANS, ServedLayer
from ._storage import STORAGES, QuantizedRows
from ._threads import resolve
from ._version import __version__
from .index import LSHIndex
from .report import ConversionReport, LayerReport

if TYPE_CHECKING:
    from torch import nn

    from ._types import Floats, Ids, MatrixLike, PathLike

__all__ = ["InferenceNetwork"]

FORMAT = "sparselsh.inference"
ROWS = 1024  # that go through the hidden layers together
LONE_WEIGHTS = 1 << 18  # of a layer, and
LONE_OUTPUTS = 2048  # of one that is summed by inputs, that one thread computes before others are awake


class InferenceNetwork:
    """A trained network, converted: made by :func:`from_torch`, :func:`from_onnx`, :func:`from_file` or :meth:`load`.

    Each layer works by a plan, one for few rows and one for batches (32 rows or more): "dense" computes every neuron;
    "rows" reads the weights of active inputs only; "lsh" computes the neurons that an index finds. `report` says which,
    why, and what was measured.

    Attributes
    ----------
    report : ConversionReport
    n_threads : int or None
    """

    def __init__(self, layers: list[ServedLayer], report: ConversionReport, n_threads: int | None = None) -> None:
        self.layers = layers
        self.report = report
        self.n_threads = n_threads
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

    # -- asking -----------------------------------------------------------------------------------------------

    def topk(self, X: MatrixLike | CSR, k: int = 5, *, exact: bool = False) -> tuple[Ids, Floats]:
        """The k outputs with the largest scores.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features), or array of ids
            Where the first layer is an embedding: ids of shape (n_samples, n_ids), or for an EmbeddingBag also a sparse
            matrix whose values are the weights of the ids.
        k : int
        exact : bool
            Compute every neuron of every layer in float32.

        Returns
        -------
        ids : ndarray of shape (n_samples, k), int32
            Best first; -1 where the network has fewer outputs.
        scores : ndarray of shape (n_samples, k), float32
            For the ids given these are the outputs for the activations that reach the last layer, computed in float32.
        """
        return self._answers(self.checked(X), check.integer(k, "k"), exact)

    def _answers(self, x: np.ndarray | CSR, k: int, exact: bool = False) -> tuple[Ids, Floats]:
        """`topk` for checked input."""
        n = x.shape[0]
        if n == 1 and not exact and (found := self._lone(x, k)):
            return found
        if n <= ROWS:
            return self._topk(x, k, exact)
        ids, scores = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
        for start in range(0, n, ROWS):
            stop = min(start + ROWS, n)
            ids[start:stop], scores[start:stop] = self._topk(_part(x, start, stop), k, exact)
        return ids, scores

    def _topk(self, x: np.ndarray | CSR, k: int, exact: bool) -> tuple[Ids, Floats]:
        n_threads = resolve(self.n_threads)
        h = self.hidden(x, exact=exact)
        return self.layers[-1].topk(h, k, _kind(h), n_threads, exact)

    def planned(self) -> None:
        """To be called when plans have changed: nothing that was made for others is used any more."""
        self._chain = None

    def _lone(self, x: Any, k: int) -> tuple[Ids, Floats] | None:
        """`topk` of one row by one call to the core, as calls take longer than small layers; None where it cannot."""
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
        """The layers as the core asks them for one row, or None, and whether they are worth several threads."""
        last, search = self.layers[-1], None
        if last.plan["single"] == "lsh":
            search = last.index.search_of_one(k) if k <= last.n_out // 8 else None
            if search is None:
                return None, False
        layers = self.layers if search is None else self.layers[:-1]
        cut = any(before.kept is not None and after.plan["single"] == "rows"  # not all activations are passed on
                  for before, after in itertools.pairwise(self.layers))
        steps: list[Any] = [layer.step() for layer in layers]
        if cut or None in steps or (not steps and last.input_major):
            return None, False
        is_large = any(layer.n_out > LONE_OUTPUTS if layer.input_major else layer.values.size > LONE_WEIGHTS
                       for layer in layers)
        return _single_row_mlp.prepare(steps, search), is_large

    def predict(self, X: MatrixLike | CSR, *, exact: bool = False) -> Ids:
        """The output with the largest score for each row: ids, (n_samples,), int32."""
        return self.topk(X, 1, exact=exact)[0][:, 0]

    def decision_function(self, X: MatrixLike | CSR, *, exact: bool = False) -> Floats:
        """All outputs, (n_samples, n_labels), float32: every output neuron, of the hidden activations as planned.

        With `exact` every hidden neuron is computed too, in float32.
        """
        x = self.checked(X)
        n_threads = resolve(self.n_threads)
        out = np.empty((x.shape[0], self.n_labels), np.float32)
        last = self.layers[-1]
        for start in range(0, len(out), ROWS):
            stop = min(start + ROWS, len(out))
            h = self.hidden(_part(x, start, stop), exact=exact)
            kind = _kind(h)
            out[start:stop] = last.outputs(h, kind, n_threads, exact or last.plan[kind] == "lsh")
        return out

    def checked(self, X: MatrixLike | CSR) -> np.ndarray | CSR:
        """X as the first layer takes it: a float32 array, a CSR, or the ids of an embedding."""
        first = self.layers[0]
        if first.kind == "linear":
            return check.matrix(X, n_columns=first.n_in)
        if first.kind == "embedding_bag" and (isinstance(X, CSR) or sp.issparse(X)):
            weighted = check.matrix(X, n_columns=first.n_in, what="ids")
            return _means(weighted) if isinstance(weighted, CSR) and first.mode == "mean" else weighted
        ids = np.asarray(X)
        if ids.ndim == 1 and first.width == 1 and first.kind == "embedding":
            ids = ids[:, None]
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            wanted = "a sparse matrix or " if first.kind == "embedding_bag" else ""
            raise ValueError(f"X must be {wanted}an array of ids of shape (n_samples, n_ids), got shape {ids.shape} "
                             f"and dtype {ids.dtype}")
        if first.kind == "embedding" and ids.shape[1] != first.width:
            raise ValueError(f"X must have {first.width} ids a row, got {ids.shape[1]}")
        flat = check.ids(ids.ravel(), "X", first.n_in)
        if first.kind == "embedding":
            return flat.reshape(ids.shape)
        kept = np.ones(ids.shape, bool) if first.padding is None else ids != first.padding
        indptr = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(kept.sum(axis=1), out=indptr[1:])
        rows = CSR(indptr, flat[kept.ravel()], np.ones(indptr[-1], np.float32), first.n_in)
        return rows if first.mode == "sum" else _means(rows)

    def hidden(self, x: np.ndarray | CSR, upto: int = -1, *, exact: bool = False) -> np.ndarray | CSR:
        """What layer number `upto` takes, for checked input: an array, or a CSR of the activations kept."""
        n_threads = resolve(self.n_threads)
        upto = upto % len(self.layers)
        kind = _kind(x)
        for i, layer in enumerate(self.layers[:upto]):
            keep = not exact and self.layers[i + 1].plan[kind] == "rows"
            x = layer.forward(x, kind, n_threads, keep=keep, exact=exact)
        return x

    # -- back to others ---------------------------------------------------------------------------------------

    def architecture(self) -> list[architecture.Affine]:
        """The layers with the weights as they were given, bit by bit."""
        return [architecture.Affine(layer.name, layer.weight, layer.true_bias, layer.activation, layer.kind, layer.mode,
                                    layer.padding, layer.width) for layer in self.layers]

    def to_torch(self) -> nn.Sequential:
        """The network as a ``torch.nn.Sequential``, its weights bit by bit those that were converted.

        Raises
        ------
        ImportError
            If torch is missing.
        """
        from .torch import to_torch

        return to_torch(self)

    # -- files ------------------------------------------------------------------------------------------------

    def save(self, path: PathLike) -> None:
        """Write weights, plans, indexes and report as one safetensors file, whole or not at all.

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
        tensors: dict[str, np.ndarray] = {}
        configs = []
        for i, layer in enumerate(self.layers):
            more, config = _layer_state(layer)
            tensors |= {f"layers.{i}.{name}": np.ascontiguousarray(a) for name, a in more.items() if a is not None}
            configs.append(config)
        config = {"version": __version__, "layers": configs, "report": self.report.to_dict()}
        _files.write(_files.place(path), tensors, {"format": FORMAT, "config": json.dumps(config)})

    @classmethod
    def load(cls, path: PathLike, *, mmap: bool = False, n_threads: int | None = None) -> Self:
        """Read a network that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
        mmap : bool
            Leave the float32 weights in the file and map them into memory: only what is read of them takes room, which
            with a `storage` of fewer bits is little. The file must then stay as it is.
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
        ImportError
            If the package safetensors is missing.
        """
        n_threads = check.threads(n_threads)
        tensors, metadata = _files.read(path, FORMAT, mapped=(lambda name: name.endswith(".weight")) if mmap else None)
        try:
            config = json.loads(metadata["config"])
            layers = []
            for i, entry in enumerate(config["layers"]):
                prefix = f"layers.{i}."
                own = {name[len(prefix):]: a for name, a in tensors.items() if name.startswith(prefix)}
                layers.append(_restored_layer(entry, own, mmap, n_threads))
            report = config["report"]
            for part in (report, *report["layers"]):  # JSON has no integers as keys
                for key in ("microseconds", "microseconds_dense"):
                    part[key] = {int(n): us for n, us in part[key].items()}
            report["layers"] = [LayerReport(**part | {"shape": tuple(part["shape"])}) for part in report["layers"]]
            if not layers or any(a.n_out != b.n_in for a, b in itertools.pairwise(layers)):
                raise ValueError("its layers do not fit each other")
            for layer in layers[:-1]:
                if "lsh" in layer.plan.values() and (layer.kept is None or layer.exponents is None):
                    raise ValueError(f"kept or exponents of {layer.name} are missing")
            return cls(layers, ConversionReport(**report), n_threads)
        except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: the network in this file is damaged or from another version "
                             f"({type(error).__name__}: {error}); save it again") from error

    def __repr__(self) -> str:
        lines = [f"{layer.name}: {layer.kind} {layer.n_in} -> {layer.n_out}"
                 + (", relu" if layer.activation else "") + f", {' and '.join(dict.fromkeys(layer.plan.values()))}"
                 for layer in self.layers]
        return "InferenceNetwork(\n  " + "\n  ".join(lines) + ")"


def _kind(x: np.ndarray | CSR) -> str:
    return "batch" if x.shape[0] >= BATCH else "single"


def _part(x: np.ndarray | CSR, start: int, stop: int) -> np.ndarray | CSR:
    if start == 0 and stop == x.shape[0]:
        return x
    return x.slice(start, stop) if isinstance(x, CSR) else x[start:stop]


def _means(rows: CSR) -> CSR:
    """Each row over the number of its entries."""
    counts = np.diff(rows.indptr)
    return rows._replace(data=rows.data / np.repeat(counts, counts).astype(np.float32))


# -- a layer as arrays and plain values --------------------------------------------------------------------------


def _layer_state(layer: ServedLayer) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors = {"weight": layer.values, "bias": layer.bias, "importance": layer.importance, "exponents": layer.exponents}
    config = {name: getattr(layer, name) for name in
              ("name", "kind", "activation", "mode", "padding", "width", "has_bias", "input_major", "plan", "kept",
               "storage")}
    if layer.rows is not None:
        tensors |= layer.rows.tensors("rows")
    if layer.index is not None:
        arrays, config["index"] = layer.index.state()
        tensors |= {f"index.{name}": a for name, a in arrays.items()}
    return tensors, config


def _restored_layer(config: dict[str, Any], tensors: dict[str, np.ndarray], mapped: bool,
                    n_threads: int | None) -> ServedLayer:
    """The layer of `_layer_state`, checked: kernels trust it."""
    weight, bias = tensors["weight"], tensors["bias"]
    linear = check.choice(config["kind"], "kind", architecture.KINDS) == "linear"
    flipped = bool(config["input_major"]) and linear
    if weight.ndim != 2 or weight.dtype != np.float32:
        raise ValueError(f"weight must be a float32 matrix, got {weight.dtype} of shape {weight.shape}")
    if not mapped:
        check.dense(weight, "weight")
    activation = None if config["activation"] is None else check.choice(config["activation"], "activation", ("relu",))
    layer = ServedLayer(architecture.Affine(
        str(config["name"]), weight.T if flipped else weight, bias, activation, config["kind"],
        check.choice(config["mode"], "mode", ("sum", "mean")), config["padding"],
        check.integer(config["width"], "width")), check.choice(config["storage"], "storage", STORAGES))
    layer.values, layer.input_major = weight, bool(config["input_major"]) or not linear
    layer.bias, layer.has_bias = check.vector(bias, "bias", layer.n_out), bool(config["has_bias"])
    layer.plan = {kind: check.choice(config["plan"][kind], "plan", PLANS) for kind in layer.plan}
    if layer.input_major and "lsh" in layer.plan.values():
        raise ValueError("its plans contradict each other")
    if "importance" in tensors:
        layer.importance = check.vector(tensors["importance"], "importance", layer.n_out)
    if "exponents" in tensors:
        layer.exponents = tensors["exponents"].astype(np.int32)
        check.vector(layer.exponents, "exponents", layer.n_out)
    if config["kept"] is not None:
        layer.kept = check.integer(config["kept"], "kept", maximum=layer.n_out)
        if layer.importance is None:
            raise ValueError("importance is missing")
    if "rows" in tensors:
        layer.rows = QuantizedRows.restored(layer.storage, weight.shape, tensors["rows"], tensors.get("rows_scales"))
    if "index" in config:
        arrays = {name[len("index."):]: a for name, a in tensors.items() if name.startswith("index.")}
        layer.index = LSHIndex.from_state(layer.values, layer.bias, arrays, config["index"], n_threads)
    elif "lsh" in layer.plan.values():
        raise ValueError("its index is missing")
    return layer
