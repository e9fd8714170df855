"""MLPs in ONNX files: chains of Gemm, or MatMul and Add, with activations between them."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..._files import existing
from .affine import Affine, float32
from .onnx_activations import next_activation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from onnx import NodeProto, TensorProto

    from ..._arrays.types import Floats, PathLike

__all__ = ["read_onnx"]

SKIPPED_OPERATORS = {"Identity", "Dropout"}  # no effect on a row at inference
FLOATING_TYPES = {1, 10, 11, 16}  # of a Cast that does no more than round
OUTPUT_OPERATORS = {"Softmax", "LogSoftmax", "Sigmoid"}


class NoChain(ValueError):
    """A readable model that is no chain of affine layers."""


def require_runtime() -> Any:
    """The package onnxruntime, or an ImportError that says how to install it."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise ImportError('running ONNX models needs the packages onnx and onnxruntime; '
                          'type: pip install "sparselsh-nn[onnx]"') from error
    return onnxruntime


def constant_value(node: NodeProto, to_array: Callable[[TensorProto], np.ndarray]
                   ) -> np.ndarray | None:
    """The numbers of a Constant node, in whichever of its attributes they are; else None."""
    for attribute in node.attribute:
        match attribute.name:
            case "value":
                return to_array(attribute.t)
            case "value_float":
                return np.array(attribute.f, np.float32)
            case "value_floats":
                return np.array(attribute.floats, np.float32)
            case "value_int":
                return np.array(attribute.i, np.int64)
            case "value_ints":
                return np.array(attribute.ints, np.int64)
    return None


def bias_of(value: np.ndarray, n_out: int) -> np.ndarray | None:
    """A bias (n_out,), or None where broadcasting adds something else to a row of outputs."""
    if value.shape not in ((), (1,), (1, 1), (n_out,), (1, n_out)):
        return None
    return np.array(np.broadcast_to(np.ravel(value), n_out))


