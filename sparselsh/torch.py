"""PyTorch models: wide layers accelerated by an index, and networks as modules.

Torch is needed only when a function is called. ``import sparselsh`` does not import this module.
"""
from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _validation as check
from ._arrays.linalg import exact_topk
from ._threads import resolve
from .index import (
    N_NEIGHBOURS,
    STORAGES,
    IndexOptions,
    build,
    drawn_seed,
    recall_of,
    split_in_blocks,
    tune,
)
from .inference import (
    MIN_GAIN,
    TIMED_ROWS,
    ConversionReport,
    LayerReport,
    evaluation,
    fastest,
    plain_type,
    refuse_replaced_forward,
    refuse_unusual_tensor,
    require_torch,
    weight_hooks,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from torch import nn

    from ._arrays.types import Floats, RandomState
    from .inference import InferenceNetwork
    from .network import Network

__all__ = ["accelerate", "restore", "to_torch"]

MAX_CALIBRATION_ROWS = 2048  # kept per layer
MIN_CALIBRATION_ROWS = 2  # per layer: one to choose by and one to measure
N_TIMED_QUERIES = 8  # single queries that are timed one after the other


def to_torch(network: InferenceNetwork | Network, *, refinement: str = "keep") -> nn.Module:
    """A network as a ``torch.nn.Module`` with the same weights, bit by bit.

    Parameters
    ----------
    network : InferenceNetwork or Network
    refinement : {"keep", "drop"}
        As for :meth:`Network.to_torch`.

    Returns
    -------
    torch.nn.Sequential, or torch.nn.Module where there is a refinement
        In evaluation mode.

    Raises
    ------
    ImportError
        If torch is missing.
    TypeError, ValueError
        If the network is none of these, or `refinement` is neither.
    """
    if not hasattr(network, "to_torch"):
        raise TypeError(f"network must be a Network or an InferenceNetwork, got {network!r}")
    return network.to_torch(refinement=refinement)


# -- layers inside any model ---------------------------------------------------------------------


def accelerate(model: nn.Module, names: str | Sequence[str], calibration: Any, *,
               recall: float = 0.99, k: int = 5, n_logits: int | None = None,
               fill: float = float("-inf"), storage: str = "float32",
               random_state: RandomState = None, n_threads: int | None = None) -> ConversionReport:
    """Replace wide ``nn.Linear`` layers of a model, in place, where an index is faster.

    The layers become ``AcceleratedLinear``: their forward computes the logits of the neurons that
    an index finds and sets all others to `fill`, without autograd; their ``topk`` does without the
    fill. Parameters are not copied and keep their names. Hooks of a layer are kept.
    :func:`restore` undoes it.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU.
    names : str or sequence of str
        Names of layers as in ``model.named_modules()``, or a pattern such as ``"decoder.*"``.
    calibration : Tensor, tuple, dict, or iterable of them
        Inputs of the model: a tensor, a tuple of arguments or a dict of keyword arguments; or an
        iterable of such batches. Some hundreds of rows should reach each layer.
    recall : float
        Fraction of the k largest logits that the index is to find, above 0 and below 1.
    k : int
    n_logits : int or None
        Logits that forward computes; None for as many as the index computes anyway.
    fill : float
        Logit of a neuron that was not found: minus infinity, which softmax maps to 0; use 0.0
        before a ReLU.
    storage : {"float32", "bfloat16", "int8"}
        As for :class:`sparselsh.LSHIndex`.
    random_state : None, int or numpy.random.Generator
    n_threads : int or None
        None for as many as torch uses.

    Returns
    -------
    ConversionReport
        Of the named layers. A layer for which the index gains less than a tenth, for single queries
        and in batches of 256, is not replaced, and the report says so.

    Raises
    ------
    ImportError
        If torch is missing.
    TypeError, ValueError
        If a name is not that of a Linear layer of the model, its weights are not finite float32 on
        the CPU or are computed at each call, as weight norm and pruning do, or another argument
        does not fit.
    """
    torch = require_torch()
    _require_module(torch, model)
    check.generator(random_state)
    check.choice(storage, "storage", STORAGES)
    recall = check.number(recall, "recall", above=0, below=1)
    k, n_threads = check.integer(k, "k"), check.threads(n_threads)
    n_threads = torch.get_num_threads() if n_threads is None else n_threads
    if n_logits is not None:
        n_logits = check.integer(n_logits, "n_logits")
    if isinstance(fill, bool) or not isinstance(fill, (int, float)) or np.isnan(fill):
        raise ValueError(f"fill must be a number or minus infinity, got {fill!r}")

    layers = {name: _linear(torch, model, name) for name in _layer_names(torch, model, names)}
    weights = {name: _weights(torch, linear, name) for name, linear in layers.items()}
    inputs = _inputs(torch, model, layers, calibration)

    reports, replaced = [], {}
    for name, linear in layers.items():
        W, b = weights[name]
        accelerated, report = _accelerated(torch, name, linear, W, b, inputs[name], recall,
                                           min(k, len(W)), n_logits, float(fill), storage,
                                           random_state, n_threads)
        reports.append(report)
        if accelerated is not None:
            replaced[name] = accelerated

    for name, module in replaced.items():  # after an error, none is replaced
        _swap(model, name, module)
    return ConversionReport(reports, storage=storage)


def restore(model: nn.Module) -> nn.Module:
    """Undo :func:`accelerate`: put back ``nn.Linear`` layers, with the same parameters.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    ImportError
        If torch is missing.
    TypeError
        If the argument is no module.
    """
    _require_module(require_torch(), model)
    for name, module in list(model.named_modules()):
        if hasattr(module, "plain_linear"):
            _swap(model, name, module.plain_linear())
    return model


def _require_module(torch: ModuleType, model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")


def _layer_names(torch: ModuleType, model: nn.Module, names: str | Sequence[str]) -> list[str]:
    known = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    chosen = []
    for name in [names] if isinstance(names, str) else list(names):
        found = fnmatch.filter(known, name) if any(c in name for c in "*?[") else [name]
        if not found:
            raise ValueError(f"names: no Linear layer matches {name!r}; the model has "
                             f"{', '.join(known) or 'none'}")
        chosen += [new for new in found if new not in chosen]
    if not chosen:
        raise ValueError("names must hold at least one name, got none")
    return chosen


def _linear(torch: ModuleType, model: nn.Module, name: str) -> nn.Linear:
    modules = dict(model.named_modules())
    linears = ", ".join(n for n, m in modules.items() if type(m) is torch.nn.Linear) or "none"
    if name not in modules or name == "":
        raise ValueError(f"names: the model has no layer {name!r}; its Linear layers are {linears}")
    module = modules[name]
    if type(module) is torch.nn.Linear:
        refuse_replaced_forward(module, f"names: {name!r}")
        for hook in weight_hooks(torch, module):
            raise ValueError(
                f"names: the weight of {name!r} is computed before each call "
                f"({type(hook).__name__}), and an index needs one that stays; make it permanent "
                "with torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove")
        return module
    if plain_type(torch, module) is torch.nn.Linear:
        what = ", ".join(module.parametrizations)
        raise ValueError(f"names: the {what} of {name!r} is computed at each call (parametrization)"
                         ", and an index needs one that stays; make it permanent with "
                         "torch.nn.utils.parametrize.remove_parametrizations")
    raise TypeError(f"names: {name!r} is a {type(module).__name__}, not a Linear; "
                    f"Linear are {linears}")


def _weights(torch: ModuleType, linear: nn.Linear, name: str) -> tuple[Floats, Floats]:
    """Weight and bias as arrays that share the memory of the parameters."""
    for what, tensor in (("weight", linear.weight), ("bias", linear.bias)):
        if tensor is not None:
            refuse_unusual_tensor(torch, tensor, f"{name}.{what}")
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise TypeError(f"{name}.{what} must be float32 on the CPU, got "
                            f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}; "
                            "call model.float().cpu() first")
    W = check.dense(linear.weight.detach().numpy(), f"{name}.weight")
    bias = np.zeros(len(W), np.float32) if linear.bias is None else linear.bias.detach().numpy()
    return W, check.vector(bias, f"{name}.bias", len(W))


def _inputs(torch: ModuleType, model: nn.Module, layers: dict[str, nn.Linear],
            calibration: Any) -> dict[str, Floats]:
    """Up to MAX_CALIBRATION_ROWS inputs of each layer, recorded while the model runs."""
    kept: dict[str, list[Floats]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, args: Any) -> None:
            if not args or not isinstance(args[0], torch.Tensor):
                raise TypeError("calibration must be a tensor, a tuple of arguments, a dict of "
                                "keyword arguments, or an iterable of such batches; layer "
                                f"{name!r} was given {args}")
            if sum(map(len, kept[name])) < MAX_CALIBRATION_ROWS:
                rows = args[0].detach().reshape(-1, args[0].shape[-1])
                kept[name].append(np.array(rows.float().numpy()))
        return hook

    hooks = [linear.register_forward_pre_hook(keep(name)) for name, linear in layers.items()]
    is_batch = isinstance(calibration, (torch.Tensor, tuple, dict))
    try:
        with evaluation(model), torch.inference_mode():
            for batch in [calibration] if is_batch else calibration:
                if isinstance(batch, dict):
                    model(**batch)
                elif isinstance(batch, (tuple, list)):
                    model(*batch)
                else:
                    model(batch)
    finally:
        for hook in hooks:
            hook.remove()

    for name, parts in kept.items():
        if sum(map(len, parts)) < MIN_CALIBRATION_ROWS:
            raise ValueError(f"calibration gives layer {name!r} fewer than two rows; "
                             "give some hundreds")
    return {name: check.dense(np.concatenate(parts)[:MAX_CALIBRATION_ROWS],
                              f"the inputs of {name}")
            for name, parts in kept.items()}


def _accelerated(torch: ModuleType, name: str, linear: nn.Linear, W: Floats, b: Floats,
                 inputs: Floats, recall: float, k: int, n_logits: int | None, fill: float,
                 storage: str, random_state: RandomState,
                 n_threads: int) -> tuple[nn.Module | None, LayerReport]:
    """The module that replaces a layer, or None, and the report of the choice."""
    from .inference import AcceleratedLinear

    settings, held = (inputs[rows] for rows in split_in_blocks(len(inputs)))
    options = IndexOptions(recall=recall, plan="sketches", storage=storage)
    engine = build(options, W, b, settings, drawn_seed(random_state), resolve(n_threads))
    if k != N_NEIGHBOURS:
        tune(engine, settings, min(k, len(W)), recall, resolve(n_threads))
    module = AcceleratedLinear(linear, engine, n_logits or engine.default_candidates(k), fill,
                               n_threads)

    times = {}
    with torch.inference_mode():
        for n, kind in zip(TIMED_ROWS, module.plan, strict=True):
            parts = [torch.from_numpy(settings[np.arange(i, i + n) % len(settings)])
                     for i in range(N_TIMED_QUERIES if n == 1 else 1)]
            dense, found = (fastest(call, parts, 1) for call in (linear, module))
            times[n] = dense, found
            module.plan[kind] = "lsh" if found * MIN_GAIN < dense else "dense"

    report = LayerReport(name, W.shape, dict(module.plan), "", bytes_dense=W.nbytes + b.nbytes,
                         bytes=W.nbytes + b.nbytes + engine.nbytes)
    figures = " and ".join(f"{dense * 1e6 / n:.1f} dense, {found * 1e6 / n:.1f} by the index at {n}"
                           for n, (dense, found) in times.items())
    gains = "lsh" in module.plan.values()
    choice = "lsh" if gains else "kept dense: the index does not gain a tenth"
    report.reason = f"{choice} (us per row: {figures}; {module.n_logits} logits)"
    report.microseconds_dense = {n: dense * 1e6 / n for n, (dense, _) in times.items()}
    report.microseconds = {n: times[n][module.plan[kind] == "lsh"] * 1e6 / n
                           for n, kind in zip(TIMED_ROWS, module.plan, strict=True)}
    if not gains:
        report.bytes = report.bytes_dense
        return None, report

    truth, _ = exact_topk(held, W, b, k, resolve(n_threads))
    report.recall = recall_of(engine.search(held, k, None, resolve(n_threads))[0], truth)
    return module, report


def _swap(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
