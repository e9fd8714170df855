"""Readers of trained networks, which give chains of affine layers.

One module per source:

    affine          Affine, and the checks that the layers of a chain fit each other
    torch           PyTorch modules, and back
    refined_module  a refined network as a module
    onnx            ONNX files
    weight_files    safetensors and .npz files, by the names of the arrays
    network_files   networks of this library, as it saves them
"""
from .affine import Affine
from .network_files import TrainedNetwork, check_dense_hidden, is_network_file, read_network
from .onnx import read_onnx
from .torch import build_module, kept_refinement, read_module, require_torch, to_numpy
from .weight_files import NETWORK_FORMAT, read_layers
