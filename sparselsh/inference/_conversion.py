"""Conversion: chooses the plan of each layer by measurement, within an error and a recall.

Layers are converted in their order. For each, the possible plans are timed on calibration inputs as
the layers before it give them; a plan other than "dense" is taken where it is faster by more than a
tenth.

Hidden layers may pass on only some of their activations: those with the largest product of
activation and the norm of the weights that leave it. Their number is set by the error of the
network's outputs. Choices are made on one half of the calibration rows; error, agreement and recall
are measured on the other.

Where the inputs are sparse, the first layer has the plan "rows" without a choice. A network of this
library becomes *compact* at the end, if its storage is of fewer bits: that comes after the plans,
because the rows that are rounded are those of the layout. Its report compares it with the network
as it was given.
"""
from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from .._arrays.csr import CSR
from .._arrays.linalg import exact_topk, matmul
from .._arrays.scipy import sp
from .._core import _select
from .._threads import resolve
from ..index import (
    MIN_NEURONS_PER_CANDIDATE,
    N_NEIGHBOURS,
    IndexOptions,
    build,
    drawn_seed,
    recall_of,
    split_in_blocks,
    tune,
)
from ._file import stored_bytes
from ._int8_outputs import MAX_INPUTS, n_candidates
from ._layer import ServedLayer
from ._network import ServedNetwork
from ._refined import StoredRefinement
from ._report import TIMED_ROWS, ConversionReport, LayerReport
from ._timing import fastest
from .readers.affine import checked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .._arrays.types import Floats, Ids, RandomState
    from ..index import IndexEngine
    from ..refinement import Refinement
    from .readers.affine import Affine

Times: TypeAlias = dict[int, float]  # by the number of queries per call

MAX_HALF_ROWS = 256  # of each half of the calibration, used for errors and times
MAX_QUERIES = 2048  # by which an index is tuned
MAX_QUERY_PRODUCTS = 1 << 36  # multiply-adds spent on computing these queries
MAX_INDEX_INPUTS = 2048  # of a hidden layer with an index; a query reads up to 1,024 rows of them
MIN_WEIGHTS = 1 << 18  # a megabyte; with fewer, a query costs the calls and not the weights
MIN_INDEX_NEURONS = 4096  # with fewer, an index is not tried
KEPT_FRACTIONS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.32, 0.5)
MAX_ERROR_OUTPUTS = 4096  # of a wide last layer, by which the error is estimated
MAX_NONZERO_FRACTION = 0.9  # of the inputs; with more, reading only these is not tried
SPARSE_MAX_FRACTION = 0.1  # of a sparse calibration; with more, a first layer has other plans too
MIN_GAIN = 1.1  # of a plan, in speed over dense
HIDDEN_RECALL = 0.9  # of an index over hidden neurons; the error decides on its candidates
MAX_RAISES = 4  # of the recall for which an index is set
MISSED_BEST = 0.1  # of the neighbours that may be missed: best outputs that may be
N_SINGLE_QUERIES = 8  # single queries that are timed one after the other


def convert(layers: Sequence[Affine], calibration: Any, *, recall: float = 0.99,
            error: float = 0.02, k: int = 5, storage: str = "float32",
            random_state: RandomState = None, n_threads: int | None = None, source: str = "",
            kind: type[Any] = ServedNetwork, refinement: Refinement | None = None,
            sparse_input: bool = False, last_inputs: Floats | None = None,
            compact: bool = False) -> Any:
    """The converted network of `layers`, from the file `source`, an instance of `kind`.

    `calibration` holds its inputs, or is None; an index of the last layer is then made from
    `last_inputs`, if there are some. `sparse_input` says that the rows to come are sparse, which a
    sparse calibration also does. With `compact` the weights are kept in `storage` alone. The caller
    checks all arguments but the layers.
    """
    affine = checked(layers, source)
    is_linear = affine[0].kind == "linear"
    if is_linear and len(affine) > 1 and sp.issparse(calibration) and calibration.ndim == 2:
        sparse_input |= _nonzero_fraction(calibration) < SPARSE_MAX_FRACTION
    served = [ServedLayer(layer, storage, sparse_input=sparse_input and is_linear and i == 0)
              for i, layer in enumerate(affine)]
    stored = None if refinement is None else StoredRefinement.of(refinement, "float32")
    network = kind(served, ConversionReport([]), n_threads, stored)
    if calibration is None:
        return _without_calibration(network, last_inputs, recall, k, random_state, compact)
    x = network._validated_queries(calibration)
    if x.shape[0] < 2:
        raise ValueError("calibration must have at least two rows, and should have some hundreds; "
                         f"got {x.shape[0]}")
    return _Conversion(network, x, recall, error, k, random_state, compact).run()


