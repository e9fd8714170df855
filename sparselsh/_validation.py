"""Checks of the arguments of users. Modules below this one trust their input.

Each message names the argument, the given value and the remedy.
"""
from __future__ import annotations

import math
import numbers
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arrays import csr
from ._arrays.aligned import contiguous
from ._arrays.scipy import sp
from ._arrays.selection import Selection
from ._core import _checks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray
    from scipy.sparse import csr_array, sparray, spmatrix

    from ._arrays.csr import CSR
    from ._arrays.types import Floats, Ids

INT32_MAX = np.iinfo(np.int32).max
SHORT_CHECK_MAX_VALUES = 4096  # larger arrays are not worth a second pass where the first fails
MAX_THREADS = 1024
SIMILARITY_TOLERANCE = 1e-5  # by which rounding may exceed the bounds


def integer(value: Any, name: str, *, minimum: int = 1, maximum: int = INT32_MAX) -> int:
    """An integer within bounds, as int."""
    if type(value) is not int:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
            raise TypeError(
                f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
        value = int(value)
    if not minimum <= value <= maximum:
        upper = f" and at most {maximum}" if maximum < INT32_MAX or value > maximum else ""
        raise ValueError(f"{name} must be at least {minimum}{upper}, got {value}")
    return value


def number(value: Any, name: str, *, minimum: float = -np.inf, maximum: float = np.inf,
           above: float | None = None, below: float | None = None) -> float:
    """A finite real number within bounds, as float."""
    if type(value) is not float:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise TypeError(
                f"{name} must be a number, got {value!r} of type {type(value).__name__}")
        try:
            value = float(value)
        except OverflowError:  # an integer of hundreds of digits
            value = -math.inf if str(value).startswith("-") else math.inf
    if (math.isfinite(value) and minimum <= value <= maximum
            and (above is None or value > above) and (below is None or value < below)):
        return value

    limits = {"at least": minimum if minimum > -np.inf else None,
              "at most": maximum if maximum < np.inf else None, "above": above, "below": below}
    bounds = [f"{word} {limit:g}" for word, limit in limits.items() if limit is not None]
    raise ValueError(f"{name} must be {' and '.join(bounds) or 'finite'}, got {value:g}")


def choice(value: Any, name: str, choices: Sequence[str]) -> str:
    """One of the given names."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def path(value: Any, name: str = "path") -> str:
    """A path as str."""
    try:
        return os.fsdecode(value)
    except TypeError:
        raise TypeError(f"{name} must be a string or a path-like object, got {value!r}") from None


def similarity(values: Any, least: float) -> np.ndarray:
    """Similarities from `least` to 1, float64, of any shape; rounding errors are clipped."""
    array = numeric(values, "similarity").astype(np.float64)
    inside = ((array >= least - SIMILARITY_TOLERANCE)
              & (array <= 1 + SIMILARITY_TOLERANCE))  # false for NaN
    if not inside.all():
        raise ValueError(f"similarity must be at least {least:g} and at most 1, "
                         f"got {array[~inside].ravel()[0]:g}")
    return np.clip(array, least, 1)


def generator(random_state: Any) -> np.random.Generator:
    """A numpy Generator from None, an integer, a Generator or a RandomState."""
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**31))
    try:
        return np.random.default_rng(random_state)
    except (TypeError, ValueError) as error:
        raise ValueError("random_state must be None, an integer of at least 0 or a numpy random "
                         f"generator, got {random_state!r}") from error


def threads(n_threads: Any, name: str = "n_threads") -> int | None:
    """A number of threads, or None for the default."""
    return None if n_threads is None else integer(n_threads, name, maximum=MAX_THREADS)


def _check_finite(values: np.ndarray, name: str, describe: Callable[[int], str]) -> None:
    # A sum of finite terms is finite, except for overflow: usually one pass without a temporary.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum(dtype=np.float64)):
            return
    bad = np.flatnonzero(~np.isfinite(values).ravel())
    if bad.size:
        where, value = describe(bad[0]), values.ravel()[bad[0]]
        raise ValueError(f"{name} must be finite, got {value} at {where} ({bad.size} such values "
                         "in all); replace or remove them")


def _check_width(n: int, n_columns: int | None, name: str, what: str) -> None:
    if n_columns is not None and n != n_columns:
        raise ValueError(f"{name} must have {n_columns} {what}, got {n}")


def _check_numeric(dtype: np.dtype[Any], name: str) -> None:
    if dtype.kind not in "fiub":
        raise TypeError(f"{name} must be numeric, got dtype {dtype}; convert it to float32")


def _array(values: Any, name: str) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray) and values.mask.any():
        raise ValueError(f"{name} is masked at {np.count_nonzero(values.mask)} entries; fill them "
                         f"with {name}.filled(value)")
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be a rectangular array: {error}") from None


def array(values: Any, name: str) -> np.ndarray:
    """An array of anything, without masked entries."""
    return _array(values, name)


def numeric(values: Any, name: str) -> np.ndarray:
    """An array of numbers, of any shape."""
    if sp.issparse(values):
        raise TypeError(f"{name} is a sparse matrix; give an array: {name}.toarray()")
    array = _array(values, name)
    _check_numeric(array.dtype, name)
    return array


def dense(array: Any, name: str, *, n_columns: int | None = None, n_rows: int | None = None,
          what: str = "columns") -> Floats:
    """A finite two-dimensional array as C-contiguous float32."""
    if (type(array) is np.ndarray and array.dtype == np.float32 and array.ndim == 2
            and (flags := array.flags).c_contiguous and flags.aligned
            and array.size <= SHORT_CHECK_MAX_VALUES
            and n_rows is None and n_columns in (None, array.shape[1])):
        # Shortcut for a valid single query, for which the checks below take as long as a search.
        flat = array.ravel()
        if math.isfinite(np.vdot(flat, flat)):  # `dot` would warn of large values
            return array

    if sp.issparse(array):
        raise TypeError(f"{name} must be a dense array, got a sparse matrix; convert it with "
                        f"{name}.toarray()")
    array = numeric(array, name)
    if array.ndim != 2:
        hint = f"; use {name}.reshape(1, -1) for a single row" if array.ndim == 1 else ""
        raise ValueError(f"{name} must have two dimensions, got shape {array.shape}{hint}")
    _check_width(array.shape[1], n_columns, name, what)
    if n_rows is not None and array.shape[0] != n_rows:
        raise ValueError(f"{name} must have {n_rows} rows, got {array.shape[0]}")

    with np.errstate(over="ignore"):
        out = contiguous(array, dtype=np.float32)
    _check_finite(out, name, lambda k: f"row {k // out.shape[1]}, column {k % out.shape[1]}")
    return out


def sparse(matrix: Any, name: str, *, n_columns: int | None = None, what: str = "columns") -> CSR:
    """A finite SciPy sparse matrix as CSR with sorted, distinct ids."""
    if (rows := _rows_as_they_are(matrix, n_columns)) is not None:
        return rows

    _check_numeric(matrix.dtype, name)
    if matrix.ndim != 2:
        raise ValueError(f"{name} must have two dimensions, got shape {matrix.shape}")
    _check_width(matrix.shape[1], n_columns, name, what)
    if matrix.format in ("csr", "csc", "bsr"):
        _check_compressed(matrix, name)
    elif matrix.format == "coo":
        for part, bound in zip(("row", "col"), matrix.shape, strict=True):
            _check_range(getattr(matrix, part), f"{name}.{part}", bound)
    rows = csr.from_scipy(matrix)

    def describe(k: int) -> str:
        return f"row {np.searchsorted(rows.indptr, k, side='right') - 1}, column {rows.indices[k]}"

    _check_finite(rows.data, name, describe)
    return rows


def _rows_as_they_are(matrix: Any, n_columns: int | None,
                      without_zeros: bool = False) -> CSR | None:
    """Valid rows in CSR, else None: for one row the general checks take longer than a search.

    None for stored zeros, too, `without_zeros`.
    """
    if n_columns is None or matrix.format != "csr" or matrix.shape[1:] != (n_columns,):
        return None
    indptr, ids, data = matrix.indptr, matrix.indices, matrix.data
    if data.dtype != np.float32 and data.dtype.kind in "fiub":
        with np.errstate(over="ignore"):  # such values are not finite
            data = data.astype(np.float32, copy=False)
    try:
        if not (len(indptr) == matrix.shape[0] + 1
                and _checks.are_rows(indptr, ids, data, n_columns, without_zeros)):
            return None
    except (TypeError, ValueError):  # arrays of other types, or with gaps
        return None
    return csr.CSR(indptr.astype(np.int64), ids, data, n_columns)


def _check_compressed(matrix: sparray | spmatrix, name: str) -> None:
    # SciPy does not check arrays from users; its conversions and the kernels would read outside of
    # them.
    indptr, indices = matrix.indptr, matrix.indices
    n_lines, n_ids = matrix.shape if matrix.format != "csc" else matrix.shape[::-1]
    if matrix.format == "bsr":
        n_lines, n_ids = n_lines // matrix.blocksize[0], n_ids // matrix.blocksize[1]
    # compared, as differences of the largest integers overflow
    if len(indptr) != n_lines + 1 or indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any():
        raise ValueError(f"{name}.indptr must begin with 0, never fall and have {n_lines + 1} "
                         "entries")
    if indptr[-1] > len(indices) or len(indices) != len(matrix.data):
        raise ValueError(f"{name}.indices and {name}.data must have indptr[-1] = {indptr[-1]} "
                         f"entries, got {len(indices)} and {len(matrix.data)}")
    _check_range(indices[:indptr[-1]], f"{name}.indices", n_ids)  # the rest is unused


def _check_range(ids: np.ndarray, name: str, bound: int) -> None:
    if ids.size and not (0 <= ids.min() and ids.max() < bound):
        bad = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"{name} must lie in 0..{bound - 1}, got {bad}")


def matrix(X: Any, name: str = "X", *, n_columns: int | None = None,
           what: str = "features") -> Floats | CSR:
    """Input rows: a float32 array, or :class:`CSR` where X is sparse."""
    if isinstance(X, csr.CSR):
        _check_width(X.n_columns, n_columns, name, what)
        return X
    if sp.issparse(X):
        return sparse(X, name, n_columns=n_columns, what=what)
    return dense(X, name, n_columns=n_columns, what=what)


def chunks(X: Any, name: str = "X") -> Iterator[tuple[Any, Any, str, str]]:
    """Yield (X, Y, name of X, name of Y) of an iterable of pairs (X, Y); X and Y unchecked."""
    for i, chunk in enumerate(X):
        if not isinstance(chunk, (tuple, list)) or len(chunk) != 2:
            raise TypeError(f"{name} without Y must be an iterable of pairs (X, Y), got "
                            f"{type(chunk).__name__} as chunk {i}; give Y, or chunks as tuples")
        yield *chunk, f"{name} of chunk {i}", f"Y of chunk {i}"


def vector(values: Any, name: str, length: int) -> Floats:
    """A finite one-dimensional float32 array of a given length."""
    values = _array(values, name)
    _check_numeric(values.dtype, name)
    if values.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},), got {values.shape}")
    out = contiguous(values, dtype=np.float32)
    _check_finite(out, name, lambda k: f"entry {k}")
    return out


def sample_weight(values: ArrayLike | None, n_rows: int) -> Floats | None:
    """Weights of the rows, finite and at least zero, as float32; None for None."""
    if values is None:
        return None
    values = vector(values, "sample_weight", n_rows)
    if values.size and values.min() < 0:
        raise ValueError(f"sample_weight must be at least 0, got {values.min():g} at entry "
                         f"{values.argmin()}")
    if values.size and not values.any():
        raise ValueError("sample_weight must be above 0 for at least one row, got only zeros")
    return values


def thresholds(values: Any, n_labels: int) -> Floats:
    """A threshold of probabilities, or one per label, as a float32 vector."""
    if np.ndim(values) == 0:
        return np.full(n_labels, number(values, "threshold", above=0, maximum=1), np.float32)
    values = vector(values, "threshold", n_labels)
    if not np.all((values > 0) & (values <= 1)):
        raise ValueError("threshold holds values outside (0, 1]; a threshold is a probability")
    return values


def ids(values: ArrayLike, name: str, bound: int, *, unique: bool = False) -> Ids:
    """One-dimensional int32 ids in 0..bound-1."""
    values = _array(values, name)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a one-dimensional array of integers, got shape "
                         f"{values.shape} and dtype {values.dtype}")
    _check_range(values, name, bound)
    values = contiguous(values, dtype=np.int32)
    if unique and len(np.unique(values)) != len(values):
        raise ValueError(f"{name} must be distinct, got repeated ids")
    return values


def own_ids(values: Any, n_rows: int, what: str = "W") -> np.ndarray:
    """A user's ids of n_rows rows: distinct, int64 or strings."""
    array = _array(values, "ids")
    if array.ndim != 1 or array.dtype.kind not in "iuUTO":
        raise TypeError(f"ids must be a one-dimensional array of integers or strings, got shape "
                        f"{array.shape} and dtype {array.dtype}")
    if array.dtype.kind in "TO":
        if not all(isinstance(value, str) for value in array.tolist()):
            raise TypeError("ids must be integers or strings, got an array of other objects")
        array = array.astype(np.str_)
    if len(array) != n_rows:
        raise ValueError(f"ids must have an entry for each of the {n_rows} rows of {what}, got "
                         f"{len(array)}")
    if array.dtype.kind == "U":
        if (array == "").any():
            raise ValueError("ids must not be empty strings, which stand for no neuron")
    else:
        if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
            raise ValueError(f"ids must be at least 0 and fit into int64, got {array.min()}")
        array = array.astype(np.int64)
    if len(np.unique(array)) != len(array):
        raise ValueError("ids must be distinct, got repeated ids")
    return array


def selection(allow: Any, exclude: Any, n_queries: int, n_columns: int,
              to_rows: Callable[[Any, str], Ids] | None = None) -> Selection | None:
    """Which of n_columns neurons or labels the queries may find; None for all.

    `to_rows` turns a user's own ids into rows.
    """
    if allow is None and exclude is None:
        return None
    mask: np.ndarray | None = None
    lists: dict[str, CSR] = {}
    for value, name in ((allow, "allow"), (exclude, "exclude")):
        if value is None:
            continue
        if sp.issparse(value):
            lists[name] = _lists(value, name, n_queries, n_columns)
            continue
        chosen = _mask(value, name, n_columns, to_rows)
        chosen = chosen if name == "allow" else ~chosen
        mask = chosen if mask is None else mask & chosen

    base = None if mask is None or mask.all() else contiguous(mask, np.bool_).view(np.uint8)
    if not lists:
        return Selection(base)
    rows = lists.get("allow", lists.get("exclude"))
    indptr, listed = rows.indptr, rows.indices
    if len(lists) == 2:
        keys, others = (np.repeat(np.arange(n_queries), np.diff(each.indptr)) * n_columns
                        + each.indices for each in (rows, lists["exclude"]))
        kept = ~np.isin(keys, others)
        listed = listed[kept]
        indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
    return Selection(base, indptr.astype(np.int64, copy=False), contiguous(listed, np.int32),
                     "allow" in lists)


def _lists(value: Any, name: str, n_queries: int, n_columns: int) -> CSR:
    if value.shape != (n_queries, n_columns):
        raise ValueError(f"{name} must have a row for each of the {n_queries} queries and "
                         f"{n_columns} columns, got shape {value.shape}")
    rows = _rows_as_they_are(value, n_columns, without_zeros=True)
    return targets(value, n_queries, n_columns, name=name) if rows is None else rows


def _mask(value: Any, name: str, n_columns: int,
          to_rows: Callable[[Any, str], Ids] | None) -> NDArray[np.bool_]:
    array = _array(value, name)
    if array.dtype == bool:
        if array.shape != (n_columns,):
            raise ValueError(f"{name} must have shape ({n_columns},) as a mask, got {array.shape}; "
                             "for a selection per query give a SciPy sparse matrix")
        return array
    if array.ndim == 2:
        raise ValueError(f"{name} must be a mask, ids or a SciPy sparse matrix with a row for each "
                         f"query, got an array of shape {array.shape}")
    chosen = np.zeros(n_columns, np.bool_)
    if array.size:
        chosen[ids(array, name, n_columns) if to_rows is None else to_rows(array, name)] = True
    return chosen


def targets(Y: Any, n_rows: int, n_labels: int, *, values: bool = False, name: str = "Y",
            x_name: str = "X") -> CSR:
    """Targets as CSR over labels: from class ids (n,), a sparse indicator matrix or a dense matrix.

    Stored zeros are dropped unless `values` (regression) is true.
    """
    if isinstance(Y, csr.CSR):
        out = Y
    elif sp.issparse(Y):
        out = sparse(Y, name, n_columns=n_labels, what="labels")
    else:
        out = _dense_targets(Y, n_labels, values, name)

    if out.shape[0] != n_rows:
        raise ValueError(f"{name} must have as many rows as {x_name}, got {out.shape[0]} and "
                         f"{n_rows}")
    if not values and out.nnz and not out.data.all():
        kept = out.to_scipy().copy()  # its arrays may be the caller's
        kept.eliminate_zeros()
        out = csr.from_scipy(kept)
    return out


def _dense_targets(Y: Any, n_labels: int, values: bool, name: str) -> CSR:
    Y = _array(Y, name)
    if Y.ndim == 1 and values:
        Y = Y[:, None]
    elif Y.ndim == 2 and Y.shape[1] == 1 < n_labels and not values:
        raise ValueError(f"{name} has one column, but a matrix needs one for each of the "
                         f"{n_labels} labels; for class ids use {name}.ravel()")

    if Y.ndim == 1:
        if Y.dtype.kind == "f" and Y.size and np.isfinite(Y).all() and (Y == np.floor(Y)).all():
            Y = Y.astype(np.int64)
        labels = ids(Y, name, n_labels)
        return csr.CSR(np.arange(len(labels) + 1, dtype=np.int64), labels,
                       np.ones(len(labels), np.float32), n_labels)

    array = dense(Y, name, n_columns=n_labels, what="labels")
    return csr.CSR(np.arange(len(array) + 1, dtype=np.int64) * n_labels,
                   np.tile(np.arange(n_labels, dtype=np.int32), len(array)), array.ravel(),
                   n_labels)


def rank(k: Any, n_columns: int, name: str) -> int:
    """`k` as an int from 1 to the number of columns of the array called `name`."""
    k = integer(k, "k")
    if k > n_columns:
        raise ValueError(f"k={k} exceeds the {n_columns} columns of {name}; lower k or retrieve "
                         "more ids")
    return k


def indicator(Y: Any, name: str) -> csr_array:
    """True labels, given as an indicator matrix or 1-D class ids, as a csr_array of ones.

    Returns
    -------
    csr_array of float32, shape (n_rows, n_labels)
        Sorted, without duplicates or stored zeros; a new object. Class ids give one label per row,
        and the largest id plus one columns.
    """
    is_sparse = sp.issparse(Y)
    if not is_sparse:
        Y = _array(Y, name)
    if Y.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {Y.dtype}; give a CSR indicator matrix or integer "
                        "class ids")
    if is_sparse:
        if Y.ndim != 2:
            raise ValueError(f"{name} has shape {Y.shape}; give a matrix of shape "
                             "(n_rows, n_labels)")
        Y = sp.csr_array(Y, copy=True)
    else:
        if Y.ndim == 1:
            return _one_label_per_row(Y, name)
        if Y.ndim != 2:
            raise ValueError(f"{name} has shape {Y.shape}; give (n_rows, n_labels), or (n_rows,) "
                             "class ids")
        # float16, of which SciPy has no matrices, and others alike
        Y = sp.csr_array(Y if Y.dtype.kind != "f" else np.where(np.isnan(Y), np.nan, Y != 0))
    if Y.dtype.kind == "f" and np.isnan(Y.data).any():
        raise ValueError(f"{name} holds NaN; give 0 or 1 for each label, or leave the row out")

    Y.sum_duplicates()
    Y.eliminate_zeros()
    return sp.csr_array((np.ones(Y.nnz, np.float32), Y.indices, Y.indptr), shape=Y.shape)


