"""Conversion of trained dense networks for fast inference: from PyTorch, ONNX and weight files."""
from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _validation as check
from .inference import (
    ACTIVATIONS,
    Affine,
    EstimatorNetwork,
    FactorNetwork,
    InferenceNetwork,
    NoChain,
    TextNetwork,
    checked_options,
    convert,
    convert_graph,
    convert_trained,
    cut,
    is_network_file,
    load_onnx,
    read_estimator,
    read_fasttext,
    read_layers,
    read_module,
    read_network,
    read_onnx,
    require_runtime,
    to_numpy,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike
    from torch import nn

    from ._arrays.types import PathLike, RandomState
    from .inference import OnnxNetwork

__all__ = ["from_fasttext", "from_file", "from_implicit", "from_onnx", "from_sklearn", "from_torch"]

MAX_CALIBRATION_USERS = 4096


def from_torch(module: nn.Module, calibration: Any = None, *, recall: float = 0.99,
               error: float = 0.02, k: int = 5, storage: str = "float32", upcast: bool = False,
               random_state: RandomState = None,
               n_threads: int | None = None) -> InferenceNetwork:
    """Convert an MLP of PyTorch.

    Parameters
    ----------
    module : torch.nn.Module
        A chain of Linear, activations (ReLU, GELU, SiLU, Tanh, Sigmoid), Dropout, Identity and
        Flatten, which may begin with an Embedding or an EmbeddingBag ("sum" or "mean"): an
        ``nn.Sequential``, or a module whose forward torch.fx can trace. It is not changed.
    calibration : array, sparse matrix, tensor or None
        Some hundreds of typical inputs. The plans are chosen on one half of them, and the result is
        measured on the other. Without calibration, all layers stay dense.
    recall : float
        Fraction of the k best outputs that an index of the last layer finds, above 0 and below 1.
    error : float
        Largest allowed relative error of the network's outputs, ``|z' - z| / |z|`` over the
        calibration rows, at least 0 and below 1. Hidden layers cause it by passing on only the
        important activations, or by products of 8 bits. 0 keeps the outputs exact.
    k : int
        Number of best outputs that `topk` will return.
    storage : {"float32", "bfloat16", "int8"}
        Weights that the plans "rows" and "lsh" read. With fewer bits, indexes of the last layer
        score the best candidates again by the float32 weights; the effect on hidden layers is part
        of the `error`.
    upcast : bool
        Convert weights of other dtypes to float32; else they are refused.
    random_state : None, int or numpy.random.Generator
        Of the indexes. Plans are chosen by measured times and may differ from run to run.
    n_threads : int or None

    Returns
    -------
    InferenceNetwork
        Its `report` gives the plan of each layer and the reason.

    Raises
    ------
    ImportError
        If torch is missing.
    TypeError, ValueError
        If the module has an operator that is not supported, which is named, or an argument does not
        fit.

    Examples
    --------
    >>> net = sl.from_torch(model, X[:1000])  # doctest: +SKIP
    >>> print(net.report)  # doctest: +SKIP
    >>> ids, scores = net.topk(X_new, k=5)  # doctest: +SKIP
    """
    options = checked_options(recall, error, k, storage, random_state, n_threads)
    layers = read_module(module, upcast=bool(upcast))
    return convert(layers, to_numpy(calibration, "calibration"), kind=InferenceNetwork, **options)


def from_onnx(path: PathLike, calibration: Any = None, *, head: str = "auto",
              recall: float = 0.99, error: float = 0.02, k: int = 5, storage: str = "float32",
              upcast: bool = False, random_state: RandomState = None,
              n_threads: int | None = None) -> InferenceNetwork | OnnxNetwork:
    """Convert an ONNX model: a chain of layers, or the last wide layer of another model.

    A chain of Gemm, or MatMul and Add, with Relu between becomes an :class:`InferenceNetwork`. Any
    other model is cut at its last MatMul or Gemm with a constant weight and at least 2,000 outputs:
    that layer, and layers with Relu directly before it, are converted, and ONNX Runtime runs the
    nodes before and behind them.

    Parameters
    ----------
    path : str or path-like
    calibration : array, tuple, dict, or iterable of them, or None
        Inputs of the model: an array, a tuple in the order of its inputs or a dict by their names;
        or an iterable of such inputs, which may differ in shape. Some hundreds of rows should reach
        the layer.
    head : str
        The layer at which the model is cut, by the name of its node, its output or its weight.
        "auto" takes a chain as a whole, and finds the layer by its shape else.
    recall, error, k, storage, upcast, random_state, n_threads
        As for :func:`from_torch`. ONNX Runtime uses `n_threads` too.

    Returns
    -------
    InferenceNetwork or OnnxNetwork

    Raises
    ------
    ImportError
        If the package onnx is missing, or onnxruntime for a model that is not a chain.
    FileNotFoundError, TypeError, ValueError
        If the file is missing or damaged, is not a chain and has no such layer, or an argument does
        not fit. The message names the node.
    """
    options = checked_options(recall, error, k, storage, random_state, n_threads)
    head, upcast = _head(head), bool(upcast)
    refusal = ""
    if head == "auto":
        try:
            layers = read_onnx(path, upcast=upcast)
        except NoChain as error_of_chain:
            refusal = str(error_of_chain)
        else:
            return convert(layers, calibration, source=str(path), kind=InferenceNetwork, **options)

    model = load_onnx(path)
    try:
        parts = cut(model, path, head, upcast)
    except ValueError as error_of_cut:
        if not refusal:
            raise
        raise ValueError(f"{refusal}. To be cut, {error_of_cut}") from error_of_cut
    require_runtime()
    return convert_graph(parts, path, calibration, partial(convert, source=str(path),
                                                     kind=InferenceNetwork, **options),
                         options["n_threads"])


def _head(head: Any) -> str:
    if not isinstance(head, str) or not head:
        raise TypeError(f"head must be 'auto' or the name of a node, got {head!r}")
    return head


def from_sklearn(estimator: Any, calibration: Any = None, *, recall: float = 0.99,
                 error: float = 0.02, k: int = 5, storage: str = "float32",
                 random_state: RandomState = None,
                 n_threads: int | None = None) -> EstimatorNetwork:
    """Convert a fitted classifier of scikit-learn.

    Parameters
    ----------
    estimator
        A linear classifier of three classes or more (its `coef_` may be sparse), a
        OneVsRestClassifier of linear classifiers, an MLPClassifier, or a Pipeline that ends with
        one of them. It is not changed. What comes before the classifier in a Pipeline stays as it
        is.
    calibration : None or what the estimator takes
        As for :func:`from_torch`; texts for a Pipeline that begins with a vectorizer. Where the
        classifier gets sparse rows, its first layer reads only the weights of what is there.
    recall, error, k, storage, random_state, n_threads
        As for :func:`from_torch`. Weights of scikit-learn are float64, and rounded to float32.

    Returns
    -------
    EstimatorNetwork

    Raises
    ------
    TypeError, ValueError
        If the estimator is not fitted or of another kind, which is named, or an argument does not
        fit.

    Examples
    --------
    >>> fast = sl.from_sklearn(pipeline, texts[:1000])  # doctest: +SKIP
    >>> fast.predict(new_texts)  # doctest: +SKIP
    """
    options = checked_options(recall, error, k, storage, random_state, n_threads)
    fitted = read_estimator(estimator)
    network = EstimatorNetwork(fitted)
    rows = None if calibration is None else network.transform(calibration)
    network.network = convert(fitted.layers, rows, kind=InferenceNetwork,
                              sparse_input=hasattr(rows, "tocsr"), **options)
    return network


def from_fasttext(path: PathLike, calibration: Sequence[str] | None = None, *,
                  recall: float = 0.99, k: int = 5, storage: str = "float32",
                  random_state: RandomState = None, n_threads: int | None = None) -> TextNetwork:
    """Convert a supervised model of fastText.

    Parameters
    ----------
    path : str or path-like
        A .bin file that is not quantized, of a model with the loss softmax, ova or ns.
    calibration : sequence of str or None
        Some hundreds of typical texts.
    recall, k, storage, random_state, n_threads
        As for :func:`from_torch`.

    Returns
    -------
    TextNetwork

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        If the file is missing, damaged or of another kind, or an argument does not fit.

    Examples
    --------
    >>> fast = sl.from_fasttext("tags.bin", texts[:1000])  # doctest: +SKIP
    >>> labels, scores = fast.topk(["how to sort a list"], k=3)  # doctest: +SKIP
    """
    options = checked_options(recall, 0, k, storage, random_state, n_threads)
    model = read_fasttext(path)
    network = TextNetwork(model)
    network.network = convert(model.layers, None, source=str(path), kind=InferenceNetwork,
                              **options)
    if calibration is not None:
        rows = network.transform(calibration)
        network.network = convert(model.layers, rows, source=str(path), kind=InferenceNetwork,
                                  **options)
    return network


def from_implicit(model: Any, calibration: ArrayLike | None = None, *, recall: float = 0.99,
                  k: int = 10, storage: str = "float32", random_state: RandomState = None,
                  n_threads: int | None = None) -> FactorNetwork:
    """Convert a matrix factorization, such as those of the package implicit.

    Parameters
    ----------
    model : object with `item_factors` and `user_factors`, or array of shape (n_items, n_factors)
        It is not changed.
    calibration : array of shape (n_users, n_factors), or None
        Factors of users to calibrate on; None for up to 4,096 of the model's.
    recall, k, storage, random_state, n_threads
        As for :func:`from_torch`.

    Returns
    -------
    FactorNetwork
        Its `recommend` leaves out the items that the users have.

    Raises
    ------
    TypeError, ValueError
        If the model has no such factors, or an argument does not fit.

    Examples
    --------
    >>> fast = sl.from_implicit(als)  # doctest: +SKIP
    >>> ids, scores = fast.recommend(users, user_items[users], N=10)  # doctest: +SKIP
    """
    options = checked_options(recall, 0, k, storage, random_state, n_threads)
    users = None
    items = model
    if hasattr(model, "item_factors"):
        items, users = (_factors(model, name) for name in ("item_factors", "user_factors"))
    elif not hasattr(model, "shape"):
        raise TypeError("model must have item_factors, or be an array (n_items, n_factors), "
                        f"got {model!r}")
    items = check.dense(items, "item_factors")
    if users is not None:
        users = check.dense(users, "user_factors", n_columns=items.shape[1])
    if calibration is None and users is not None:
        n = min(len(users), MAX_CALIBRATION_USERS)
        calibration = users[np.linspace(0, len(users) - 1, n).astype(np.int64)]
    network = convert([Affine("item_factors", items)], calibration, kind=InferenceNetwork,
                      **options)
    return FactorNetwork(network, users)


def _factors(model: Any, name: str) -> Any:
    factors = getattr(model, name, None)
    if factors is None:
        raise ValueError(f"model.{name} is None; call fit first")
    return factors.to_numpy() if hasattr(factors, "to_numpy") else factors  # of a GPU


def from_file(path: PathLike, calibration: Any = None, *,
              layers: str | Sequence[str | tuple[str, str]] | None = None,
              activation: str | None = "relu", recall: float = 0.99, error: float = 0.02,
              k: int = 5, storage: str = "float32", upcast: bool = False,
              random_state: RandomState = None,
              n_threads: int | None = None) -> InferenceNetwork:
    """Convert an MLP whose weights are in safetensors, .npz or PyTorch files.

    A file of :meth:`Network.save` says itself what its layers are, and is converted with its
    refinement, as by :meth:`InferenceNetwork.from_network`.

    Parameters
    ----------
    path : str or path-like
        A .safetensors or .npz file; the index (``*.safetensors.index.json``) or the folder of
        safetensors files in several parts; or a state dict of PyTorch (.pt, .pth, .bin or .ckpt),
        which is read with ``weights_only=True`` and runs no code.
    calibration
        As for :func:`from_torch`; inputs of the first named layer.
    layers : None, str or sequence of str
        The layers in the order of the network: NAME for the arrays NAME.weight, (n_out, n_in), and
        NAME.bias if the file has it; matrices that are called kernel, as Keras does, and those
        whose bias has the length of a row, are (n_in, n_out) and turned; WEIGHT:BIAS for arrays
        with other names. A pattern such as ``"head.fc*"`` takes all that match, and None all
        matrices NAME.weight, in natural order: fc2 before fc10. For a file of :meth:`Network.save`,
        None takes the whole network, with the activations and the refinement that the file names.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"}
        The activation between two layers. Not read where a file of :meth:`Network.save` is taken as
        a whole.
    recall, error, k, storage, upcast, random_state, n_threads
        As for :func:`from_torch`.

    Returns
    -------
    InferenceNetwork

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        If the file is missing or damaged, has no such layers, they do not fit each other, or an
        argument does not fit.
    """
    options = checked_options(recall, error, k, storage, random_state, n_threads)
    activation = None if activation is None else check.choice(activation, "activation", ACTIVATIONS)
    if layers is None and is_network_file(path):
        return convert_trained(InferenceNetwork, read_network(path), calibration, str(path),
                               **options)
    affine = read_layers(path, layers, activation, bool(upcast))
    return convert(affine, calibration, source=str(path), kind=InferenceNetwork, **options)
