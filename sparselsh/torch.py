"""PyTorch models in and out, and layers of them that an index serves.

``import sparselsh.torch`` needs torch only when a function is called; it is not part of ``import sparselsh``.
"""
from __future__ import annotations

import fnmatch
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _validation as check
from ._architecture import Affine
from ._calibration import recall as share_found
from ._linalg import exact_topk
from ._storage import STORAGES
from ._threads import resolve
from .index import LSHIndex
from .report import BATCHES, ConversionReport, LayerReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import ModuleType

    from torch import Tensor, fx, nn

    from ._types import Floats, RandomState
    from .inference import InferenceNetwork
    from .network import Network

__all__ = ["accelerate", "restore", "to_torch"]

ROWS = 2048  # inputs of a layer that are kept of a calibration
GAIN = 1.1  # how much faster than the dense layer an index must be
BATCH = 32  # from so many rows on, the plan for batches holds


def require_torch() -> ModuleType:
    """The package, or an error that says how to get it."""
    try:
        import torch
    except ImportError as error:
        raise ImportError('converting PyTorch models needs the package torch; type: pip install "sparselsh-nn[torch]"'
                          ) from error
    return torch


def to_numpy(array: Any, name: str) -> Any:
    """A tensor as an array; whatever else as it is."""
    if type(array).__module__.partition(".")[0] != "torch":
        return array
    torch = require_torch()
    if array.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {array.layout}; give a scipy.sparse matrix")
    array = array.detach().cpu()
    return (array.float() if array.is_floating_point() else array).numpy()


# -- modules as layers and back ----------------------------------------------------------------------------------


def read_module(module: nn.Module, upcast: bool = False) -> list[Affine]:
    """The affine layers of a module, in order; what it is made of is traced, not guessed."""
    torch = require_torch()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {module!r}")
    whole = torch.nn.Sequential(module)  # tracing does not look into a lone layer then
    try:
        graph = torch.fx.symbolic_trace(whole).graph
    except Exception as error:  # whatever the module's own code raises for a proxy
        raise ValueError(f"module cannot be traced by torch.fx ({error}); give a torch.nn.Sequential of its layers"
                         ) from error
    return _Chain(torch, dict(whole.named_modules()), upcast).layers(graph.nodes)