def _one_label_per_row(ids: np.ndarray, name: str) -> csr_array:
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {ids.dtype}; class ids are integers: convert with "
                        "astype(int)")
    if ids.size and (ids.min() < 0 or ids.max() >= INT32_MAX):
        bad = ids[(ids < 0) | (ids >= INT32_MAX)][0]
        raise ValueError(f"{name} holds the class id {bad}; give ids from 0 to {INT32_MAX - 1}")
    shape = (ids.size, int(ids.max()) + 1 if ids.size else 0)
    indptr = np.arange(ids.size + 1, dtype=np.int32)
    return sp.csr_array((np.ones(ids.size, np.float32), ids.astype(np.int32), indptr), shape=shape)


def id_table(ids: Any, n_rows: int, name: str) -> np.ndarray:
    """A table of ids, best first, -1 for none: an int64 array of shape (n_rows, n_columns).

    Raises
    ------
    TypeError
        The dtype is not an integer type.
    ValueError
        The shape is wrong, or an id is below -1.
    """
    ids = _array(ids, name)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {ids.dtype}; give integer ids, -1 for none")
    if ids.ndim != 2 or ids.shape[0] != n_rows:
        raise ValueError(f"{name} has shape {ids.shape}; give ({n_rows}, k), one row of ids "
                         "for each row")
    if ids.dtype == np.uint64 and ids.size and ids.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds the id {ids.max()}, which is no int64; give the ids that a "
                         "search gave, -1 for none")
    ids = ids.astype(np.int64, copy=False)
    if ids.size and ids.min() < -1:
        raise ValueError(f"{name} holds the id {ids.min()}; ids are 0 or more, -1 for none")
    return ids


