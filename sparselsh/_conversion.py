"""Choosing how each layer of a trained network is served: by measurement, within an error and a recall.

Layers are taken in their order. For each the plans that may serve it are timed on calibration inputs as the layers
before it give them; a plan other than "dense" is taken where it is faster by more than a tenth.

Hidden layers may pass on fewer activations than they have: those with the largest product of activation and the norm of
the weights that leave it. How many is set by the error of the network's outputs. Choices are made on one half of the
calibration rows, and error, agreement and recall are measured on the other.
"""
from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ._architecture import checked
from ._calibration import recall as share_found
from ._core import _select
from ._csr import CSR
from ._linalg import exact_topk, matmul
from ._served import ServedLayer
from ._threads import resolve
from .index import LSHIndex
from .inference import InferenceNetwork
from .report import BATCHES, ConversionReport, LayerReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ._architecture import Affine
    from ._types import Floats, Ids, RandomState

Times: TypeAlias = dict[int, float]  # by the number of questions asked at once

ROWS = 256  # of each half of the calibration that are used for errors and times
QUERIES = 2048  # that an index is set up with, at most
WORK = 1 << 36  # products that may be spent on computing these
MOST_INPUTS = 2048  # of a hidden layer with an index: a question's rotation reads up to 1,024 rows of them
LEAST_WEIGHTS = 1 << 18  # a megabyte: of fewer the calls, not the weights, are the cost of a question
LEAST_NEURONS = 4096  # from which on an index may be of use
KEPT = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.32, 0.5)  # shares that are tried
OUTPUTS = 4096  # of a wide last layer, whose error stands for that of all
MOST_NONZERO = 0.9  # share of the inputs that are not zero from which on to pick them out is not tried
GAIN = 1.1  # how much faster than dense a plan must be
REPEATS = 5
SINGLES = 8  # rows that are asked one after the other for a time


def convert(layers: Sequence[Affine], calibration: Any, *, recall: float = 0.99, error: float = 0.02, k: int = 5,
            storage: str = "float32", random_state: RandomState = None, n_threads: int | None = None,
            source: str = "") -> InferenceNetwork:
    """The network to serve `layers`, a list of Affine, of the file `source`; `calibration` is its input or None.

    All but the layers is checked by the caller.
    """
    layers = [ServedLayer(layer, storage) for layer in checked(layers, source)]
    network = InferenceNetwork(layers, ConversionReport([]), n_threads)
    if calibration is None:
        return _without_calibration(network)
    x = network.checked(calibration)
    if x.shape[0] < 2:
        raise ValueError(f"calibration must have at least two rows, and should have some hundreds; got {x.shape[0]}")
    return _Conversion(network, x, recall, error, k, random_state).run()


def _without_calibration(network: InferenceNetwork) -> InferenceNetwork:
    for layer in network.layers:
        layer.lay_out(resolve(network.n_threads))
    network.report = ConversionReport([
        LayerReport(layer.name, (layer.n_out, layer.n_in), dict(layer.plan),
                    "dense: there are no calibration inputs to choose by" if layer.plan["single"] == "dense"
                    else "rows: a table", bytes_dense=_dense_bytes(layer), bytes=layer.nbytes)
        for layer in network.layers], storage=network.layers[0].storage)
    return network


