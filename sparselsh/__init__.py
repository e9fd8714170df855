"""Neural networks on CPUs that compute only the neurons that locality-sensitive hashing finds.

    network ---- layers, losses ---- index ---- hashing, transforms ---- _core (compiled)
       |                                                                    |
       +-------- optim ------------------------------------------------ ----+

Weights are dense and activations sparse. See https://github.com/sparselsh/sparselsh for the guide.
"""
from . import calibration, callbacks, datasets, metrics, protocols, rebuild, schedules
from ._reproducible import get_reproducible, set_reproducible
from ._threads import get_num_threads, set_num_threads
from ._version import __version__
from .hashing import DWTA, CrossPolytope, MinHash, SimHash, choose_bits_and_tables
from .index import LSHIndex
from .inference import (
    ConversionReport,
    EstimatorNetwork,
    FactorNetwork,
    InferenceNetwork,
    OnnxNetwork,
    TextNetwork,
)
from .layers import Linear, LSHLinear
from .losses import BinaryCrossEntropy, MeanSquaredError, SoftmaxCrossEntropy
from .network import Network
from .optim import SGD, Adam, CustomOptimizer
from .pretrained import (
    from_fasttext,
    from_file,
    from_implicit,
    from_onnx,
    from_sklearn,
    from_torch,
)
from .refinement import Refinement
from .text import Recommender, Tagger, TextVectorizer, load


def __getattr__(name: str) -> object:
    # imported on first use: scikit-learn takes long to import, and few need several processes
    if name in ("distributed", "estimators"):
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DWTA",
    "SGD",
    "Adam",
    "BinaryCrossEntropy",
    "ConversionReport",
    "CrossPolytope",
    "CustomOptimizer",
    "EstimatorNetwork",
    "FactorNetwork",
    "InferenceNetwork",
    "LSHIndex",
    "LSHLinear",
    "Linear",
    "MeanSquaredError",
    "MinHash",
    "Network",
    "OnnxNetwork",
    "Recommender",
    "Refinement",
    "SimHash",
    "SoftmaxCrossEntropy",
    "Tagger",
    "TextNetwork",
    "TextVectorizer",
    "__version__",
    "calibration",
    "callbacks",
    "choose_bits_and_tables",
    "datasets",
    "from_fasttext",
    "from_file",
    "from_implicit",
    "from_onnx",
    "from_sklearn",
    "from_torch",
    "get_num_threads",
    "get_reproducible",
    "load",
    "metrics",
    "protocols",
    "rebuild",
    "schedules",
    "set_num_threads",
    "set_reproducible",
]
