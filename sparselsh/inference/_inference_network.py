"""InferenceNetwork: a trained network for inference, and how one is made of a Network."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _validation as check
from ..index import STORAGES
from ._conversion import convert
from ._network import ServedNetwork
from .readers import TrainedNetwork, check_dense_hidden

if TYPE_CHECKING:
    from .._arrays.types import MatrixLike, RandomState


class InferenceNetwork(ServedNetwork):
    """A trained network, converted for inference.

    It is made by :meth:`from_network`, :func:`from_torch`, :func:`from_onnx`, :func:`from_file` or
    :meth:`load`. Each layer has a plan for few rows and a plan for batches (32 rows or more):
    "dense" computes every neuron; "rows" reads the weights of active inputs only; "int8" computes
    every neuron by products of 8 bits, and the best few outputs again in float32; "lsh" computes
    the neurons that an index finds. `report` says which plans were chosen, why, and what was
    measured.

    Attributes
    ----------
    report : ConversionReport
    n_threads : int or None
    calibration : Calibration or None
        The map from scores to probabilities of the network of this library that was converted.
    """

    @classmethod
    def from_network(cls, net: Any, calibration: MatrixLike | None = None, *,
                     recall: float = 0.99, error: float = 0.02, k: int = 5,
                     storage: str = "float32", random_state: RandomState = None,
                     n_threads: int | None = None) -> Self:
        """Convert a network of this library, with its refinement and its calibration.

        Where the network was trained on sparse rows, or `calibration` is sparse, the first layer
        reads the weights of the features that are there, and sparse rows are never made dense.
        Dense rows are served too.

        Parameters
        ----------
        net : Network
            With weights. It is not changed, and what it learns later does not change the result.
        calibration : array or sparse matrix of shape (n_samples, n_features), or None
            Some hundreds of typical inputs. The plans are chosen on one half of them, and the
            result is measured on the other. Without calibration nothing is measured: the index of
            a wide last layer is then made from inputs that the layer has kept from its training.
        recall : float
            Fraction of the k best labels that the result is to find, above 0 and below 1; of a
            refined network, of the labels that are ranked again.
        error, k, random_state, n_threads
            As for :func:`from_torch`.
        storage : {"float32", "bfloat16", "int8"}
            How the weights of the layers and of the refinement are stored. In fewer bits they are
            rounded: other than in :func:`from_torch` the float32 weights are not kept, so that the
            file is small. All arithmetic is in float32.

        Returns
        -------
        InferenceNetwork
            Its `report` gives the plan of each layer, the effect of the rounding and the size of
            the file.

        Raises
        ------
        TypeError, ValueError
            If `net` is not a Network or has no weights, one of its hidden layers passes on a part
            of its outputs only, as an LSHLinear with one set per sample does, or another argument
            does not fit.

        Examples
        --------
        >>> small = sl.InferenceNetwork.from_network(
        ...     net, X[:1000], storage="int8")  # doctest: +SKIP
        >>> small.save("small.safetensors")  # doctest: +SKIP
        """
        options = checked_options(recall, error, k, storage, random_state, n_threads)
        return convert_trained(cls, _trained(net), calibration, **options)


def convert_trained(kind: type[ServedNetwork], trained: TrainedNetwork, calibration: Any,
                    source: str = "", **options: Any) -> Any:
    """The network of class `kind` for a network of this library; `options` are checked."""
    network = convert(trained.layers, calibration, source=source, kind=kind,
                      refinement=trained.refinement, sparse_input=trained.is_sparse,
                      last_inputs=trained.inputs, compact=True, **options)
    network.calibration = trained.calibration
    return network


def checked_options(recall: float, error: float, k: int, storage: str, random_state: RandomState,
                    n_threads: int | None) -> dict[str, Any]:
    """The options of a conversion, or TypeError or ValueError for one that does not fit."""
    check.generator(random_state)
    return {"recall": check.number(recall, "recall", above=0, below=1),
            "error": check.number(error, "error", minimum=0, below=1), "k": check.integer(k, "k"),
            "storage": check.choice(storage, "storage", STORAGES), "random_state": random_state,
            "n_threads": check.threads(n_threads)}


def _trained(net: Any) -> TrainedNetwork:
    """What inference needs of a Network: copies of its weights."""
    if not all(hasattr(net, name) for name in ("architecture", "refinement", "loss")):
        raise TypeError(f"net must be a Network of this library, got {net!r}; for PyTorch modules "
                        "there is from_torch")
    layers = [layer._replace(weight=np.array(layer.weight), bias=np.array(layer.bias))
              for layer in net.architecture()]
    check_dense_hidden(net.layers)
    first, last = (net.layers[i].parameters[0].input_major for i in (0, -1))
    inputs = None if last else net.layers[-1].tensors().get("inputs")
    return TrainedNetwork(layers, net.refinement, first, inputs, net.calibration)
