"""InferenceNetwork: trained networks, converted to answer faster.

    readers ─► Affine ─► _conversion ─► InferenceNetwork ─► answers
    torch, onnx,         measures       ServedLayers, each
    weight files         plans          with a plan

    _network            InferenceNetwork: inference by the plans of its layers
    _layer              ServedLayer: a layer, forward only, by one of three plans
    _conversion         chooses the plan of each layer by measurement
    _report             ConversionReport: what was chosen, why, and what it gains
    _file               a converted network as a file
    _timing             how long calls take
    _accelerated_linear a layer inside a PyTorch model that an index serves
    readers             trained networks of others as chains of affine layers
"""
from ._conversion import MIN_GAIN, convert
from ._network import InferenceNetwork
from ._report import TIMED_ROWS, ConversionReport, LayerReport
from ._timing import fastest, seconds_of_rounds
from .readers import Affine, build_module, read_layers, read_module, read_onnx, require_torch, to_numpy

__all__ = ["ConversionReport", "InferenceNetwork"]
