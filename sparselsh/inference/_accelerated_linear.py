"""AcceleratedLinear: an ``nn.Linear`` of a PyTorch model, by an index or by products of 8 bits.

This module needs torch; only :func:`sparselsh.torch.accelerate` imports it.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import nn

from .. import _validation as check
from .._core import _quantized
from .._threads import resolve
from ..index import BATCH_PLAN_MIN_ROWS, QuantizedRows
from ._int8_outputs import MAX_INPUTS, Int8Outputs
from ._layer import ESTIMATE_BITS, nonzeros

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .._arrays.types import Floats, Ids
    from ..index import IndexEngine

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VERSION = "_version"  # how often PyTorch has seen a tensor change
HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")  # ends of nn.Module's attributes


def share_hooks(source: nn.Module, target: nn.Module) -> None:
    """Give a module the hooks of another: the same dicts, so that handles remove them from both."""
    for name, value in vars(source).items():
        if name.endswith(HOOKS):
            vars(target)[name] = value


def is_input_major(layer: nn.Module) -> bool:
    """Whether the weight of a layer is (n_in, n_out), as in Conv1D of Hugging Face."""
    return not isinstance(layer, nn.Linear)


class NoBackward(torch.autograd.Function):
    """Logits that an index has found; a gradient through them is an error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, out: Tensor, name: str) -> Tensor:
        ctx.name = name
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(f"no gradient flows through the accelerated layer {ctx.name!r}; call "
                           "sparselsh.torch.restore(model) before the training and accelerate "
                           "again behind it")


