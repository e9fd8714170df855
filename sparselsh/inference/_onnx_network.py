"""OnnxNetwork: an ONNX model whose last wide layers are converted; the rest stays as it is.

ONNX Runtime runs the trunk before the layers and the tail behind them. The order of the outputs of
a row survives Softmax and the like, so that ArgMax and TopK behind them need no more than the best
outputs, and the tail is not run.
"""
from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from .. import _validation as check
from .._threads import resolve
from ._converted import ConvertedNetwork
from .readers import format_of, onnx_graph, require_runtime, to_numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from onnx import ModelProto

    from .._arrays.types import Floats, Ids, PathLike
    from ._file import Whole
    from ._inference_network import InferenceNetwork
    from .readers.onnx_graph import CutGraph, Step

FORMAT = "sparselsh.onnx"
MAX_CALIBRATION_ROWS = 4096  # of the layers
N_TIMED_INPUTS = 4  # calibration inputs by which the trunk is timed
N_EXACT_OUTPUTS = 32  # of a row, where the plan estimates the others
TYPES = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(double)": 11, "tensor(int64)": 7,
         "tensor(int32)": 6, "tensor(bool)": 9, "tensor(uint8)": 2, "tensor(int8)": 3,
         "tensor(string)": 8}
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
          "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_,
          "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}


class Cut(NamedTuple):
    """How a model is cut; see :class:`CutGraph`."""

    stored: list[tuple[str, bool] | None]
    rows: str
    scores: str
    steps: list[Step]
    steps_output: str
    inputs: list[str]
    outputs: list[str]
    metadata: dict[str, str]


