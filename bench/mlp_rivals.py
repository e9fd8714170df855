"""An MLP of PyTorch as its users run it: eager, compiled, in fewer bits, and by ONNX Runtime.

Each function returns a callable that takes prepared inputs and returns the ids (n, k) of the k
largest outputs. A contender of bench/pretrained.py and bench/small.py.
"""
import copy
from pathlib import Path

import numpy as np


def forward(model, k):
    """The k largest outputs of a network of PyTorch; inputs are a tuple of tensors.

    One tensor is a dense input; three are ids, offsets and weights for an EmbeddingBag.
    """
    import torch

    def call(inputs):
        if len(inputs) == 1:
            z = model(inputs[0])
        else:
            z = model[1:](model[0](inputs[0], inputs[1], per_sample_weights=inputs[2]))
        return torch.topk(z, k)

    return call


def inferring(call):
    """The ids that a function of tensors returns, computed in inference mode."""
    import torch

    def ids(inputs):
        with torch.inference_mode():
            return call(inputs)[1].numpy()

    return ids


def eager(model, k):
    return inferring(forward(model, k))


def compiled(model, k):
    """torch.compile with its defaults: after a second shape it compiles for any shape."""
    import torch

    return inferring(torch.compile(forward(model, k)))


def bfloat16(model, k):
    """Weights and activations in bfloat16; floating-point inputs must be, too."""
    import torch

    return eager(copy.deepcopy(model).to(torch.bfloat16), k)


def int8(model, k):
    """PyTorch's dynamic quantization of the Linear layers."""
    import torch

    return eager(torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear},
                                                        dtype=torch.qint8), k)


# --- ONNX Runtime -------------------------------------------------------------------------------


def onnx_file(model, n_features, k, path):
    """Write a network of Linear, activations and EmbeddingBag, with TopK behind it, as ONNX."""
    import onnx
    import torch
    from onnx import TensorProto, helper, numpy_helper

    def value_info(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    nodes, constants, value = [], [], "x"
    inputs = [value_info("x", TensorProto.FLOAT, ["n", n_features])]
    for i, module in enumerate(model):
        name = f"v{i}"
        if isinstance(module, torch.nn.ReLU):
            nodes.append(helper.make_node("Relu", [value], [name]))
        elif isinstance(module, torch.nn.GELU):  # ONNX Runtime makes one node of these
            constants += [numpy_helper.from_array(np.float32(c), f"{what}{i}")
                          for what, c in (("root", 2**0.5), ("one", 1), ("half", 0.5))]
            nodes += [helper.make_node("Div", [value, f"root{i}"], [f"d{i}"]),
                      helper.make_node("Erf", [f"d{i}"], [f"e{i}"]),
                      helper.make_node("Add", [f"e{i}", f"one{i}"], [f"f{i}"]),
                      helper.make_node("Mul", [value, f"f{i}"], [f"g{i}"]),
                      helper.make_node("Mul", [f"g{i}", f"half{i}"], [name])]
        elif isinstance(module, torch.nn.Linear):
            weight = np.ascontiguousarray(module.weight.detach().numpy().T)
            constants += [numpy_helper.from_array(weight, f"w{i}"),
                          numpy_helper.from_array(module.bias.detach().numpy(), f"b{i}")]
            nodes += [helper.make_node("MatMul", [value, f"w{i}"], [f"p{i}"]),
                      helper.make_node("Add", [f"p{i}", f"b{i}"], [name])]
        else:
            inputs = [value_info("ids", TensorProto.INT64, ["n", "m"]),
                      value_info("weights", TensorProto.FLOAT, ["n", 1, "m"])]
            constants += [numpy_helper.from_array(module.weight.detach().numpy(), f"w{i}"),
                          numpy_helper.from_array(np.array([1]), "axis")]
            nodes += [helper.make_node("Gather", [f"w{i}", "ids"], ["rows"]),
                      helper.make_node("MatMul", ["weights", "rows"], ["bags"]),
                      helper.make_node("Squeeze", ["bags", "axis"], [name])]
        value = name
    constants.append(numpy_helper.from_array(np.array([k]), "k"))
    nodes.append(helper.make_node("TopK", [value, "k"], ["scores", "best"]))
    outputs = [value_info("scores", TensorProto.FLOAT, ["n", k]),
               value_info("best", TensorProto.INT64, ["n", k])]
    graph = helper.make_graph(nodes, "mlp", inputs, outputs, constants)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    file.ir_version = 9
    onnx.save(file, path)
    return path


def onnx_int8_file(path):
    """Quantize the weights of an ONNX file; return the path of the new file."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = Path(path).with_suffix(".int8.onnx")
    quantize_dynamic(path, small, weight_type=QuantType.QInt8, per_channel=True,
                     op_types_to_quantize=["MatMul"])
    return small


def onnx_session(path, threads):
    """Answer with ONNX Runtime; inputs are a dict of arrays."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["scores", "best"], inputs)[1]
