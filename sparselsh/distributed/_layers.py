"""The two layers of a network of shards, of which each process holds a part.

    ColumnLinear     the hidden layer: own hidden units; its outputs are those of all
    RowLSHLinear     the output layer: own labels; it takes what the hidden layer gives

Both look like the whole layers from outside (`n_in`, `n_out`, inputs, outputs), so that a training
and a network use them as they use others. Their weights are those of this process, as one array;
shards are segments of it.
"""
from __future__ import annotations

import copy
import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _validation as check
from .. import rebuild as rebuild_policies
from .._arrays import aligned, bfloat16
from .._arrays.batch_active import SegmentedActive
from .._arrays.csr import CSR
from .._arrays.linalg import column_sums, log_sum_exp, matmul, row_chunks
from .._core import _active, _gemm, _select
from .._gradients import ActiveGradient, DenseGradient, RowGradient
from .._threads import resolve
from ..hashing import family_config, family_from
from ..index import (
    MIN_NEURONS_PER_CANDIDATE,
    N_NEIGHBOURS,
    Bounds,
    IndexOptions,
    NeuronSums,
    build,
    drawn_seed,
    engine_of_codes,
    reach_of_short,
    take_bounds,
    tune_together,
)
from ..layers import SEARCH_MIN_NEURONS, Linear, LSHLinear, Step, new_finder

if TYPE_CHECKING:
    from .._arrays.selection import Selection
    from .._arrays.types import Floats, Ids
    from .._core._updates import Rule
    from .._gradients import Gradient, Pair
    from ..index import IndexEngine
    from ..layers import Place, Tally
    from ._shards import Shards

REBUILDS = (rebuild_policies.AtOnce, rebuild_policies.Exponential, rebuild_policies.Every)
MAX_COUNT = 255  # of tables, which the keys of candidates hold
NO_CANDIDATE = np.uint64(0xFFFFFFFFFFFFFFFF)
ID_FACTOR = np.uint64(0x9E3779B1)  # of the order of candidates with equal counts
ID_INVERSE = np.uint64(pow(0x9E3779B1, -1, 2**32))
LOW_BITS = np.uint64(0xFFFFFFFF)


class SharedNorm:
    """A gradient of which each process has a part: its norm is that of all parts."""

    def __init__(self, gradient: Gradient, shards: Shards, ends: Any) -> None:
        self.gradient, self.shards, self.ends = gradient, shards, ends

    @property
    def rows(self) -> Ids | None:
        return self.gradient.rows

    def apply(self, rule: Rule, w: Floats, m: Floats | None, v: Floats | None,
              n_threads: int) -> None:
        self.gradient.apply(rule, w, m, v, n_threads)

    def squared_norm(self, n_threads: int) -> float:
        return float(self.shards.total(self._squares(n_threads))[0])

    def _squares(self, n_threads: int) -> list[np.ndarray]:
        """The squared norm of each own shard."""
        return [np.array([part.squared_norm(n_threads)]) for part in self.ends(self.gradient)]

    def scale(self, factor: float) -> None:
        self.gradient.scale(factor)


class SegmentGradient(SharedNorm):
    """The gradient of an active set, applied shard by shard.

    bfloat16 is rounded at random by the place in the array: each shard is an array of its own.
    """

    def __init__(self, gradient: ActiveGradient | RowGradient, shards: Shards, bounds: np.ndarray,
                 starts: np.ndarray, is_rounded: bool) -> None:
        super().__init__(gradient, shards, self._segments)
        self.bounds, self.starts, self.is_rounded = bounds, starts, is_rounded

    def _segments(self, gradient: Any) -> list[Any]:
        """The gradients of the own shards, with rows counted from the first of each."""
        parts: list[Any] = []
        for first, a, b in zip(self.starts, self.bounds, self.bounds[1:], strict=False):
            rows = (gradient.rows[a:b] - first).astype(np.int32)
            if isinstance(gradient, ActiveGradient):
                d_out = np.ascontiguousarray(gradient.d_out[:, a:b])
                parts.append(gradient._replace(rows=rows, d_out=d_out))
            else:
                parts.append(RowGradient(rows, gradient.value[a:b]))
        return parts

    def apply(self, rule: Rule, w: Floats, m: Floats | None, v: Floats | None,
              n_threads: int) -> None:
        if not self.is_rounded:
            self.gradient.apply(rule, w, m, v, n_threads)
            return
        for part, a, b in zip(self._segments(self.gradient), self.starts, self.starts[1:],
                              strict=False):
            part.apply(rule, *(array if array is None else array[a:b] for array in (w, m, v)),
                       n_threads)


