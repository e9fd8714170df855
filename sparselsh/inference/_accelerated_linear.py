"""AcceleratedLinear: an ``nn.Linear`` of a PyTorch model whose outputs an index finds.

This module needs torch; only :func:`sparselsh.torch.accelerate` imports it.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .. import _validation as check
from .._threads import resolve
from ..index import BATCH_PLAN_MIN_ROWS

if TYPE_CHECKING:
    from torch import Tensor

    from .._arrays.types import Floats, Ids
    from ..index import IndexEngine

HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")  # ends of nn.Module's attributes


def share_hooks(source: nn.Module, target: nn.Module) -> None:
    """Give a module the hooks of another: the same dicts, so that handles remove them from both."""
    for name, value in vars(source).items():
        if name.endswith(HOOKS):
            vars(target)[name] = value


class AcceleratedLinear(nn.Module):
    """An ``nn.Linear`` whose largest outputs an index finds; see :func:`accelerate`."""

    def __init__(self, linear: nn.Linear, engine: IndexEngine, n_logits: int, fill: float,
                 n_threads: int | None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.engine, self.fill = engine, fill
        self.n_logits = min(n_logits, linear.out_features)
        self.plan = {"single": "lsh", "batch": "lsh"}
        self.n_threads = n_threads
        share_hooks(linear, self)
        self.train(linear.training)

    def extra_repr(self) -> str:
        return (f"in_features={self.in_features}, out_features={self.out_features}, "
                f"n_logits={self.n_logits}, fill={self.fill}")

    def plain_linear(self) -> nn.Linear:
        """An ``nn.Linear`` with the same parameters."""
        linear = torch.nn.utils.skip_init(torch.nn.Linear, self.in_features, self.out_features,
                                          bias=self.bias is not None)
        linear.weight, linear.bias = self.weight, self.bias
        share_hooks(self, linear)
        return linear.train(self.training)

    def _finds(self, rows: Tensor) -> bool:
        return self.plan["batch" if len(rows) >= BATCH_PLAN_MIN_ROWS else "single"] == "lsh"

    def _search(self, rows: Tensor, k: int) -> tuple[Ids, Floats]:
        return self.engine.search(rows.numpy(), k, None, resolve(self.n_threads))

    def _rows(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.shape[-1] != self.in_features:
            raise ValueError(f"the input must be float32 on the CPU with {self.in_features} "
                             f"columns, got {x.dtype} {tuple(x.shape)} on {x.device}")
        return x.detach().reshape(-1, self.in_features).contiguous()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits (..., out_features) of the neurons found; `fill` for all others."""
        rows = self._rows(x)
        if not self._finds(rows):
            return torch.nn.functional.linear(x, self.weight, self.bias)
        ids, scores = self._search(rows, self.n_logits)
        out = torch.full((len(rows), self.out_features), self.fill)
        known = ids >= 0
        if not known.all():
            ids, scores = np.where(known, ids, ids[:, :1]), np.where(known, scores, scores[:, :1])
        out.scatter_(1, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(scores))
        return out.reshape(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def topk(self, x: Tensor, k: int = 5) -> Any:
        """The k largest logits and their ids, (..., k) each, best first, as from ``torch.topk``."""
        rows = self._rows(x)
        if not self._finds(rows):
            return torch.topk(torch.nn.functional.linear(x, self.weight, self.bias), k)
        ids, scores = self._search(rows, check.integer(k, "k", maximum=self.out_features))
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
