"""Write the stubs of the compiled modules, sparselsh/_core/*.pyi, from their signatures.

    python -P docs/make_stubs.py

Run it after a change to the signature of a kernel. RETURNS has the types of results that
are not None.
"""
import importlib
import inspect
import re
import sys
from pathlib import Path

CORE = Path(__file__).parent.parent / "sparselsh" / "_core"

RETURNS = {
    "_calibration.losses": "float",
    "_buckets.capacity": "int",
    "_single_row_mlp.prepare": "SingleRowMLP",
    "_checks.are_rows": "bool",
    "_file_parts.crc32": "int",
    "_file_parts.is_fast": "bool",
    "_format.format_rows": "int",
    "_openmp.max_threads": "int",
    "_parse.count": "tuple[int, int, int]",
    "_parse.parse": "tuple[int, int, int, int]",
    "_sparse_rows.group_columns": "int",
    "_bounded_search.prepare": "BoundedSearch",
    "_calibration.prepare": "Parameters",
    "_estimates.prepare": "Estimator",
    "_select.batch_union": "int",
    "_select.hashed_union": "int",
    "_sessions.losses": "float",
    "_sessions.prepare": "SessionRanker",
    "_portable_math.cos_pi": "float",
    "_portable_math.exp": "float",
    "_portable_math.log": "float",
    "_simd.available_levels": "tuple[str, ...]",
    "_simd.is_reproducible": "bool",
    "_simd.level": "str",
    "_simd.reproducible_levels": "tuple[str, ...]",
    "_single_row_mlp.top_k_text": "list[tuple[str, float]]",
    "_text.count": "int",
    "_text.counter": "NgramCounts",
    "_text.fill_slots": "bool",
    "_text.murmur": "int",
    "_text.ngrams": "int",
    "_text.prepare": "TextRows",
    "_text.row": "int",
    "_updates.adam": "Rule",
    "_updates.sgd": "Rule",
}
SCALARS = {"bool": "bool", "int": "int", "Py_ssize_t": "int", "int64_t": "int", "uint64_t": "int",
           "float": "float", "double": "float", "bint": "bool", "str": "str", "Rule": "Rule",
           "BoundedSearch": "BoundedSearch", "Estimator": "Estimator",
           "SingleRowMLP": "SingleRowMLP", "bytes": "bytes", "NgramCounts": "NgramCounts",
           "TextRows": "TextRows", "Parameters": "Parameters",
           "SessionRanker": "SessionRanker", "list": "list[str]"}
ITEMS = {"float": "float32", "double": "float64", "uint8_t": "uint8", "uint16_t": "uint16",
         "int8_t": "int8", "int32_t": "int32", "int64_t": "int64", "uint64_t": "uint64"}
BUFFERS = {"_file_parts.data", "_parse.text"}  # bytes or a mapped file
OPTIONAL = {"_gemm.m", "_gemm.v", "_updates.m", "_updates.v",  # state that a rule may not keep
            "_active.indices", "_projections.indices", "_winners.indices",  # of dense rows
            "_buckets.names"}
UNTYPED = {  # other parameters without a type are arrays of one of several dtypes
    "_quantized.scales": "NDArray[float32] | None",
    "_estimates.scales": "NDArray[float32] | None",
    "_coded_search.able": "NDArray[uint8] | None",
    "_coded_search.indptr": "NDArray[int64] | None",
    "_coded_search.listed": "NDArray[int32] | None",
    "_coded_search.middle": "NDArray[float32] | None",
    "_select.ids": "NDArray[int32] | None",
    "_bounded_search.able": "NDArray[uint8] | None",
    "_bounded_search.coarse": "NDArray[Any] | None",
    "_bounded_search.coarse_scales": "NDArray[float32] | None",
    "_bounded_search.indptr": "NDArray[int64] | None",
    "_bounded_search.listed": "NDArray[int32] | None",
    "_bounded_search.signs": "NDArray[float32] | None",
    "_sessions.arrays": "tuple[NDArray[Any], ...]",
    "_sessions.layers": "list[tuple[Any, ...]]",
    "_single_row_mlp.layers": "list[tuple[Any, ...]]",
    "_single_row_mlp.search": "BoundedSearch | None",
    "_single_row_mlp.classifiers": "tuple[Any, ...] | None",
    "_single_row_mlp.calibration": "Parameters | None",
    "_sketches.biases": "NDArray[float32] | None",
    "_sketches.scales": "NDArray[float32] | None",
}


def parameter(module, text):
    """``const float[:, ::1] x`` as ``x: NDArray[float32]``."""
    found = re.fullmatch(r"(?:const )?(\w+)(\[[^]]*\])? (\w+)(?:=(\w+))?", text)
    if found is None:
        type_ = UNTYPED.get(f"{module}.{text}", "NDArray[Any]")
        return f"{text}: {type_}" + (" | None" if f"{module}.{text}" in OPTIONAL else "")
    kind, is_array, name, default = found.groups()
    if not is_array:
        return f"{name}: {SCALARS[kind]}" + (f" = {default}" if default else "")
    type_ = "ReadableBuffer" if f"{module}.{name}" in BUFFERS else f"NDArray[{ITEMS[kind]}]"
    return f"{name}: {type_}" + (" | None" if f"{module}.{name}" in OPTIONAL else "")


def function(module, name, doc):
    """The stub of a function whose docstring begins with its signature."""
    text = doc.splitlines()[0].removeprefix(name + "(").removesuffix(")")
    parameters = [parameter(module, part) for part in re.split(r", (?![^\[]*\])", text) if part]
    head, end = f"def {name}(", f") -> {RETURNS.get(f'{module}.{name}', 'None')}: ..."
    line = head + ", ".join(parameters) + end
    if len(line) <= 100:
        return line
    return head + "".join(f"\n    {p}," for p in parameters) + "\n" + end


def stub(module):
    """The stub of a compiled module, as text."""
    lines = []
    for name, value in vars(importlib.import_module(f"sparselsh._core.{module}")).items():
        if name.startswith("_") or inspect.ismodule(value):
            continue
        if isinstance(value, type):
            lines.append(f"class {name}: ...")
        elif callable(value):
            lines.append(function(module, name, value.__doc__))
        else:
            type_ = "tuple[str, ...]" if isinstance(value, tuple) else type(value).__name__
            lines.append(f"{name}: {type_}")
    body = "\n".join(lines) + "\n"

    head = "# Made by docs/make_stubs.py.\n"
    if re.search(r"\bAny\b", body):
        head += "from typing import Any\n\n"
    if "ReadableBuffer" in body:
        head += "from _typeshed import ReadableBuffer\n"
    used = sorted({item for item in ITEMS.values() if f"[{item}]" in body},
                  key=lambda item: (item[0], len(item), item))
    if used:
        head += f"from numpy import {', '.join(used)}\nfrom numpy.typing import NDArray\n"
    if "Rule" in body and "class Rule" not in body:
        head += "\nfrom ._updates import Rule\n"
    if "BoundedSearch" in body and "class BoundedSearch" not in body:
        head += "\nfrom ._bounded_search import BoundedSearch\n"
    if "Parameters" in body and "class Parameters" not in body:
        head += "from ._calibration import Parameters\n"
    if "TextRows" in body and "class TextRows" not in body:
        head += "from ._text import TextRows\n"
    return head + "\n" * (head.count("\n") > 1) + body


def modules():
    """Names of the compiled modules."""
    return sorted(path.stem for path in CORE.glob("*.pyx"))


def main():
    """Write all stubs."""
    for name in modules():
        (CORE / f"{name}.pyi").write_text(stub(name), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
