"""ONNX models with a trunk: cut at their last wide layer, and run as a whole."""
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import sparselsh as sl  # noqa: E402

N_OUT = 3000
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class Model:
    """Nodes and constants of a graph, and the model in ONNX Runtime."""

    def __init__(self, rng, opset=17):
        self.rng, self.opset, self.nodes, self.constants = rng, opset, [], {}
        self.inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", 3, 8, "t"])]
        self.outputs = []

    def node(self, op, inputs, output, **attributes):
        outputs = output if isinstance(output, list) else [output]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"the_{outputs[0]}",
                                           **attributes))

    def constant(self, name, *shape, values=None):
        array = self.rng.standard_normal(shape).astype(np.float32) if values is None else values
        self.constants[name] = np.asarray(array)
        return name

    def output(self, name, kind=FLOAT, rank=3):
        axes = [f"{name}{i}" for i in range(rank)]
        self.outputs.append(helper.make_tensor_value_info(name, kind, axes))

    def trunk(self):
        """A convolution over the whole height: rows (n, t, 16) as `h`."""
        self.constant("kernel", 16, 3, 8, 3)
        self.node("Conv", ["x", "kernel"], "c", pads=[0, 1, 0, 1])
        self.node("Sigmoid", ["c"], "s")
        self.constant("two", values=np.array([2], np.int64))
        squeezed = {"axes": [2]} if self.opset < 13 else {}
        self.node("Squeeze", ["s"] if squeezed else ["s", "two"], "q", **squeezed)
        self.node("Transpose", ["q"], "h", perm=[0, 2, 1])

    def wide(self, rows="h", output="z", n_in=16, scale=1.0):
        """MatMul and Add, with some outputs larger than others."""
        W = self.rng.standard_normal((n_in, N_OUT)) * self.rng.gamma(3, scale / 3, N_OUT)
        self.constant("W", values=W.astype(np.float32))
        self.constant("b", N_OUT)
        self.node("MatMul", [rows, "W"], "m")
        self.node("Add", ["m", "b"], output)

    def save(self, path):
        arrays = [numpy_helper.from_array(a, name) for name, a in self.constants.items()]
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, arrays)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 8
        helper.set_model_props(model, {"character": "a\nb"})
        onnx.save(model, path)
        return path


def run(model, *inputs, names=("x",), fuse=True):
    data = model if isinstance(model, bytes) else str(model)
    options = ort.SessionOptions()
    if not fuse:  # of quantized weights it makes products of fewer bits
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, inputs, strict=True)))


def images(rng, n=3, widths=(40, 56, 31, 48)):
    """Inputs of several widths."""
    return [rng.standard_normal((n, 3, 8, w)).astype(np.float32) for w in widths]


@pytest.fixture
def softmax(rng, tmp_path):
    model = Model(rng)
    model.trunk()
    model.wide()
    model.node("Identity", ["z"], "i")
    model.node("Softmax", ["i"], "p", axis=-1)
    model.output("p")
    return model.save(tmp_path / "m.onnx")


def same_best(got, want):
    """At most one row in a hundred differs: the index finds 0.99 of the five best."""
    assert got.shape == want.shape
    assert (got == want).mean() >= 0.99


def test_the_outputs_are_those_of_onnx_runtime(rng, softmax):
    net = sl.from_onnx(softmax, images(rng), random_state=0, n_threads=1)
    assert net.inputs == ["x"] and net.outputs == ["p"] and net.n_labels == N_OUT
    assert net.metadata == {"character": "a\nb"}
    for x in images(rng, 2):
        want, = run(softmax, x)
        for got in (net(x), net(x=x), net({"x": x})):
            # probabilities of sums of 16 products below 30
            np.testing.assert_allclose(got[0], want, rtol=1e-3, atol=1e-7)
        same_best(net.predict(x), want.argmax(-1))
        np.testing.assert_array_equal(net.predict(x, exact=True), want.argmax(-1))
        ids, scores = net.topk(x, 4)
        assert ids.shape == scores.shape == (*want.shape[:2], 4)
        assert (np.diff(scores, axis=-1) <= 0).all()