def read_onnx(path: PathLike, *, upcast: bool = False) -> list[Affine]:
    """The affine layers of an ONNX model, checked for being one chain.

    Parameters
    ----------
    path : str or path-like
    upcast : bool
        Convert float16 and other weights to float32; else they are refused.

    Returns
    -------
    list of Affine

    Raises
    ------
    ValueError
        If the file is damaged, or an operator is not supported; the message names it and its node.
    TypeError
        If weights are not float32 and `upcast` is False.
    FileNotFoundError
        If there is no such file.
    ImportError
        If the package onnx is missing.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ImportError('reading ONNX files needs the package onnx; '
                          'type: pip install "sparselsh-nn[onnx]"') from error

    path = existing(path)
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        graph = model.graph
        constants = {array.name: numpy_helper.to_array(array) for array in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                value = constant_value(node, numpy_helper.to_array)
                if value is not None:
                    constants[node.output[0]] = value
    except Exception as error:  # protobuf, the checker and missing data raise different types
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a readable ONNX file ({text}); it may be cut short: "
                         "export it again") from error

    inputs = [value.name for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise NoChain(f"{path}: has {len(inputs)} inputs and {len(graph.output)} outputs; "
                         "give a network with one of each")
    nodes = [n for n in graph.node if n.op_type != "Constant"]
    return _Chain(path, constants, upcast).layers(nodes, inputs[0], graph.output[0].name)


class _Chain:
    """Follows the one value that flows from the input to the output."""

    def __init__(self, path: PathLike, constants: dict[str, np.ndarray], upcast: bool) -> None:
        self.path, self.constants, self.upcast = path, constants, upcast
        self.out: list[Affine] = []

    def layers(self, nodes: Iterable[NodeProto], value: str, result: str) -> list[Affine]:
        nodes = list(nodes)  # ONNX stores them in topological order
        while nodes:
            found = next_activation(nodes, value, result, self.constants)
            if found is not None and self.out and self.out[-1].activation is None:
                self.out[-1] = self.out[-1]._replace(activation=found.name)
                value = found.value
                nodes = nodes[found.n_nodes:]
                continue
            node = nodes.pop(0)
            label = f"{node.op_type} (node {node.name or node.output[0]!r})"
            if value not in node.input:
                raise NoChain(f"{self.path}: {label} does not take what the node before gives; "
                                 "only chains of layers are supported")
            getattr(self, f"_{node.op_type}".lower(), self._other)(node, value, label)
            value = node.output[0]
        if value != result:
            raise NoChain(f"{self.path}: its output {result!r} is not what its last node gives; "
                             "only chains of layers are supported")
        return self.out

    def _other(self, node: NodeProto, value: str, label: str) -> None:
        if node.op_type in SKIPPED_OPERATORS:
            return
        if node.op_type in OUTPUT_OPERATORS:
            raise NoChain(f"{self.path}: {label} is not supported; export the network without "
                             "it and apply it to the scores")
        raise NoChain(f"{self.path}: {label} is not supported; networks of Gemm, MatMul, Add "
                         "and activations are")

    def _constant(self, node: NodeProto, value: str, label: str) -> Floats:
        names = [name for name in node.input if name != value]
        if len(names) != 1 or names[0] not in self.constants:
            raise NoChain(f"{self.path}: {label} must have one constant beside its input; "
                             "only chains of layers are supported")
        return self._float32(names[0])

    def _float32(self, name: str) -> Floats:
        return float32(self.constants[name], f"{self.path}: {name}", self.upcast)

    def _gemm(self, node: NodeProto, value: str, label: str) -> None:
        options = {a.name: a.f if a.name in ("alpha", "beta") else a.i for a in node.attribute}
        if (options.get("transA", 0) or options.get("alpha", 1.0) != 1.0
                or options.get("beta", 1.0) != 1.0):
            raise NoChain(f"{self.path}: {label} has transA, alpha or beta, which are not "
                             "supported; export it without")
        if node.input[0] != value or node.input[1] not in self.constants:
            raise NoChain(f"{self.path}: {label} must multiply its input by a constant; "
                             "only chains of layers are supported")

        W = self._float32(node.input[1])
        bias = None
        if len(node.input) > 2 and node.input[2]:
            bias = self._float32(node.input[2])
        W = W if options.get("transB", 0) else W.T
        if bias is not None and (bias := bias_of(bias, len(W))) is None:
            shape = self.constants[node.input[2]].shape
            raise NoChain(f"{self.path}: {label} has a bias of shape {shape} for {len(W)} outputs; "
                          f"export it as ({len(W)},)")
        self._add_layer(node, W, bias)

    def _matmul(self, node: NodeProto, value: str, label: str) -> None:
        if node.input[0] != value:
            raise NoChain(f"{self.path}: {label} must have its input on the left; "
                             "only chains of layers are supported")
        self._add_layer(node, self._constant(node, value, label).T, None)

    def _add_layer(self, node: NodeProto, W: Floats, bias: Floats | None) -> None:
        name = node.name or node.output[0]
        if W.ndim != 2:
            raise ValueError(f"{self.path}: the weights of {name!r} must be a matrix, "
                             f"got shape {W.shape}")
        self.out.append(Affine(name, np.ascontiguousarray(W), bias))

    def _add(self, node: NodeProto, value: str, label: str) -> None:
        constant = self._constant(node, value, label)
        last = self.out[-1] if self.out else None
        if (last is None or last.bias is not None or last.activation
                or (bias := bias_of(constant, len(last.weight))) is None):
            raise NoChain(f"{self.path}: {label} must add a bias to the MatMul before it")
        self.out[-1] = last._replace(bias=bias)

    def _cast(self, node: NodeProto, value: str, label: str) -> None:
        if node.attribute[0].i not in FLOATING_TYPES:
            raise NoChain(f"{self.path}: {label} makes whole numbers; only chains of layers with "
                          "floating-point values are supported")

    def _flatten(self, node: NodeProto, value: str, label: str) -> None:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if axis == 0 or (self.out and axis not in (1, -1)):  # the rows are others behind it
            raise NoChain(f"{self.path}: {label} has axis {axis}, which changes the rows; export "
                          "it with axis 1")

    def _relu(self, node: NodeProto, value: str, label: str) -> None:
        if not self.out or self.out[-1].activation:
            raise NoChain(f"{self.path}: {label} must follow a Gemm or MatMul")
        self.out[-1] = self.out[-1]._replace(activation="relu")