def _without_calibration(network: ServedNetwork, last_inputs: Floats | None, recall: float, k: int,
                         random_state: RandomState, compact: bool) -> ServedNetwork:
    reports, last = [], network.layers[-1]
    n_threads = resolve(network.n_threads)
    for layer in network.layers:
        layer.lay_out(n_threads)
    if (last_inputs is not None and len(last_inputs) and last.n_out >= MIN_INDEX_NEURONS
            and not last.input_major):
        engine = _output_index(last, last_inputs, _n_found(network, k), recall, random_state,
                               n_threads)
        if engine is not None:
            last.index, last.plan = engine, {"single": "lsh", "batch": "lsh"}

    before = [_dense_bytes(layer) for layer in network.layers]
    if compact:
        _make_compact(network, n_threads)
    for layer, n_bytes in zip(network.layers, before, strict=True):
        reason = {"rows": "rows: a table" if layer.kind != "linear" else "rows: sparse inputs",
                  "lsh": "lsh: an index, made for inputs that the training has kept",
                  "dense": "dense: there are no calibration inputs to choose by",
                  }[layer.plan["single"]]
        reports.append(LayerReport(layer.name, (layer.n_out, layer.n_in), dict(layer.plan), reason,
                                   bytes_dense=n_bytes, bytes=layer.nbytes))
    network.report = ConversionReport(reports, storage=network.layers[0].storage)
    _report_sizes(network)
    return network


def _n_found(network: ServedNetwork, k: int) -> int:
    """The labels that the last layer finds where k are asked for."""
    if network.refinement is not None:
        k = max(k, network.refinement.n_candidates)
    return min(k, network.n_labels)


def _make_compact(network: ServedNetwork, n_threads: int) -> None:
    """Keep all weights in the storage alone."""
    storage = network.layers[0].storage
    if storage == "float32":
        return
    for layer in network.layers:
        layer.compact(n_threads)
    if network.refinement is not None:
        network._refinement = StoredRefinement.of(network.refinement, storage)
    network._plans_changed()


def _report_sizes(network: ServedNetwork) -> None:
    refinement = network._refinement
    if refinement is not None:
        network.report.refinement = str(refinement)
        network.report.bytes_refinement = refinement.nbytes
    network.report.bytes_file = stored_bytes(network.layers, refinement)