class _Conversion:
    """One run: its inputs, and what has been measured so far."""

    def __init__(self, network: InferenceNetwork, x: np.ndarray | CSR, recall: float, error: float, k: int,
                 random_state: RandomState) -> None:
        self.network, self.layers = network, network.layers
        self.recall, self.budget, self.k = recall, error, min(k, network.n_labels)
        self.random_state, self.n_threads = random_state, resolve(network.n_threads)
        every = np.arange(x.shape[0])
        self.halves = [_take(x, _spaced(every[i::2])) for i in (0, 1)]
        # an index learns from more of them how its inputs are spread
        n_queries = min(QUERIES, WORK // sum(layer.values.size for layer in self.layers if layer.kind == "linear"))
        self.queries = None
        if n_queries > len(every[::2][:ROWS]) and network.n_labels >= LEAST_NEURONS:
            some = _take(x, _spaced(every[::2], n_queries))
            self.queries = network.hidden(some, exact=True)
        rng = np.random.default_rng(0)
        wide = network.n_labels > OUTPUTS
        self.columns = np.sort(rng.permutation(network.n_labels)[:OUTPUTS]) if wide else None
        # inputs of each layer, every neuron computed
        self.dense_inputs = [[network.hidden(half, i, exact=True) for i in range(len(self.layers))]
                             for half in self.halves]
        self.reference = self._outputs(len(self.layers) - 1, self.dense_inputs[0][-1])

    def run(self) -> InferenceNetwork:
        for layer in self.layers:  # before any plan
            layer.lay_out(self.n_threads)
        network_dense = self._network_times()
        last = len(self.layers) - 1
        reports = []
        inputs = dict.fromkeys(("single", "batch"), self.halves[0])
        self.kept_of: list[tuple[int, Floats, float] | None] = [None] * len(self.layers)
        for i, layer in enumerate(self.layers):
            report = self._plan(i, layer, inputs, last)
            reports.append(report)
            for kind in inputs:
                if i < last:
                    inputs[kind] = self._forward(i, layer, inputs[kind], kind)
        self._tighten(reports)
        for layer, report in zip(self.layers, reports, strict=True):
            report.bytes, report.density = layer.nbytes, layer.density if layer.kept is not None else 1.0
            if layer.index is not None and layer is self.layers[-1]:
                report.recall = self._recall()
        self.network.report = self._whole(reports, network_dense)
        return self.network

    # -- outputs and errors -----------------------------------------------------------------------------------

    def _outputs(self, i: int, x: np.ndarray | CSR) -> Floats:
        """The network's outputs, those of `columns`, from the input x of layer i on, every neuron of later layers."""
        for layer in self.layers[i:-1]:
            x = layer.outputs(x, "batch", self.n_threads, exact=True)
        last = self.layers[-1]
        if self.columns is None:
            return last.outputs(x, "batch", self.n_threads, exact=True)
        if last.input_major:
            return last.outputs(x, "batch", self.n_threads, exact=True)[:, self.columns]
        x = x.to_dense() if isinstance(x, CSR) else x
        return matmul(x, last.values[self.columns], self.n_threads, transpose_b=True, bias=last.bias[self.columns])

    def _error(self, outputs: Floats, reference: Floats | None = None) -> float:
        reference = self.reference if reference is None else reference
        size = np.linalg.norm(reference)
        return float(np.linalg.norm(outputs - reference) / size) if size else 0.0

    # -- one layer --------------------------------------------------------------------------------------------

    def _plan(self, i: int, layer: ServedLayer, inputs: dict[str, Any], last: int) -> LayerReport:
        report = LayerReport(layer.name, (layer.n_out, layer.n_in), layer.plan, "", bytes_dense=_dense_bytes(layer))
        if layer.kind != "linear":
            report.reason = "rows: a table, of which the ids given are read"
            self._time(report.microseconds, layer, i, inputs, last)
            report.microseconds_dense = dict(report.microseconds)
            return report
        dense = {n: self._seconds(layer, i, self.dense_inputs[0][i], kind, n, last) for n, kind in _kinds()}
        report.microseconds_dense = {n: 1e6 * s for n, s in dense.items()}
        if layer.values.size < LEAST_WEIGHTS:
            sparse = isinstance(inputs["single"], CSR)
            report.reason = (f"kept dense: {layer.values.size:,} weights, too few to gain"
                             + (" (of the activations kept, as they come)" if sparse else ""))
            self._time(report.microseconds, layer, i, inputs, last)
            return report
        times: dict[str, Times | None] = {"dense": dense}
        notes: dict[str, str | None] = {}
        if layer.n_out >= LEAST_NEURONS and i == last:
            times["lsh"] = self._try_lsh_output(layer, i, inputs, last)
        elif layer.n_out >= LEAST_NEURONS:
            times["lsh"], notes["lsh"] = self._try_lsh_hidden(layer, i, inputs, last)
        if i < last or layer.n_out < LEAST_NEURONS:
            times["rows"], notes["rows"] = self._try_rows(layer, i, inputs, last)
        self._choose(layer, i, times, notes, report, inputs, last)
        return report

    def _choose(self, layer: ServedLayer, i: int, times: dict[str, Times | None], notes: dict[str, str | None],
                report: LayerReport, inputs: dict[str, Any], last: int) -> None:
        known = {plan: t for plan, t in times.items() if t is not None}
        chosen: dict[str, str] = {}
        for n, kind in _kinds():
            able = {plan: t[n] for plan, t in known.items()}
            if kind == "batch":  # one layout for both
                able.pop({"rows": "lsh", "lsh": "rows"}.get(chosen["single"], ""), None)
            best = min(able, key=able.__getitem__)
            chosen[kind] = best if able[best] * GAIN < able["dense"] else "dense"
        if chosen == {"single": "dense", "batch": "rows"} and layer.storage == "float32":
            chosen["batch"] = "dense"  # input-major weights would cost the single questions
        layer.plan = dict(chosen)
        if "lsh" not in chosen.values():
            layer.index = None
        elif i < last:
            found, report.output_error = self._lsh_found
            vars(layer).update(found | {"plan": layer.plan})
        layer.lay_out(self.n_threads)
        selection = self.kept_of[i] if i and "rows" in chosen.values() else None
        if selection is not None and self.layers[i - 1].index is None:
            self.layers[i - 1].kept, self.layers[i - 1].importance = selection[:2]
        report.plan = dict(chosen)
        figures = "; ".join(f"{plan} {t[1] * 1e6:.1f} and {t[256] * 1e6:.1f}" for plan, t in known.items())
        single, batch = chosen.values()
        word = single if single == batch else f"{single}, {batch} in batches"
        if set(chosen.values()) == {"dense"}:
            word = "kept dense, nothing is faster by a tenth" if len(known) > 1 else "kept dense"
        report.reason = f"{word} (us a row, 1 and 256 at once: {figures})" + "".join(
            f"; {notes[plan]}" for plan in dict.fromkeys(chosen.values()) if notes.get(plan))
        if selection is not None and self.layers[i - 1].kept is not None:
            report.output_error = selection[2]
        self._time(report.microseconds, layer, i, inputs, last)

    def _try_lsh_output(self, layer: ServedLayer, i: int, inputs: dict[str, Any], last: int) -> Times | None:
        queries = self.queries if self.queries is not None else self.dense_inputs[0][i]
        queries = queries.to_dense() if isinstance(queries, CSR) else queries
        index = LSHIndex(None, recall=self.recall, plan="sketches", storage=layer.storage, scaling=_scaling(layer),
                         random_state=self.random_state, n_threads=self.n_threads)
        layer.index = index.rebuild(layer.values, layer.bias, np.ascontiguousarray(queries))
        if self.k != 5:
            index.tune(queries, k=self.k)
        if index.default_candidates(self.k) > layer.n_out // 8:
            return None
        layer.plan = {"single": "lsh", "batch": "lsh"}
        times = {n: self._seconds(layer, i, inputs[kind], kind, n, last) for n, kind in _kinds()}
        layer.plan = {"single": "dense", "batch": "dense"}
        return times

    def _try_lsh_hidden(self, layer: ServedLayer, i: int, inputs: dict[str, Any],
                        last: int) -> tuple[Times | None, str | None]:
        """Time of finding the neurons that matter by an index, and how well; None where the error is not reached."""
        if layer.activation != "relu" or self.budget == 0 or layer.n_in > MOST_INPUTS:
            return None, None
        importance = self._importance(i)
        exponents = _scaled_exactly(layer, importance)
        values, bias = np.ldexp(layer.values, exponents[:, None]), np.ldexp(layer.bias, exponents)
        queries = self.dense_inputs[0][i]
        queries = np.ascontiguousarray(queries.to_dense() if isinstance(queries, CSR) else queries)
        index = LSHIndex(None, scaling=0, recall=0.9, plan="sketches", random_state=self.random_state,
                         n_threads=self.n_threads)
        index.rebuild(values, bias, queries)
        found = {"values": values, "bias": bias, "exponents": exponents, "importance": importance, "index": index,
                 "plan": {"single": "lsh", "batch": "lsh"}}

        def error_of(share: float) -> float:
            found["kept"] = max(1, round(share * layer.n_out))
            index.look_for(2 * found["kept"])
            with _changed(layer, found):
                return self._error(self._outputs(i + 1, layer.found(queries, self.n_threads)))

        least = _least(error_of, self._share_of_budget(), KEPT[:-2])
        if least is None:
            return None, None
        share, error = least
        found["kept"] = max(1, round(share * layer.n_out))
        index.look_for(2 * found["kept"])
        with _changed(layer, found):
            times = {n: self._seconds(layer, i, inputs[kind], kind, n, last) for n, kind in _kinds()}
        self._lsh_found = found, error
        return times, f"{found['kept']} of {layer.n_out} neurons are found, output error {error:.2%}"

    def _try_rows(self, layer: ServedLayer, i: int, inputs: dict[str, Any],
                  last: int) -> tuple[Times | None, str | None]:
        """Seconds of reading the rows of the inputs that matter, and a note; None where all do."""
        found = i > 0 and self.layers[i - 1].index is not None  # then they come as the index before finds them
        note = None if found else self._inputs_that_matter(i)
        if note is None and not found:
            return None, None
        selection = self.kept_of[i]
        with _changed(layer, {"plan": {"single": "rows", "batch": "rows"}}):
            layer.lay_out(self.n_threads)
            times = {}
            for n, kind in _kinds():
                given = inputs[kind]
                if selection is not None:
                    given = _Selected(self.layers[i - 1], given, *selection[:2])
                times[n] = self._seconds(layer, i, given, kind, n, last)
        layer.lay_out(self.n_threads)
        return times, note

    def _inputs_that_matter(self, i: int) -> str | None:
        """Set `kept_of` by the error of the outputs, where that reads less than the inputs that are not zero."""
        x = self.dense_inputs[0][i]
        nonzero = (x.nnz if isinstance(x, CSR) else np.count_nonzero(x)) / (x.shape[0] * x.shape[1])
        if i and self.budget and not isinstance(x, CSR):
            before, importance = self.layers[i - 1], self._importance(i - 1)

            def error_of(share: float) -> float:
                return self._error(self._outputs(i, _largest(x, importance, share, self.n_threads)))

            least = _least(error_of, self._share_of_budget(), KEPT)
            if least is not None and least[0] < nonzero:
                share, error = least
                kept = max(1, round(share * before.n_out))
                self.kept_of[i] = (kept, importance, error)
                return (f"{kept} of {before.n_out} activations of {before.name} are read ({nonzero:.0%} are not zero), "
                        f"output error {error:.2%}")
        return f"{nonzero:.0%} of its inputs are not zero, which is exact" if nonzero <= MOST_NONZERO else None

    def _importance(self, i: int) -> Floats:
        """How much each output of layer i matters: the norm of the weights that leave it."""
        after = self.layers[i + 1]
        weight = after.values if after.input_major else after.values.T
        return np.sqrt(np.einsum("ij,ij->i", weight, weight, dtype=np.float64)).astype(np.float32)

    def _share_of_budget(self) -> float:
        # errors of layers add up like independent ones
        n = max(1, sum(layer.values.size >= LEAST_WEIGHTS for layer in self.layers[1:]))
        return self.budget / np.sqrt(n)

    def _tighten(self, reports: list[LayerReport]) -> None:
        """More activations while all layers together, with fewer bits too, miss the error."""
        while self.budget:
            outputs = self._planned_outputs(0)
            if self._error(outputs) <= self.budget:
                return
            grown = False
            for layer in self.layers:
                if layer.kept is not None and layer.kept < layer.n_out // 2:
                    layer.kept = min(layer.n_out // 2, layer.kept + layer.kept // 2 + 1)
                    if layer.index is not None:
                        layer.index.look_for(2 * layer.kept)
                    grown = True
            if not grown:
                return

    def _planned_outputs(self, half: int) -> Floats:
        """Outputs from the hidden activations of single questions as planned."""
        x = self.halves[half]
        for i, layer in enumerate(self.layers[:-1]):
            x = self._forward(i, layer, x, "single")
        last = self.layers[-1]
        if self.columns is None or last.input_major:
            out = last.outputs(x, "single", self.n_threads, exact=last.plan["single"] == "lsh")
            return out if self.columns is None else out[:, self.columns]
        return self._outputs(len(self.layers) - 1, x)

    def _forward(self, i: int, layer: ServedLayer, x: np.ndarray | CSR, kind: str) -> np.ndarray | CSR:
        keep = self.layers[i + 1].plan[kind] == "rows"
        return layer.forward(x, kind, self.n_threads, keep=keep)

    # -- measures on rows that no choice has seen, and times ------------------------------------------------------

    def _recall(self) -> float:
        last = self.layers[-1]
        queries = self.dense_inputs[1][-1]
        queries = np.ascontiguousarray(queries.to_dense() if isinstance(queries, CSR) else queries)
        truth, _ = exact_topk(queries, last.values, last.bias, self.k, self.n_threads)
        return share_found(last.index.best(queries, self.k)[0], truth)

    def _whole(self, reports: list[LayerReport], dense: Times) -> ConversionReport:
        held = self.halves[1]
        self.network.planned()
        reference = self._outputs(len(self.layers) - 1, self.dense_inputs[1][-1])
        singles = [self.network._answers(_take(held, np.array([row])), self.k)[0][0, 0]
                   for row in range(held.shape[0])]
        truth = self.layers[-1].topk(self.dense_inputs[1][-1], 1, "single", self.n_threads, exact=True)[0][:, 0]
        return ConversionReport(
            reports, self._error(self._planned_outputs(1), reference), float(np.mean(np.array(singles) == truth)),
            held.shape[0], dense, self._network_times(), self.layers[0].storage)

    def _network_times(self) -> Times:
        self.network.planned()
        return {n: 1e6 * _seconds_of(lambda x: self.network._answers(x, self.k), self.halves[0], n) for n in BATCHES}

    def _time(self, into: Times, layer: ServedLayer, i: int, inputs: dict[str, Any], last: int) -> None:
        for n, kind in _kinds():
            into[n] = 1e6 * self._seconds(layer, i, inputs[kind], kind, n, last)

    def _seconds(self, layer: ServedLayer, i: int, x: np.ndarray | CSR | _Selected, kind: str, n: int,
                 last: int) -> float:
        """Seconds a row of one layer, by the plan it has for `kind`, asked for n rows at once."""
        if isinstance(x, _Selected):
            return x.seconds(n, lambda s: self._call(layer, i, s, kind, last), self.n_threads)
        return _seconds_of(lambda part: self._call(layer, i, part, kind, last), x, n)

    def _call(self, layer: ServedLayer, i: int, x: np.ndarray | CSR, kind: str, last: int) -> object:
        if i == last:
            return layer.topk(x, self.k, kind, self.n_threads)
        return layer.forward(x, kind, self.n_threads)


class _Selected:
    """Inputs of which the largest are taken, on the clock."""

    def __init__(self, layer: ServedLayer, x: np.ndarray | CSR, kept: int, importance: Floats) -> None:
        self.layer, self.x, self.kept, self.importance = layer, x, kept, importance

    def seconds(self, n: int, call: Callable[[Any], object], n_threads: int) -> float:
        if isinstance(self.x, CSR):
            return _seconds_of(call, self.x, n)
        with _changed(self.layer, {"kept": self.kept, "importance": self.importance}):
            return _seconds_of(lambda part: call(self.layer.largest(part, n_threads)), self.x, n)


@contextmanager
def _changed(layer: ServedLayer, values: dict[str, Any]) -> Iterator[None]:
    """The layer with other attributes, for a while."""
    before = {name: getattr(layer, name) for name in values}
    vars(layer).update(values)
    try:
        yield
    finally:
        vars(layer).update(before)


def _kinds() -> Iterable[tuple[int, str]]:
    return zip(BATCHES, ("single", "batch"), strict=True)


def _take(x: np.ndarray | CSR, rows: np.ndarray) -> np.ndarray | CSR:
    return x.take(rows.astype(np.int64)) if isinstance(x, CSR) else np.ascontiguousarray(x[rows])


def _spaced(rows: np.ndarray, n: int = ROWS) -> np.ndarray:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), n)).astype(int))]


