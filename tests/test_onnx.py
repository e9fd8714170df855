"""Conversion of MLPs in ONNX files."""
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import sparselsh as sl  # noqa: E402


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], name=f"the_{output}", **attributes)


def written(path, nodes, constants, n_in=5, output=None, inputs=("x",)):
    arrays = [numpy_helper.from_array(a, name) for name, a in constants.items()]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", n_in]) for name in inputs]
    out = helper.make_tensor_value_info(output or nodes[-1].output[0],
                                        TensorProto.FLOAT, ["n", "m"])
    model = helper.make_model(helper.make_graph(nodes, "g", given, [out], arrays),
                              opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)
    return path


@pytest.fixture
def weights(rng):
    return {"W1": rng.standard_normal((5, 7)).astype(np.float32),
            "b1": rng.standard_normal(7).astype(np.float32),
            "W2": rng.standard_normal((4, 7)).astype(np.float32),
            "b2": rng.standard_normal((1, 4)).astype(np.float32)}


CHAIN = [node("MatMul", ["x", "W1"], "a"), node("Add", ["b1", "a"], "b"), node("Relu", ["b"], "c"),
         node("Dropout", ["c"], "d"), node("Gemm", ["d", "W2", "b2"], "y", transB=1)]


def test_a_chain_of_matmul_add_relu_and_gemm_is_read(rng, tmp_path, weights):
    path = written(tmp_path / "m.onnx", CHAIN, weights)
    X = rng.standard_normal((30, 5)).astype(np.float32)
    net = sl.from_onnx(path, X)
    want = np.maximum(X @ weights["W1"] + weights["b1"], 0) @ weights["W2"].T + weights["b2"]
    # two layers of sums of at most 7 products below 10
    np.testing.assert_allclose(net.decision_function(X), want, rtol=0, atol=1e-4)
    assert [layer.name for layer in net.layers] == ["the_a", "the_y"]


SCALARS = {"root": 2**0.5, "one": 1.0, "half": 0.5, "three": 3.0, "cubic": 0.044715,
           "factor": (2 / np.pi) ** 0.5}
