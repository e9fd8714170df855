"""Readers of trained networks, which give chains of affine layers.

One module per source:

    affine           Affine, and the checks that the layers of a chain fit each other
    torch            PyTorch modules, and back
    refined_module   a refined network as a module
    onnx             ONNX files
    onnx_activations activations in them, in one node or several
    onnx_graph       ONNX files with more than affine layers, cut at the last wide one
    fasttext         supervised models of fastText
    sklearn          fitted classifiers of scikit-learn
    weight_files     safetensors and .npz files, by the names of the arrays
    network_files    networks of this library, as it saves them
"""
from .affine import ACTIVATIONS, Affine
from .fasttext import is_fasttext, read_fasttext, restored_fasttext
from .network_files import (
    TrainedNetwork,
    check_dense_hidden,
    format_of,
    is_network_file,
    read_network,
)
from .onnx import NoChain, read_onnx, require_runtime
from .onnx_graph import cut, load_onnx
from .sklearn import FittedClassifier, read_estimator
from .torch import (
    build_module,
    evaluation,
    kept_refinement,
    plain_type,
    read_module,
    refuse_replaced_forward,
    refuse_unusual_tensor,
    require_torch,
    to_numpy,
    weight_hooks,
)
from .weight_files import NETWORK_FORMAT, natural, read_layers
