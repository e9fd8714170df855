"""Affine: a layer of a trained network from any file or framework; a network is a chain of them."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ... import _validation as check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..._arrays.bfloat16 import BFloat16
    from ..._arrays.types import Floats

KINDS = ("linear", "embedding_bag", "embedding")
# in the order of ACTIVATION_ of _core/simd/loops.h; "gelu_tanh" is the approximation by tanh
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
ACTIVATION_NUMBERS = {None: 0} | {name: i for i, name in enumerate(ACTIVATIONS, 1)}


class Affine(NamedTuple):
    """``activation(x W^T + b)``, or the lookup of rows in a table."""

    name: str
    weight: np.ndarray  # linear: (n_out, n_in).  Tables: (n_features, n_dims)
    bias: np.ndarray | None = None
    activation: str | None = None  # or one of ACTIVATIONS
    kind: str = "linear"
    mode: str = "sum"  # of an embedding bag, or "mean"
    padding: int | None = None  # the id that a bag skips
    width: int = 1  # ids per row that an embedding looks up and concatenates

    @property
    def n_in(self) -> int:
        return self.weight.shape[1] if self.kind == "linear" else self.weight.shape[0]

    @property
    def n_out(self) -> int:
        return self.weight.shape[0] if self.kind == "linear" else self.weight.shape[1] * self.width


def float32(array: np.ndarray | BFloat16, name: str, upcast: bool) -> Floats:
    """A weight as float32; other dtypes are refused, or converted with `upcast`."""
    if isinstance(array, np.ndarray) and array.dtype == np.float32:
        return array
    if array.dtype.kind not in "fiu" or array.dtype == bool:
        raise TypeError(f"{name} must hold float32, got {array.dtype}; give the weights of a "
                        "network that is not quantized")
    if not upcast:
        raise TypeError(f"{name} must be float32, got {array.dtype}; convert the network to "
                        "float32 first, or give upcast=True")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def checked(layers: Sequence[Affine], source: str = "") -> list[Affine]:
    """The layers, if each is valid and its inputs are the outputs of the one before.

    Their weights are float32, C-contiguous, or Fortran-contiguous where they were given so.
    `source` is the file that holds them, for messages.
    """
    where = f"{source}: " if source else ""
    if not layers:
        raise ValueError(f"{where}the network has no linear layer; give one that has")

    out: list[Affine] = []
    for i, layer in enumerate(layers):
        name = f"{where}{layer.name}"
        weight = layer.weight
        if weight.ndim == 2 and weight.T.flags.c_contiguous:  # input-major, and stays so
            weight = check.dense(weight.T, f"{name}.weight").T
        else:
            weight = check.dense(weight, f"{name}.weight")
        if 0 in weight.shape:
            raise ValueError(f"{name}.weight must have at least one row and one column, "
                             f"got shape {weight.shape}")
        layer = layer._replace(weight=weight)
        if layer.bias is not None:
            layer = layer._replace(bias=check.vector(layer.bias, f"{name}.bias", len(weight)))

        if i and layer.kind != "linear":
            raise ValueError(f"{name}: an embedding must be the first layer, but is layer {i}")
        if i and out[-1].kind == "embedding" and layer.n_in % out[-1].n_out == 0:
            out[-1] = out[-1]._replace(width=layer.n_in // out[-1].weight.shape[1])
        if i and out[-1].n_out != layer.n_in:
            raise ValueError(f"{name} takes {layer.n_in} inputs but {out[-1].name} gives "
                             f"{out[-1].n_out}; give the layers in the order of the network")
        out.append(layer)
    return out