class _Chain:
    """Follows the one value that flows through a traced graph."""

    def __init__(self, torch: ModuleType, modules: dict[str, nn.Module], upcast: bool) -> None:
        self.torch, self.modules, self.upcast = torch, modules, upcast
        nn = torch.nn
        self.passed = (nn.Dropout, nn.Identity, nn.Flatten, nn.AlphaDropout)
        self.relus = {torch.relu, nn.functional.relu, "relu", "relu_"}
        self.passed_functions = {torch.flatten, nn.functional.dropout, "flatten", "contiguous"}
        self.out: list[Affine] = []

    def layers(self, nodes: Iterable[fx.Node]) -> list[Affine]:
        value = None  # the node whose value is that of the chain so far
        for node in nodes:
            if node.op == "placeholder" or node.op == "get_attr":
                continue
            given = [arg for arg in node.all_input_nodes if arg.op != "placeholder"]
            if node.op == "output":
                if given != [value]:
                    raise ValueError("module must return the output of its last layer alone")
                return self.out
            label = self._label(node)
            if given not in ([value], []) or (not given and value is not None):
                raise ValueError(f"{label} takes other values than that of the layer before; only chains of layers are "
                                 "supported")
            self._take(node, label)
            value = node
        return self.out

    @staticmethod
    def _name(node: fx.Node) -> str:
        return str(node.target).removeprefix("0.") if node.op == "call_module" else node.name

    def _label(self, node: fx.Node) -> str:
        if node.op == "call_module":
            name = self._name(node)
            kind = type(self.modules[node.target]).__name__
            return kind if name == "0" and len(self.modules) == 2 else f"{kind} (node {name!r})"
        return f"{getattr(node.target, '__name__', node.target)} (node {node.name!r})"

    def _take(self, node: fx.Node, label: str) -> None:
        nn = self.torch.nn
        if node.op != "call_module":
            if node.target in self.relus:
                self._relu(label)
            elif node.target not in self.passed_functions:
                raise ValueError(f"{label} is not supported; networks of Linear, Embedding, EmbeddingBag, ReLU and "
                                 "Dropout are")
            return
        module, name = self.modules[node.target], self._name(node)
        if type(module) is nn.Linear:
            self.out.append(Affine(name, self._array(module.weight, f"{name}.weight"),
                                   None if module.bias is None else self._array(module.bias, f"{name}.bias")))
        elif type(module) in (nn.Embedding, nn.EmbeddingBag):
            self._table(module, name, label)
        elif type(module) is nn.ReLU:
            self._relu(label)
        elif not isinstance(module, self.passed):
            raise ValueError(f"{label} is not supported; networks of Linear, Embedding, EmbeddingBag, ReLU and Dropout "
                             "are")

    def _relu(self, label: str) -> None:
        if not self.out:
            raise ValueError(f"{label} stands before the first layer; leave it out and apply it to the input")
        self.out[-1] = self.out[-1]._replace(activation="relu")  # twice is as good as once

    def _table(self, module: nn.Module, name: str, label: str) -> None:
        if module.max_norm is not None:
            raise ValueError(f"{label} has max_norm, which is not supported; renormalize its weight and set it to None")
        bag = type(module) is self.torch.nn.EmbeddingBag
        if bag and module.mode not in ("sum", "mean"):
            raise ValueError(f"{label} has mode={module.mode!r}; 'sum' and 'mean' are supported")
        self.out.append(Affine(name, self._array(module.weight, f"{name}.weight"), None, None,
                               "embedding_bag" if bag else "embedding", module.mode if bag else "sum",
                               module.padding_idx if bag else None))

    def _array(self, parameter: nn.Parameter, name: str) -> Floats:
        tensor = parameter.detach().cpu()
        if tensor.dtype != self.torch.float32:
            if not (self.upcast and tensor.is_floating_point()):
                raise TypeError(f"{name} must be float32, got {str(tensor.dtype).removeprefix('torch.')}; convert the "
                                "module with module.float(), or give upcast=True")
            tensor = tensor.float()
        return tensor.contiguous().numpy()


def to_torch(network: InferenceNetwork | Network) -> nn.Sequential:
    """A network as a ``torch.nn.Sequential`` with the same weights, bit by bit.

    Parameters
    ----------
    network : InferenceNetwork or Network

    Returns
    -------
    torch.nn.Sequential
        In evaluation mode.

    Raises
    ------
    ImportError
        If torch is missing.
    """
    torch = require_torch()
    if hasattr(network, "architecture"):
        layers = network.architecture()
    elif not isinstance(getattr(network, "layers", None), tuple | list) or not hasattr(network, "_check_initialized"):
        raise TypeError(f"network must be a Network or an InferenceNetwork, got {network!r}")
    else:
        network._check_initialized()
        layers = [Affine(str(i), layer.weight, layer.bias, layer.activation) for i, layer in enumerate(network.layers)]
    out = torch.nn.Sequential()
    for layer in layers:
        out.extend(_modules(torch, layer))
    return out.eval()


def _modules(torch: ModuleType, layer: Affine) -> list[nn.Module]:
    nn, skip_init = torch.nn, torch.nn.utils.skip_init
    n, d = layer.weight.shape
    if layer.kind == "linear":
        module = skip_init(nn.Linear, d, n, bias=layer.bias is not None)
        if layer.bias is not None:
            module.bias.data.copy_(torch.from_numpy(np.array(layer.bias)))
    elif layer.kind == "embedding_bag":
        module = skip_init(nn.EmbeddingBag, n, d, mode=layer.mode, padding_idx=layer.padding)
    else:
        module = skip_init(nn.Embedding, n, d)
    module.weight.data.copy_(torch.from_numpy(np.array(layer.weight, order="C")))
    out = [module]
    if layer.kind == "embedding" and layer.width > 1:
        out.append(nn.Flatten())
    return out + ([nn.ReLU()] if layer.activation == "relu" else [])