class _Conversion:
    """One conversion: its inputs, and what has been measured so far."""

    def __init__(self, network: ServedNetwork, x: np.ndarray | CSR, recall: float, error: float,
                 k: int, random_state: RandomState, compact: bool = False) -> None:
        self.network, self.layers = network, network.layers
        self.last = len(self.layers) - 1
        self.recall, self.budget, self.k = recall, error, min(k, network.n_labels)
        self.n_found = _n_found(network, k)  # by the last layer, for k labels
        self.random_state, self.n_threads = random_state, resolve(network.n_threads)
        self.is_compact = compact and self.layers[0].storage != "float32"

        self.halves = [_take(x, _spaced(rows)) for rows in split_in_blocks(x.shape[0])]

        # more queries than rows of a half describe the distribution of an index's inputs better
        n_weights = sum(layer.values.size for layer in self.layers if layer.kind == "linear")
        n_queries = min(MAX_QUERIES, MAX_QUERY_PRODUCTS // n_weights)
        self.queries = self.held_queries = None
        first, second = split_in_blocks(x.shape[0])
        if n_queries > min(len(first), MAX_HALF_ROWS) and network.n_labels >= MIN_INDEX_NEURONS:
            self.queries, self.held_queries = (
                network._hidden(_take(x, _spaced(rows, n_queries)), exact=True)
                for rows in (first, second))

        self.columns = None
        if network.n_labels > MAX_ERROR_OUTPUTS:
            columns = np.random.default_rng(0).permutation(network.n_labels)[:MAX_ERROR_OUTPUTS]
            self.columns = np.sort(columns)
        # inputs of each layer, with every neuron computed
        self.dense_inputs = [[network._hidden(half, i, exact=True) for i in range(len(self.layers))]
                             for half in self.halves]
        self.reference = self._outputs(self.last, self.dense_inputs[0][-1])
        # the same for the rows that no choice uses, and the best labels of these
        self.held_reference = self._outputs(self.last, self.dense_inputs[1][-1])
        self.held_best, _ = network._answers(self.halves[1], 1, exact=True)
        # per layer: how many inputs are read, their importance, and the output error
        self.kept_of: list[tuple[int, Floats, float] | None] = [None] * len(self.layers)

    def run(self) -> ServedNetwork:
        """Plan every layer, pass on more activations until the error is reached, and measure."""
        for layer in self.layers:  # before any plan
            layer.lay_out(self.n_threads)
        network_dense = self._network_times()

        reports = []
        inputs = dict.fromkeys(("single", "batch"), self.halves[0])
        for i in range(len(self.layers)):
            reports.append(self._plan(i, inputs))
            for kind in inputs:
                if i < self.last:
                    inputs[kind] = self._forward(i, inputs[kind], kind)
        self._tighten(0, reports)
        self._tighten(1, reports)
        last = self.layers[-1]
        if (engine := last.index) is not None:
            reports[-1].reason += self._raise_recall(engine)
        if "int8" in last.plan.values():
            reports[-1].reason += self._widen(last)
        if self.is_compact:
            _make_compact(self.network, self.n_threads)

        for layer, report in zip(self.layers, reports, strict=True):
            report.bytes = layer.nbytes
            report.density = layer.density if layer.kept is not None else 1.0
        if {"lsh", "int8"} & set(self.layers[-1].plan.values()):
            reports[-1].recall = self._recall()
        self.network.report = self._whole(reports, network_dense)
        _report_sizes(self.network)
        return self.network

    # -- outputs and errors -------------------------------------------------------------------

    def _outputs(self, i: int, x: np.ndarray | CSR) -> Floats:
        """The network's outputs `columns`, by every neuron from layer i on, whose input is x."""
        for layer in self.layers[i:-1]:
            x = layer.outputs(x, "batch", self.n_threads, exact=True)
        last = self.layers[-1]
        if self.columns is None:
            return last.outputs(x, "batch", self.n_threads, exact=True)
        if last.input_major:
            return last.outputs(x, "batch", self.n_threads, exact=True)[:, self.columns]
        x = x.to_dense() if isinstance(x, CSR) else x
        return matmul(x, last.values[self.columns], self.n_threads, transpose_b=True,
                      bias=last.bias[self.columns])

    def _error(self, outputs: Floats, reference: Floats | None = None) -> float:
        reference = self.reference if reference is None else reference
        size = np.linalg.norm(reference)
        return float(np.linalg.norm(outputs - reference) / size) if size else 0.0

    # -- one layer ----------------------------------------------------------------------------

    def _plan(self, i: int, inputs: dict[str, Any]) -> LayerReport:
        """Choose the plan of layer i, and report why."""
        layer = self.layers[i]
        report = LayerReport(layer.name, (layer.n_out, layer.n_in), layer.plan, "",
                             bytes_dense=_dense_bytes(layer))
        if layer.kind != "linear":
            report.reason = "rows: a table, of which the ids given are read"
            self._time(report.microseconds, layer, i, inputs)
            report.microseconds_dense = dict(report.microseconds)
            return report

        if i == 0 and layer.input_major:
            nonzero = 100 * _nonzero_fraction(inputs["single"])
            digits = ".0f" if nonzero >= 0.95 else ".2g"
            report.reason = f"rows: {nonzero:{digits}}% of its inputs are not zero, which is exact"
            self._time(report.microseconds, layer, i, inputs)
            report.microseconds_dense = dict(report.microseconds)
            return report

        dense = {n: self._seconds(layer, i, self.dense_inputs[0][i], kind, n)
                 for n, kind in _kinds()}
        report.microseconds_dense = {n: 1e6 * s for n, s in dense.items()}
        if layer.values.size < MIN_WEIGHTS:
            sparse = isinstance(inputs["single"], CSR)
            report.reason = (f"kept dense: {layer.values.size:,} weights, too few to gain"
                             + (" (of the activations kept, as they come)" if sparse else ""))
            self._time(report.microseconds, layer, i, inputs)
            return report

        trials: dict[str, _Trial | None] = {"dense": _Trial(layer, dense)}
        if layer.n_out >= MIN_INDEX_NEURONS and (i < self.last or layer.activation is None):
            by = self._try_lsh_output if i == self.last else self._try_lsh_hidden
            trials["lsh"] = by(layer, i, inputs)
        by = self._try_int8_output if i == self.last else self._try_int8_hidden
        trials["int8"] = by(layer, i, inputs)
        if i < self.last or layer.n_out < MIN_INDEX_NEURONS:
            trials["rows"] = self._try_rows(layer, i, inputs)
        self._choose(i, {plan: t for plan, t in trials.items() if t is not None}, inputs, report)
        return report

    def _choose(self, i: int, trials: dict[str, _Trial], inputs: dict[str, Any],
                report: LayerReport) -> None:
        """Take the fastest plan for single queries and for batches, and put its layer in place."""
        layer = self.layers[i]
        chosen: dict[str, str] = {}
        for n, kind in _kinds():
            able = {plan: trial.times[n] for plan, trial in trials.items()}
            if kind == "batch":  # one layout for both; the copy in 8 bits has its own
                if chosen["single"] == "rows":
                    plans = ("dense", "rows", "int8") if i < self.last else ("dense", "rows")
                    able = {plan: able[plan] for plan in plans if plan in able}
                elif chosen["single"] in ("lsh", "int8"):
                    able.pop("rows", None)
            best = min(able, key=able.__getitem__)
            chosen[kind] = best if able[best] * MIN_GAIN < able["dense"] else "dense"
        if chosen == {"single": "dense", "batch": "rows"} and layer.storage == "float32":
            chosen["batch"] = "dense"  # input-major weights would slow single queries down

        plans = set(chosen.values())
        if "lsh" in plans:
            layer = self.layers[i] = trials["lsh"].layer
            if i < self.last:
                report.output_error = trials["lsh"].error
        if "int8" in plans:
            layer.int8 = trials["int8"].layer.int8
            if i < self.last:
                report.output_error = trials["int8"].error
        layer.plan = dict(chosen)
        layer.lay_out(self.n_threads)
        selection = self.kept_of[i] if i and "rows" in plans else None
        before = self.layers[i - 1]
        if selection is not None and before.index is None:
            before.kept, before.importance = selection[:2]
        if selection is not None and before.kept is not None:
            report.output_error = selection[2]

        report.plan = dict(chosen)
        report.reason = _reason(chosen, trials)
        self._time(report.microseconds, layer, i, inputs)

    def _try_lsh_output(self, layer: ServedLayer, i: int,
                        inputs: dict[str, Any]) -> _Trial | None:
        """An index over the outputs; None where it would compute too many of them."""
        queries = self.queries if self.queries is not None else self.dense_inputs[0][i]
        queries = np.ascontiguousarray(_dense_array(queries))
        engine = _output_index(layer, queries, self.n_found, self.recall, self.random_state,
                               self.n_threads)
        if engine is None:
            return None

        candidate = copy.copy(layer)
        candidate.index, candidate.plan = engine, {"single": "lsh", "batch": "lsh"}
        return _Trial(candidate, self._times(candidate, i, inputs))

    def _with_int8(self, layer: ServedLayer) -> ServedLayer | None:
        """The layer with products of 8 bits; None where they cannot be."""
        if layer.input_major or layer.n_in > MAX_INPUTS or self.is_compact:
            return None
        candidate = copy.copy(layer)
        candidate.plan = {"single": "int8", "batch": "int8"}
        return candidate

    def _try_int8_hidden(self, layer: ServedLayer, i: int,
                         inputs: dict[str, Any]) -> _Trial | None:
        """Products of 8 bits for a hidden layer; None where the error is not reached."""
        candidate = self._with_int8(layer)
        if candidate is None or self.budget == 0:
            return None
        x = candidate.outputs(self.dense_inputs[0][i], "batch", self.n_threads)
        error = self._error(self._outputs(i + 1, x))
        if error > self._error_per_layer():
            return None
        return _Trial(candidate, self._times(candidate, i, inputs), f"int8 error {error:.2%}",
                      error)

    def _try_int8_output(self, layer: ServedLayer, i: int,
                         inputs: dict[str, Any]) -> _Trial | None:
        """Products of 8 bits for all outputs; None where they do not reach the recall."""
        candidate = self._with_int8(layer)
        if (candidate is None or layer.activation is not None
                or 2 * n_candidates(self.n_found) > layer.n_out):
            return None
        x = np.ascontiguousarray(_dense_array(self.dense_inputs[0][i]))
        truth, _ = exact_topk(x, layer.values, layer.bias, self.n_found, self.n_threads)
        found, _ = candidate.topk(x, self.n_found, "batch", self.n_threads)
        recall = recall_of(found, truth)
        if recall < self.recall:
            return None
        return _Trial(candidate, self._times(candidate, i, inputs), f"int8 recall {recall:.2%}")

    def _try_lsh_hidden(self, layer: ServedLayer, i: int,
                        inputs: dict[str, Any]) -> _Trial | None:
        """An index over the important hidden neurons; None where the error is not reached."""
        if layer.activation != "relu" or self.budget == 0 or layer.n_in > MAX_INDEX_INPUTS:
            return None
        importance = self._importance(i)
        exponents = _scaled_exactly(layer, importance)
        values = np.ldexp(layer.values, exponents[:, None])
        bias = np.ldexp(layer.bias, exponents)
        queries = np.ascontiguousarray(_dense_array(self.dense_inputs[0][i]))
        options = IndexOptions(scaling=0.0, recall=HIDDEN_RECALL, plan="sketches")
        engine = build(options, values, bias, queries, drawn_seed(self.random_state),
                       self.n_threads)

        candidate = copy.copy(layer)
        candidate.values, candidate.bias, candidate.exponents = values, bias, exponents
        candidate.importance, candidate.index = importance, engine
        candidate.plan = {"single": "lsh", "batch": "lsh"}

        def keep(fraction: float) -> None:
            candidate.kept = max(1, round(fraction * layer.n_out))

        def error_of(fraction: float) -> float:
            keep(fraction)
            return self._error(self._outputs(i + 1, candidate.found(queries, self.n_threads)))

        least = _least(error_of, self._error_per_layer(), KEPT_FRACTIONS[:-2])
        if least is None:
            return None
        fraction, error = least
        keep(fraction)
        note = (f"{candidate.kept} of {layer.n_out} neurons are found, output error {error:.2%}")
        return _Trial(candidate, self._times(candidate, i, inputs), note, error)

    def _try_rows(self, layer: ServedLayer, i: int, inputs: dict[str, Any]) -> _Trial | None:
        """Reading the rows of the important inputs; None where all inputs are important."""
        found = i > 0 and self.layers[i - 1].index is not None  # an index chooses the inputs then
        note = None if found else self._inputs_that_matter(i)
        if note is None and not found:
            return None

        candidate = copy.copy(layer)
        candidate.plan = {"single": "rows", "batch": "rows"}
        candidate.lay_out(self.n_threads)
        selection = self.kept_of[i]
        times = {}
        for n, kind in _kinds():
            given = inputs[kind]
            if selection is not None:
                given = _Selected(self.layers[i - 1], given, *selection[:2])
            times[n] = self._seconds(candidate, i, given, kind, n)
        return _Trial(candidate, times, note)

    def _inputs_that_matter(self, i: int) -> str | None:
        """Set `kept_of` by the error of the outputs, if that reads fewer than the nonzero inputs.

        Returns what is read, in words, or None where too few inputs are zero.
        """
        x = self.dense_inputs[0][i]
        nonzero = _nonzero_fraction(x)
        if i and self.budget and not isinstance(x, CSR):
            before, importance = self.layers[i - 1], self._importance(i - 1)

            def error_of(fraction: float) -> float:
                largest = _largest(x, importance, fraction, self.n_threads)
                return self._error(self._outputs(i, largest))

            least = _least(error_of, self._error_per_layer(), KEPT_FRACTIONS)
            if least is not None and least[0] < nonzero:
                fraction, error = least
                kept = max(1, round(fraction * before.n_out))
                self.kept_of[i] = (kept, importance, error)
                return (f"{kept} of {before.n_out} activations of {before.name} are read "
                        f"({nonzero:.0%} are not zero), output error {error:.2%}")
        if nonzero > MAX_NONZERO_FRACTION:
            return None
        return f"{nonzero:.0%} of its inputs are not zero, which is exact"

    def _importance(self, i: int) -> Floats:
        """The importance of each output of layer i: the norm of the weights that leave it."""
        after = self.layers[i + 1]
        weight = after.values if after.input_major else after.values.T
        return np.sqrt(np.einsum("ij,ij->i", weight, weight, dtype=np.float64)).astype(np.float32)

    def _error_per_layer(self) -> float:
        # the errors of layers add up like independent ones
        n = max(1, sum(layer.values.size >= MIN_WEIGHTS for layer in self.layers[1:]))
        return self.budget / np.sqrt(n)

    def _tighten(self, half: int, reports: list[LayerReport]) -> None:
        """While the error of all layers, as stored, is too large, pass on more activations.

        Where that does not suffice, products of 8 bits are given up. The second half only checks
        what the first half has chosen.
        """
        while self.budget and self._planned_error(half) > self.budget:
            grown = False
            for layer in self.layers:
                if layer.kept is not None and layer.kept < layer.n_out // 2:
                    layer.kept = min(layer.n_out // 2, layer.kept + layer.kept // 2 + 1)
                    grown = True
            if not grown and not self._without_int8(reports):
                reports[0].reason += (
                    f"; FALLS SHORT of the error of {self.budget:.2%} that was asked: "
                    f"{self._planned_error(half):.2%}")
                return

    def _without_int8(self, reports: list[LayerReport]) -> bool:
        """Make the hidden layer dense whose products of 8 bits err most; whether there is one."""
        able = [i for i in range(self.last) if "int8" in self.layers[i].plan.values()]
        if not able:
            return False
        worst = max(able, key=lambda i: reports[i].output_error or 0.0)
        layer, report = self.layers[worst], reports[worst]
        layer.plan = {kind: "dense" if plan == "int8" else plan
                      for kind, plan in layer.plan.items()}
        layer.int8, report.plan = None, dict(layer.plan)
        report.reason += "; dense after all: with the other layers the error was too large"
        report.output_error = None
        for n, kind in _kinds():
            if layer.plan[kind] == "dense":
                report.microseconds[n] = report.microseconds_dense[n]
        return True

    def _planned_error(self, half: int) -> float:
        """The error of the outputs on one half, as planned for single queries or batches."""
        reference = (self.reference, self.held_reference)[half]
        kinds = [kind for n, kind in _kinds()]
        if all(len(set(layer.plan.values())) == 1 for layer in self.layers):
            kinds = kinds[:1]
        return max(self._error(self._planned_outputs(half, kind), reference) for kind in kinds)

    def _planned_outputs(self, half: int, kind: str) -> Floats:
        """Outputs from the hidden activations, as planned."""
        x = self.halves[half]
        for i in range(self.last):
            x = self._forward(i, x, kind)
        last = self.layers[-1]
        if self.columns is None or last.input_major:
            out = last.outputs(x, kind, self.n_threads, exact=last.is_partial(kind))
            return out if self.columns is None else out[:, self.columns]
        return self._outputs(len(self.layers) - 1, x)

    def _forward(self, i: int, x: np.ndarray | CSR, kind: str) -> np.ndarray | CSR:
        keep = self.layers[i + 1].plan[kind] == "rows"
        return self.layers[i].forward(x, kind, self.n_threads, keep=keep)

    # -- measures on rows that no choice has used, and times ----------------------------------

    def _raise_recall(self, engine: IndexEngine) -> str:
        """Set the index of the outputs for more where rows of the other half need it.

        Also where too few of them get the same best output. Returns what was done, in words.
        """
        wanted, note = self.recall, ""
        queries = self.queries if self.queries is not None else self.dense_inputs[0][-1]
        queries = np.ascontiguousarray(_dense_array(queries))
        held = self.held_queries if self.held_queries is not None else self.dense_inputs[1][-1]
        held = np.ascontiguousarray(_dense_array(held))
        truth, _ = exact_topk(held, engine.W, engine.bias, self.n_found, self.n_threads)
        same_best = 1 - (1 - self.recall) * MISSED_BEST
        for raises_left in range(MAX_RAISES, -1, -1):
            ids, _ = engine.search(held, self.n_found, None, self.n_threads)
            found, same = recall_of(ids, truth), float(np.mean(ids[:, 0] == truth[:, 0]))
            if found >= self.recall and same >= same_best:
                return note
            if raises_left:
                wanted = 1 - (1 - wanted) / 2
                tune(engine, queries, min(self.n_found, len(engine.W)), wanted, self.n_threads)
                note = f"; set for a recall of {wanted:.3%}, which rows that it had not seen needed"
        return (f"; FALLS SHORT on rows that no choice has seen, though set for a recall of "
                f"{wanted:.3%}: recall {found:.3%} of {self.recall:.3%}, the same best output for "
                f"{same:.3%} of {same_best:.3%}; give more calibration rows")

    def _widen(self, last: ServedLayer) -> str:
        """Compute more candidates of products of 8 bits where rows of the other half need it.

        Returns what was done, in words.
        """
        held = np.ascontiguousarray(_dense_array(self.dense_inputs[1][-1]))
        truth, _ = exact_topk(held, last.values, last.bias, self.n_found, self.n_threads)
        same_best = 1 - (1 - self.recall) * MISSED_BEST
        kind = next(kind for kind, plan in last.plan.items() if plan == "int8")
        note = ""
        while True:
            ids, _ = last.topk(held, self.n_found, kind, self.n_threads)
            found, same = recall_of(ids, truth), float(np.mean(ids[:, 0] == truth[:, 0]))
            if found >= self.recall and same >= same_best:
                return note
            if 4 * last.widening * n_candidates(self.n_found) > last.n_out:
                return (f"; FALLS SHORT on rows that no choice has seen: recall {found:.3%} of "
                        f"{self.recall:.3%}, the same best output for {same:.3%} of "
                        f"{same_best:.3%}")
            last.widening *= 2
            note = (f"; {last.widening * n_candidates(self.n_found)} outputs in float32, which "
                    "rows that it had not seen needed")

    def _recall(self) -> float:
        last = self.layers[-1]
        queries = self.dense_inputs[1][-1]
        queries = np.ascontiguousarray(_dense_array(queries))
        truth, _ = exact_topk(queries, last.values, last.bias, self.n_found, self.n_threads)
        kinds = [kind for kind, plan in last.plan.items() if plan in ("lsh", "int8")]
        return min(recall_of(last.topk(queries, self.n_found, kind, self.n_threads)[0], truth)
                   for kind in kinds)

    def _whole(self, reports: list[LayerReport], dense: Times) -> ConversionReport:
        held = self.halves[1]
        self.network._plans_changed()
        singles = [self.network._answers(_take(held, np.array([row])), self.k)[0][0, 0]
                   for row in range(held.shape[0])]
        return ConversionReport(
            reports, self._planned_error(1),
            float(np.mean(np.array(singles) == self.held_best[:, 0])),
            held.shape[0], dense, self._network_times(), storage=self.layers[0].storage)

    def _network_times(self) -> Times:
        self.network._plans_changed()
        return {n: 1e6 * _seconds_of(lambda x: self.network._answers(x, self.k), self.halves[0], n)
                for n in TIMED_ROWS}

    def _times(self, layer: ServedLayer, i: int, inputs: dict[str, Any]) -> Times:
        return {n: self._seconds(layer, i, inputs[kind], kind, n) for n, kind in _kinds()}

    def _time(self, into: Times, layer: ServedLayer, i: int, inputs: dict[str, Any]) -> None:
        into |= {n: 1e6 * seconds for n, seconds in self._times(layer, i, inputs).items()}

    def _seconds(self, layer: ServedLayer, i: int, x: np.ndarray | CSR | _Selected, kind: str,
                 n: int) -> float:
        """Seconds per row of layer i, by its plan for `kind`, for n rows at once."""
        def call(part: np.ndarray | CSR) -> object:
            if i == self.last:
                return layer.topk(part, self.n_found, kind, self.n_threads)
            return layer.forward(part, kind, self.n_threads)

        if isinstance(x, _Selected):
            return x.seconds(n, call, self.n_threads)
        return _seconds_of(call, x, n)


class _Trial(NamedTuple):
    """A layer with a plan, and what was measured of it."""

    layer: ServedLayer
    times: Times  # seconds per row
    note: str | None = None
    error: float | None = None  # of the outputs of the network


class _Selected:
    """Inputs of a layer; the selection of the largest is part of the time."""

    def __init__(self, before: ServedLayer, x: np.ndarray | CSR, kept: int,
                 importance: Floats) -> None:
        self.before, self.x = copy.copy(before), x
        self.before.kept, self.before.importance = kept, importance

    def seconds(self, n: int, call: Callable[[Any], object], n_threads: int) -> float:
        if isinstance(self.x, CSR):
            return _seconds_of(call, self.x, n)
        return _seconds_of(lambda part: call(self.before.largest(part, n_threads)), self.x, n)


def _output_index(layer: ServedLayer, queries: Floats, k: int, recall: float,
                  random_state: RandomState, n_threads: int) -> IndexEngine | None:
    """An index over the outputs, for the k best; None where it would compute too many of them."""
    options = IndexOptions(recall=recall, plan="sketches", storage=layer.storage,
                           scaling=_scaling(layer))
    engine = build(options, layer.values, layer.bias, queries, drawn_seed(random_state), n_threads)
    if k != N_NEIGHBOURS:
        tune(engine, queries, min(k, layer.n_out), recall, n_threads)
    too_many = engine.default_candidates(k) > layer.n_out // MIN_NEURONS_PER_CANDIDATE
    return None if too_many else engine


def _nonzero_fraction(x: Any) -> float:
    """The fraction of the entries of a matrix, dense or sparse, that are not zero."""
    n_nonzero = np.count_nonzero(x) if isinstance(x, np.ndarray) else x.nnz
    return n_nonzero / max(1, x.shape[0] * x.shape[1])


def _reason(chosen: dict[str, str], trials: dict[str, _Trial]) -> str:
    """Why these plans, in words, with the figures that decided."""
    figures = "; ".join(f"{plan} {t.times[1] * 1e6:.1f} and {t.times[256] * 1e6:.1f}"
                        for plan, t in trials.items())
    single, batch = chosen.values()
    word = single if single == batch else f"{single}, {batch} in batches"
    if set(chosen.values()) == {"dense"}:
        faster = "kept dense, nothing is faster by a tenth"
        word = faster if len(trials) > 1 else "kept dense"
    notes = [trials[plan].note for plan in dict.fromkeys(chosen.values())]
    return (f"{word} (us per row, 1 and 256 at once: {figures})"
            + "".join(f"; {note}" for note in notes if note))


def _dense_array(x: np.ndarray | CSR) -> Floats:
    return x.to_dense() if isinstance(x, CSR) else x


def _kinds() -> Iterable[tuple[int, str]]:
    return zip(TIMED_ROWS, ("single", "batch"), strict=True)


def _take(x: np.ndarray | CSR, rows: np.ndarray) -> np.ndarray | CSR:
    return x.take(rows.astype(np.int64)) if isinstance(x, CSR) else np.ascontiguousarray(x[rows])


def _spaced(rows: np.ndarray, n: int = MAX_HALF_ROWS) -> np.ndarray:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), n)).astype(int))]