def test_the_report_says_what_the_layer_can_bring_at_most(rng, softmax):
    net = sl.from_onnx(softmax, images(rng), random_state=0)
    layer, = net.report.layers
    assert layer.name == "the_m" and layer.shape == (N_OUT, 16)
    share = net.report.fraction_of_time(layer, 1)
    assert 0 < share < 1 and net.report.microseconds_outside > 0
    assert f"the_m: of the time of the whole network, dense: {share:.1%} at 1" in str(net.report)
    assert "the rest of the network takes" in str(net.report)
    assert "'z'" in repr(net) and "the_m: linear 16 -> 3000" in repr(net)


def test_the_whole_model_is_given_back_bit_by_bit(rng, softmax):
    net = sl.from_onnx(softmax, images(rng), random_state=0)
    assert net.to_onnx() == onnx.load(softmax)
    assert net.to_onnx() == onnx.load(softmax)  # the first call has changed nothing


def test_saved_and_loaded_networks_give_the_same_bits(rng, softmax, tmp_path):
    net = sl.from_onnx(softmax, images(rng), random_state=0, n_threads=1)
    net.save(tmp_path / "net.safetensors")
    again = sl.OnnxNetwork.load(tmp_path / "net.safetensors", n_threads=2)
    x = images(rng)[1]
    for a, b in zip(net.topk(x, 3), again.topk(x, 3), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.to_onnx() == onnx.load(softmax)
    assert again.report.to_dict() == net.report.to_dict()
    content = (tmp_path / "net.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        sl.OnnxNetwork.load(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"not one of sparselsh\.inference"):
        sl.InferenceNetwork.load(tmp_path / "net.safetensors")


def test_without_calibration_the_layer_stays_dense(rng, softmax):
    net = sl.from_onnx(softmax)
    x = images(rng)[0]
    np.testing.assert_array_equal(net.predict(x), run(softmax, x)[0].argmax(-1))
    assert net.report.layers[0].plan == {"single": "dense", "batch": "dense"}


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("first", ["Softmax", "LogSoftmax", "Sigmoid", None])
def test_argmax_needs_the_best_outputs_alone(rng, tmp_path, monkeypatch, first, keepdims):
    model = Model(rng)
    model.trunk()
    model.wide(scale=0.2)  # Sigmoid gives 1 for large ones
    model.node("Transpose", ["z"], "t", perm=[1, 2, 0])  # classes in the middle
    if first:
        model.node(first, ["t"], "p", **({} if first == "Sigmoid" else {"axis": 1}))
    model.node("ArgMax", ["p" if first else "t"], "y", axis=1, keepdims=keepdims)
    model.output("y", INT64, 2 + keepdims)
    path = model.save(tmp_path / "m.onnx")
    net = sl.from_onnx(path, images(rng), random_state=0)
    monkeypatch.setattr(sl.OnnxNetwork, "_by_tail", None)  # the tail is not run
    x = images(rng)[1]
    got, want = net(x)[0], run(path, x)[0]
    assert got.dtype == want.dtype
    same_best(got, want)


def test_topk_needs_the_best_outputs_alone(rng, tmp_path, monkeypatch):
    model = Model(rng)
    model.trunk()
    model.wide()
    model.constant("k", values=np.array([4], np.int64))
    model.node("TopK", ["z", "k"], ["values", "ids"], axis=-1)
    model.output("ids", INT64)
    model.output("values")
    path = model.save(tmp_path / "m.onnx")
    net = sl.from_onnx(path, images(rng), random_state=0)
    monkeypatch.setattr(sl.OnnxNetwork, "_by_tail", None)
    x = images(rng)[1]
    (ids, values), (want_ids, want_values) = net(x), run(path, x)
    same_best(ids[..., 0], want_ids[..., 0])
    # the recall of the four best, of an index for 0.99 of the five best
    assert (ids[..., None] == want_ids[..., None, :]).any(-1).mean() > 0.97
    same = ids == want_ids
    np.testing.assert_allclose(values[same], want_values[same], rtol=0, atol=1e-4)


def test_topk_of_probabilities_runs_the_tail(rng, tmp_path):
    model = Model(rng)
    model.trunk()
    model.wide()
    model.node("Softmax", ["z"], "p")
    model.constant("k", values=np.array([4], np.int64))
    model.node("TopK", ["p", "k"], ["values", "ids"], axis=-1)
    model.output("values")
    model.output("ids", INT64)
    path = model.save(tmp_path / "m.onnx")
    net = sl.from_onnx(path, images(rng), random_state=0)
    x = images(rng)[1]
    for got, want in zip(net(x), run(path, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-7)


def test_old_networks_reshape_their_outputs_by_values_of_the_trunk(rng, tmp_path):
    model = Model(rng, opset=11)
    model.trunk()
    model.node("Transpose", ["h"], "steps", perm=[1, 0, 2])  # time, batch, 16
    model.node("Shape", ["steps"], "shape")
    for i, name in enumerate(("time", "batch")):
        model.constant(f"i{i}", values=np.array([i], np.int64))
        model.node("Gather", ["shape", f"i{i}"], name, axis=0)
    model.constant("rows_shape", values=np.array([-1, 16], np.int64))
    model.node("Reshape", ["steps", "rows_shape"], "rows")
    model.constant("W", N_OUT, 16)
    model.constant("b", N_OUT)
    model.node("Gemm", ["rows", "W", "b"], "z", transB=1)
    model.constant("width", values=np.array([N_OUT], np.int64))
    model.node("Concat", ["time", "batch", "width"], "target", axis=0)
    model.node("Reshape", ["z", "target"], "y")
    model.output("y")
    path = model.save(tmp_path / "m.onnx")
    net = sl.from_onnx(path, images(rng), random_state=0)
    x = images(rng)[1]
    want, = run(path, x)
    np.testing.assert_allclose(net(x)[0], want, rtol=0, atol=1e-4)
    same_best(net.predict(x), want.argmax(-1))
    assert net.to_onnx() == onnx.load(path)

    read = net.ctc(x, blank=7, time_axis=0, exact=True)
    characters = [chr(0x4e00 + i) for i in range(N_OUT)]
    for ids, text, best in zip(read, net.ctc(x, blank=7, time_axis=0, characters=characters,
                                             exact=True), want.argmax(-1).T, strict=True):
        expected = [b for i, b in enumerate(best) if (i == 0 or best[i - 1] != b) and b != 7]
        assert ids.tolist() == expected
        assert text == "".join(characters[i] for i in expected)


def test_softmax_of_old_versions_over_two_axes_runs_the_tail(rng, tmp_path):
    model = Model(rng, opset=11)
    model.trunk()
    model.wide()
    model.node("Softmax", ["z"], "p")  # over the axes 1 and 2
    model.node("ArgMax", ["p"], "y", axis=2, keepdims=0)
    model.output("y", INT64, 2)
    path = model.save(tmp_path / "m.onnx")
    net = sl.from_onnx(path, images(rng), random_state=0)
    x = images(rng)[1]
    np.testing.assert_array_equal(net(x)[0], run(path, x)[0])
    same_best(net.predict(x), net.predict(x, exact=True))


def test_a_table_that_the_embedding_shares_is_transposed(rng, tmp_path):
    model = Model(rng)
    model.inputs = [helper.make_tensor_value_info(name, INT64, ["n", "t"])
                    for name in ("ids", "places")]
    model.constant("table", N_OUT, 16)
    model.constant("position", 64, 16)
    model.node("Gather", ["table", "ids"], "e")
    model.node("Gather", ["position", "places"], "o")
    model.node("Add", ["e", "o"], "sum")
    model.node("Tanh", ["sum"], "h")
    model.node("Transpose", ["table"], "turned", perm=[1, 0])
    model.node("MatMul", ["h", "turned"], "z")
    model.output("z")
    model.output("h")
    path = model.save(tmp_path / "m.onnx")
    ids, places = rng.integers(0, N_OUT, (8, 30)), np.tile(np.arange(30), (8, 1))
    net = sl.from_onnx(path, (ids, places), random_state=0)
    want, h = run(path, ids, places, names=("ids", "places"))
    for got in (net(ids, places), net(ids, places=places), net({"places": places, "ids": ids})):
        np.testing.assert_allclose(got[0], want, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(got[1], h)
    same_best(net.predict((ids, places)), want.argmax(-1))
    same_best(net.predict({"ids": ids, "places": places}), want.argmax(-1))
    assert net.to_onnx() == onnx.load(path)
    with pytest.raises(ValueError, match="the input 'places' is missing; the model has ids, pl"):
        net(ids)
    with pytest.raises(ValueError, match="the model has no further input 'x'"):
        net(ids, places, x=ids)
    with pytest.raises(TypeError, match="ids must be int64, got float64"):
        net(ids / 2, places)
    with pytest.raises(ValueError, match="ids must have 2 axes, got shape"):
        net(ids[0], places)
    with pytest.raises(ValueError, match="the model has 2 inputs"):
        net(ids, places, ids)


def test_relu_layers_before_the_wide_one_are_converted_with_it(rng, tmp_path):
    model = Model(rng)
    model.trunk()
    model.constant("W1", 16, 40)
    model.constant("b1", 40)
    model.node("MatMul", ["h", "W1"], "a")
    model.node("Add", ["b1", "a"], "d")
    model.node("Relu", ["d"], "r")
    model.wide("r", n_in=40)
    model.node("Softmax", ["z"], "p")
    model.output("p")
    path = model.save(tmp_path / "m.onnx")
    net = sl.from_onnx(path, images(rng), error=0, random_state=0)
    assert [layer.name for layer in net.report.layers] == ["the_a", "the_m"]
    x = images(rng)[1]
    np.testing.assert_allclose(net(x)[0], run(path, x)[0], rtol=1e-3, atol=1e-7)
    assert net.to_onnx() == onnx.load(path)


def read_twice(model):
    model.node("Relu", ["a"], "r")
    model.node("ReduceMax", ["a"], "largest", keepdims=0)
    model.output("largest", rank=0)


def of_a_product(model):
    model.constant("two_of", values=np.float32(2))
    model.node("Mul", ["a", "two_of"], "d")
    model.node("Relu", ["d"], "r")


def of_a_sum_of_two(model):
    model.node("MatMul", ["h", "W1"], "a2")
    model.node("Add", ["a", "a2"], "d")
    model.node("Relu", ["d"], "r")


def past_an_identity(model):
    model.node("Identity", ["a"], "i")
    model.node("Relu", ["i"], "i2")
    model.node("Identity", ["i2"], "r")


@pytest.mark.parametrize("relu", [read_twice, of_a_product, of_a_sum_of_two, past_an_identity])
def test_layers_before_the_wide_one_stay_where_more_hangs_on_them(rng, tmp_path, relu):
    model = Model(rng)
    model.trunk()
    model.constant("W1", 16, 40)
    model.node("MatMul", ["h", "W1"], "a")
    relu(model)
    model.wide("r", n_in=40)
    model.output("z")
    path = model.save(tmp_path / "m.onnx")
    net = sl.from_onnx(path, images(rng), error=0, random_state=0)
    names = ["the_a", "the_m"] if relu is past_an_identity else ["the_m"]
    assert [layer.name for layer in net.report.layers] == names
    x = images(rng)[1]
    for got, want in zip(net(x), run(path, x), strict=True):
        # sums of 40 products below 100
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("opset", [11, 17])
def test_axes_of_one_are_taken_off_and_put_on_behind_the_layer(rng, tmp_path, opset):
    model = Model(rng, opset)
    model.trunk()
    model.wide()
    old = {"axes": [1]} if opset < 13 else {}
    model.constant("one", values=np.array([1], np.int64))
    model.node("Unsqueeze", ["z"] if old else ["z", "one"], "u", **old)
    model.node("Squeeze", ["u"] if old else ["u", "one"], "s2", **old)
    model.node("ArgMax", ["s2"], "best", axis=-1, keepdims=0)
    model.output("best", INT64, rank=2)
    path = model.save(tmp_path / "m.onnx")
    net = sl.from_onnx(path, images(rng), random_state=0)
    x = images(rng)[2]
    same_best(net(x)[0], run(path, x)[0])


def test_axes_that_the_input_gives_are_left_to_the_runtime(rng, tmp_path):
    model = Model(rng)
    model.trunk()
    model.wide()
    model.node("Shape", ["z"], "shape")
    model.constant("zero", values=np.array([0], np.int64))
    model.constant("one", values=np.array([1], np.int64))
    model.node("Slice", ["shape", "zero", "one"], "n")  # the number of images, 1 here
    model.node("Unsqueeze", ["z", "n"], "u")
    model.output("u", rank=4)
    path = model.save(tmp_path / "m.onnx")
    net = sl.from_onnx(path, images(rng, 1), random_state=0)
    x = images(rng, 1)[1]
    same_best(net(x)[0].argmax(-1), run(path, x)[0].argmax(-1))


def test_graphs_inside_of_nodes_may_read_the_scores(rng, tmp_path):
    model = Model(rng)
    model.trunk()
    model.wide()
    same = helper.make_graph([helper.make_node("Identity", ["z"], ["kept"])], "same", [],
                             [helper.make_tensor_value_info("kept", FLOAT, None)])
    twice = helper.make_graph([helper.make_node("Add", ["z", "z"], ["double"])], "twice", [],
                              [helper.make_tensor_value_info("double", FLOAT, None)])
    model.constant("yes", values=np.array(True))
    model.node("If", ["yes"], "y", then_branch=twice, else_branch=same)
    model.output("y")
    path = model.save(tmp_path / "m.onnx")
    net = sl.from_onnx(path, images(rng), random_state=0)
    x = images(rng)[0]
    want, = run(path, x)
    same_best(net(x)[0].argmax(-1), want.argmax(-1))
    assert net.to_onnx() == onnx.load(path)


def test_dynamic_quantization_of_another_kind_is_refused_by_name(rng, softmax, tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(softmax, tmp_path / "q.onnx", op_types_to_quantize=["MatMul"])
    model = onnx.load(tmp_path / "q.onnx")
    product, = (n for n in model.graph.node if n.op_type == "MatMulInteger")
    cast, = (n for n in model.graph.node if product.output[0] in n.input)
    model.graph.output.append(helper.make_tensor_value_info(cast.output[0], FLOAT,
                                                             ["a", "b", "c"]))
    onnx.save(model, tmp_path / "r.onnx")
    with pytest.raises(ValueError, match=r"r\.onnx: MatMulInteger .* quantized in a way that is"):
        sl.from_onnx(tmp_path / "r.onnx", images(rng), random_state=0)


def test_dynamically_quantized_layers_are_taken_back(rng, softmax, tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(softmax, tmp_path / "q.onnx", op_types_to_quantize=["MatMul"])
    x = images(rng)[1]
    net = sl.from_onnx(tmp_path / "q.onnx", images(rng), random_state=0)
    assert net.report.layers[0].shape == (N_OUT, 16)
    want = run(softmax, x)[0].argmax(-1)
    # weights of 8 bits: more often the best output of float32 than not, by far
    assert (net.predict(x, exact=True) == want).mean() > 0.9
    same_best(net.predict(x), net.predict(x, exact=True))
    assert net.to_onnx() == onnx.load(tmp_path / "q.onnx")


def of_a_constant_node(model, W):
    model.nodes.append(helper.make_node("Constant", [], ["w"], name="the_constant",
                                        value=numpy_helper.from_array(W)))


def transposed(model, W):
    model.constant("v", values=np.ascontiguousarray(W.T))
    model.node("Transpose", ["v"], "w")


def transposed_by_axes(model, W):
    model.constant("v", values=np.ascontiguousarray(W.T))
    model.node("Identity", ["v"], "u")
    model.node("Transpose", ["u"], "w", perm=[1, 0])


def of_half_precision(model, W):
    model.constant("v", values=W.astype(np.float16))
    model.node("Cast", ["v"], "w", to=FLOAT)


def quantized(scale_shape, axis=1, zero=True, block_size=0):
    def make(model, W):
        rng = np.random.default_rng(0)
        model.constant("bytes", values=rng.integers(-127, 128, W.shape).astype(np.int8))
        model.constant("scale", values=(0.01 * rng.gamma(3, 0.3, scale_shape)).astype(np.float32))
        inputs = ["bytes", "scale"]
        if zero:
            model.constant("zeros", values=rng.integers(-3, 4, scale_shape).astype(np.int8))
            inputs.append("zeros")
        block = {"block_size": block_size} if block_size else {}
        model.node("DequantizeLinear", inputs, "w", axis=axis, **block)
    return make


@pytest.mark.parametrize("make", [
    of_a_constant_node, transposed, transposed_by_axes, of_half_precision, quantized(()),
    quantized((), zero=False), quantized(N_OUT), quantized(16, axis=0, zero=False),
    quantized((4, N_OUT), axis=0, block_size=4), quantized((16, N_OUT // 1000), block_size=1000)],
    ids=["Constant", "Transpose", "Identity and Transpose", "Cast", "tensor", "tensor without zero",
         "columns", "rows without zero", "blocks of rows", "blocks of columns"])
def test_weights_that_nodes_make_of_constants_are_read(rng, tmp_path, make):
    model = Model(rng, opset=21)
    model.trunk()
    make(model, rng.standard_normal((16, N_OUT)).astype(np.float32))
    model.node("MatMul", ["h", "w"], "z")
    model.output("z")
    path = model.save(tmp_path / "m.onnx")
    net = sl.from_onnx(path, images(rng), random_state=0, n_threads=1)
    x = images(rng)[0]
    want, = run(path, x, fuse=False)
    _, scores = net.topk(x, 5, exact=True)
    # sums of 16 products of at most some tens, and halves that both round alike
    np.testing.assert_allclose(scores, -np.sort(-want, axis=-1)[..., :5], rtol=1e-4, atol=1e-3)
    net.exact_outputs = True
    np.testing.assert_allclose(net(x)[0], want, rtol=1e-4, atol=1e-3)


def sum_of_constants(model, W):
    model.constant("v", values=W)
    model.node("Add", ["v", "v"], "w")
    model.node("MatMul", ["h", "w"], "z")


def scaled_product(model, W):
    model.constant("w", values=W)
    model.node("Squeeze", ["h", "zero"], "rows")
    model.node("Gemm", ["rows", "w"], "z", alpha=2.0)


def bias_of_the_input(model, W):
    model.constant("w", values=W)
    model.node("Squeeze", ["h", "zero"], "rows")
    model.node("ReduceMax", ["rows"], "largest", keepdims=0)
    model.node("Gemm", ["rows", "w", "largest"], "z")


def weight_of_the_input(model, W):
    model.node("Squeeze", ["h", "zero"], "rows")
    model.node("MatMul", ["h", "rows"], "z")


@pytest.mark.parametrize("make, message", [
    (weight_of_the_input, "no MatMul or Gemm with a constant weight|is no MatMul or Gemm"),
    (sum_of_constants, "no MatMul or Gemm with a constant weight|is no MatMul or Gemm"),
    (scaled_product, "has transA, alpha or beta, which are not supported"),
    (bias_of_the_input, "has a bias that is no constant"),
])
def test_layers_that_are_not_what_they_seem_are_refused_by_name(rng, tmp_path, make, message):
    model = Model(rng)
    model.trunk()
    model.constant("zero", values=np.array([0], np.int64))
    make(model, rng.standard_normal((16, N_OUT)).astype(np.float32))
    model.output("z", rank=2)
    path = model.save(tmp_path / "m.onnx")
    for head in ("auto", "the_z"):
        with pytest.raises(ValueError, match=message):
            sl.from_onnx(path, images(rng, 1), head=head)


@pytest.mark.parametrize("make", [
    quantized(7), quantized((4, N_OUT), axis=0, block_size=3), quantized((4, 7), 0, block_size=4),
    quantized((4, N_OUT), axis=0, block_size=-4), quantized((4, N_OUT), axis=5, block_size=4)],
    ids=["too few", "too few blocks", "too few columns", "negative", "no axis"])
def test_scales_that_do_not_fit_are_refused_by_name(rng, tmp_path, make):
    model = Model(rng, opset=21)
    model.trunk()
    make(model, np.zeros((16, N_OUT), np.float32))
    model.node("MatMul", ["h", "w"], "z")
    model.output("z")
    with pytest.raises(ValueError, match=r"m\.onnx: the scales of 'w' do not fit it .*export it"):
        sl.from_onnx(model.save(tmp_path / "m.onnx"), images(rng, 1))


def test_a_damaged_constant_is_named(rng, softmax):
    model = onnx.load(softmax)
    weight = next(a for a in model.graph.initializer if a.name == "W")
    weight.raw_data = weight.raw_data[:-8]
    onnx.save(model, softmax)
    with pytest.raises(ValueError, match=r"m\.onnx: .*tensor name: W.*export it again"):
        sl.from_onnx(softmax)


def test_half_precision_is_refused_and_upcast(rng, tmp_path):
    model = Model(rng)
    model.trunk()
    model.node("Cast", ["h"], "half", to=TensorProto.FLOAT16)
    model.constant("W", values=rng.standard_normal((16, N_OUT)).astype(np.float16))
    model.node("MatMul", ["half", "W"], "z")
    model.output("z", TensorProto.FLOAT16)
    path = model.save(tmp_path / "m.onnx")
    with pytest.raises(TypeError, match=r"W must be float32, got float16; .*upcast=True"):
        sl.from_onnx(path)
    net = sl.from_onnx(path, images(rng), upcast=True, random_state=0)
    x = images(rng)[1]
    got, want = net(x)[0], run(path, x)[0]
    assert got.dtype == np.float16
    # sums of 16 products below 10, rounded to 11 bits
    np.testing.assert_allclose(got, want, rtol=0, atol=0.1)


def small(rng, tmp_path, n_out=50):
    model = Model(rng)
    model.trunk()
    model.constant("W", 16, n_out)
    model.node("MatMul", ["h", "W"], "z")
    model.output("z")
    return model.save(tmp_path / "small.onnx")


@pytest.mark.parametrize("head", ["the_z", "z", "W"])
def test_a_layer_can_be_named(rng, tmp_path, head):
    path = small(rng, tmp_path)
    net = sl.from_onnx(path, images(rng), head=head)
    x = images(rng)[0]
    np.testing.assert_allclose(net(x)[0], run(path, x)[0], rtol=0, atol=1e-4)


def test_models_without_a_wide_layer_are_refused_by_name(rng, tmp_path):
    path = small(rng, tmp_path)
    with pytest.raises(ValueError, match=r"Conv \(node 'the_c'\) .*has no MatMul or Gemm with a "
                       r"constant weight and at least 2,000 outputs; name one by head=, the last "
                       r"ones are 'the_z' \(50 outputs\)"):
        sl.from_onnx(path)
    with pytest.raises(ValueError, match=r"head='the_c' is no MatMul or Gemm .*'the_z'"):
        sl.from_onnx(path, head="the_c")
    with pytest.raises(TypeError, match="head must be 'auto' or the name of a node, got 3"):
        sl.from_onnx(path, head=3)

    model = Model(rng)
    model.trunk()
    model.constant("W", N_OUT, 16)
    model.node("Gemm", ["h", "W"], "z", transB=1, alpha=0.5)
    model.output("z")
    with pytest.raises(ValueError, match=r"Gemm \(node 'the_z'\) has transA, alpha or beta"):
        sl.from_onnx(model.save(tmp_path / "m.onnx"))


def test_too_few_rows_are_refused(rng, softmax):
    with pytest.raises(ValueError, match="calibration must give the layers at least two rows"):
        sl.from_onnx(softmax, [])


def test_bad_ctc_arguments_are_refused(rng, softmax):
    net, x = sl.from_onnx(softmax), images(rng)[0]
    with pytest.raises(ValueError, match="characters must have one entry per output, 3000, got 2"):
        net.ctc(x, characters="ab")
    with pytest.raises(ValueError, match="blank must be"):
        net.ctc(x, blank=N_OUT)
    with pytest.raises(ValueError, match="time_axis must be"):
        net.ctc(x, time_axis=2)


def test_a_missing_runtime_gives_the_install_command(monkeypatch, softmax):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'type: pip install "sparselsh-nn\[onnx\]"'):
        sl.from_onnx(softmax)


def test_the_commands_convert_and_time_a_model(rng, softmax, tmp_path, capsys):
    from sparselsh.cli import main

    np.savez(tmp_path / "X.npz", *images(rng))  # numbered arrays, one per call
    out = str(tmp_path / "net.safetensors")
    assert main(["convert", str(softmax), "--calibration", str(tmp_path / "X.npz"), "-o", out]) == 0
    assert "the_m: of the time of the whole network" in capsys.readouterr().out
    assert main(["serve-bench", out, "--queries", str(tmp_path / "X.npz")]) == 0
    assert "whole network:" in (text := capsys.readouterr().out) and "4 calls, 525 rows" in text
    assert main(["serve-bench", out]) == 2
    assert "--queries: the network is a model with a trunk" in capsys.readouterr().err
    assert main(["convert", str(softmax), "--head", "the_c", "-o", out]) == 2
    assert "head='the_c' is no MatMul or Gemm" in capsys.readouterr().err


def test_a_file_with_an_array_per_input_is_one_call(tmp_path):
    from sparselsh.cli._serving import read_model_inputs

    np.savez(tmp_path / "one.npz", ids=np.arange(3), places=np.arange(4))
    np.savez(tmp_path / "calls.npz", **{f"x{i}": np.full(i, i) for i in (9, 10)})
    np.savez(tmp_path / "X.npz", X=np.arange(5))
    assert {name: a.tolist() for name, a in read_model_inputs(str(tmp_path / "one.npz")).items()} \
        == {"ids": [0, 1, 2], "places": [0, 1, 2, 3]}
    assert [len(a) for a in read_model_inputs(str(tmp_path / "calls.npz"))] == [9, 10]
    assert read_model_inputs(str(tmp_path / "X.npz")).tolist() == list(range(5))