ACTIVATIONS = {
    "gelu": [("Div", "b root", "c1"), ("Erf", "c1", "c2"), ("Add", "c2 one", "c3"),
             ("Mul", "b c3", "c4"), ("Mul", "c4 half", "c")],
    "gelu, halved first": [("Mul", "half b", "c1"), ("Div", "b root", "c2"), ("Erf", "c2", "c3"),
                           ("Add", "one c3", "c4"), ("Mul", "c1 c4", "c")],
    "gelu_tanh": [("Pow", "b three", "c1"), ("Mul", "c1 cubic", "c2"), ("Add", "b c2", "c3"),
                  ("Mul", "c3 factor", "c4"), ("Tanh", "c4", "c5"), ("Add", "c5 one", "c6"),
                  ("Mul", "b c6", "c7"), ("Mul", "c7 half", "c")],
    "silu": [("Sigmoid", "b", "c1"), ("Mul", "b c1", "c")],
    "tanh": [("Tanh", "b", "c")],
    "sigmoid": [("Sigmoid", "b", "c")],
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_recognized_by_what_they_compute(rng, tmp_path, weights, name):
    runtime = pytest.importorskip("onnxruntime")
    nodes = [*CHAIN[:2], *(node(op, given.split(), out) for op, given, out in ACTIVATIONS[name]),
             *CHAIN[3:]]
    constants = weights | {key: np.float32(value) for key, value in SCALARS.items()}
    path = written(tmp_path / "m.onnx", nodes, constants)
    net = sl.from_onnx(path)
    assert [layer.activation for layer in net.layers] == [name.split(",")[0], None]
    X = rng.standard_normal((30, 5)).astype(np.float32)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    # two layers of sums of at most 7 products below 10
    np.testing.assert_allclose(net.decision_function(X), session.run(None, {"x": X})[0],
                               rtol=0, atol=1e-4)


def test_other_functions_of_the_elements_are_refused_by_their_node(tmp_path, weights):
    nodes = [*CHAIN[:2], node("Mul", ["b", "half"], "c1"), node("Tanh", ["c1"], "c"), *CHAIN[3:]]
    path = written(tmp_path / "m.onnx", nodes, weights | {"half": np.float32(0.5)})
    with pytest.raises(ValueError, match=r"Mul \(node 'the_c1'\) is not supported"):
        sl.from_onnx(path)


def test_weights_of_constant_nodes_are_read(rng, tmp_path, weights):
    constant = helper.make_node("Constant", [], ["W1"],
                                value=numpy_helper.from_array(weights.pop("W1"), "W1"))
    path = written(tmp_path / "m.onnx", [constant, *CHAIN], weights)
    assert sl.from_onnx(path).n_labels == 4


def test_outputs_are_those_of_onnx_runtime(rng, tmp_path, weights):
    runtime = pytest.importorskip("onnxruntime")
    path = written(tmp_path / "m.onnx", CHAIN, weights)
    X = rng.standard_normal((30, 5)).astype(np.float32)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = session.run(None, {"x": X})[0]
    np.testing.assert_allclose(sl.from_onnx(path).decision_function(X), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("nodes, message", [
    ([node("MatMul", ["x", "W1"], "a"), node("Gelu2", ["a"], "y")], None),
    ([node("MatMul", ["x", "W1"], "a"), node("Tanh", ["a"], "y")],
     r"Tanh \(node 'the_y'\) is not supported"),
    ([node("MatMul", ["x", "W1"], "a"), node("Softmax", ["a"], "y")],
     r"Softmax \(node 'the_y'\) .* without it"),
    ([node("Relu", ["x"], "y")], r"Relu \(node 'the_y'\) must follow"),
    ([node("Add", ["x", "b1"], "y")],
     r"Add \(node 'the_y'\) must add a bias to the MatMul before it"),
    ([node("Gemm", ["x", "W1"], "y", alpha=2.0)],
     r"Gemm \(node 'the_y'\) has transA, alpha or beta"),
    ([node("MatMul", ["x", "W1"], "a"), node("Relu", ["a"], "r"), node("Add", ["a", "r"], "y")],
     r"Add \(node 'the_y'\) .*(chains|constant)"),
    ([node("MatMul", ["x", "W1"], "a"), node("Relu", ["x"], "y")],
     r"Relu \(node 'the_y'\) does not take"),
    ([node("Gemm", ["W1", "x"], "y")], r"Gemm \(node 'the_y'\) must multiply its input by"),
    ([node("Gemm", ["x", "x"], "y")], r"Gemm \(node 'the_y'\) must multiply its input by"),
    ([node("MatMul", ["W1", "x"], "y")], r"MatMul \(node 'the_y'\) must have its input on the"),
    ([node("MatMul", ["x", "b1"], "y")], "the weights of 'the_y' must be a matrix"),
    ([node("Cast", ["x"], "i", to=TensorProto.INT64), node("Cast", ["i"], "f", to=1),
      node("MatMul", ["f", "W1"], "y")], r"Cast \(node 'the_i'\) makes whole numbers"),
    ([node("MatMul", ["x", "W1"], "a"), node("Flatten", ["a"], "y", axis=0)],
     r"Flatten \(node 'the_y'\) has axis 0, which changes the rows"),
    ([node("MatMul", ["x", "W1"], "a"), node("Flatten", ["a"], "y", axis=2)],
     r"Flatten \(node 'the_y'\) has axis 2, which changes the rows"),
    ([node("MatMul", ["x", "W1"], "a"), node("Add", ["a", "c1"], "y")],
     r"Add \(node 'the_y'\) must add a bias"),
    ([node("Gemm", ["x", "W1", "c1"], "y")],
     r"Gemm \(node 'the_y'\) has a bias of shape \(7, 1\) for 7 outputs"),
])
def test_unsupported_operators_are_named_with_their_node(tmp_path, weights, nodes, message):
    weights["c1"] = weights["b1"][:, None]  # another number per row, not per output
    path = written(tmp_path / "m.onnx", nodes, weights)
    with pytest.raises(ValueError, match=message or r"m\.onnx: not a readable ONNX file .*Gelu2"):
        sl.from_onnx(path)


def test_an_output_that_is_not_the_end_of_the_chain_is_refused(tmp_path, weights):
    path = written(tmp_path / "m.onnx", [node("MatMul", ["x", "W1"], "y"),
                                         node("Relu", ["y"], "z")], weights, output="y")
    with pytest.raises(ValueError, match="its output 'y' is not what its last node gives"):
        sl.from_onnx(path)


def test_several_inputs_are_refused(tmp_path, weights):
    path = written(tmp_path / "m.onnx", [node("MatMul", ["x", "W1"], "y")],
                   weights, inputs=("x", "z"))
    with pytest.raises(ValueError, match="has 2 inputs and 1 outputs"):
        sl.from_onnx(path)


@pytest.mark.parametrize("bad, error, message", [
    (lambda w: w.astype(np.float16), TypeError, "W1 must be float32, got float16"),
    (lambda w: np.where(w > 1, np.nan, w).astype(np.float32), ValueError,
     r"the_a\.weight.*(nan|finite)"),
    (lambda w: w[:, :3].copy(), ValueError, r"Add \(node 'the_b'\) must add a bias|takes 7 inputs"),
])
def test_bad_weights_are_refused(tmp_path, weights, bad, error, message):
    weights["W1"] = bad(weights["W1"])
    path = written(tmp_path / "m.onnx", CHAIN, weights)
    with pytest.raises(error, match=message):
        sl.from_onnx(path)


def test_damaged_files_are_refused(tmp_path, weights):
    path = written(tmp_path / "m.onnx", CHAIN, weights)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"m\.onnx: not a readable ONNX file"):
        sl.from_onnx(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        sl.from_onnx(tmp_path / "missing.onnx")


def test_a_missing_package_gives_the_install_command(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'type: pip install "sparselsh-nn\[onnx\]"'):
        sl.from_onnx(tmp_path / "m.onnx")
