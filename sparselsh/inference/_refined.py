"""The refinement of a network that is served: scores, weights in fewer bits, arrays of a file."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _validation as check
from .._arrays import bfloat16
from .._arrays.csr import CSR
from .._core import _select
from ..index import STORAGES
from ..refinement import (
    Refinement,
    refinement_config,
    refinement_of_file,
    refinement_tensors,
    rerank,
    spread,
)

if TYPE_CHECKING:
    from .._arrays.types import Floats, Ids

WORD_IDS = 1 << 16  # up to here an id is stored in two bytes,
LONG_IDS = 1 << 24  # and up to here in three
DTYPES = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}


def refined_outputs(refinement: Refinement, x: CSR, z: Floats, n_threads: int) -> Floats:
    """The scores (n_rows, n_labels) of all labels for the outputs z of the layers."""
    shape = len(z), min(refinement.n_candidates, z.shape[1])
    ids, values = np.empty(shape, np.int32), np.empty(shape, np.float32)
    _select.top_k(z, None, ids, values, n_threads)
    return spread(*rerank(refinement, x, ids, values, shape[1], n_threads), z)


class StoredRefinement:
    """A refinement whose weights are kept in one of the dtypes of `STORAGES`.

    `values` are its weights in that dtype, and `scales`, for int8, one factor per label, as in
    :class:`QuantizedRows <sparselsh.index._quantized_rows.QuantizedRows>`. `refinement` has them in
    float32, as the kernels take them.
    """

    def __init__(self, refinement: Refinement, storage: str, values: np.ndarray,
                 scales: Floats | None) -> None:
        self.refinement, self.storage = refinement, storage
        self.values, self.scales = values, scales

    @classmethod
    def of(cls, refinement: Refinement, storage: str) -> Self:
        """The classifiers, rounded to a dtype; they share no memory with the network's."""
        arrays = refinement_tensors(refinement)
        indptr, data = np.array(arrays["indptr"]), arrays["data"]
        values, scales = np.array(data), None
        if storage == "bfloat16":
            values = bfloat16.to_bfloat16(data)
        elif storage == "int8":
            counts = np.diff(indptr)
            largest = np.zeros(len(counts), np.float32)
            some = counts > 0
            largest[some] = np.maximum.reduceat(np.abs(data), indptr[:-1][some])
            scales = largest / np.float32(127)
            inverse = 1 / np.maximum(scales, np.float32(1e-30))
            values = np.rint(data * np.repeat(inverse, counts)).clip(-127, 127).astype(np.int8)
        return cls._whole(refinement, indptr, np.array(arrays["indices"]), storage, values, scales)

    @classmethod
    def _whole(cls, like: Refinement, indptr: np.ndarray, indices: np.ndarray, storage: str,
               values: np.ndarray, scales: Floats | None) -> Self:
        data = values
        if storage == "bfloat16":
            data = bfloat16.to_float32(values)
        elif scales is not None:
            data = values.astype(np.float32)
            data *= np.repeat(scales, np.diff(indptr))
        weight = CSR(indptr, indices, data, like.weight.shape[1])
        refinement = Refinement(weight, np.array(like.bias), like.scale, like.n_candidates,
                                like.by_feature, like.normalized)
        return cls(refinement, storage, values, scales)

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays of a file."""
        out = refinement_tensors(self.refinement) | {"data": self.values}
        out |= _packed_ids(out.pop("indices"), self.refinement.weight.shape[1])
        return out if self.scales is None else out | {"scales": self.scales}

    def config(self) -> dict[str, Any]:
        """The plain values of a file."""
        return refinement_config(self.refinement) | {"storage": self.storage}

    @classmethod
    def restored(cls, tensors: dict[str, np.ndarray], config: dict[str, Any],
                 shape: tuple[int, int]) -> Self:
        """The refinement of a file, checked."""
        storage = check.choice(config["storage"], "storage", STORAGES)
        values, scales, indptr = tensors["data"], tensors.get("scales"), tensors["indptr"]
        indices = _unpacked_ids(tensors)
        if values.dtype != DTYPES[storage] or values.shape != indices.shape:
            raise ValueError(f"refinement.data must be {np.dtype(DTYPES[storage])} of "
                             f"shape {indices.shape}, got {values.dtype} {values.shape}")
        if (scales is None) == (storage == "int8"):
            raise ValueError("refinement.scales belong to int8, and to nothing else")
        if scales is not None:
            scales = check.vector(scales, "refinement.scales", shape[0])
        arrays = {"indptr": indptr, "indices": indices, "bias": tensors["bias"],
                  "data": np.zeros(indices.shape, np.float32)}
        like = refinement_of_file(arrays, config, shape)
        if not np.array_equal(refinement_tensors(like)["indices"], indices):
            raise ValueError("refinement.indices must ascend in each row")
        with np.errstate(over="ignore"):
            out = cls._whole(like, indptr, indices, storage, values, scales)
        if not np.isfinite(refinement_tensors(out.refinement)["data"]).all():
            raise ValueError("refinement.data must be finite")
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays in a file."""
        return sum(a.nbytes for a in self.tensors().values())

    def __str__(self) -> str:
        return (f"{len(self.refinement.bias):,} classifiers with {len(self.values):,} weights "
                f"rank the best {self.refinement.n_candidates} labels again")


def _packed_ids(ids: Ids, bound: int) -> dict[str, np.ndarray]:
    """Ids below `bound` in two or three bytes each, where that is enough."""
    if bound > LONG_IDS:
        return {"indices": ids}
    low = {"indices_low": ids.astype(np.uint16)}
    return low if bound <= WORD_IDS else low | {"indices_high": (ids >> 16).astype(np.uint8)}


def _unpacked_ids(tensors: dict[str, np.ndarray]) -> Ids:
    if "indices" in tensors:
        return tensors["indices"]
    low, high = tensors["indices_low"], tensors.get("indices_high")
    if low.dtype != np.uint16 or low.ndim != 1:
        raise ValueError("refinement.indices_low must be a vector of uint16")
    ids = low.astype(np.int32)
    if high is not None:
        if high.dtype != np.uint8 or high.shape != low.shape:
            raise ValueError(f"refinement.indices_high must be uint8 of shape {low.shape}")
        ids |= high.astype(np.int32) << 16
    return ids
