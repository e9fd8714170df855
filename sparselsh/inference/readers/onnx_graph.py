"""An ONNX graph cut at its last wide layer: a trunk before it, affine layers, a tail behind it.

    inputs ─► trunk ─► rows ─► affine layers ─► scores ─► tail ─► outputs
                 └─────────── other values ───────────────┘

The trunk and the tail stay graphs, which ONNX Runtime runs. Layers of the same kind directly before
the wide one, with Relu between, are taken with it.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..._files import existing
from .affine import Affine, float32
from .onnx import SKIPPED_OPERATORS, bias_of, constant_value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    from ..._arrays.types import PathLike

MIN_HEAD_OUTPUTS = 2000  # with fewer, a layer is taken only by its name
CANDIDATE_OPERATORS = ("MatMul", "Gemm")
MONOTONE = ("Softmax", "LogSoftmax", "Sigmoid")  # keep the order of the outputs of a row
ORDERING = ("ArgMax", "TopK")
FLOAT_TYPES = {1: np.float32, 10: np.float16, 11: np.float64}


class Step(NamedTuple):
    """What a node of the tail does to the scores: "reshape", "transpose", ... with its argument."""

    kind: str
    argument: Any = None


class CutGraph(NamedTuple):
    """A model, cut."""

    model: ModelProto
    layers: list[Affine]
    stored: list[tuple[str, bool] | None]  # per layer: its weight in the file, and whether that is
                                           # (n_in, n_out); None where others read it too
    rows: str  # the value that the layers take
    scores: str  # the value that they give
    steps: list[Step]  # of the tail, from the scores to the output `steps_output`
    steps_output: str
    inputs: list[str]
    outputs: list[str]
    metadata: dict[str, str]


def load_onnx(path: PathLike) -> ModelProto:
    """The model of a file, or an error that names the file."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError('reading ONNX files needs the package onnx; '
                          'type: pip install "sparselsh-nn[onnx]"') from error
    path = existing(path)
    try:
        model = onnx.load(path)
        if not model.graph.node:
            raise ValueError("it has no nodes")
        return model
    except Exception as error:  # protobuf and missing data raise different types
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a readable ONNX file ({text}); it may be cut short: "
                         "export it again") from error


def cut(model: ModelProto, path: PathLike, head: str, upcast: bool) -> CutGraph:
    """The parts of a model; `head` is "auto", or the name of a node, its output or its weight."""
    return _Cutter(model, path, upcast).cut(head)