# -- layers inside any model -------------------------------------------------------------------------------------


def accelerate(model: nn.Module, names: str | Sequence[str], calibration: Any, *, recall: float = 0.99, k: int = 5,
               n_logits: int | None = None, fill: float = float("-inf"), storage: str = "float32",
               random_state: RandomState = None, n_threads: int | None = None) -> ConversionReport:
    """Let an index serve wide ``nn.Linear`` layers of a model, in place, where that is faster.

    The layers become :class:`AcceleratedLinear`: their forward computes the logits of the neurons that an index finds
    and gives all others `fill`, without autograd; their ``topk`` skips the fill. Parameters stay where they are, under
    the same names. :func:`restore` undoes it.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU.
    names : str or sequence of str
        Names of layers as in ``model.named_modules()``, or a pattern such as ``"decoder.*"``.
    calibration : Tensor, tuple, dict, or iterable of them
        What the model is called with: a tensor, a tuple of arguments or a dict of keyword arguments; or an iterable of
        such batches. Some hundreds of rows should reach each layer.
    recall : float
        Share of the k largest logits that the index is to find.
    k : int
    n_logits : int or None
        Logits that forward computes; None for as many as the index computes anyway.
    fill : float
        Logit of a neuron that was not found: minus infinity, which softmax makes 0; 0.0 before a ReLU.
    storage : {"float32", "bfloat16", "int8"}
        As for :class:`sparselsh.LSHIndex`.
    random_state : None, int or numpy.random.Generator
    n_threads : int or None
        None for as many as torch uses.

    Returns
    -------
    ConversionReport
        Of the layers named. A layer for which the index gains less than a tenth, alone and in batches of 256, is left
        as it is, and the report says so.

    Raises
    ------
    ImportError
        If torch is missing.
    TypeError, ValueError
        If a name is none of the model's or no Linear, or its weights are not finite float32 on the CPU.
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
        accelerated, report = _accelerated(torch, name, linear, W, b, inputs[name], recall, min(k, len(W)), n_logits,
                                           float(fill), storage, random_state, n_threads)
        reports.append(report)
        if accelerated is not None:
            replaced[name] = accelerated
    for name, module in replaced.items():  # all or, after an error, none
        _swap(model, name, module)
    return ConversionReport(reports, storage=storage)


def restore(model: nn.Module) -> nn.Module:
    """Put plain ``nn.Linear`` layers, with the same parameters, back into a model that :func:`accelerate` changed.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    torch.nn.Module
        The model itself.
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
            raise ValueError(f"names: no Linear layer matches {name!r}; the model has {', '.join(known) or 'none'}")
        chosen += [new for new in found if new not in chosen]
    if not chosen:
        raise ValueError("names must hold at least one name, got none")
    return chosen


def _linear(torch: ModuleType, model: nn.Module, name: str) -> nn.Linear:
    modules = dict(model.named_modules())
    linears = ", ".join(n for n, m in modules.items() if type(m) is torch.nn.Linear) or "none"
    if name not in modules or name == "":
        raise ValueError(f"names: the model has no layer {name!r}; its Linear layers are {linears}")
    if type(modules[name]) is not torch.nn.Linear:
        raise TypeError(f"names: {name!r} is a {type(modules[name]).__name__}, not a Linear; Linear are {linears}")
    return modules[name]


