"""PyTorch modules as affine layers, and affine layers as modules.

torch is needed only when a function is called.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _validation as check
from .affine import Affine

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType

    from torch import fx, nn

    from ..._arrays.types import Floats
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


# -- modules as affine layers --------------------------------------------------------------------


def read_module(module: nn.Module, upcast: bool = False) -> list[Affine]:
    """The affine layers of a module, in order, as torch.fx traces them."""
    torch = require_torch()
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {module!r}")
    whole = torch.nn.Sequential(module)  # tracing does not look into a single layer
    try:
        graph = torch.fx.symbolic_trace(whole).graph
    except Exception as error:  # the module's code may raise anything for a proxy
        raise ValueError(f"module cannot be traced by torch.fx ({error}); "
                         "give a torch.nn.Sequential of its layers") from error
    return _ModuleChain(torch, dict(whole.named_modules()), upcast).layers(graph.nodes)


class _ModuleChain:
    """Follows the one value that flows through a traced graph."""

    def __init__(self, torch: ModuleType, modules: dict[str, nn.Module], upcast: bool) -> None:
        self.torch, self.modules, self.upcast = torch, modules, upcast
        nn = torch.nn
        self.passed = (nn.Dropout, nn.Identity, nn.Flatten, nn.AlphaDropout)
        self.relus = {torch.relu, nn.functional.relu, "relu", "relu_"}
        self.passed_functions = {torch.flatten, nn.functional.dropout, "flatten", "contiguous"}
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
                                 "only chains of layers are supported")
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
                raise ValueError(f"{label} is not supported; networks of Linear, Embedding, "
                                 "EmbeddingBag, ReLU and Dropout are")
            return

        module, name = self.modules[node.target], self._name(node)
        if type(module) is nn.Linear:
            weight = self._array(module.weight, f"{name}.weight")
            bias = None if module.bias is None else self._array(module.bias, f"{name}.bias")
            self.out.append(Affine(name, weight, bias))
        elif type(module) in (nn.Embedding, nn.EmbeddingBag):
            self._table(module, name, label)
        elif type(module) is nn.ReLU:
            self._relu(label)
        elif not isinstance(module, self.passed):
            raise ValueError(f"{label} is not supported; networks of Linear, Embedding, "
                             "EmbeddingBag, ReLU and Dropout are")

    def _relu(self, label: str) -> None:
        if not self.out:
            raise ValueError(f"{label} stands before the first layer; leave it out and apply it "
                             "to the input")
        self.out[-1] = self.out[-1]._replace(activation="relu")  # a second ReLU changes nothing

    def _table(self, module: nn.Module, name: str, label: str) -> None:
        if module.max_norm is not None:
            raise ValueError(f"{label} has max_norm, which is not supported; renormalize its "
                             "weight and set it to None")
        bag = type(module) is self.torch.nn.EmbeddingBag
        if bag and module.mode not in ("sum", "mean"):
            raise ValueError(f"{label} has mode={module.mode!r}; 'sum' and 'mean' are supported")
        self.out.append(Affine(name, self._array(module.weight, f"{name}.weight"), None, None,
                               "embedding_bag" if bag else "embedding",
                               module.mode if bag else "sum",
                               module.padding_idx if bag else None))

    def _array(self, parameter: nn.Parameter, name: str) -> Floats:
        tensor = parameter.detach().cpu()
        if tensor.dtype != self.torch.float32:
            if not (self.upcast and tensor.is_floating_point()):
                raise TypeError(f"{name} must be float32, got "
                                f"{str(tensor.dtype).removeprefix('torch.')}; convert the module "
                                "with module.float(), or give upcast=True")
            tensor = tensor.float()
        return tensor.contiguous().numpy()


# -- affine layers as modules --------------------------------------------------------------------


def kept_refinement(refinement: Refinement | None, what: str) -> Refinement | None:
    """The refinement, or None where `what` is "drop"."""
    return refinement if check.choice(what, "refinement", ("keep", "drop")) == "keep" else None


def build_module(layers: Sequence[Affine], refinement: Refinement | None = None) -> nn.Module:
    """A module in evaluation mode with these weights, bit by bit."""
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
    return out + ([nn.ReLU()] if layer.activation == "relu" else [])
