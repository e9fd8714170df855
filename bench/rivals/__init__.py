"""The contenders of bench/retrieval.py, a class each.

    contender.py   the interface, and weights as the rivals see them
    exact.py       NumPy and BLAS
    faiss_.py      faiss: flat, IVF, HNSW, product quantization, RaBitQ
    graphs.py      hnswlib and voyager
    scann_.py      ScaNN
    ours.py        sparselsh
    measure.py     recall, time, sweeps
    report.py      tables and the plot

A package that is not installed leaves out its contenders.
"""
import importlib

MODULES = ("exact", "faiss_", "graphs", "scann_", "ours")


def catalogue(threads, k, targets):
    """(contenders, complaints): every contender whose package is there, and a line for each package that is not."""
    contenders, complaints = [], []
    for name in MODULES:
        module = importlib.import_module(f"rivals.{name}")
        for package, make in module.GROUPS.items():
            try:
                importlib.import_module(package)
            except ImportError as error:
                complaints.append(f"{package} is left out: {error}")
            else:
                contenders += make(threads, k, targets)
    return contenders, complaints