def _weights(torch: ModuleType, linear: nn.Linear, name: str) -> tuple[Floats, Floats]:
    """Weight and bias as arrays that share the memory of the parameters."""
    for what, tensor in (("weight", linear.weight), ("bias", linear.bias)):
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise TypeError(f"{name}.{what} must be float32 on the CPU, got {str(tensor.dtype).removeprefix('torch.')} "
                            f"on {tensor.device}; call model.float().cpu() first")
    W = check.dense(linear.weight.detach().numpy(), f"{name}.weight")
    bias = np.zeros(len(W), np.float32) if linear.bias is None else linear.bias.detach().numpy()
    return W, check.vector(bias, f"{name}.bias", len(W))


def _inputs(torch: ModuleType, model: nn.Module, layers: dict[str, nn.Linear], calibration: Any) -> dict[str, Floats]:
    """Up to ROWS inputs of each layer, while the model answers the calibration."""
    kept: dict[str, list[Floats]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, args: Any) -> None:
            if not args or not isinstance(args[0], torch.Tensor):
                raise TypeError("calibration must be a tensor, a tuple of arguments, a dict of keyword arguments, or "
                                f"an iterable of such batches; layer {name!r} was given {args}")
            if sum(map(len, kept[name])) < ROWS:
                rows = args[0].detach().reshape(-1, args[0].shape[-1])
                kept[name].append(np.array(rows.float().numpy()))
        return hook

    hooks = [linear.register_forward_pre_hook(keep(name)) for name, linear in layers.items()]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in [calibration] if isinstance(calibration, (torch.Tensor, tuple, dict)) else calibration:
                if isinstance(batch, dict):
                    model(**batch)
                elif isinstance(batch, (tuple, list)):
                    model(*batch)
                else:
                    model(batch)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    for name, parts in kept.items():
        if sum(map(len, parts)) < 2:
            raise ValueError(f"calibration gives layer {name!r} fewer than two rows; give some hundreds")
    return {name: check.dense(np.concatenate(parts)[:ROWS], f"the inputs of {name}") for name, parts in kept.items()}


def _accelerated(torch: ModuleType, name: str, linear: nn.Linear, W: Floats, b: Floats, inputs: Floats, recall: float,
                 k: int, n_logits: int | None, fill: float, storage: str, random_state: RandomState,
                 n_threads: int) -> tuple[nn.Module | None, LayerReport]:
    """The module that takes the place of a layer, or None, and the report of the choice."""
    settings, held = np.ascontiguousarray(inputs[::2]), np.ascontiguousarray(inputs[1::2])
    index = LSHIndex(None, recall=recall, plan="sketches", storage=storage, random_state=random_state,
                     n_threads=n_threads).rebuild(W, b, settings)
    if k != 5:
        index.tune(settings, k=k)
    module = accelerated_linear(torch)(linear, index, n_logits or index.default_candidates(k), fill)
    times = {}
    with torch.inference_mode():
        for n, kind in zip(BATCHES, module.plan, strict=True):
            parts = [torch.from_numpy(settings[np.arange(i, i + n) % len(settings)]) for i in range(8 if n == 1 else 1)]
            dense, found = _seconds(linear, parts), _seconds(module, parts)
            times[n] = dense, found
            module.plan[kind] = "lsh" if found * GAIN < dense else "dense"
    report = LayerReport(name, W.shape, dict(module.plan), "", bytes_dense=W.nbytes + b.nbytes,
                         bytes=W.nbytes + b.nbytes + index.nbytes)
    figures = " and ".join(f"{dense * 1e6 / n:.1f} dense, {found * 1e6 / n:.1f} by the index at {n}"
                           for n, (dense, found) in times.items())
    gains = "lsh" in module.plan.values()
    report.reason = (f"{'lsh' if gains else 'kept dense: the index does not gain a tenth'} (us a row: {figures}; "
                     f"{module.n_logits} logits)")
    report.microseconds_dense = {n: dense * 1e6 / n for n, (dense, _) in times.items()}
    report.microseconds = {n: times[n][module.plan[kind] == "lsh"] * 1e6 / n
                           for n, kind in zip(BATCHES, module.plan, strict=True)}
    if not gains:
        report.bytes = report.bytes_dense
        return None, report
    truth, _ = exact_topk(held, W, b, k, resolve(n_threads))
    report.recall = share_found(index.best(held, k)[0], truth)
    return module, report


