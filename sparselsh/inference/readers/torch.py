"""PyTorch modules as affine layers, and affine layers as modules.

torch is needed only when a function is called.
"""
from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _validation as check
from .affine import Affine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import ModuleType

    from torch import fx, nn

    from ...refinement import Refinement


def require_torch() -> ModuleType:
    """The package torch, or an ImportError that says how to install it."""
    try:
        import torch
    except ImportError as error:
        raise ImportError('converting PyTorch models needs the package torch; '
                          'type: pip install "sparselsh-nn[torch]"') from error
    return torch


def to_numpy(array: Any, name: str) -> Any:
    """A tensor as an array; anything else unchanged."""
    if type(array).__module__.partition(".")[0] != "torch":
        return array
    torch = require_torch()
    if array.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {array.layout}; "
                        "give a scipy.sparse matrix")
    array = array.detach().cpu()
    return (array.float() if array.is_floating_point() else array).numpy()


# -- what a module computes beside its forward ---------------------------------------------------


@contextlib.contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every submodule is in the mode in which it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def plain_type(torch: ModuleType, module: nn.Module) -> type[nn.Module]:
    """The class of a module, without the subclass that a parametrization puts in its place."""
    return torch.nn.utils.parametrize.type_before_parametrizations(module)


def weight_hooks(torch: ModuleType, module: nn.Module) -> list[Any]:
    """The pre-hooks that compute a weight before each call, in their order.

    They are the old-style `weight_norm` and `spectral_norm`, and those of pruning.
    """
    from torch.nn.utils.prune import BasePruningMethod
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    kinds = (BasePruningMethod, SpectralNorm, WeightNorm)
    return [hook for hook in _hooks(module, "_forward_pre_hooks") if isinstance(hook, kinds)]


def _hooks(owner: Any, name: str) -> list[Any]:
    return list(vars(owner)[name].values())


def refuse_replaced_forward(module: nn.Module, label: str) -> None:
    """Refuse a module whose forward is not that of its class."""
    if "forward" in vars(module):
        raise ValueError(f"{label} has a forward of its own, {module.forward!r}, which cannot be "
                         "seen from here; delete it (del module.forward), or make it a module")


def refuse_hooks(torch: ModuleType, module: nn.Module, label: str) -> None:
    """Refuse hooks that may change what a module takes or gives."""
    known = weight_hooks(torch, module)
    hooks = [*_hooks(module, "_forward_hooks"),
             *(hook for hook in _hooks(module, "_forward_pre_hooks") if hook not in known)]
    where = f"{label} has"
    if not hooks:
        everywhere = torch.nn.modules.module
        hooks = [*_hooks(everywhere, "_global_forward_hooks"),
                 *_hooks(everywhere, "_global_forward_pre_hooks")]
        where = "torch has, for all modules,"
    if hooks:
        name = getattr(hooks[0], "__qualname__", type(hooks[0]).__name__)
        raise ValueError(f"{where} a forward hook ({name}), which may change what it computes; "
                         "remove it by its handle, handle.remove(), and apply it outside")


def effective(torch: ModuleType, module: nn.Module, name: str) -> Any:
    """A parameter as a call in evaluation mode would read it, or None.

    Weight norm, spectral norm, pruning and other parametrizations are computed from the parameters
    as they are now; what the last call has left may be older.
    """
    with evaluation(module), torch.no_grad():
        for hook in weight_hooks(torch, module):
            hook(module, None)
        return getattr(module, name)


# -- modules as affine layers --------------------------------------------------------------------


def read_module(module: nn.Module, upcast: bool = False) -> list[Affine]:
    """The affine layers of a module in evaluation mode, in order, as torch.fx traces them."""
    torch = require_torch()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {module!r}")
    whole = torch.nn.Sequential(module)  # tracing does not look into a single layer
    with evaluation(module):
        try:
            graph = _tracer(torch).trace(whole)
        except Exception as error:  # the module's code may raise anything for a proxy
            raise ValueError(f"module cannot be traced by torch.fx ({error}); "
                             "give a torch.nn.Sequential of its layers") from error
    return _ModuleChain(torch, dict(whole.named_modules()), upcast).layers(graph.nodes)