class OnnxNetwork(ConvertedNetwork):
    """An ONNX model with a trunk, whose last wide layers are converted for inference.

    It is made by :func:`from_onnx` or :meth:`load`. Called with the inputs of the model, it gives
    its outputs. :meth:`topk`, :meth:`predict` and :meth:`ctc` compute only the best outputs.

    Attributes
    ----------
    report : ConversionReport
        Of the layers, with the time of the rest of the network.
    inputs, outputs : list of str
        Names of the inputs and the outputs of the model.
    metadata : dict
        What the model says of itself, such as its list of characters.
    exact_outputs : bool
        Whether a call computes every output in float32. False by default: the 32 largest of a row
        are exact, and the plan estimates the others.
    """

    _format = FORMAT

    def __init__(self, skeleton: ModelProto, cut: Cut, n_threads: int | None,
                 source: str) -> None:
        self._skeleton, self._cut, self.n_threads = skeleton, cut, n_threads
        self._source, self.exact_outputs = source, False
        self.inputs, self.outputs, self.metadata = cut.inputs, cut.outputs, cut.metadata
        behind = onnx_graph.depends_on(skeleton, cut.scores)
        self._behind = [name for name in cut.outputs if name in behind]
        self._read_behind = onnx_graph.values_needed(skeleton, [cut.scores], self._behind)
        named = [step.argument for step in cut.steps if step.kind == "reshape"]
        wanted = [cut.rows, *(name for name in cut.outputs if name not in behind),
                  *self._read_behind, *(name for name in named if isinstance(name, str))]
        self._wanted = [n for n in dict.fromkeys(wanted) if n not in cut.inputs]
        self._trunk = _Session(skeleton, [], self._wanted, {}, n_threads, source) \
            if self._wanted else None
        self._whole_inputs = _declared(skeleton, cut.inputs)
        self._tail: _Session | None = None

    @property
    def head(self) -> InferenceNetwork:
        """The layers that were converted; they take the rows that the trunk gives."""
        return self.network

    @property
    def n_labels(self) -> int:
        """Number of outputs of the layers."""
        return self.head.n_labels

    # -- inference ----------------------------------------------------------------------------

    def __call__(self, *inputs: Any, **named: Any) -> list[Any]:
        """The outputs of the model, in its order.

        Where the model ends with ArgMax or TopK, only the best outputs of the layers are computed;
        else the largest are exact and the others estimated, unless `exact_outputs` is set.

        Parameters
        ----------
        *inputs : arrays, or one dict of them by name
        **named : arrays
            By the names of the model's inputs.

        Returns
        -------
        list of ndarray

        Raises
        ------
        TypeError, ValueError
            If an input is missing or does not fit; the message names it.
        """
        values = self._values(inputs, named)
        found = self._by_best(values)
        if found is None:
            found = self._by_tail(values)
        return [found[name] if name in found else values[name] for name in self.outputs]

    def topk(self, inputs: Any, k: int = 5, *, exact: bool = False) -> tuple[Ids, Floats]:
        """The k outputs of the layers with the largest scores, for each row.

        Parameters
        ----------
        inputs : array, or tuple or dict of arrays
            The inputs of the model.
        k : int
        exact : bool
            Compute every output in float32.

        Returns
        -------
        ids : ndarray of shape (..., k), int32
            The other axes are those of the model's output, as far as its last nodes are understood,
            or those of the rows that the trunk gives.
        scores : ndarray of shape (..., k), float32
            Before a Softmax or Sigmoid.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit.
        """
        k = check.integer(k, "k", maximum=self.n_labels)
        values = self._values((inputs,), {})
        ids, scores = self._rows_topk(values, k, exact)
        laid, axis, _ = self._laid_out([ids, scores], values)
        ids, scores = (np.moveaxis(a, axis, -1) for a in laid)
        return ids, scores

    def predict(self, inputs: Any, *, exact: bool = False) -> Ids:
        """The output with the largest score, for each row.

        Parameters
        ----------
        inputs, exact
            As for :meth:`topk`.

        Returns
        -------
        ndarray of shape (...), int32
        """
        return self.topk(inputs, 1, exact=exact)[0][..., 0]

    def ctc(self, inputs: Any, *, blank: int = 0, time_axis: int = 1,
            characters: Sequence[str] | None = None, exact: bool = False) -> list[Any]:
        """What a network with a CTC loss has read, by the best path.

        Equal outputs that follow each other are one, and blanks are left out.

        Parameters
        ----------
        inputs, exact
            As for :meth:`topk`.
        blank : int
            The output that stands for no character.
        time_axis : int
            The axis of the model's output along which the characters follow, 0 or 1; the other one
            is that of the batch.
        characters : sequence of str or None
            The character of each output; None for ids.

        Returns
        -------
        list of ndarray, int32, or of str
            One entry per element of the batch.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit, or the output has no such two axes.
        """
        blank = check.integer(blank, "blank", minimum=0, maximum=self.n_labels - 1)
        time_axis = check.integer(time_axis, "time_axis", minimum=0, maximum=1)
        if characters is not None and len(characters) != self.n_labels:
            raise ValueError(f"characters must have one entry per output, {self.n_labels}, "
                             f"got {len(characters)}")
        best = self.predict(inputs, exact=exact)
        if best.ndim != 2:
            raise ValueError("ctc needs an output with a batch axis and a time axis beside the "
                             f"characters, got {best.ndim} axes; use predict")
        out = []
        for row in best if time_axis == 1 else best.T:
            ids = row[np.flatnonzero(np.diff(row, prepend=-1))]
            ids = ids[ids != blank]
            out.append(ids if characters is None else "".join(characters[i] for i in ids))
        return out

    # -- parts of a call ----------------------------------------------------------------------

    def _values(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, np.ndarray]:
        """The inputs, and what the trunk gives, by name."""
        if len(inputs) == 1 and isinstance(inputs[0], dict):
            named, inputs = {**inputs[0], **named}, ()
        elif len(inputs) == 1 and isinstance(inputs[0], (tuple, list)) and self._takes_several():
            inputs = tuple(inputs[0])
        if len(inputs) > len(self.inputs):
            raise ValueError(f"the model has {len(self.inputs)} inputs "
                             f"({', '.join(self.inputs)}), got {len(inputs)}")
        given = dict(zip(self.inputs, inputs, strict=False))
        for name in named:
            if name not in self.inputs or name in given:
                raise ValueError(f"the model has no further input {name!r}; it has "
                                 f"{', '.join(self.inputs)}")
        given |= named
        missing = [name for name in self.inputs if name not in given]
        if missing:
            raise ValueError(f"the input {missing[0]!r} is missing; the model has "
                             f"{', '.join(self.inputs)}")

        values = {name: self._checked(name, given[name]) for name in self.inputs}
        if self._trunk is not None:
            values |= self._trunk.run(values)
        return values

    def _takes_several(self) -> bool:
        return len(self.inputs) > 1

    def _checked(self, name: str, value: Any) -> np.ndarray:
        dtype, rank = self._whole_inputs[name]
        array = np.asarray(to_numpy(value, name))
        if dtype is not None and array.dtype != dtype:
            kinds = {"f": "f", "i": "iu", "u": "iu", "b": "b"}
            if array.dtype.kind not in kinds.get(np.dtype(dtype).kind, ""):
                raise TypeError(f"{name} must be {np.dtype(dtype)}, got {array.dtype}")
            array = array.astype(dtype)
        if rank is not None and array.ndim != rank:
            raise ValueError(f"{name} must have {rank} axes, got shape {array.shape}")
        return array

    def _rows_of(self, values: dict[str, np.ndarray]) -> Floats:
        """The rows (n, n_in) that the layers take."""
        rows = values[self._cut.rows]
        if rows.ndim < 2 or rows.shape[-1] != self.head.n_features:
            raise ValueError(f"{self._source}: the trunk gives {self._cut.rows!r} of shape "
                             f"{rows.shape}, and the layers take {self.head.n_features} columns")
        rows = rows.reshape(-1, rows.shape[-1])
        return check.dense(rows, f"{self._source}: the value {self._cut.rows!r}")

    def _rows_topk(self, values: dict[str, np.ndarray], k: int,
                   exact: bool = False) -> tuple[Ids, Floats]:
        ids, scores = self.head.topk(self._rows_of(values), k, exact=exact)
        shape = (*values[self._cut.rows].shape[:-1], k)
        return ids.reshape(shape), scores.reshape(shape)

    def _laid_out(self, arrays: list[np.ndarray], values: dict[str, np.ndarray]
                  ) -> tuple[list[np.ndarray], int, int]:
        """Arrays (..., k) as the nodes behind the layers would lay the outputs out.

        Also the axis of the outputs, and the number of nodes that were followed.
        """
        axis, k = arrays[0].ndim - 1, arrays[0].shape[-1]
        for done, (kind, argument) in enumerate(self._cut.steps):
            ndim = arrays[0].ndim
            if kind == "reshape":
                target = values[argument] if isinstance(argument, str) else np.array(argument)
                whole = (*arrays[0].shape[:axis], self.n_labels, *arrays[0].shape[axis + 1:])
                shape = _resolved(target, whole)
                if axis != ndim - 1 or shape is None or shape[-1] != self.n_labels:
                    return arrays, axis, done
                arrays = [a.reshape(*shape[:-1], k) for a in arrays]
                axis = len(shape) - 1
            elif kind == "transpose":
                order = argument or list(range(ndim))[::-1]
                arrays = [np.transpose(a, order) for a in arrays]
                axis = list(order).index(axis)
            elif kind == "unsqueeze":
                axes = sorted(i % (ndim + len(argument)) for i in argument)
                arrays = [np.expand_dims(a, tuple(axes)) for a in arrays]
                for i in axes:
                    axis += i <= axis
            elif kind == "squeeze":
                axes = [i % ndim for i in argument]
                if axis in axes:
                    return arrays, axis, done
                arrays = [np.squeeze(a, tuple(axes)) for a in arrays]
                axis -= sum(i < axis for i in axes)
            elif kind in ("softmax", "logsoftmax", "sigmoid"):
                over, over_the_rest = argument
                over %= ndim
                if kind != "sigmoid" and (over != axis or (over_the_rest and axis != ndim - 1)):
                    return arrays, axis, done
            elif kind not in ("same", "cast"):  # ArgMax and TopK
                return arrays, axis, done
        return arrays, axis, len(self._cut.steps)

    def _by_best(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """The outputs that ArgMax or TopK give, or None where more is needed."""
        cut = self._cut
        if not cut.steps or cut.steps[-1].kind not in ("argmax", "topk"):
            return None
        kind, argument = cut.steps[-1]
        names = [cut.steps_output] if kind == "argmax" else argument[3]
        changed = {step.kind for step in cut.steps} & {"softmax", "logsoftmax", "sigmoid", "cast"}
        if (set(self._behind) - set(names) or (kind == "argmax" and argument[2])
                or (kind == "topk" and (not argument[2] or argument[0] > self.n_labels
                                        or (changed and names[0] in self._behind)))):
            return None

        k = 1 if kind == "argmax" else argument[0]
        (ids, scores), axis, done = self._laid_out(list(self._rows_topk(values, k)), values)
        over = argument[0] if kind == "argmax" else argument[1]
        if done != len(cut.steps) - 1 or over % ids.ndim != axis:
            return None
        if kind == "topk":
            dtype = values[cut.rows].dtype
            return dict(zip(names, (scores.astype(dtype), ids.astype(np.int64)), strict=True))
        ids = ids.astype(np.int64)
        return {names[0]: ids if argument[1] else np.squeeze(ids, axis)}

    def _by_tail(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs that the tail gives for all scores."""
        cut = self._cut
        rows = values[cut.rows]
        given = self._rows_of(values)
        scores = (self.head.decision_function(given, exact=True) if self.exact_outputs
                  else self.head._estimates(given, N_EXACT_OUTPUTS))
        scores = scores.reshape(*rows.shape[:-1], self.n_labels).astype(rows.dtype, copy=False)
        if self._behind == [cut.scores]:
            return {cut.scores: scores}
        if self._tail is None:
            given = {cut.scores: scores} | {name: values[name] for name in self._read_behind}
            types = {name: _type_of(array) for name, array in given.items()}
            self._tail = _Session(self._skeleton, list(given), self._behind, types, self.n_threads,
                                  self._source)
        return self._tail.run({**values, cut.scores: scores})

    # -- calibration --------------------------------------------------------------------------

    def _calibrated(self, calibration: Any) -> tuple[Floats, float]:
        """Rows that the trunk gives for calibration inputs, and its seconds per row."""
        parts, n_rows = [], 0
        timed: list[float] = []
        for batch in _batches(calibration, len(self.inputs)):
            rows = self._rows_of(self._values((batch,), {}))
            if len(timed) < N_TIMED_INPUTS:
                begin = time.perf_counter()
                self._values((batch,), {})
                timed.append((time.perf_counter() - begin) / max(1, len(rows)))
            parts.append(rows)
            n_rows += len(rows)
            if n_rows >= MAX_CALIBRATION_ROWS:
                break
        if n_rows < 2:
            raise ValueError("calibration must give the layers at least two rows, and should give "
                             f"some hundreds; got {n_rows}")
        return np.concatenate(parts)[:MAX_CALIBRATION_ROWS], min(timed)

    # -- export and files ---------------------------------------------------------------------

    def to_onnx(self) -> ModelProto:
        """The whole model, trunk and layers, with the weights as they were, bit for bit.

        Returns
        -------
        onnx.ModelProto
            ``onnx.save(model, path)`` writes it.
        """
        return onnx_graph.with_weights(self._skeleton, self._cut.stored, self.head.architecture())

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        skeleton = np.frombuffer(self._skeleton.SerializeToString(), np.uint8)
        return {"skeleton": skeleton}, {"cut": self._cut._asdict()}

    @classmethod
    def _restored(cls, whole: Whole, network: InferenceNetwork, source: str) -> Self:
        require_runtime()
        import onnx

        skeleton = onnx.ModelProto()
        skeleton.ParseFromString(whole.tensors["skeleton"].tobytes())
        cut = whole.config["cut"]
        cut["stored"] = [None if entry is None else (str(entry[0]), bool(entry[1]))
                         for entry in cut["stored"]]
        cut["steps"] = [onnx_graph.Step(str(kind), argument) for kind, argument in cut["steps"]]
        return cls(skeleton, Cut(**cut), network.n_threads, source)

    def __repr__(self) -> str:
        layers = repr(self.head).removeprefix("InferenceNetwork(")
        return (f"OnnxNetwork(\n  inputs {', '.join(self.inputs)}; "
                f"{len(self._skeleton.graph.node)} nodes, with these in place of those that give "
                f"{self._cut.scores!r}:{layers}")


def is_onnx_network(path: PathLike) -> bool:
    """Whether a file is one that `OnnxNetwork.save` has written; False also where there is none."""
    return format_of(path) == FORMAT


def convert_graph(cut: CutGraph, source: PathLike, calibration: Any,
                  convert_layers: Callable[..., Any], n_threads: int | None) -> OnnxNetwork:
    """The network of a model that was cut, of the file `source`.

    `convert_layers` converts affine layers.
    """
    layers = cut.layers
    skeleton = onnx_graph.without_weights(cut)
    network = OnnxNetwork(skeleton, Cut(**{name: getattr(cut, name) for name in Cut._fields}),
                          n_threads, str(source))
    network.network = convert_layers(layers, None)
    if calibration is None:
        return network
    rows, seconds = network._calibrated(calibration)
    network.network = convert_layers(layers, rows)
    network.report.microseconds_outside = 1e6 * seconds
    return network


class _Session:
    """Some nodes of a model, in ONNX Runtime."""

    def __init__(self, model: ModelProto, given: list[str], wanted: list[str],
                 types: dict[str, int], n_threads: int | None, source: str) -> None:
        runtime = require_runtime()
        part = onnx_graph.part_of(model, given, wanted, types)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = resolve(n_threads)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # threads that wait for work would take the processors of the layers
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(
                part.SerializeToString(), options, providers=["CPUExecutionProvider"],
                enable_fallback=0)  # it would print
        except Exception as error:  # of a kind that ONNX Runtime does not export
            text = " ".join(str(error).split())[:300]
            raise ValueError(f"{source}: ONNX Runtime cannot run the nodes before {wanted[0]!r}: "
                             f"{text}") from error
        self._source = source
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._wanted = wanted

    def run(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        feed = {name: values[name] for name in self._inputs}
        try:
            return dict(zip(self._wanted, self._session.run(self._wanted, feed), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feed.items())
            text = " ".join(str(error).split())[:300]
            raise ValueError(f"{self._source}: ONNX Runtime cannot run the model for {shapes}: "
                             f"{text}") from error


def _declared(model: ModelProto, names: Iterable[str]) -> dict[str, tuple[Any, int | None]]:
    """The dtype and the number of axes of each input."""
    kinds = {number: DTYPES.get(name) for name, number in TYPES.items()}
    found = {}
    for value in model.graph.input:
        if value.name in names:
            tensor = value.type.tensor_type
            rank = len(tensor.shape.dim) if tensor.HasField("shape") else None
            found[value.name] = kinds.get(tensor.elem_type), rank
    return found


def _type_of(array: np.ndarray) -> int:
    return next((TYPES[name] for name, dtype in DTYPES.items() if array.dtype == dtype), 1)


def _resolved(target: np.ndarray, shape: Sequence[int]) -> list[int] | None:
    """The shape that a Reshape gives, or None where it does not fit."""
    out = [int(shape[i]) if n == 0 and i < len(shape) else int(n)
           for i, n in enumerate(np.ravel(target))]
    known = int(np.prod([n for n in out if n != -1], dtype=np.int64))
    total = int(np.prod(shape, dtype=np.int64))
    if -1 in out:
        out[out.index(-1)] = total // known if known else 0
    return out if int(np.prod(out, dtype=np.int64)) == total else None


def _batches(calibration: Any, n_inputs: int) -> Iterable[Any]:
    """The calibration as inputs of single calls."""
    is_one = isinstance(calibration, dict) or hasattr(calibration, "shape")
    if isinstance(calibration, tuple) and n_inputs > 1 and len(calibration) == n_inputs:
        is_one = all(hasattr(part, "shape") for part in calibration)
    return [calibration] if is_one else calibration