def _seconds(call: Callable[[Tensor], object], parts: list[Tensor]) -> float:
    call(parts[0])
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for part in parts:
            call(part)
        times.append((time.perf_counter() - begin) / len(parts))
    return min(times)


def _swap(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def accelerated_linear(torch: ModuleType) -> type[nn.Module]:
    """The class, made when torch is there."""
    global AcceleratedLinear
    if AcceleratedLinear is not None:
        return AcceleratedLinear

    module: Any = torch.nn.Module

    class _AcceleratedLinear(module):
        """An ``nn.Linear`` whose largest outputs an index finds; see :func:`accelerate`."""

        def __init__(self, linear: nn.Linear, index: LSHIndex, n_logits: int, fill: float) -> None:
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.weight, self.bias = linear.weight, linear.bias
            self.index, self.n_logits, self.fill = index, min(n_logits, linear.out_features), fill
            self.plan = {"single": "lsh", "batch": "lsh"}
            self.train(linear.training)

        def extra_repr(self) -> str:
            return (f"in_features={self.in_features}, out_features={self.out_features}, n_logits={self.n_logits}, "
                    f"fill={self.fill}")

        def plain_linear(self) -> nn.Linear:
            """The layer as it was."""
            linear = torch.nn.utils.skip_init(torch.nn.Linear, self.in_features, self.out_features,
                                              bias=self.bias is not None)
            linear.weight, linear.bias = self.weight, self.bias
            return linear.train(self.training)

        def _finds(self, rows: Tensor) -> bool:
            return self.plan["batch" if len(rows) >= BATCH else "single"] == "lsh"

        def _rows(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32 or x.device.type != "cpu" or x.shape[-1] != self.in_features:
                raise ValueError(f"the input must be float32 on the CPU with {self.in_features} columns, got {x.dtype} "
                                 f"{tuple(x.shape)} on {x.device}")
            return x.detach().reshape(-1, self.in_features).contiguous()

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            """Logits (..., out_features): of the neurons found, `fill` for all others."""
            rows = self._rows(x)
            if not self._finds(rows):
                return torch.nn.functional.linear(x, self.weight, self.bias)
            ids, scores = self.index.best(rows.numpy(), self.n_logits)
            out = torch.full((len(rows), self.out_features), self.fill)
            known = ids >= 0
            if not known.all():
                ids, scores = np.where(known, ids, ids[:, :1]), np.where(known, scores, scores[:, :1])
            out.scatter_(1, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(scores))
            return out.reshape(*x.shape[:-1], self.out_features)

        @torch.no_grad()
        def topk(self, x: Tensor, k: int = 5) -> Any:
            """The k largest logits and their ids, (..., k) each, best first, as ``torch.topk`` gives them."""
            rows = self._rows(x)
            if not self._finds(rows):
                return torch.topk(torch.nn.functional.linear(x, self.weight, self.bias), k)
            ids, scores = self.index.best(rows.numpy(), check.integer(k, "k", maximum=self.out_features))
            shape = (*x.shape[:-1], k)
            values, indices = torch.from_numpy(scores), torch.from_numpy(ids.astype(np.int64))
            return torch.return_types.topk((values.reshape(shape), indices.reshape(shape)))

    _AcceleratedLinear.__name__ = _AcceleratedLinear.__qualname__ = "AcceleratedLinear"
    AcceleratedLinear = _AcceleratedLinear
    return AcceleratedLinear


AcceleratedLinear: Any = None