def _scaling(layer: ServedLayer) -> float | Literal["auto"]:
    """The scaling of an index; with many inputs the eigenvectors would take minutes."""
    return "auto" if layer.n_in <= MAX_INDEX_INPUTS else 0


def _seconds_of(call: Callable[[Any], object], x: np.ndarray | CSR, n: int) -> float:
    """Seconds per row of a call with n rows of x."""
    if n == 1:
        every = max(1, x.shape[0] // N_SINGLE_QUERIES)
        parts = [_take(x, np.array([row])) for row in range(0, x.shape[0], every)]
    else:
        parts = [_take(x, np.arange(n) % x.shape[0])]
    return fastest(call, parts, n)


def _largest(x: Floats, importance: Floats, fraction: float, n_threads: int) -> Floats:
    """x (n, d) with all but the most important `fraction` of the inputs of each row set to zero."""
    kept = max(1, round(fraction * x.shape[1]))
    ids, values = np.empty((len(x), kept), np.int32), np.empty((len(x), kept), np.float32)
    _select.top_k(x * importance, None, ids, values, n_threads)
    out = np.zeros_like(x)
    np.put_along_axis(out, ids, np.take_along_axis(x, ids, 1), 1)
    return out


def _least(error_of: Callable[[float], float], budget: float,
           fractions: Sequence[float]) -> tuple[float, float] | None:
    """The least fraction whose error is within the budget, and its error, or None; by bisection."""
    low, high, best = 0, len(fractions), None
    while low < high:
        middle = (low + high) // 2
        error = error_of(fractions[middle])
        if error <= budget:
            best, high = (fractions[middle], error), middle
        else:
            low = middle + 1
    return best


def _scaled_exactly(layer: ServedLayer, importance: Floats) -> Ids:
    """Exponents of the powers of two nearest to the importance, (n_out,) int32.

    They are all zero if the scaling would not be exact for every weight.
    """
    typical = np.median(importance[importance > 0]) if (importance > 0).any() else 1.0
    exponents = np.round(np.log2(np.clip(importance / typical, 2.0**-12, 2.0**12))).astype(np.int32)
    there = np.ldexp(layer.values, exponents[:, None])
    bias = np.ldexp(layer.bias, exponents)
    exact = (np.array_equal(np.ldexp(there, -exponents[:, None]), layer.values)
             and np.array_equal(np.ldexp(bias, -exponents), layer.bias))
    return exponents if exact else np.zeros_like(exponents)


def _dense_bytes(layer: ServedLayer) -> int:
    return layer.values.nbytes + (layer.bias.nbytes if layer.has_bias else 0)