class _Cutter:
    """The values of a graph, who makes and who takes them."""

    def __init__(self, model: ModelProto, path: PathLike, upcast: bool) -> None:
        from onnx import numpy_helper

        self.model, self.graph, self.path, self.upcast = model, model.graph, path, upcast
        self.decoded = numpy_helper.to_array
        self.arrays = {array.name: array for array in self.graph.initializer}
        self.makers = {name: node for node in self.graph.node for name in node.output if name}
        self.takers: dict[str, list[NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(values_read(node)):
                self.takers.setdefault(name, []).append(node)
        self.outputs = [value.name for value in self.graph.output]

    def cut(self, head: str) -> CutGraph:
        node = self._head(head)
        layer, rows, scores = self._layer(node)
        layers, stored = [layer], [self._stored(node)]
        while (before := self._layer_before(rows)) is not None:
            layer, rows, node = before
            layers.insert(0, layer)
            stored.insert(0, self._stored(node))

        steps, last = self._steps(scores)
        inputs = [v.name for v in self.graph.input if v.name not in self.arrays]
        return CutGraph(self.model, layers, stored, rows, scores, steps, last, inputs, self.outputs,
                        {entry.key: entry.value for entry in self.model.metadata_props})

    def _stored(self, node: NodeProto) -> tuple[str, bool] | None:
        """The weight of the file that a layer alone reads, and whether it is (n_in, n_out)."""
        name = node.input[1]
        array = self.arrays.get(name)
        is_alone = len(self.takers[name]) == 1 and name not in self.outputs
        if array is None or array.data_type != 1 or not is_alone or node.op_type == "MatMulInteger":
            return None
        return name, not (node.op_type == "Gemm" and attributes(node).get("transB", 0))

    # -- the wide layer ---------------------------------------------------------------------------

    def _head(self, head: str) -> NodeProto:
        known = [(node, n) for node in self.graph.node if (n := self._n_out(node))]
        listed = ", ".join(f"{name_of(node)!r} ({n:,} outputs)" for node, n in known[-8:]) or "none"
        if head != "auto":
            for node, _ in known:
                if head in (node.name, *node.output, *node.input[1:2]):
                    return node
            raise ValueError(f"{self.path}: head={head!r} is no MatMul or Gemm with a constant "
                             f"weight; the last ones are {listed}")
        wide = [node for node, n in known if n >= MIN_HEAD_OUTPUTS]
        if wide:
            return wide[-1]
        inside = [name_of(node) for node in self.graph.node if any(subgraphs(node))]
        more = f"; what {inside[0]!r} runs inside is not looked into" if inside else ""
        raise ValueError(f"{self.path}: has no MatMul or Gemm with a constant weight and at least "
                         f"{MIN_HEAD_OUTPUTS:,} outputs{more}; name one by head=, the last ones "
                         f"are {listed}")

    def _n_out(self, node: NodeProto) -> int:
        """The outputs of a MatMul or Gemm with a constant matrix, or 0."""
        if len(node.input) < 2:
            return 0
        if node.op_type in CANDIDATE_OPERATORS:
            shape = self._shape(node.input[1])
            by_rows = node.op_type == "Gemm" and attributes(node).get("transB", 0)
        elif node.op_type == "MatMulInteger":
            shape, by_rows = self._shape(node.input[1]), False
        else:
            return 0
        return 0 if len(shape) != 2 else int(shape[0 if by_rows else 1])

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape of a constant, or () where it is none."""
        if name in self.arrays:
            return tuple(self.arrays[name].dims)
        node = self.makers.get(name)
        if node is None:
            return ()
        if node.op_type == "Constant":
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
            return () if tensor is None else tuple(tensor.dims)
        if node.op_type in ("Identity", "Cast", "DequantizeLinear"):
            return self._shape(node.input[0])
        if node.op_type == "Transpose":
            shape = self._shape(node.input[0])
            order = attributes(node).get("perm", range(len(shape))[::-1])
            return tuple(shape[i] for i in order) if shape else ()
        return ()

    def _constant(self, name: str) -> np.ndarray | None:
        """The value of a constant, or None where it is none."""
        if name in self.arrays:
            return self._to_array(self.arrays[name])
        node = self.makers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return constant_value(node, self._to_array)
        if node.op_type not in ("Identity", "Cast", "Transpose", "DequantizeLinear"):
            return None

        given = []
        for part in filter(None, node.input):
            value = self._constant(part)
            if value is None:
                return None
            given.append(value)
        options = attributes(node)
        if node.op_type == "Transpose":
            return np.transpose(given[0], options.get("perm"))
        if node.op_type == "DequantizeLinear":
            try:
                return dequantized(given, options.get("axis", 1), options.get("block_size", 0))
            except (IndexError, ValueError) as error:
                raise ValueError(f"{self.path}: the scales of {name!r} do not fit it ({error}); "
                                 "export it again") from error
        if node.op_type == "Cast":
            kind = FLOAT_TYPES.get(options["to"])
            return None if kind is None else given[0].astype(kind)
        return given[0]

    def _to_array(self, tensor: TensorProto) -> np.ndarray:
        try:
            return self.decoded(tensor)
        except Exception as error:  # a size that does not fit its shape, an unknown dtype
            text = " ".join(str(error).split())[:200]
            raise ValueError(f"{self.path}: the constant {tensor.name!r} is damaged ({text}); "
                             "export it again") from error

    def _layer(self, node: NodeProto) -> tuple[Affine, str, str]:
        """The affine layer of a node and of the bias behind it, its input and its output."""
        label = f"{node.op_type} (node {name_of(node)!r})"
        rows, bias, scores = node.input[0], None, node.output[0]
        if node.op_type == "MatMulInteger":
            rows, weight, scores = self._integer_product(node, label)
        else:
            weight = self._constant(node.input[1])
            if weight is None:
                raise ValueError(f"{self.path}: {label} has a weight that cannot be computed "
                                 "beforehand; export it as a constant")
        if node.op_type == "Gemm":
            options = attributes(node)
            if (options.get("transA", 0) or options.get("alpha", 1.0) != 1.0
                    or options.get("beta", 1.0) != 1.0):
                raise ValueError(f"{self.path}: {label} has transA, alpha or beta, which are not "
                                 "supported; export it without")
            weight = weight if options.get("transB", 0) else weight.T
            if len(node.input) > 2 and node.input[2]:
                bias = self._constant(node.input[2])
                if bias is None:
                    raise ValueError(f"{self.path}: {label} has a bias that is no constant; "
                                     "export it as one")
        else:
            weight = weight.T
        W = float32(np.ascontiguousarray(weight), f"{self.path}: {node.input[1]}", self.upcast)

        if bias is None:
            scores, bias = self._bias_behind(scores, len(W))
        if bias is not None:
            vector = bias_of(bias, len(W))
            if vector is None:
                raise ValueError(f"{self.path}: {label} has a bias of shape {bias.shape} for "
                                 f"{len(W)} outputs; export it as ({len(W)},)")
            bias = float32(vector, f"{self.path}: bias of {name_of(node)}", self.upcast)
        return Affine(name_of(node), W, bias), rows, scores

    def _bias_behind(self, scores: str, n_out: int) -> tuple[str, np.ndarray | None]:
        """The value after an Add of a constant vector, and the vector; or the value as it is."""
        end = self._passed(scores)
        for node in self._only_taker(end, "Add"):
            other = [name for name in node.input if name != end]
            value = self._constant(other[0]) if len(other) == 1 else None
            if value is not None and bias_of(value, n_out) is not None:
                return node.output[0], value
        return scores, None

    def _passed(self, value: str) -> str:
        """The value behind nodes that change nothing."""
        while len(found := [n for n in self._only_taker(value)
                            if n.op_type in SKIPPED_OPERATORS]) == 1:
            value = found[0].output[0]
        return value

    def _only_taker(self, value: str, kind: str = "") -> list[NodeProto]:
        takers = self.takers.get(value, [])
        is_alone = len(takers) == 1 and value not in self.outputs
        return [node for node in takers if is_alone and kind in ("", node.op_type)]

    def _integer_product(self, node: NodeProto, label: str) -> tuple[str, np.ndarray, str]:
        """What dynamic quantization makes of a product of float32 rows: it is taken back.

        DynamicQuantizeLinear, MatMulInteger, Cast and two factors (Mul).
        """
        maker = self.makers.get(node.input[0])
        try:
            assert maker is not None and maker.op_type == "DynamicQuantizeLinear"
            cast, = self._only_taker(node.output[0], "Cast")
            product, = self._only_taker(cast.output[0], "Mul")
            factors, = [name for name in product.input if name != cast.output[0]]
            scales = self.makers[factors]
            assert scales.op_type == "Mul" and maker.output[1] in scales.input
            scale, = [self._constant(name) for name in scales.input if name != maker.output[1]]
            values = self._constant(node.input[1])
            zero = self._constant(node.input[3]) if len(node.input) > 3 else np.zeros(1, np.uint8)
            assert values is not None and zero is not None and scale is not None
        except (AssertionError, ValueError, KeyError) as error:
            raise ValueError(f"{self.path}: {label} is quantized in a way that is not known; give "
                             "the network as it was before") from error
        weight = (values.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale
        return maker.input[0], weight, product.output[0]

    def _layer_before(self, rows: str) -> tuple[Affine, str, NodeProto] | None:
        """A layer with Relu whose output `rows` is, and which nothing else reads; or None."""
        relu = self._maker_of(rows, "Relu")
        if relu is None:
            return None
        value = relu.input[0]
        node = self._maker_of(value, *CANDIDATE_OPERATORS, "Add")
        if node is not None and node.op_type == "Add":
            made = [n for name in node.input if (n := self._maker_of(name, "MatMul")) is not None]
            node = made[0] if len(made) == 1 else None
        if node is None or not self._n_out(node):
            return None
        try:
            layer, before, scores = self._layer(node)
        except ValueError:
            return None
        if self._passed(scores) != value:
            return None
        return layer._replace(activation="relu"), before, node

    def _maker_of(self, value: str, *kinds: str) -> NodeProto | None:
        """The node behind a value that one node reads, past nodes that change nothing."""
        while True:
            node = self.makers.get(value)
            if node is None or len(self.takers.get(value, [])) != 1 or value in self.outputs:
                return None
            if node.op_type in kinds:
                return node
            if node.op_type not in SKIPPED_OPERATORS:
                return None
            value = node.input[0]

    # -- the tail ---------------------------------------------------------------------------------

    def _steps(self, scores: str) -> tuple[list[Step], str]:
        """What becomes of the scores on their way to an output, as far as it is understood."""
        steps: list[Step] = []
        value = scores
        while value not in self.outputs and len(nodes := self.takers.get(value, [])) == 1:
            node, options = nodes[0], attributes(nodes[0])
            kind = node.op_type
            if kind in SKIPPED_OPERATORS:
                steps.append(Step("same"))
            elif kind == "Cast" and options["to"] in FLOAT_TYPES:  # whole numbers would be equal
                steps.append(Step("cast"))
            elif kind == "Reshape" and node.input[0] == value:
                shape = self._constant(node.input[1])
                steps.append(Step("reshape", node.input[1] if shape is None else shape.tolist()))
            elif kind == "Transpose":
                steps.append(Step("transpose", options.get("perm")))
            elif kind in ("Squeeze", "Unsqueeze"):
                axes = options.get("axes")
                if axes is None and len(node.input) > 1:
                    given = self._constant(node.input[1])
                    axes = None if given is None else given.tolist()
                if axes is None:
                    break
                steps.append(Step(kind.lower(), list(axes)))
            elif kind in MONOTONE:
                default, over_the_rest = self._softmax_axes()
                steps.append(Step(kind.lower(), (options.get("axis", default), over_the_rest)))
            elif kind == "ArgMax":
                steps.append(Step("argmax", (options.get("axis", 0), options.get("keepdims", 1),
                                             options.get("select_last_index", 0))))
            elif kind == "TopK" and (k := self._n_best(node, options)) is not None:
                steps.append(Step("topk", (k, options.get("axis", -1),
                                           options.get("largest", 1), list(node.output))))
                return steps, node.output[0]
            else:
                break
            value = node.output[0]
            if kind == "ArgMax":
                break
        return steps, value

    def _n_best(self, node: NodeProto, options: dict[str, Any]) -> int | None:
        """The k of a TopK, which is an attribute in opsets of before 10; None if not known."""
        if len(node.input) < 2:
            return options.get("k")
        k = self._constant(node.input[1])
        return None if k is None else int(np.ravel(k)[0])

    def _softmax_axes(self) -> tuple[int, bool]:
        """The axis of a Softmax without one, and whether all axes behind it count as one."""
        version = next((o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")),
                       13)
        return (-1, False) if version >= 13 else (1, True)


# -- parts of a graph ----------------------------------------------------------------------------


def without_weights(cut: CutGraph) -> ModelProto:
    """The model without the weights that `cut.stored` names; it is changed in place."""
    names = {entry[0] for entry in cut.stored if entry is not None}
    for array in cut.model.graph.initializer:
        if array.name in names:
            array.ClearField("raw_data")
            array.ClearField("float_data")
    return cut.model


def with_weights(skeleton: ModelProto, stored: Iterable[tuple[str, bool] | None],
                 layers: Iterable[Affine]) -> ModelProto:
    """A copy of the skeleton with the weights of the layers, as the file had them."""
    import onnx

    out = onnx.ModelProto()
    out.CopyFrom(skeleton)
    arrays = {array.name: array for array in out.graph.initializer}
    for entry, layer in zip(stored, layers, strict=True):
        if entry is not None:
            name, is_input_major = entry
            weight = layer.weight.T if is_input_major else layer.weight
            arrays[name].CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(weight), name))
    return out


def part_of(model: ModelProto, given: Iterable[str], wanted: Iterable[str],
            types: dict[str, int] | None = None) -> ModelProto:
    """The nodes between some values and others, as a model; `types` are those of given values.

    What the nodes read and is neither given nor made inside is an input or a constant of the model.
    """
    import onnx

    given, wanted, types = list(given), list(wanted), types or {}
    graph = model.graph
    needed, nodes = set(wanted) - set(given), []
    for node in reversed(graph.node):
        if needed & {name for name in node.output if name}:
            nodes.append(node)
            needed |= {name for name in values_read(node)} - set(given)
    made = {name for node in nodes for name in node.output}

    inputs = [v for v in graph.input if v.name in needed and v.name not in made]
    inputs += [onnx.helper.make_tensor_value_info(name, types[name], None) for name in given]
    named = {v.name: v for v in graph.output}
    outputs = [named.get(name) or onnx.ValueInfoProto(name=name) for name in wanted]
    arrays = [a for a in graph.initializer if a.name in needed]
    out = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    out.opset_import.extend(model.opset_import)
    out.functions.extend(model.functions)
    out.graph.name = graph.name or "graph"
    out.graph.node.extend(nodes[::-1])
    out.graph.input.extend(inputs)
    out.graph.output.extend(outputs)
    out.graph.initializer.extend(arrays)
    return out


def values_needed(model: ModelProto, given: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """What the nodes between `given` and `wanted` read from elsewhere, without constants.

    Only nodes that depend on a given value count as between them.
    """
    dependent = set(given)
    for node in model.graph.node:
        if any(name in dependent for name in values_read(node)):
            dependent |= {name for name in node.output if name}
    constants = {a.name for a in model.graph.initializer}
    constants |= {n for node in model.graph.node if node.op_type == "Constant" for n in node.output}
    needed, out = set(wanted) - set(given), []
    made = dependent - set(given)
    for node in reversed(model.graph.node):
        if not needed & made & set(node.output):
            continue
        for name in values_read(node):
            needed.add(name)
            if name not in dependent and name not in constants and name not in out:
                out.append(name)
    return out


def depends_on(model: ModelProto, value: str) -> set[str]:
    """All values that are computed from one, and itself."""
    found = {value}
    for node in model.graph.node:
        if any(name in found for name in values_read(node)):
            found |= {name for name in node.output if name}
    return found


def values_read(node: NodeProto) -> list[str]:
    """What a node reads, its graphs included."""
    return [name for name in node.input if name] + [
        name for graph in subgraphs(node) for name in read_from_outside(graph)]


def subgraphs(node: NodeProto) -> Iterable[GraphProto]:
    """The graphs that a node runs, such as the body of a Loop."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def read_from_outside(graph: GraphProto) -> list[str]:
    """The values that a graph inside a node reads of the graph around it."""
    inside = {v.name for v in graph.input} | {a.name for a in graph.initializer}
    inside |= {name for node in graph.node for name in node.output}
    read = [name for node in graph.node for name in values_read(node)]
    read += [v.name for v in graph.output]
    return [name for name in dict.fromkeys(read) if name not in inside]


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node that are numbers or lists of them."""
    from onnx import AttributeProto
    from onnx.helper import get_attribute_value

    kinds = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS)
    return {a.name: get_attribute_value(a) for a in node.attribute if a.type in kinds}


def name_of(node: NodeProto) -> str:
    """The name of a node, or of what it gives where it has none."""
    return node.name or node.output[0]


def dequantized(given: list[Any], axis: int, block_size: int = 0) -> np.ndarray:
    """A quantized constant as float: (q - zero) scale.

    Scales are those of the tensor, of each place along an axis, or of each `block_size` places.
    """
    values, scale = given[0], np.asarray(given[1])
    zero = given[2] if len(given) > 2 else np.zeros_like(scale, values.dtype)
    if block_size:
        n = values.shape[axis]
        scale, zero = (np.repeat(a, min(block_size, n), axis).take(range(n), axis)
                       for a in (scale, np.asarray(zero)))
    elif scale.ndim == 1 and scale.size > 1:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), np.reshape(zero, shape)
    return (values.astype(np.int32) - np.asarray(zero).astype(np.int32)).astype(scale.dtype) * scale