def _scaling(layer: ServedLayer) -> float | Literal["auto"]:
    """That of an index: of many inputs the eigenvectors would take minutes."""
    return "auto" if layer.n_in <= MOST_INPUTS else 0


def _seconds_of(call: Callable[[Any], object], x: np.ndarray | CSR, n: int) -> float:
    """Seconds a row of a call with n rows: the least of some rounds, which other work on the machine disturbs least."""
    if n == 1:
        parts = [_take(x, np.array([row])) for row in range(0, x.shape[0], max(1, x.shape[0] // SINGLES))]
    else:
        parts = [_take(x, np.arange(n) % x.shape[0])]
    call(parts[0])  # what is built or read at the first time
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        for part in parts:
            call(part)
        times.append((time.perf_counter() - begin) / (n * len(parts)))
        if sum(times) * n * len(parts) > 2:  # seconds: what takes so long is not decided by noise
            break
    return min(times)


def _largest(x: Floats, importance: Floats, share: float, n_threads: int) -> Floats:
    """x (n, d) with all but the inputs that matter most set to zero, as CSR."""
    kept = max(1, round(share * x.shape[1]))
    ids, values = np.empty((len(x), kept), np.int32), np.empty((len(x), kept), np.float32)
    _select.top_k(x * importance, None, ids, values, n_threads)
    out = np.zeros_like(x)
    np.put_along_axis(out, ids, np.take_along_axis(x, ids, 1), 1)
    return out


def _least(error_of: Callable[[float], float], budget: float, shares: Sequence[float]) -> tuple[float, float] | None:
    """The least share whose error is within the budget, and its error, by bisection; None without one."""
    low, high, best = 0, len(shares), None
    while low < high:
        middle = (low + high) // 2
        error = error_of(shares[middle])
        if error <= budget:
            best, high = (shares[middle], error), middle
        else:
            low = middle + 1
    return best


def _scaled_exactly(layer: ServedLayer, importance: Floats) -> Ids:
    """Exponents of the powers of two nearest to the importance, all zero if that would lose a bit of a weight."""
    typical = np.median(importance[importance > 0]) if (importance > 0).any() else 1.0
    exponents = np.round(np.log2(np.clip(importance / typical, 2.0**-12, 2.0**12))).astype(np.int32)
    there = np.ldexp(layer.values, exponents[:, None])
    bias = np.ldexp(layer.bias, exponents)
    exact = (np.array_equal(np.ldexp(there, -exponents[:, None]), layer.values)
             and np.array_equal(np.ldexp(bias, -exponents), layer.bias))
    return exponents if exact else np.zeros_like(exponents)


def _dense_bytes(layer: ServedLayer) -> int:
    return layer.values.nbytes + (layer.bias.nbytes if layer.has_bias else 0)

