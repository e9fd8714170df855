"""Models written in unusual ways: each is right, or refused with the node and what to do."""
import copy

import numpy as np
import pytest

import sparselsh as sl

# --- PyTorch --------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")

import sparselsh.torch as slt  # noqa: E402

nn = torch.nn


class LowRank(nn.Module):
    """A layer with an update of low rank beside it, as LoRA has."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


class Doubled(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, x):
        return super().forward(2 * x)


class Halving(nn.Sequential):
    """A Sequential whose own forward is a chain of layers."""

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x


def layers(n_out=6):
    return [nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, n_out)]


def transposed_weights():
    model = nn.Sequential(*layers())
    for layer in model[::2]:
        layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)
    assert not model[2].weight.is_contiguous()
    return model


def strided_weights():
    model = nn.Sequential(*layers())
    wide = torch.randn(12, 24)
    model[0].weight = nn.Parameter(wide[:, ::2])
    return model


def shared_layer():
    layer = nn.Linear(12, 12)
    return nn.Sequential(layer, nn.ReLU(), layer)


def pruned(remove):
    from torch.nn.utils import prune

    model = nn.Sequential(*layers())
    prune.l1_unstructured(model[0], "weight", 0.5)
    if remove:
        prune.remove(model[0], "weight")
    return model


RIGHT = {
    "transposed weights": transposed_weights, "weights with gaps": strided_weights,
    "a layer twice": shared_layer, "a Sequential that loops": lambda: Halving(*layers()),
    "training mode": lambda: nn.Sequential(*layers(), nn.Dropout(0.9)).train(),
    "pruned": lambda: pruned(False), "pruned for good": lambda: pruned(True),
    "frozen": lambda: nn.Sequential(*layers()).requires_grad_(False),
    "nested": lambda: nn.Sequential(nn.Sequential(*layers(12)), nn.Identity(), nn.GELU(),
                                    nn.Sequential(nn.Linear(12, 6))),
}


@pytest.mark.parametrize("name", RIGHT)
def test_unusual_modules_are_converted_rightly(name, rng):
    torch.manual_seed(0)
    model = RIGHT[name]()
    mode = model.training
    X = rng.standard_normal((30, 12)).astype(np.float32)
    got = sl.from_torch(model, X).decision_function(X)
    assert model.training is mode
    with torch.inference_mode():
        want = copy.deepcopy(model).eval()(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


REFUSED = {
    "low rank": (lambda: nn.Sequential(LowRank(nn.Linear(12, 12)), *layers()),
                 r"Linear \(node .0\.down.\) .*merge the branches, as merge_and_unload"),
    "doubled": (lambda: Doubled(*layers()), r"mul \(node 'mul'\)"),
    "float64": (lambda: nn.Sequential(*layers()).double(), r"must be float32, got float64; .*"
                "module.float"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(12)), "cannot be traced|not supported|lazy|"
             "uninitialized|Lazy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_modules_are_refused_with_the_remedy(name):
    make, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        sl.from_torch(make())


def test_float64_layers_are_not_accelerated():
    with pytest.raises(TypeError, match=r"'?0'?\.weight must be of 32 or 16 bits on the CPU, got "
                                        r"float64 on cpu; call model\.float\(\)\.cpu\(\)"):
        slt.accelerate(nn.Sequential(nn.Linear(8, 50)).double(), "0", torch.randn(40, 8).double())


def test_a_wrapper_named_linear_is_told_from_a_linear():
    wrapper = type("Linear", (LowRank,), {"__module__": "peft.tuners.lora.layer"})
    model = nn.Sequential(wrapper(nn.Linear(8, 50)))
    with pytest.raises(TypeError, match=r"'0' is a peft\.tuners\.lora\.layer\.Linear, not a "
                                        r"Linear; Linear are 0\.base_layer"):
        slt.accelerate(model, "0", torch.randn(40, 8))


@pytest.mark.parametrize("make", [transposed_weights, strided_weights, shared_layer])
def test_unusual_layers_are_accelerated_rightly(make, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(slt, "MIN_GAIN", 0.0)
    model, x = make().eval(), torch.randn(60, 12)
    with torch.inference_mode():
        want = model(x)
        slt.accelerate(model, "0", x, n_threads=1)
        torch.testing.assert_close(model(x), want, rtol=0, atol=0.05)
        slt.restore(model)
        torch.testing.assert_close(model(x), want, rtol=0, atol=0)


# --- ONNX -----------------------------------------------------------------------------------------

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs.split(), [output], name=f"the_{output}", **attributes)


def graph(path, nodes, constants, outputs=("y",), given=("x", FLOAT, ["n", 5]), opset=17,
          external=False):
    arrays = [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [helper.make_tensor_value_info(*given)],
                          [helper.make_tensor_value_info(name, FLOAT, [None] * len(given[2]))
                           for name in outputs],
                          arrays), opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.save(model, path, save_as_external_data=external, size_threshold=0)
    return path


@pytest.fixture
def arrays(rng):
    return {name: rng.standard_normal(shape).astype(np.float32)
            for name, shape in (("W", (5, 2500)), ("T", (2500, 5)), ("b", 2500), ("K", (5, 5)),
                                ("E", (9, 5)), ("s", ()), ("c", (2500, 1)))}


GEMM = "Gemm"
CASES = {
    "external data": ([node("MatMul", "x W", "y")], {"external": True}),
    "Gemm without a bias": ([node(GEMM, "x W", "y")], {}),
    "Gemm with transB": ([node(GEMM, "x T b", "y", transB=1)], {}),
    "tanh before": ([node("MatMul", "x K", "a"), node("Tanh", "a", "h"),
                     node("MatMul", "h W", "m"), node("Add", "m b", "y")], {}),
    "old opset": ([node("Tanh", "x", "h"), node(GEMM, "h W b", "m"),
                   node("Softmax", "m", "y", axis=1)], {"opset": 9}),
    "newest opset": ([node("Gelu", "x", "h"), node("MatMul", "h W", "m"),
                      node("Softmax", "m", "y", axis=-1)], {"opset": 20}),
    "several outputs": ([node("Tanh", "x", "h"), node("MatMul", "h W", "m"),
                         node("Softmax", "m", "y")], {"outputs": ("y", "h", "m")}),
    "dynamic axes": ([node("Tanh", "x", "h"), node("MatMul", "h W", "y")],
                     {"given": ("x", FLOAT, ["a", "b", "c", 5]), "shape": (2, 3, 4, 5)}),
    "whole numbers before": ([node("Cast", "x", "i", to=INT64), node("Cast", "i", "h", to=FLOAT),
                              node("MatMul", "h W", "y")], {}),
    "whole numbers between": ([node("MatMul", "x K", "k"), node("Cast", "k", "i", to=INT64),
                               node("Cast", "i", "h", to=FLOAT), node("MatMul", "h W", "y")], {}),
    "a number added": ([node("MatMul", "x W", "m"), node("Add", "m s", "y")], {}),
    "a number as bias": ([node(GEMM, "x W s", "y")], {}),
    "another number per row": ([node("MatMul", "x W", "m"), node("Add", "m c", "y")],
                               {"given": ("x", FLOAT, [2500, 5]), "shape": (2500, 5)}),
    "numbers of a Constant": ([helper.make_node("Constant", [], ["v"], value_float=2.0),
                               node("MatMul", "x W", "m"), node("Add", "m v", "y")], {}),
    "ids": ([node("Gather", "E x", "h"), node("MatMul", "h W", "y")],
            {"given": ("x", INT64, ["n", "t"]), "shape": (4, 3)}),
}


@pytest.mark.parametrize("name", CASES)
def test_unusual_graphs_give_the_outputs_of_onnx_runtime(name, rng, arrays, tmp_path):
    nodes, options = CASES[name]
    options = dict(options)
    shape = options.pop("shape", (30, 5))
    path = graph(tmp_path / "m.onnx", nodes, arrays, **options)
    x = (rng.integers(0, 9, shape) if "ids" in name
         else rng.standard_normal(shape).astype(np.float32))
    net = sl.from_onnx(path, x, random_state=0)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = session.run(None, {"x": x})
    if isinstance(net, sl.OnnxNetwork):
        net.exact_outputs = True
        got = net(x)
    else:
        got = [net.decision_function(x, exact=True)]
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
    ids = (net.predict(x) if isinstance(net, sl.OnnxNetwork) else net.topk(x, 1)[0][:, 0])
    # at least 0.99 of the best outputs: of 30 rows or fewer, all but one
    assert (ids.ravel() != want[0].reshape(-1, 2500).argmax(-1)).sum() <= 1


@pytest.mark.parametrize("kind, opset, options", [
    ("FLOAT16", 17, {}), ("INT64", 17, {}), ("FLOAT", 17, {}), ("FLOAT", 9, {"k": 3})])
def test_the_best_are_of_the_type_of_the_model(kind, opset, options, rng, arrays, tmp_path):
    to = getattr(TensorProto, kind)
    nodes = [node("MatMul", "x W", "m"), node("Cast", "m", "t", to=to),
             helper.make_node("TopK", ["t"] if options else ["t", "k"], ["v", "i"], **options)]
    path = graph(tmp_path / "m.onnx", nodes, arrays | {"k": np.array([3])}, ("v",), opset=opset)
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = to
    onnx.save(model, path)
    x = rng.standard_normal((30, 5)).astype(np.float32)
    want, = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {"x": x})
    got, = sl.from_onnx(path, random_state=0)(x)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-3)  # float16 has 11 bits


FAULTS = {
    "weight on the left": ([node("Transpose", "x", "t"), node("MatMul", "T t", "y")],
                           r"MatMul .*'the_y'|no MatMul or Gemm with a constant weight"),
    "transA": ([node("Transpose", "x", "t"), node(GEMM, "t W b", "y", transA=1)],
               r"Gemm \(node 'the_y'\) has transA, alpha or beta.*export it without"),
    "alpha": ([node(GEMM, "x W b", "y", alpha=0.5)],
              r"Gemm \(node 'the_y'\) has transA, alpha or beta.*export it without"),
    "beta": ([node(GEMM, "x W b", "y", beta=2.0)],
             r"Gemm \(node 'the_y'\) has transA, alpha or beta.*export it without"),
    "numbers per row": ([node(GEMM, "x W C", "y")],
                        r"Gemm \(node 'the_y'\) has a bias of shape \(5, 2500\) for 2500 outputs"),
    "weight that is computed": ([node("Mul", "x K", "k"), node("MatMul", "x k", "y")],
                                r"no MatMul or Gemm with a constant weight.*name one by head="),
}


@pytest.mark.parametrize("name", FAULTS)
def test_other_graphs_are_refused_by_their_node(name, arrays, tmp_path):
    nodes, message = FAULTS[name]
    arrays["C"] = np.zeros((5, 2500), np.float32)
    is_square = name in ("numbers per row", "weight that is computed")
    given = ("x", FLOAT, [5 if is_square else "n", 5])
    path = graph(tmp_path / "m.onnx", nodes, arrays, given=given)
    with pytest.raises(ValueError, match=message):
        sl.from_onnx(path)


def test_missing_external_data_is_named(arrays, tmp_path):
    path = graph(tmp_path / "m.onnx", [node("MatMul", "x W", "y")], arrays, external=True)
    for file in tmp_path.iterdir():
        if file != path:
            file.unlink()
    with pytest.raises(ValueError, match=r"m\.onnx: not a readable ONNX file"):
        sl.from_onnx(path)
