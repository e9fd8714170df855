"""Activations in ONNX graphs, also those that an export has written as several nodes.

GELU, for instance, may be Div, Erf, Add and two Mul. A run of nodes that compute each element on
its own is tried with numbers: it is the activation whose values it gives.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..._core import _activations
from .affine import ACTIVATION_NUMBERS, ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import NodeProto

TRIED_INPUTS = np.linspace(-6, 6, 1201)  # at which an activation is recognized,
MAX_DIFFERENCE = 1e-5  # by values that differ by less


class Found(NamedTuple):
    """An activation, the value that it gives, and how many nodes it takes."""

    name: str
    value: str
    n_nodes: int


def next_activation(nodes: Sequence[NodeProto], value: str, result: str,
                    constants: Mapping[str, np.ndarray]) -> Found | None:
    """The activation that the next nodes compute of a value; None where they compute none.

    One whose value is `result`, the output of the network, is not looked for.
    """
    known: dict[str, Any] = {value: TRIED_INPUTS}
    for place, node in enumerate(nodes):
        found = [known.get(name, _scalar(constants.get(name))) for name in node.input]
        given = [array for array in found if array is not None]
        if len(given) < len(found):
            return None
        values = _values(node, given)
        if values is None:
            return None
        known[node.output[0]] = values
        read_later = {name for other in nodes[place + 1:] for name in other.input}
        if node.output[0] == result or (read_later | {result}) & set(known) != {node.output[0]}:
            continue
        for name in ACTIVATIONS:
            if np.abs(values - _activated(name)).max() < MAX_DIFFERENCE:
                return Found(name, node.output[0], place + 1)
    return None


def _scalar(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None or array.size != 1 else np.ravel(array).astype(np.float64)


def _values(node: NodeProto, given: list[np.ndarray]) -> np.ndarray | None:
    """What a node gives for numbers, or None where it is of another kind."""
    from scipy.special import erf, expit

    kinds = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide,
             "Pow": np.power, "Neg": np.negative, "Erf": erf, "Tanh": np.tanh, "Sigmoid": expit}
    if node.op_type == "Relu":
        return np.maximum(given[0], 0)
    if node.op_type == "Gelu":
        by_tanh = any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute)
        return _activated("gelu_tanh" if by_tanh else "gelu", given[0])
    if node.op_type not in kinds:
        return None
    with np.errstate(all="ignore"):
        return kinds[node.op_type](*given)


def _activated(name: str, x: np.ndarray = TRIED_INPUTS) -> np.ndarray:
    out = x.astype(np.float32)[None]
    _activations.activate(ACTIVATION_NUMBERS[name], out, 1)
    return out[0]
