"""Readers of trained networks, which give chains of affine layers.

One module per source:

    affine        Affine, and the checks that the layers of a chain fit each other
    torch         PyTorch modules, and back
    onnx          ONNX files
    weight_files  safetensors and .npz files, by the names of the arrays
"""
from .affine import Affine
from .onnx import read_onnx
from .torch import build_module, read_module, require_torch, to_numpy
from .weight_files import read_layers