# -- the hidden layer ------------------------------------------------------------------------------


class ColumnLinear(Linear):
    """A hidden layer of which this process holds some hidden units.

    They are one block, or one block per shard where a block is rounded or has moments as a whole:
    with weights or moments in bfloat16, and with one second moment per row.

    Parameters
    ----------
    layer : Linear
        Without weights, or with those of the whole layer, of which the own ones are taken.
    shards : Shards
    """

    def __init__(self, layer: Linear, shards: Shards) -> None:
        super().__init__(layer.n_in, layer.n_out, activation=layer.activation,
                         init_scale=layer.init_scale, dropout=layer.dropout, dtype=layer.dtype)
        self.shards = shards
        self.blocks: list[Linear] = []
        if layer.initialized:
            weight, bias = layer.parameters
            columns = shards.own_columns(self.n_out)
            value = weight.value[:, columns] if weight.input_major else weight.value[columns]
            self._take(np.ascontiguousarray(value), bias.value[columns, 0], weight.input_major)

    # -- weights

    def _ends(self, is_split: bool) -> list[slice]:
        """The own hidden units of each block, counted from the first own one."""
        own = self.shards.own_columns(self.n_out)
        if own.stop == own.start:  # more processes than hidden units
            return []
        if not is_split:
            return [slice(0, own.stop - own.start)]
        cuts = [self.shards.columns(self.n_out, s) - own.start
                for s in range(self.shards.first, self.shards.last + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(cuts) if b > a]

    def _take(self, value: np.ndarray, bias: Floats, input_major: bool,
              is_split: bool | None = None) -> None:
        """Take the weights of the own hidden units, as they are stored."""
        is_split = self.dtype == "bfloat16" if is_split is None else is_split
        blocks = []
        for columns in self._ends(is_split):
            block = Linear(self.n_in, columns.stop - columns.start, activation=self.activation,
                           dtype=self.dtype)
            part = value[:, columns] if input_major else value[columns]
            block._set_parameters(aligned.aligned(part, copy=True), input_major,
                                  np.array(bias[columns]))
            blocks.append(block)
        self.blocks, self.initialized, self._input_major = blocks, True, input_major

    def joined(self) -> tuple[np.ndarray, Floats, bool]:
        """The stored weights of the own hidden units, their biases, and whether by inputs."""
        pairs = [block.parameters for block in self.blocks]
        if not pairs:
            shape = (self.n_in, 0) if self._input_major else (0, self.n_in)
            dtype = np.uint16 if self.dtype == "bfloat16" else np.float32
            return np.zeros(shape, dtype), np.zeros(0, np.float32), self._input_major
        input_major = pairs[0][0].input_major
        if len(pairs) == 1:
            return pairs[0][0].value, pairs[0][1].value[:, 0], input_major
        value = np.concatenate([w.value for w, _ in pairs], axis=1 if input_major else 0)
        return value, np.concatenate([b.value[:, 0] for _, b in pairs]), input_major

    def split_for(self, optimizer: Any) -> None:
        """Make one block per shard where this optimizer needs it."""
        needs = (optimizer.second_moment == "row" or optimizer.state_dtype == "bfloat16"
                 or self.dtype == "bfloat16")
        if needs and len(self.blocks) < len(self._ends(True)):
            self._take(*self.joined(), is_split=True)

    @property
    def weight(self) -> Floats:
        """The weights of the own hidden units."""
        value, _, input_major = self.joined()
        value = bfloat16.as_float32(value)
        return aligned.read_only(value.T if input_major else value[:])

    @property
    def bias(self) -> Floats:
        """The biases of the own hidden units."""
        return aligned.read_only(self.joined()[1][:])

    @property
    def parameters(self) -> Any:
        """Weight and bias of each block."""
        return tuple(parameter for block in self.blocks for parameter in block.parameters)

    def initialize(self, rng: np.random.Generator, sparse_input: bool = False,
                   input_fraction: float = 1.0) -> None:
        deviation, shards = self._first_deviation(sparse_input, input_fraction), self.shards
        generators = shard_generators(rng, shards)
        own = shards.own_columns(self.n_out)
        width = own.stop - own.start
        value = aligned.empty((self.n_in, width) if sparse_input else (width, self.n_in))
        for s, generator in zip(range(shards.first, shards.last), generators, strict=True):
            columns = slice(shards.columns(self.n_out, s) - own.start,
                            shards.columns(self.n_out, s + 1) - own.start)
            n = columns.stop - columns.start
            part = aligned.empty((self.n_in, n) if sparse_input else (n, self.n_in))
            self._draw(generator, part, deviation)
            value[(slice(None), columns) if sparse_input else columns] = part
        self._take(self._stored(value), np.zeros(width, np.float32), sparse_input)

    def take_first_weights(self, stored: np.ndarray, rng: np.random.Generator,
                           input_major: bool) -> None:
        self._take(stored, np.zeros(stored.shape[1], np.float32), input_major)

    def forget_weights(self) -> None:
        self.blocks, self.initialized = [], False

    def own(self) -> None:
        for block in self.blocks:
            block.own()

    def owned(self) -> list[tuple[Linear, slice]]:
        """The blocks and the hidden units of each."""
        first = self.shards.own_columns(self.n_out).start
        ends = self._ends(len(self.blocks) > 1)
        return [(block, slice(first + columns.start, first + columns.stop))
                for block, columns in zip(self.blocks, ends, strict=True)]

    def copy_weights(self) -> list[np.ndarray]:
        value, bias, _ = self.joined()
        return [value.copy(), bias[:, None].copy()]

    def check_weights(self, weight: np.ndarray, bias: Floats) -> None:
        value, own, _ = self.joined()
        if value.shape != weight.shape or len(own) != len(bias) or value.dtype != weight.dtype:
            raise ValueError(f"weights of shape {weight.shape} do not fit into the part of "
                             f"{self!r} that this process has")

    def load_weights(self, weight: np.ndarray, bias: Floats) -> None:
        self.check_weights(weight, bias)
        for block, columns in zip(self.blocks, self._ends(len(self.blocks) > 1), strict=True):
            w, b = block.parameters
            w.value[:] = weight[:, columns] if w.input_major else weight[columns]
            b.value[:] = bias[columns]

    # -- forward

    def forward(self, x: Floats | CSR, step: Step) -> tuple[Any, Any]:
        shards = self.shards
        done = [block.forward(x, step) for block in self.blocks]
        outs, backprops = [out for out, _ in done], [backprop for _, backprop in done]
        own = (outs[0] if len(outs) == 1 else np.concatenate(outs, axis=1) if outs
               else np.zeros((x.shape[0], 0), np.float32))
        out = shards.whole_of_columns(own, self.n_out)
        drops = step.training and self.dropout
        if drops:
            _active.drop_dense(out, step.seed, self.dropout, step.n_threads)

        def backprop(d_own: Floats) -> tuple[None, list[Pair]]:
            if drops:
                d_own = self._dropped(d_own, step)
            pairs: list[Any] = []
            for of_block, columns in zip(backprops, self._ends(len(outs) > 1), strict=True):
                part = d_own if len(outs) == 1 else np.ascontiguousarray(d_own[:, columns])
                pairs += of_block(part)[1]
            shared: list[Any] = [(p, SharedNorm(g, shards, self._parts)) for p, g in pairs]
            return None, shared

        return out, backprop

    def _dropped(self, d_own: Floats, step: Step) -> Floats:
        """The gradient of the own columns, without what the step has dropped."""
        columns = self.shards.own_columns(self.n_out)
        whole = np.zeros((len(d_own), self.n_out), np.float32)
        whole[:, columns] = d_own
        _active.drop_dense(whole, step.seed, self.dropout, step.n_threads)
        return np.ascontiguousarray(whole[:, columns])

    def _parts(self, gradient: Any) -> list[Any]:
        """The gradients of the own shards, for their norms."""
        if self.shards.n == 1 or len(self.blocks) > 1:
            return [gradient] + [DenseGradient(np.zeros(0, np.float32))] * (self.shards.n_own - 1)
        parts = []
        for columns in self._ends(True):
            if isinstance(gradient, DenseGradient):
                value = gradient.value
                along = value.ndim == 2 and self.blocks[0].parameters[0].input_major
                part = value[:, columns] if along else value[columns]
                parts.append(DenseGradient(np.ascontiguousarray(part)))
            else:
                parts.append(gradient._replace(x=np.ascontiguousarray(gradient.x[:, columns])))
        missing = self.shards.n_own - len(parts)
        return parts + [DenseGradient(np.zeros(0, np.float32))] * missing

    def all_outputs(self, x: Floats | CSR, n_threads: int) -> Floats:
        return self.forward(x, Step(n_threads=n_threads))[0]


def shard_generators(rng: np.random.Generator, shards: Shards) -> list[np.random.Generator]:
    """A generator per own shard; that of the network itself where there is one shard."""
    if shards.n == 1:
        return [rng]
    base = int(rng.integers(2**62))
    return [np.random.default_rng([base, s]) for s in range(shards.first, shards.last)]


# -- the output layer ------------------------------------------------------------------------------


class RowLSHLinear(LSHLinear):
    """An output layer of which this process holds the rows of some labels.

    `weight` and `bias` are those of the own labels, shard after shard.

    Parameters
    ----------
    layer : LSHLinear
        Without weights, or with those of the whole layer, of which the own ones are taken.
    shards : Shards
    """

    def __init__(self, layer: LSHLinear, shards: Shards) -> None:
        if layer.active == "sample":
            raise ValueError("layers[1] has active='sample'; a network of shards has one set per "
                             "batch: leave it out")
        if layer.policy not in (None, "top"):
            raise ValueError(f"layers[1] has policy={layer.policy!r}; a network of shards finds "
                             "neurons with 'top': leave it out")
        if layer.rebuild is not None and not isinstance(layer.rebuild, REBUILDS):
            raise ValueError(f"layers[1] has rebuild={layer.rebuild!r}; a network of shards "
                             "rebuilds its tables in the same step everywhere: give AtOnce, "
                             "Exponential or Every")
        self.__dict__.update(copy.copy(layer).__dict__)
        self.shards = shards
        self.starts = shards.starts(self.n_out)
        self.names = shards.labels(self.n_out)
        self._finder = self._search = None
        self._searches: list[IndexEngine] = []
        self.bounds: Bounds | None = None  # with which all shards together reach the recall
        self.n_computed = 0.0  # inner products of a search in all shards
        self._slot, self._buffers = None, {}
        if layer.initialized:
            value = bfloat16.as_float32(layer.parameters[0].value) if layer.dtype != "bfloat16" \
                else layer.parameters[0].value
            value = value.T if layer.parameters[0].input_major else value
            self._set_parameters(aligned.aligned(value[self.names], copy=True), False,
                                 layer.parameters[1].value[self.names, 0])

    @property
    def n_rows(self) -> int:
        """Number of own labels."""
        return len(self.names)

    # -- weights

    def _set_parameters(self, value: np.ndarray, input_major: bool,
                        bias: Floats | None = None) -> None:
        self._drop_searches()
        bias = np.zeros(self.n_rows, np.float32) if bias is None else bias
        super()._set_parameters(value, input_major, bias)

    def initialize(self, rng: np.random.Generator, sparse_input: bool = False,
                   input_fraction: float = 1.0) -> None:
        deviation = self._first_deviation(False, input_fraction)
        value = aligned.empty((self.n_rows, self.n_in))
        generators = shard_generators(rng, self.shards)
        for a, b, generator in zip(self.starts, self.starts[1:], generators, strict=False):
            self._draw(generator, value[a:b], deviation)
        self._set_parameters(self._stored(value), False)
        self._draw_seed(rng)

    def with_labels(self, weight: Floats, bias: Floats) -> tuple[Ids, np.ndarray, Floats]:
        """The own labels, their weights and their biases, if these are added behind the others."""
        names = self.shards.labels(self.n_out + len(weight))
        is_new = names >= self.n_out
        new = names[is_new] - self.n_out
        value = aligned.empty((len(names), self.n_in), self._w.value.dtype)
        biases = np.empty(len(names), np.float32)
        value[~is_new], value[is_new] = self._w.value, self._stored(weight[new])
        biases[~is_new], biases[is_new] = self._bias, bias[new]
        return names, value, biases

    def take_labels(self, n_out: int, value: np.ndarray, bias: Floats, n_threads: int) -> None:
        """Take what `with_labels` gave; the parameters stay the same objects."""
        names, finder = self.shards.labels(n_out), self._finder
        if finder is not None:
            engine, finder.engine = finder.engine, None
            finder.n_out, finder.names = len(names), names
            if engine is not None:  # rows of each shard are beside each other
                new = np.flatnonzero(names >= self.n_out).astype(np.int32)
                codes = np.full((len(names), engine.tables.codes.shape[1]), -1, np.int32)
                codes[names < self.n_out] = engine.tables.codes
                grown = engine_of_codes(finder.options, value, bias, codes,
                                        engine.transform.offset_, engine.transform.scale_,
                                        engine.seed, n_threads)
                grown.refresh(new, n_threads)
                finder.engine = grown
        self.__dict__.update(n_out=n_out, names=names, starts=self.shards.starts(n_out),
                             _slot=None, _buffers={})
        self._w.value, self._b.value = value, bias[:, None]
        self._drop_searches()

    def lowest_output(self, n_threads: int) -> float:
        lowest = float(min(self._bias.min(initial=0), 0))
        for start, stop in row_chunks(len(self._inputs), max(1, self.n_rows)):
            lowest = min(lowest, float(self._own_outputs(self._inputs[start:stop], n_threads)
                                       .min(initial=0)))
        return -self.shards.agree(-lowest)

    def _finder_at(self, place: Place, family: Any = None) -> Any:
        if self._finder is None:
            finder = new_finder("top", self.n_in, self.n_rows, self.rebuild, self._seed,
                                family=family or self._table_family(), min_count=self.min_count,
                                n_probes=self.n_probes, sketch_bits=self.sketch_bits)
            finder.names, finder.sums_of = self.names, self._sums
            self._finder = finder
        return self._finder

    def _sums(self, W: np.ndarray, bias: Floats, n_threads: int, with_total: bool) -> NeuronSums:
        """The sums of the rows of all shards."""
        shards = self.shards
        own = [NeuronSums.of(W[a:b], bias[a:b], n_threads, with_total)
               for a, b in zip(self.starts, self.starts[1:], strict=False)]
        joined = shards.tree(own, NeuronSums.joined)
        if shards.group.size == 1:
            return joined
        flat = np.concatenate([[joined.n, joined.largest], joined.total])
        parts = [NeuronSums(int(part[0]), part[2:], float(part[1])) for part in shards.gather(flat)]
        return shards.tree(parts, NeuronSums.joined)

    # -- forward

    def forward(self, x: Any, step: Step) -> tuple[Any, Any]:
        if self.shards.n == 1 and self.is_dense:  # as a layer of one process, bit by bit
            out, of_all = self._forward_all(x, step)
            rows = np.arange(self.n_out, dtype=np.int32)
            return SegmentedActive(rows, out, self.n_out, rows, self.starts), of_all
        ids, rows = self._own_set(x, step)
        bounds = np.searchsorted(rows, self.starts).astype(np.int64)
        w, n_threads, shards = self._w.value, step.n_threads, self.shards
        out = self._buffer("out", (len(x), len(rows)))
        in_bfloat16 = step.in_bfloat16
        _gemm.active_outputs(x, w, rows, self._bias, out, n_threads, in_bfloat16)
        if step.tally is not None:
            size = len(rows) * self.n_in
            step.tally.products(len(x) * size, size, size, step.training, True)
        positive = None
        if self.activation == "relu":
            np.maximum(out, 0, out=out)
            positive = out > 0  # a loss overwrites the outputs

        def backprop(d_out: Floats) -> tuple[Floats | None, list[Pair]]:
            if positive is not None:
                d_out *= positive
            dx = None
            if step.need_input_gradient:
                dx = shards.total_of_columns(self._input_gradients(
                    d_out, rows, bounds, x, n_threads, in_bfloat16))
            db = column_sums(d_out, n_threads)[:, None]
            is_rounded = (shards.n > 1 and w.dtype == np.uint16) or self.state_is_rounded
            gradients: Any = ActiveGradient(rows, d_out, x, in_bfloat16), RowGradient(rows, db)
            pairs: list[Any] = [
                (p, SegmentGradient(g, shards, bounds, self.starts, is_rounded))
                for p, g in zip((self._w, self._b), gradients, strict=True)]
            return dx, pairs

        return SegmentedActive(ids, out, self.n_out, rows, bounds), backprop

    state_is_rounded = False  # whether the optimizer keeps moments in bfloat16

    def _input_gradients(self, d_out: Floats, rows: Ids, bounds: np.ndarray, x: Floats,
                         n_threads: int, in_bfloat16: bool) -> list[Floats]:
        """The gradient of x by the own labels of each shard."""
        w = self._w.value
        if self.shards.n == 1:
            dx = self._buffer("dx", x.shape)
            _gemm.active_input_gradient(d_out, w, rows, dx, n_threads, in_bfloat16)
            return [dx]
        parts = self._buffer("dx", (self.shards.n_own, *x.shape))
        _gemm.segment_input_gradients(d_out, w, rows, bounds, parts, n_threads, in_bfloat16)
        return list(parts)

    def _own_set(self, x: Floats, step: Step) -> tuple[Any, Ids]:
        """The ids of the whole active set, and the own ones of it as rows."""
        if self.is_dense:
            return _Range(self.n_out), np.arange(self.n_rows, dtype=np.int32)
        self._observe(x, step)
        labels = step.labels.indices if step.labels is not None else np.zeros(0, np.int32)
        found = np.zeros((0, 0), np.int32)
        if self.candidates:
            finder = self._finder_at(step.place)
            n = min(self.candidates, self.n_out)
            found = self._merged(*finder.found(self._w.value, self._bias, x, n, step))
        n_active = self.n_active
        width = min(max(n_active, len(labels)), self.n_out)
        ids, spare = np.empty((2, width), np.int32)
        n = _select.hashed_union(labels, found, n_active, self.fill, step.seed, self.n_out, spare,
                                 ids)
        ids = ids[:n]
        if step.training:
            self._n_sets += 1
            self._n_label_sets += n > n_active
        return ids, np.sort(self.shards.rows(ids[self.shards.owns(ids)], self.starts))

    def _merged(self, ids: Ids, counts: np.ndarray) -> Ids:
        """The best of what all processes have found per sample, as `_buckets.collide` orders it."""
        if self.shards.group.size == 1:
            return ids
        return self.shards.by_owners(np.stack([ids, counts], axis=1), self._best_of)

    @staticmethod
    def _best_of(both: np.ndarray) -> Ids:
        """The best candidates, (n, c), of those of all processes, (P, n, 2, c)."""
        # a key is the order and the id, as the factor has an inverse: sorting the keys is enough
        size, n_rows, _, n = both.shape
        ids, counts = both[:, :, 0].astype(np.uint64), both[:, :, 1].astype(np.uint64)
        keys = (MAX_COUNT - counts) << np.uint64(32) | ids * ID_FACTOR & LOW_BITS
        keys[counts == 0] = NO_CANDIDATE
        keys = keys.transpose(1, 0, 2).reshape(n_rows, size * n)
        keys.sort(axis=1)
        keys = keys[:, :n]
        best = (keys * ID_INVERSE & LOW_BITS).astype(np.int32)
        best[keys == NO_CANDIDATE] = -1
        return best

    def updated(self, pairs: list[Pair], n_threads: int, tally: Tally | None = None) -> None:
        rows = next(gradient.rows for parameter, gradient in pairs if parameter is self._w)
        if self._finder is not None and rows is not None:
            self._finder.refresh(rows, n_threads, tally)
        self._drop_searches()

    # -- inference

    def all_outputs(self, x: Floats | CSR, n_threads: int) -> Floats:
        own = self._own_outputs(x, n_threads)
        shards = self.shards
        if shards.n == 1:
            return own
        most = max(int(self._sizes(rank).sum()) for rank in range(shards.group.size))
        block = np.zeros((len(own), most), np.float32)
        block[:, :own.shape[1]] = own
        out = np.empty((len(own), self.n_out), np.float32)
        for rank, part in enumerate(shards.gather(block)):
            ends = np.concatenate([[0], np.cumsum(self._sizes(rank))])
            for k in range(shards.n_own):
                out[:, rank * shards.n_own + k::shards.n] = part[:, ends[k]:ends[k + 1]]
        return out

    def _sizes(self, rank: int) -> np.ndarray:
        shards = self.shards
        return np.array([shards.n_rows(self.n_out, rank * shards.n_own + k)
                         for k in range(shards.n_own)])

    def _own_outputs(self, x: Floats | CSR, n_threads: int) -> Floats:
        x = x.to_dense() if isinstance(x, CSR) else x
        out = self._buffer("all", (len(x), self.n_rows))
        matmul(x, self._w.value, n_threads, transpose_b=True, bias=self._bias, out=out)
        if self.activation == "relu":
            np.maximum(out, 0, out=out)
        return out

    def topk(self, x: Floats | CSR, k: int, *, exact: bool = False, n_threads: int = 1,
             selection: Selection | None = None) -> tuple[Ids, Floats]:
        own = self.own_topk(x, k, exact=exact, n_threads=n_threads, selection=selection)
        return merge_topk(self.shards.gather_topk(*own), k, n_threads)

    def negatives(self, x: Floats | CSR, k: int, n_threads: int) -> Ids:
        return self.topk(x, k, n_threads=n_threads)[0]

    def own_topk(self, x: Floats | CSR, k: int, *, exact: bool = False, n_threads: int = 1,
                 selection: Selection | None = None) -> tuple[Ids, Floats]:
        """`topk` among the own labels."""
        x = x.to_dense() if isinstance(x, CSR) else x
        is_searched = not exact and selection is None and self._is_searched(n_threads)
        found = [self._topk_of(s, x, k, is_searched, n_threads, selection)
                 for s in range(self.shards.n_own)]
        return merge_topk(found, k, n_threads)

    def _topk_of(self, s: int, x: Floats, k: int, is_searched: bool, n_threads: int,
                 selection: Selection | None) -> tuple[Ids, Floats]:
        """The k best labels of an own shard."""
        a, b = self.starts[s], self.starts[s + 1]
        names = self.names[a:b]
        if is_searched:
            ids, scores = self._engines(n_threads)[s].search(x, min(k, b - a), None, n_threads)
            return self._named(s, ids), scores
        ids = np.full((len(x), k), -1, np.int32)
        scores = np.full((len(x), k), -np.inf, np.float32)
        for start, stop in row_chunks(len(x), max(1, b - a)):
            z = matmul(x[start:stop], self._w.value[a:b], n_threads, transpose_b=True,
                       bias=self._bias[a:b])
            if self.activation == "relu":
                np.maximum(z, 0, out=z)
            if selection is not None:
                z = _excluded(selection.slice(start, stop), z, names, self.n_out)
            _select.top_k(z, names, ids[start:stop], scores[start:stop], n_threads)
        if selection is not None:
            ids[np.isneginf(scores)] = -1
        return ids, scores

    def _named(self, s: int, rows: Ids) -> Ids:
        """The labels of rows of an own shard; -1 for none."""
        names = self.names[self.starts[s]:self.starts[s + 1]]
        return np.where(rows >= 0, names[np.maximum(rows, 0)], np.int32(-1)).astype(np.int32)

    def _is_searched(self, n_threads: int) -> bool:
        """Whether shards are searched by an index: a rule that knows neither P nor a clock."""
        if (self.is_dense or self.activation is not None
                or self.n_out // self.shards.n < SEARCH_MIN_NEURONS):
            return False
        self._engines(n_threads)
        return self.n_computed * MIN_NEURONS_PER_CANDIDATE <= self.n_out

    def _engines(self, n_threads: int) -> list[IndexEngine]:
        """The indexes of the own shards, which depend on their rows and on the last inputs.

        Their bounds are those with which all shards together reach the recall.
        """
        if self._searches:
            return self._searches
        queries = self._inputs if len(self._inputs) else None
        options = IndexOptions(recall=self.recall, plan="sketches")
        engines = [build(options, self._w.value[a:b], self._bias[a:b], queries,
                         drawn_seed(self._seed + self.shards.first + s), n_threads, is_part=True)
                   for s, (a, b) in enumerate(itertools.pairwise(self.starts))]
        if queries is None:
            n_each = min(max(128, self.n_out // self.shards.n // 100), 1024)  # as an index alone
            self.n_computed = float(self.shards.n * n_each)
        elif self.bounds is not None:
            take_bounds(engines, self.bounds,
                        [reach_of_short(engine, queries, n_threads) for engine in engines])
        else:
            self.bounds, self.n_computed = tune_together(
                engines, queries, self.n_out, self.recall, partial(self._merged_found, n_threads),
                lambda n: float(self.shards.gather(np.array([n])).sum()), n_threads)
        self._searches = engines
        return engines

    def _merged_found(self, n_threads: int, found: list[tuple[Ids, Floats]],
                      k: int) -> tuple[Ids, Floats]:
        """The k best of all processes, from what the own indexes have found."""
        named = [(self._named(s, ids), scores) for s, (ids, scores) in enumerate(found)]
        return merge_topk(self.shards.gather_topk(*merge_topk(named, k, n_threads)), k, n_threads)

    def score(self, x: Floats | CSR, ids: Ids, n_threads: int) -> Floats:
        z = np.take_along_axis(self.all_outputs(x, n_threads), np.maximum(ids, 0), 1)
        z[ids < 0] = -np.inf
        return z

    def log_sum_exp(self, x: Floats | CSR, wanted: float, n_threads: int) -> Any:
        return log_sum_exp(np.array(self.all_outputs(x, n_threads)), x, self._rows, n_threads)

    def _rows(self, ids: Ids) -> Floats:
        """The weights of some labels, which all processes ask for."""
        rows, owned = np.zeros((len(ids), self.n_in), np.float32), self.shards.owns(ids)
        rows[owned] = bfloat16.as_float32(self._w.value[self.shards.rows(ids[owned], self.starts)])
        return self.shards.gather(rows).sum(axis=0)

    def computed_fraction(self, k: int, *, exact: bool = False) -> float:
        if exact or not self._is_searched(resolve(None)):
            return 1.0
        return min(self.n_computed * max(1, k / N_NEIGHBOURS) / self.n_out, 0.999)

    def search_state(self) -> dict[str, Any] | None:
        """What a file keeps of the bounds of the search, or None before the first."""
        if self.bounds is None:
            return None
        return {"bounds": self.bounds.plain(), "n_computed": self.n_computed}

    def restore_search(self, plain: dict[str, Any]) -> None:
        """Take what `search_state` gave; it is checked."""
        self.bounds = Bounds.restored(plain["bounds"])
        self.n_computed = check.number(plain["n_computed"], "n_computed", minimum=0)

    def _drop_searches(self) -> None:
        self._searches, self.bounds, self.n_computed = [], None, 0.0

    def drop_indexes(self) -> None:
        super().drop_indexes()
        self._drop_searches()

    # -- state

    def table_state(self) -> tuple[dict[str, Any], Ids | None]:
        """What a checkpoint keeps of the tables: plain values, and the codes of the own rows."""
        engine = None if self._finder is None else self._finder.engine
        family: Any = None if self._finder is None else self._finder.options.family
        plain: dict[str, Any] = {
            "step_number": self._step_number, "seed": self._seed,
            "clock": None if self._finder is None else self._finder.clock_state(),
            # that of the labels there were at first
            "family": family_config(family)}
        if engine is None:
            return plain, None
        plain["offset"] = engine.transform.offset_.tolist()
        plain["scale"] = engine.transform.scale_
        plain["hashes_in_bfloat16"] = self._finder.hashes_in_bfloat16
        return plain, engine.tables.codes

    def restore_tables(self, plain: dict[str, Any], codes: Ids | None) -> None:
        """Take what `table_state` gave; it is checked."""
        place: Any = None  # that of the output
        finder = self._finder_at(place, family_from(plain.get("family")))
        self._step_number = int(plain["step_number"])
        if plain["clock"] is not None:
            finder.restore_clock(plain["clock"])
        if codes is not None:
            finder.hash_in(plain.get("hashes_in_bfloat16") is True)
            offset = np.array(plain["offset"], np.float32)
            finder.engine = engine_of_codes(finder.options, self._w.value, self._bias, codes,
                                            offset, plain["scale"], drawn_seed(self._seed),
                                            resolve(None))


class _Range:
    """The ids of a set of all neurons, of which only the number is asked."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n


def _excluded(selection: Selection, z: Floats, names: Ids, n_out: int) -> Floats:
    """z without the labels that may not be found; columns of z are `names`."""
    whole = np.full((len(z), n_out), -np.inf, np.float32)
    whole[:, names] = z
    return np.ascontiguousarray(selection.exclude_from(whole)[:, names])


def merge_topk(found: list[tuple[Ids, Floats]], k: int, n_threads: int) -> tuple[Ids, Floats]:
    """The k best of what several searches found for each row: by score, then by id."""
    ids = np.ascontiguousarray(np.concatenate([part[0] for part in found], axis=1))
    scores = np.ascontiguousarray(np.concatenate([part[1] for part in found], axis=1))
    best = np.empty((len(ids), k), np.int32), np.empty((len(ids), k), np.float32)
    _select.top_k(scores, ids, *best, n_threads)
    return best
