"""InferenceNetwork: trained networks, converted for faster inference.

The path of a network, and the modules of the package:

    readers ─► Affine ─► _conversion ─► InferenceNetwork ─► outputs
    torch, onnx,         measures       ServedLayers, each
    weight files         plans          with a plan

    _inference_network  InferenceNetwork: how one is made of a network of this library
    _network            ServedNetwork, its base: inference by the plans of its layers
    _int8_outputs       the best outputs of a layer by products of 8 bits
    _rounding           weights in 8 bits, rounded for the inputs that they meet
    _refined            the refinement of a network: scores, weights in fewer bits
    _converted          ConvertedNetwork: what the next two share, the report and the file
    _estimator          converted models of scikit-learn, fastText and recommenders
    _onnx_network       OnnxNetwork: a model with a trunk, which ONNX Runtime runs
    _layer              ServedLayer: a layer, forward only, by one of three plans
    _conversion         chooses the plan of each layer by measurement
    _report             ConversionReport: what was chosen, why, and the gain
    _file               a converted network as a file
    _timing             how long calls take
    _accelerated_linear a layer of a PyTorch model whose outputs an index finds
    readers             networks of other libraries as chains of affine layers
"""
from typing import Any

from ._conversion import MIN_GAIN, convert
from ._estimator import (
    ESTIMATOR_FORMAT,
    FACTOR_FORMAT,
    TEXT_FORMAT,
    EstimatorNetwork,
    FactorNetwork,
    TextNetwork,
)
from ._file import FORMAT as INFERENCE_FORMAT
from ._inference_network import InferenceNetwork, checked_options, convert_trained
from ._int8_outputs import MAX_INPUTS as MAX_INT8_INPUTS
from ._network import load_served, save_served
from ._onnx_network import OnnxNetwork, convert_graph, is_onnx_network
from ._report import TIMED_ROWS, ConversionReport, LayerReport
from ._timing import fastest, seconds_of_rounds
from .readers import (
    ACTIVATIONS,
    NETWORK_FORMAT,
    Affine,
    NoChain,
    build_module,
    check_dense_hidden,
    cut,
    evaluation,
    format_of,
    is_fasttext,
    is_network_file,
    kept_refinement,
    load_onnx,
    natural,
    plain_type,
    read_estimator,
    read_fasttext,
    read_layers,
    read_module,
    read_network,
    read_onnx,
    refuse_replaced_forward,
    refuse_unusual_tensor,
    require_runtime,
    require_torch,
    to_numpy,
    weight_hooks,
)


def __getattr__(name: str) -> Any:
    if name in ("AcceleratedLinear", "HiddenLinear"):  # they need torch
        from . import _accelerated_linear

        return getattr(_accelerated_linear, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["ConversionReport", "EstimatorNetwork", "FactorNetwork", "InferenceNetwork",
           "OnnxNetwork", "TextNetwork"]