class Replacement(nn.Module):
    """A linear layer in whose place another computation stands, with the same parameters.

    `plan` names the computation for "single" inputs and for a "batch".
    """

    def __init__(self, layer: nn.Module, n_threads: int | None, name: str) -> None:
        super().__init__()
        self.name, self.n_threads = name, n_threads
        shape = layer.weight.shape[::-1] if is_input_major(layer) else layer.weight.shape
        self.out_features, self.in_features = shape
        self.weight, self.bias = layer.weight, layer.bias
        self.plan = {"single": "dense", "batch": "dense"}
        # in a tuple it is no submodule, whose parameters would be counted twice
        self.original = (layer,)
        self.seen: tuple[Any, ...] | None = self.weights_seen()
        share_hooks(layer, self)
        self.train(layer.training)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"seen": None}  # a copy has weights in another place

    def weights_seen(self) -> tuple[Any, ...]:
        """What changes when the parameters do: their versions and places."""
        return tuple((None if p.is_inference() else getattr(p, VERSION), p.data_ptr())
                     for p in (self.weight, self.bias) if p is not None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Casts such as `model.bfloat16()` keep the index, which has the weights as they were."""
        self._refuse_stale()
        super()._apply(fn, recurse)
        self.original[0].weight, self.original[0].bias = self.weight, self.bias
        self.seen = self.weights_seen()
        return self

    def _refuse_stale(self) -> None:
        seen = self.weights_seen()
        if self.seen is None:
            self.seen = seen
        if self.seen != seen:
            raise RuntimeError(f"the weights of the accelerated layer {self.name!r} have changed, "
                               "and its index is of the old ones; call accelerate again, or "
                               "sparselsh.torch.restore(model)")

    def original_layer(self) -> nn.Module:
        """The layer in whose place this one is, with the parameters and the mode of now."""
        layer = self.original[0]
        layer.weight, layer.bias = self.weight, self.bias
        share_hooks(self, layer)
        return layer.train(self.training)

    def _dense(self, x: Tensor) -> Tensor:
        weight = self.weight.T if is_input_major(self.original[0]) else self.weight
        return torch.nn.functional.linear(x, weight, self.bias)

    def _plan_of(self, rows: Tensor, plans: dict[str, str] | None = None) -> str:
        plans = self.plan if plans is None else plans
        return plans["batch" if len(rows) >= BATCH_PLAN_MIN_ROWS else "single"]

    def _rows(self, x: Tensor) -> Tensor:
        if (x.dtype not in DTYPES or x.device.type != "cpu"
                or x.shape[-1] != self.in_features):
            raise ValueError(f"the input must be floating-point on the CPU with {self.in_features} "
                             f"columns, got {x.dtype} {tuple(x.shape)} on {x.device}")
        self._refuse_stale()
        return x.detach().reshape(-1, self.in_features).float().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., out_features), as planned."""
        rows = self._rows(x)
        if self._plan_of(rows) == "dense":
            return self._dense(x)
        with torch.no_grad():
            out = self._planned(rows).reshape(*x.shape[:-1], self.out_features).to(x.dtype)
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return NoBackward.apply(x, self.weight, out, self.name)
        return out

    def _planned(self, rows: Tensor) -> Tensor:
        """Outputs for rows in float32."""
        raise NotImplementedError


class AcceleratedLinear(Replacement):
    """A linear layer whose largest outputs are found; see :func:`accelerate`.

    `fill` is "estimate", or the logit of all neurons that are not found. Plans are "dense", "lsh"
    and "int8". `topk_plan` are those of `topk`, which needs no estimates.
    """

    def __init__(self, layer: nn.Module, engine: IndexEngine, n_logits: int, fill: float | str,
                 n_threads: int | None, name: str = "") -> None:
        super().__init__(layer, n_threads, name)
        self.engine, self.fill = engine, fill
        self.n_logits = min(n_logits, self.out_features)
        self.plan = {"single": "lsh", "batch": "lsh"}
        self.topk_plan = dict(self.plan)
        self.int8: Int8Outputs | None = None  # of the plan "int8"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"topk_plan": dict(state["plan"])} | state)  # pickles of before

    def extra_repr(self) -> str:
        return (f"in_features={self.in_features}, out_features={self.out_features}, "
                f"n_logits={self.n_logits}, fill={self.fill!r}")

    def by_int8(self, given: Floats | None = None) -> Int8Outputs:
        """The weights in 8 bits, which are made when they are first needed, for inputs `given`."""
        if self.int8 is None:
            self.int8 = Int8Outputs(self.engine.W, resolve(self.n_threads), given)
        return self.int8

    def search(self, rows: Tensor, k: int, plan: str) -> tuple[Ids, Floats]:
        """Ids and logits (n, k) of the largest, for rows in float32."""
        x, n_threads = rows.numpy(), resolve(self.n_threads)
        if plan == "int8":
            return self.by_int8().topk(x, self.engine.W, self.engine.bias, k, n_threads)
        return self.engine.search(x, k, None, n_threads)

    def _planned(self, rows: Tensor) -> Tensor:
        """Logits: exact where they were computed, and estimates or `fill`."""
        if self.fill == "estimate":
            # estimates of all neurons find the largest more surely than a search that stops
            x, n_threads = rows.numpy(), resolve(self.n_threads)
            if self._plan_of(rows) == "int8":
                return torch.from_numpy(self.by_int8().estimates(
                    x, self.engine.W, self.engine.bias, self.n_logits, n_threads))
            out = torch.from_numpy(self.engine.estimate(x, 0, ESTIMATE_BITS, n_threads)[0])
            best = out.topk(self.n_logits).indices
            ids = best.to(torch.int32).numpy()
            return out.scatter_(1, best, torch.from_numpy(self.engine.score(x, ids, n_threads)))
        ids, scores = self.search(rows, self.n_logits, self._plan_of(rows))
        out = torch.full((len(rows), self.out_features), self.fill)
        known = ids >= 0
        if not known.all():
            ids, scores = np.where(known, ids, ids[:, :1]), np.where(known, scores, scores[:, :1])
        return out.scatter_(1, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(scores))

    @torch.no_grad()
    def topk(self, x: Tensor, k: int = 5) -> Any:
        """The k largest logits and their ids, (..., k) each, best first, as from ``torch.topk``."""
        rows, k = self._rows(x), check.integer(k, "k", maximum=self.out_features)
        plan = self._plan_of(rows, self.topk_plan)
        if plan == "dense":
            return torch.topk(self._dense(x), k)
        ids, scores = self.search(rows, k, plan)
        shape = (*x.shape[:-1], k)
        values, indices = torch.from_numpy(scores), torch.from_numpy(ids.astype(np.int64))
        return torch.return_types.topk((values.reshape(shape), indices.reshape(shape)))

    @torch.no_grad()
    def score(self, x: Tensor, ids: Tensor) -> Tensor:
        """The logits of the neurons `ids`, exactly: (..., n_ids).

        ids is (n_ids,), the same for all inputs, or (..., n_ids); -1 for none, with the logit -inf.
        """
        rows = self._rows(x)
        shape = (*x.shape[:-1], ids.shape[-1])
        table = ids.expand(shape).reshape(len(rows), -1).numpy()
        table = check.neuron_table(table, "ids", len(rows), self.out_features)
        scores = self.engine.score(rows.numpy(), table, resolve(self.n_threads))
        return torch.from_numpy(scores).reshape(shape)

    @torch.no_grad()
    def logsumexp(self, x: Tensor, error: float = 0.01) -> tuple[Tensor, Tensor]:
        """The logarithm of the sum of exp(logit) over all neurons, and its error: (...,) each.

        As :meth:`sparselsh.LSHIndex.logsumexp`, in float32.
        """
        rows = self._rows(x)
        found = self.engine.log_sum_exp(rows.numpy(), check.number(error, "error", above=0),
                                        resolve(self.n_threads))
        values, errors = (torch.from_numpy(a).float().reshape(x.shape[:-1]) for a in found)
        return values, errors

    @torch.no_grad()
    def estimate(self, x: Tensor, k: int = 5, bits: int = 8) -> tuple[Tensor, Tensor]:
        """All logits, of which the k largest are exact, and deviations: (..., out_features) each.

        As :meth:`sparselsh.LSHIndex.estimate`.
        """
        rows = self._rows(x)
        k = check.integer(k, "k", minimum=0, maximum=self.out_features)
        found = self.engine.estimate(rows.numpy(), k, check.estimate_bits(bits),
                                     resolve(self.n_threads))
        shape = (*x.shape[:-1], self.out_features)
        values, deviations = (torch.from_numpy(a).reshape(shape) for a in found)
        return values, deviations


class HiddenLinear(Replacement):
    """A linear layer all of whose outputs are read; see :func:`accelerate`.

    Plans are "dense", "rows", which reads the weights of the inputs that are not zero and is exact,
    and "int8", whose weights are rounded for the inputs `given`. The plan "rows" of an input that
    is less sparse than `max_nonzero` is dense.
    """

    def __init__(self, layer: nn.Module, W: Floats, bias: Floats, given: Floats,
                 max_nonzero: float, storage: str, n_threads: int | None, name: str = "") -> None:
        super().__init__(layer, n_threads, name)
        self.max_nonzero = max_nonzero
        n = resolve(n_threads)
        self.linear_bias = bias
        self.int8: Int8Outputs | None = None
        if W.shape[1] <= MAX_INPUTS:
            self.int8 = Int8Outputs(W, n, given)
        self.rows: QuantizedRows | None = QuantizedRows.of(np.ascontiguousarray(W.T), storage, n)

    def extra_repr(self) -> str:
        return (f"in_features={self.in_features}, out_features={self.out_features}, "
                f"plan={self.plan}")

    @property
    def nbytes(self) -> int:
        """Bytes of what the plans read beside the parameters."""
        return sum(part.nbytes for part in (self.int8, self.rows) if part is not None)

    def keep_planned(self) -> None:
        """Forget what no plan reads."""
        if "int8" not in self.plan.values():
            self.int8 = None
        if "rows" not in self.plan.values():
            self.rows = None

    def _planned(self, rows: Tensor) -> Tensor:
        x, n_threads = rows.numpy(), resolve(self.n_threads)
        if self._plan_of(rows) == "int8":
            return torch.from_numpy(self.int8.outputs(x, self.linear_bias, n_threads))
        if np.count_nonzero(x) > self.max_nonzero * x.size:
            weight = self.weight.T if is_input_major(self.original[0]) else self.weight
            bias = None if self.bias is None else self.bias.float()
            return torch.nn.functional.linear(rows, weight.float(), bias)
        given = nonzeros(x)
        out = np.empty((len(x), self.out_features), np.float32)
        _quantized.weighted_rows(given.indptr, given.indices, given.data, self.rows.values,
                                 self.rows.scales, self.linear_bias, out, n_threads)
        return torch.from_numpy(out)
