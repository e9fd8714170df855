"""Checks of what a user hands in: each returns it in the form that the code below works with.

Every message names the argument, what was given, and what to give instead.
"""
from numbers import Integral

import numpy as np
import scipy.sparse as sp

INT32_MAX = np.iinfo(np.int32).max


def check_integer(name, value, low, high=INT32_MAX):
    """Return `value` as an int in [low, high].

    Raises
    ------
    TypeError
        It is no integer (True and False are none here).
    ValueError
        It is outside the range.
    """
    if not isinstance(value, Integral) or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={value!r} is no integer; give an integer from {low} to {high}")
    if not low <= value <= high:
        raise ValueError(f"{name}={value} is out of range; give an integer from {low} to {high}")
    return int(value)


def check_k(k, n_columns, name):
    """Return `k` as an int from 1 to the number of columns of the array called `name`."""
    k = check_integer("k", k, 1)
    if k > n_columns:
        raise ValueError(f"k={k} exceeds the {n_columns} columns of {name}; lower k or retrieve more ids")
    return k


def check_labels(Y, name):
    """Return true labels, an indicator matrix or 1-D class ids, as a csr_array of ones.

    Returns
    -------
    csr_array of float32, shape (n_rows, n_labels)
        Sorted, without duplicates or stored zeros; a new object. Class ids give one label a row, and as
        many columns as the largest id asks for.
    """
    if sp.issparse(Y):
        if Y.ndim != 2:
            raise ValueError(f"{name} has shape {Y.shape}; give a matrix of shape (n_rows, n_labels)")
        Y = sp.csr_array(Y, copy=True)
    else:
        Y = np.asarray(Y)
        if Y.dtype.kind not in "biuf":
            raise TypeError(f"{name} has dtype {Y.dtype}; give a CSR indicator matrix or integer class ids")
        if Y.ndim == 1:
            return _one_label_a_row(Y, name)
        if Y.ndim != 2:
            raise ValueError(f"{name} has shape {Y.shape}; give (n_rows, n_labels), or (n_rows,) class ids")
        Y = sp.csr_array(Y)
    Y.sum_duplicates()
    Y.eliminate_zeros()
    return sp.csr_array((np.ones(Y.nnz, np.float32), Y.indices, Y.indptr), shape=Y.shape)


def _one_label_a_row(ids, name):
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {ids.dtype}; class ids are integers: convert with astype(int)")
    if ids.size and (ids.min() < 0 or ids.max() >= INT32_MAX):
        bad = ids[(ids < 0) | (ids >= INT32_MAX)][0]
        raise ValueError(f"{name} holds the class id {bad}; give ids from 0 to {INT32_MAX - 1}")
    shape = (ids.size, int(ids.max()) + 1 if ids.size else 0)
    indptr = np.arange(ids.size + 1, dtype=np.int32)
    return sp.csr_array((np.ones(ids.size, np.float32), ids.astype(np.int32), indptr), shape=shape)


def check_ids(ids, n_rows, name):
    """Return a table of ids, best first, -1 for none: an int64 array of shape (n_rows, n_columns).

    Raises
    ------
    TypeError
        The dtype is no integer.
    ValueError
        The shape is wrong, or an id is below -1.
    """
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {ids.dtype}; give integer ids, -1 for none")
    if ids.ndim != 2 or ids.shape[0] != n_rows:
        raise ValueError(f"{name} has shape {ids.shape}; give ({n_rows}, k), one row of ids for each row")
    ids = ids.astype(np.int64, copy=False)
    if ids.size and ids.min() < -1:
        raise ValueError(f"{name} holds the id {ids.min()}; ids are 0 or more, -1 for none")
    return ids


def check_distinct(ids, name):
    """Raise ValueError if a row of a table of ids holds one twice, -1 aside."""
    in_order = np.sort(ids, axis=1)
    twice = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    if twice.any():
        row, column = np.argwhere(twice)[0]
        raise ValueError(f"{name} holds {in_order[row, column]} twice in row {row}; give each id once")