def _known_kinds(torch: ModuleType) -> tuple[type[nn.Module], ...]:
    nn = torch.nn
    return (nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh,
            nn.Sigmoid, nn.Flatten, nn.Dropout, nn.AlphaDropout, nn.Identity)


def _tracer(torch: ModuleType) -> fx.Tracer:
    """A tracer that does not look into subclasses of known layers either."""
    kinds, tracer = _known_kinds(torch), torch.fx.Tracer()
    is_leaf = tracer.is_leaf_module
    tracer.is_leaf_module = lambda module, name: isinstance(module, kinds) or is_leaf(module, name)
    return tracer


class _ModuleChain:
    """Follows the one value that flows through a traced graph."""

    def __init__(self, torch: ModuleType, modules: dict[str, nn.Module], upcast: bool) -> None:
        self.torch, self.modules, self.upcast = torch, modules, upcast
        nn = torch.nn
        self.kinds = _known_kinds(torch)
        functional = nn.functional
        self.activations = dict.fromkeys((torch.relu, functional.relu, "relu", "relu_"), "relu") | {
            functional.gelu: "gelu", functional.silu: "silu", nn.ReLU: "relu", nn.GELU: "gelu",
            nn.SiLU: "silu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
        for name in ("tanh", "sigmoid"):
            self.activations |= dict.fromkeys(
                (getattr(torch, name), getattr(functional, name), name), name)
        self.flattens = {torch.flatten, "flatten"}
        self.out: list[Affine] = []

    def layers(self, nodes: Iterable[fx.Node]) -> list[Affine]:
        value = None  # the node that gives the value of the chain so far
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
                raise ValueError(f"{label} takes other values than that of the layer before; "
                                 "only chains of layers are supported: merge the branches, as "
                                 "merge_and_unload of peft does, or name single layers to "
                                 "sparselsh.torch.accelerate")
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
            if node.target in self.activations:
                form, = _bound(node, "approximate", default=("none",))
                self._activation(label, self.activations[node.target], form)
            elif node.target in self.flattens:
                self._flatten(label, *_bound(node, "start_dim", "end_dim", default=(0, -1)))
            elif node.target is nn.functional.dropout:
                self._dropout(label, *_bound(node, "p", "training", default=(0.5, True)))
            elif node.target != "contiguous":
                raise self._unsupported(label)
            return

        module, name = self.modules[node.target], self._name(node)
        refuse_replaced_forward(module, label)
        refuse_hooks(self.torch, module, label)
        given = plain_type(self.torch, module)
        kind = next((base for base in self.kinds if issubclass(given, base)), None)
        if kind is None:
            raise self._unsupported(label, module)
        if given.forward is not kind.forward:
            if "quantized" in given.__module__:
                raise self._unsupported(label, module)
            raise ValueError(f"{label} is a subclass of {kind.__name__} with another forward; give "
                             f"the module a plain {kind.__name__}, and apply the rest outside")
        if kind is nn.Linear:
            self.out.append(Affine(name, self._array(module, name, "weight"),
                                   self._array(module, name, "bias")))
        elif kind in (nn.Embedding, nn.EmbeddingBag):
            self._table(module, name, label)
        elif kind in self.activations:
            form = getattr(module, "approximate", "none")
            self._activation(label, self.activations[kind], form)
        elif kind is nn.Flatten:
            self._flatten(label, module.start_dim, module.end_dim)

    @staticmethod
    def _unsupported(label: str, module: nn.Module | None = None) -> ValueError:
        if "quantized" in type(module).__module__:
            return ValueError(f"{label} is quantized; convert the module as it was before, and "
                              "give storage='int8'")
        return ValueError(f"{label} is not supported; networks of Linear, Embedding, "
                          "EmbeddingBag, ReLU, GELU, SiLU, Tanh, Sigmoid and Dropout are")

    @staticmethod
    def _flatten(label: str, start: int, end: int) -> None:
        if start != 1 or end != -1:
            raise ValueError(f"{label} flattens the dimensions {start} to {end}; rows stay rows "
                             "with start_dim=1, end_dim=-1 only")

    @staticmethod
    def _dropout(label: str, p: float, training: bool) -> None:
        if training and p:
            raise ValueError(f"{label} drops in evaluation mode too; give it "
                             "training=self.training")

    def _activation(self, label: str, name: str, form: Any) -> None:
        if not self.out:
            raise ValueError(f"{label} stands before the first layer; leave it out and apply it "
                             "to the input")
        if name == "gelu" and form == "tanh":
            name = "gelu_tanh"
        before = self.out[-1].activation
        if before is not None and (before, name) != ("relu", "relu"):  # which changes nothing
            raise ValueError(f"{label} follows {before}; a layer has one activation")
        self.out[-1] = self.out[-1]._replace(activation=name)

    def _table(self, module: nn.Module, name: str, label: str) -> None:
        if module.max_norm is not None:
            raise ValueError(f"{label} has max_norm, which is not supported; renormalize its "
                             "weight and set it to None")
        bag = isinstance(module, self.torch.nn.EmbeddingBag)
        if bag and module.mode not in ("sum", "mean"):
            raise ValueError(f"{label} has mode={module.mode!r}; 'sum' and 'mean' are supported")
        self.out.append(Affine(name, self._array(module, name, "weight"), None, None,
                               "embedding_bag" if bag else "embedding",
                               module.mode if bag else "sum",
                               module.padding_idx if bag else None))

    def _array(self, module: nn.Module, name: str, what: str) -> Any:
        """A copy of a parameter, so that what the module learns later does not change it."""
        tensor = effective(self.torch, module, what)
        if tensor is None:
            return None
        label = f"{name}.{what}"
        refuse_unusual_tensor(self.torch, tensor, label)
        tensor = tensor.detach().cpu()
        if tensor.dtype != self.torch.float32:
            if not (self.upcast and tensor.is_floating_point()):
                raise TypeError(f"{label} must be float32, got "
                                f"{str(tensor.dtype).removeprefix('torch.')}; convert the module "
                                "with module.float(), or give upcast=True")
            tensor = tensor.float()
        return tensor.contiguous().numpy().copy()


def refuse_unusual_tensor(torch: ModuleType, tensor: Any, label: str) -> None:
    """Refuse weights without plain values: quantized, sparse, or not loaded."""
    kind = type(tensor.data)
    if kind is not torch.Tensor or tensor.is_quantized:
        word = "quantized" if tensor.is_quantized else kind.__name__
        raise TypeError(f"{label} must be a plain tensor, got {word}; convert the module as it was "
                        "before it was quantized or wrapped")
    if tensor.is_meta:
        raise TypeError(f"{label} is on the device meta, without values; load the weights first")
    if tensor.layout != torch.strided:
        raise TypeError(f"{label} must be dense, got layout {tensor.layout}; call to_dense()")


def _bound(node: fx.Node, *names: str, default: tuple[Any, ...]) -> list[Any]:
    """The arguments of a call after the first, by name or by place."""
    given = [*node.args[1:], *default[len(node.args) - 1:]]
    return [node.kwargs.get(name, value) for name, value in zip(names, given, strict=False)]


# -- affine layers as modules --------------------------------------------------------------------


def kept_refinement(refinement: Refinement | None, what: str) -> Refinement | None:
    """The refinement, or None where `what` is "drop"."""
    return refinement if check.choice(what, "refinement", ("keep", "drop")) == "keep" else None


def build_module(layers: Sequence[Affine], refinement: Refinement | None = None) -> nn.Module:
    """A module in evaluation mode with these weights, bit for bit."""
    torch = require_torch()
    out = torch.nn.Sequential()
    for layer in layers:
        out.extend(_modules(torch, layer))
    if refinement is not None:
        from .refined_module import RefinedModule

        out = RefinedModule(out, refinement)
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
    makers = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh,
              "gelu_tanh": lambda: nn.GELU(approximate="tanh"), "sigmoid": nn.Sigmoid}
    return out if layer.activation is None else [*out, makers[layer.activation]()]
