"""PyTorch models: wide layers accelerated by an index, and networks as modules.

Torch is needed only when a function is called. ``import sparselsh`` does not import this module.
"""
from __future__ import annotations

import contextlib
import fnmatch
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _validation as check
from ._arrays.linalg import exact_topk, matmul
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
    MAX_INT8_INPUTS,
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
    from collections.abc import Callable, Collection, Iterator, Sequence
    from types import ModuleType

    from torch import nn

    from ._arrays.types import Floats, Ids, RandomState
    from .index import IndexEngine
    from .inference import AcceleratedLinear, InferenceNetwork
    from .network import Network

__all__ = ["accelerate", "restore", "to_torch"]

MAX_CALIBRATION_ROWS = 2048  # kept per layer
MIN_CALIBRATION_ROWS = 2  # per layer: one to choose by and one to measure
MAX_NONZERO_FRACTION = 0.5  # of inputs; with more, reading only these is not tried
ROUNDING_ERROR = 1e-5  # of sums in another order
MAX_RAISES = 4  # of the recall for which an index is set
N_ERROR_ROWS = 32  # by which the error of estimated logits is measured
N_TIMED_QUERIES = 8  # single queries that are timed one after the other


def to_torch(network: InferenceNetwork | Network, *, refinement: str = "keep") -> nn.Module:
    """A network as a ``torch.nn.Module`` with the same weights, bit for bit.

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
               outputs: str = "largest", recall: float = 0.99, error: float = 0.02, k: int = 5,
               n_logits: int | None = None, fill: float | str = "estimate",
               storage: str = "float32", random_state: RandomState = None,
               n_threads: int | None = None) -> ConversionReport:
    """Replace wide linear layers of a model in place if an index or 8-bit products are faster.

    The layers, ``nn.Linear`` or ``Conv1D`` of Hugging Face, become ``AcceleratedLinear``. Their
    forward computes the largest logits exactly and estimates the others, by an index or by products
    of 8 bits, whichever is faster for few rows and for batches. Their ``topk`` returns only the
    largest logits, ``score`` exact logits of given neurons, and ``logsumexp`` the normalizer of a
    softmax and its error. A gradient through such a layer raises an error, and so does a call after
    its weights have changed. Parameters are not copied and keep their names. For weights in
    bfloat16 or float16 the index has a float32 copy. Hooks of a layer are kept. :func:`restore`
    undoes it.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU.
    names : str or sequence of str
        Names of layers as in ``model.named_modules()``, or a pattern such as ``"decoder.*"``. A
        layer that is accelerated already gets a new index.
    calibration : Tensor, tuple, dict, or iterable of them
        Inputs of the model: a tensor, a tuple of arguments or a dict of keyword arguments; or an
        iterable of such batches. Some hundreds of rows should reach each layer.
    outputs : {"largest", "all"}
        Which outputs the model uses. "largest" is for output layers, such as that of a language
        model. "all" is for layers inside a network, such as both layers of a feed-forward block. A
        layer whose inputs are mostly zero, as after a ReLU or a squared ReLU, then reads only the
        weights of the non-zero inputs, which is exact; otherwise products of 8 bits are tried.
        `recall`, `k`, `n_logits` and `fill` are ignored.
    recall : float
        Fraction of the k largest logits that the index finds, above 0 and below 1.
    error : float
        Largest relative error ``|z' - z| / |z|`` of the outputs of a layer, where all of them
        matter; at least 0 and below 1.
    k : int
    n_logits : int or None
        Logits that forward computes; None for as many as the index computes anyway.
    fill : "estimate" or float
        Logit of a neuron that was not computed. "estimate" estimates it from the weights in 8 bits,
        for which the index keeps a byte per weight; guidance, constraints, sampling and losses need
        such logits. Minus infinity is faster, and correct if only the best outputs are read. 0.0 is
        correct before a ReLU.
    storage : {"float32", "bfloat16", "int8"}
        As for :class:`sparselsh.LSHIndex`.
    random_state : None, int or numpy.random.Generator
    n_threads : int or None
        None for as many as torch uses.

    Returns
    -------
    ConversionReport
        Of the named layers. A layer for which nothing gains a tenth, for single queries and in
        batches of 256, is not replaced, and the report says so.

    Raises
    ------
    ImportError
        If torch is missing.
    TypeError, ValueError
        If a name is not that of a linear layer of the model, its weights are not finite or not on
        the CPU or are computed at each call, as weight norm and pruning do, or another argument
        does not fit.
    """
    torch = require_torch()
    _require_module(torch, model)
    check.generator(random_state)
    check.choice(storage, "storage", STORAGES)
    check.choice(outputs, "outputs", ("largest", "all"))
    error = check.number(error, "error", minimum=0, below=1)
    recall = check.number(recall, "recall", above=0, below=1)
    k, n_threads = check.integer(k, "k"), check.threads(n_threads)
    n_threads = torch.get_num_threads() if n_threads is None else n_threads
    if n_logits is not None:
        n_logits = check.integer(n_logits, "n_logits")
    if fill != "estimate":
        if isinstance(fill, (bool, str)) or not isinstance(fill, (int, float)) or np.isnan(fill):
            raise ValueError(f"fill must be a number or minus infinity, got {fill!r}; the default "
                             "is 'estimate'")
        fill = float(fill)

    chosen = _layer_names(torch, model, names)
    layers = {name: _linear(torch, model, name) for name in chosen}
    weights = {name: _weights(torch, linear, name) for name, linear in layers.items()}
    with _in_place(model, layers):
        inputs, shares = _inputs(torch, model, layers, calibration)

    reports: list[LayerReport] = []
    replaced: dict[str, nn.Module] = {}
    for name, linear in layers.items():
        W, b = weights[name]
        if outputs == "all":
            accelerated, report = _hidden(torch, name, linear, W, b, inputs[name], error, storage,
                                          n_threads)
        else:
            accelerated, report = _accelerated(torch, name, linear, W, b, inputs[name], recall,
                                               min(k, len(W)), n_logits, fill, storage,
                                               random_state, n_threads)
        report.share = shares[name]
        reports.append(report)
        if accelerated is not None:
            replaced[name] = accelerated

    for name, linear in layers.items():  # after an error, none is replaced
        _swap(model, name, replaced.get(name, linear))
    return ConversionReport(reports, storage=storage)


def restore(model: nn.Module) -> nn.Module:
    """Undo :func:`accelerate`: put the layers back, with the same parameters.

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
        If the argument is not a module.
    """
    _require_module(require_torch(), model)
    for name, module in list(model.named_modules()):
        if hasattr(module, "original_layer"):
            _swap(model, name, module.original_layer())
    return model


def _require_module(torch: ModuleType, model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")


def _layer_names(torch: ModuleType, model: nn.Module, names: str | Sequence[str]) -> list[str]:
    known = [name for name, module in model.named_modules() if _is_linear(torch, module)]
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


def _is_linear(torch: ModuleType, module: nn.Module) -> bool:
    """Whether a module is a Linear, a Conv1D of Hugging Face, or accelerated already."""
    kind = type(module)
    is_conv1d = kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
    return kind is torch.nn.Linear or is_conv1d or hasattr(module, "original_layer")


def _linear(torch: ModuleType, model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    linears = ", ".join(n for n, m in modules.items() if _is_linear(torch, m)) or "none"
    if name not in modules or name == "":
        raise ValueError(f"names: the model has no layer {name!r}; its Linear layers are {linears}")
    module = modules[name]
    if hasattr(module, "original_layer"):
        return module.original_layer()
    if _is_linear(torch, module):
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
    kind = type(module)
    where = "" if kind.__module__.startswith("torch.nn.") else f"{kind.__module__}."
    raise TypeError(f"names: {name!r} is a {where}{kind.__name__}, not a Linear; "
                    f"Linear are {linears}")


def _weights(torch: ModuleType, layer: nn.Module, name: str) -> tuple[Floats, Floats]:
    """Weight (n_out, n_in) and bias in float32; they share memory with float32 parameters."""
    for what, tensor in (("weight", layer.weight), ("bias", layer.bias)):
        if tensor is None:
            continue
        refuse_unusual_tensor(torch, tensor, f"{name}.{what}")
        if tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.bfloat16,
                                                               torch.float16):
            raise TypeError(f"{name}.{what} must be of 32 or 16 bits on the CPU, got "
                            f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}; "
                            "call model.float().cpu() first")
    weight = layer.weight.detach().float()
    W = check.dense((weight if type(layer) is torch.nn.Linear else weight.T).numpy(),
                    f"{name}.weight")
    if layer.bias is None:
        return W, np.zeros(len(W), np.float32)
    return W, check.vector(layer.bias.detach().float().numpy(), f"{name}.bias", len(W))


@contextlib.contextmanager
def _in_place(model: nn.Module, layers: dict[str, nn.Module]) -> Iterator[None]:
    """The original layers where the model has accelerated ones, which may have a stale index."""
    before = {name: model.get_submodule(name) for name in layers}
    for name, layer in layers.items():
        _swap(model, name, layer)
    try:
        yield
    finally:
        for name, layer in before.items():
            _swap(model, name, layer)


def _inputs(torch: ModuleType, model: nn.Module, layers: dict[str, nn.Module],
            calibration: Any) -> tuple[dict[str, Floats], dict[str, float]]:
    """Up to MAX_CALIBRATION_ROWS inputs of each layer, recorded while the model runs.

    Also the fraction of the model's time that each layer takes.
    """
    kept: dict[str, list[Floats]] = {name: [] for name in layers}
    seconds, began, whole = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0), 0.0

    def keep(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, args: Any) -> None:
            if not args or not isinstance(args[0], torch.Tensor):
                raise TypeError("calibration must be a tensor, a tuple of arguments, a dict of "
                                "keyword arguments, or an iterable of such batches; layer "
                                f"{name!r} was given {args}")
            if sum(map(len, kept[name])) < MAX_CALIBRATION_ROWS:
                rows = args[0].detach().reshape(-1, args[0].shape[-1])
                kept[name].append(np.array(rows.float().numpy()))
            began[name] = time.perf_counter()
        return hook

    def stop(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(*_: Any) -> None:
            seconds[name] += time.perf_counter() - began[name]
        return hook

    hooks = [linear.register_forward_pre_hook(keep(name)) for name, linear in layers.items()]
    hooks += [linear.register_forward_hook(stop(name)) for name, linear in layers.items()]
    is_batch = isinstance(calibration, (torch.Tensor, tuple, dict))
    try:
        with evaluation(model), torch.inference_mode():
            for batch in [calibration] if is_batch else calibration:
                begin = time.perf_counter()
                if isinstance(batch, dict):
                    model(**batch)
                elif isinstance(batch, (tuple, list)):
                    model(*batch)
                else:
                    model(batch)
                whole += time.perf_counter() - begin
    finally:
        for hook in hooks:
            hook.remove()

    for name, parts in kept.items():
        if sum(map(len, parts)) < MIN_CALIBRATION_ROWS:
            raise ValueError(f"calibration gives layer {name!r} fewer than two rows; "
                             "give some hundreds")
    rows = {name: check.dense(np.concatenate(parts)[:MAX_CALIBRATION_ROWS],
                              f"the inputs of {name}")
            for name, parts in kept.items()}
    return rows, {name: seconds[name] / whole for name in layers}


def _accelerated(torch: ModuleType, name: str, layer: nn.Module, W: Floats, b: Floats,
                 inputs: Floats, recall: float, k: int, n_logits: int | None, fill: float | str,
                 storage: str, random_state: RandomState,
                 n_threads: int) -> tuple[nn.Module | None, LayerReport]:
    """The module that replaces a layer, or None, and the report of the choice."""
    from .inference import AcceleratedLinear

    threads = resolve(n_threads)
    settings, held = (inputs[rows] for rows in split_in_blocks(len(inputs)))
    options = IndexOptions(recall=recall, plan="sketches", storage=storage)
    engine = build(options, W, b, settings, drawn_seed(random_state), threads)
    if k != N_NEIGHBOURS:
        tune(engine, settings, min(k, len(W)), recall, threads)
    found, note = _raised(engine, settings, held, exact_topk(held, W, b, k, threads)[0], recall,
                          threads)
    module = AcceleratedLinear(layer, engine, n_logits or engine.default_candidates(k), fill,
                               n_threads, name)

    recalls = {"lsh": found}
    if fill == "estimate" and W.shape[1] <= MAX_INT8_INPUTS:
        module.by_int8(settings)
        truth = exact_topk(held, W, b, k, threads)[0]
        recalls["int8"] = recall_of(module.search(torch.from_numpy(held), k, "int8")[0], truth)
        if recalls["int8"] < recall:
            del recalls["int8"]

    times, plan = _timed_plans(torch, module, layer, settings, recalls)
    best_times, module.topk_plan = _timed_plans(torch, module, layer, settings, recalls, k)
    module.plan = plan
    if "int8" not in {*plan.values(), *module.topk_plan.values()}:
        module.int8 = None

    taken = [way for way in recalls if way in plan.values()]
    notes = [f"{module.n_logits} logits", *filter(None, [note])]
    notes.append("topk: " + " and ".join(f"{way} {1e6 * best_times[n][way]:.1f}" for n, way in zip(
        TIMED_ROWS, module.topk_plan.values(), strict=True)))
    if fill == "estimate" and taken:
        rms = _logit_error(torch, module, held, W, b)
        notes.insert(1, f"with the others, which are estimated, they err by {rms:.2g}")
    report = _plan_report(name, W, b, times, plan, taken, notes)
    if not taken:
        return None, report
    ways = {*plan.values(), *module.topk_plan.values()} - {"dense"}
    report.recall = min(recalls[way] for way in ways)
    report.bytes += engine.nbytes + (0 if module.int8 is None else module.int8.nbytes)
    return module, report


def _logit_error(torch: ModuleType, module: AcceleratedLinear, held: Floats, W: Floats,
                 b: Floats) -> float:
    """The root of the mean square error of the logits, of the plan that errs most."""
    x = np.ascontiguousarray(held[:N_ERROR_ROWS])
    want = matmul(x, W, resolve(module.n_threads), transpose_b=True, bias=b)
    planned, errors = module.plan, []
    for plan in sorted(set(planned.values()) - {"dense"}):
        module.plan = dict.fromkeys(planned, plan)
        got = np.concatenate([module(torch.from_numpy(row[None])).detach().numpy() for row in x])
        errors.append(float(np.sqrt(np.mean(np.square(got - want, dtype=np.float64)))))
    module.plan = planned
    return max(errors)


def _hidden(torch: ModuleType, name: str, layer: nn.Module, W: Floats, b: Floats, inputs: Floats,
            error: float, storage: str, n_threads: int) -> tuple[nn.Module | None, LayerReport]:
    """The module that replaces a layer whose every output matters, or None, and the report."""
    from .inference import HiddenLinear

    settings, held = (inputs[rows] for rows in split_in_blocks(len(inputs)))
    nonzero = np.count_nonzero(settings) / max(1, settings.size)
    module = HiddenLinear(layer, W, b, settings, min(1.0, 2 * nonzero), storage, n_threads,
                          name)
    notes, errors = [], {}
    ways = ["rows"] if nonzero <= MAX_NONZERO_FRACTION else []
    if module.int8 is not None:
        ways.append("int8")
    want = matmul(held, W, resolve(n_threads), transpose_b=True, bias=b)
    for way in ways:
        module.plan = dict.fromkeys(module.plan, way)
        got = module(torch.from_numpy(held)).detach().numpy()
        size = np.linalg.norm(want)
        errors[way] = float(np.linalg.norm(got - want) / size) if size else 0.0
        if errors[way] > max(error, ROUNDING_ERROR):
            notes.append(f"{way} has the error {errors[way]:.2%} on unseen inputs")
    able = [way for way in ways if errors[way] <= max(error, ROUNDING_ERROR)]

    times, plan = _timed_plans(torch, module, layer, settings, able)
    module.plan = plan
    module.keep_planned()
    taken = [way for way in able if way in plan.values()]
    notes.insert(0, f"{nonzero:.0%} of its inputs are not zero")
    report = _plan_report(name, W, b, times, plan, taken, notes)
    if not taken:
        return None, report
    report.output_error = max(errors[way] for way in taken)
    report.bytes += module.nbytes
    return module, report


def _timed_plans(torch: ModuleType, module: nn.Module, layer: nn.Module, rows: Floats,
                 plans: Collection[str], k: int | None = None
                 ) -> tuple[dict[int, dict[str, float]], dict[str, str]]:
    """Seconds per row of each plan, by the number of rows at once, and the plans to take.

    With k they are those of `topk`.
    """
    times: dict[int, dict[str, float]] = {}
    chosen: dict[str, str] = {}
    attribute = "plan" if k is None else "topk_plan"
    dense = layer if k is None else lambda x: torch.topk(layer(x), k)
    planned = module if k is None else lambda x: module.topk(x, k)
    with torch.inference_mode():
        for n, kind in zip(TIMED_ROWS, module.plan, strict=True):
            parts = [torch.from_numpy(rows[np.arange(i, i + n) % len(rows)]).to(layer.weight.dtype)
                     for i in range(N_TIMED_QUERIES if n == 1 else 1)]
            times[n] = {"dense": fastest(dense, parts, n)}
            for plan in plans:
                setattr(module, attribute, getattr(module, attribute) | {kind: plan})
                times[n][plan] = fastest(planned, parts, n)
            best = min(plans, key=times[n].__getitem__, default="dense")
            chosen[kind] = best if times[n][best] * MIN_GAIN < times[n]["dense"] else "dense"
    return times, chosen


def _plan_report(name: str, W: Floats, b: Floats, times: dict[int, dict[str, float]],
                 plan: dict[str, str], taken: list[str], notes: list[str]) -> LayerReport:
    report = LayerReport(name, W.shape, dict(plan), "", bytes_dense=W.nbytes + b.nbytes)
    figures = "; ".join(f"{way} {' and '.join(f'{times[n][way] * 1e6:.1f}' for n in times)}"
                        for way in times[1])
    choice = " and ".join(taken) or "kept dense: nothing gains a tenth"
    report.reason = (f"{choice} (us per row, {' and '.join(map(str, times))} at once: {figures})"
                     + "".join(f"; {note}" for note in notes))
    report.microseconds_dense = {n: times[n]["dense"] * 1e6 for n in times}
    report.microseconds = {n: times[n][plan[kind]] * 1e6
                           for n, kind in zip(TIMED_ROWS, plan, strict=True)}
    report.bytes = report.bytes_dense
    return report


def _raised(engine: IndexEngine, settings: Floats, held: Floats, truth: Ids, recall: float,
            n_threads: int) -> tuple[float, str]:
    """The recall on inputs that no setting has seen, and a remark where it needed more.

    Where it falls short of what was asked, the settings are made for a higher one.
    """
    k, wanted, note = truth.shape[1], recall, ""
    for _ in range(MAX_RAISES):
        found = recall_of(engine.search(held, k, None, n_threads)[0], truth)
        if found >= recall:
            return found, note
        wanted = 1 - (1 - wanted) / 2
        tune(engine, settings, k, wanted, n_threads)
        note = f"set for a recall of {wanted:.3%}, to reach {recall:.3%} on unseen inputs"
    found = recall_of(engine.search(held, k, None, n_threads)[0], truth)
    if found < recall:
        note = (f"RECALL FALLS SHORT of {recall:.3%} on unseen inputs: {found:.3%}, though set "
                f"for {wanted:.3%}; give more calibration inputs")
    return found, note


def _swap(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