def estimate_bits(bits: Any) -> int:
    """Bits of the codes by which outputs are estimated."""
    if integer(bits, "bits") not in (1, 8):
        raise ValueError(f"bits must be 1 or 8, got {bits}")
    return int(bits)


def neuron_table(ids: Any, name: str, n_rows: int, bound: int,
                 to_rows: Callable[[Any, str], Ids] | None = None) -> Ids:
    """Ids of neurons for each row, int32 of shape (n_rows, n_ids), -1 for none.

    One row of ids is for all rows. `to_rows` turns a user's own ids into rows.
    """
    table = array(ids, name)
    if table.ndim not in (1, 2) or (table.ndim == 2 and len(table) != n_rows):
        raise ValueError(f"{name} must have shape (n_ids,), or ({n_rows}, n_ids) with a row per "
                         f"query, got {table.shape}")
    if to_rows is not None:
        table = to_rows(table, name)
    elif table.size and table.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {table.dtype}")
    if table.size and (table.max() >= bound or table.min() < -1):
        wrong = table.max() if table.max() >= bound else table.min()
        raise ValueError(f"{name} must be between 0 and {bound - 1}, or -1 for none, got {wrong}")
    table = np.broadcast_to(table, (n_rows, table.shape[-1]))
    return contiguous(table, np.int32)


def distinct(ids: np.ndarray, name: str) -> None:
    """Raise ValueError if an id other than -1 occurs twice in one row of a table of ids."""
    in_order = np.sort(ids, axis=1)
    twice = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    if twice.any():
        row, column = np.argwhere(twice)[0]
        raise ValueError(f"{name} holds {in_order[row, column]} twice in row {row}; give each id "
                         "once")
