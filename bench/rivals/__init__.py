"""The contenders of bench/retrieval.py, one class each.

    contender.py   the interface, and weights in the form that rivals take
    exact.py       NumPy and BLAS
    faiss_.py      faiss: flat, IVF, HNSW, product quantization, RaBitQ
    graphs.py      hnswlib and voyager
    libraries.py   usearch, Scalable Vector Search, rabitqlib, PyNNDescent
    scann_.py      ScaNN
    ours.py        sparselsh
    measure.py     recall, time, sweeps
    report.py      tables and the chart

Contenders whose package is not installed are left out.
"""
import importlib

MODULES = ("exact", "faiss_", "graphs", "libraries", "scann_", "ours")


def catalogue(threads, k, targets):
    """(contenders, {package: why it is left out})."""
    contenders, left_out = [], {}
    for name in MODULES:
        module = importlib.import_module(f"rivals.{name}")
        for package, make in module.GROUPS.items():
            try:
                importlib.import_module(package)
            except ImportError as error:
                left_out[package] = f"not installed ({error})"
            else:
                contenders += make(threads, k, targets)
    return contenders, left_out
