"""What the commands print: descriptions of files, figures of a run."""
from __future__ import annotations

from typing import Any


def describe(name: str, X: Any, Y: Any) -> str:
    """Describe two matrices or, where Y is None, a CSR file in one line."""
    n = max(X.shape[0], 1)
    n_labels, label_nnz = (X.n_labels, X.label_nnz) if Y is None else (Y.shape[1], Y.nnz)
    return (f"{name:<6}{X.shape[0]:,} rows, {X.shape[1]:,} features ({X.nnz / n:.1f} per row), "
            f"{n_labels:,} labels ({label_nnz / n:.1f} per row)")


def summary(report: dict[str, Any]) -> str:
    """Format a report as lines of text; keys that are missing or None are left out."""
    lines = []
    for name, key in (("P", "p_at_"), ("nDCG", "ndcg_at_"), ("PSP", "psp_at_")):
        if f"{key}1" in report:
            lines.append("   ".join(f"{name}@{k} {report[f'{key}{k}']:6.2%}" for k in (1, 3, 5)))
    if "micro_f1" in report:
        error = report.get("calibration_error")
        lines.append(f"micro-F1 {report['micro_f1']:6.2%}"
                     + ("" if error is None else f"   calibration error {error:.3f}"))
    if "accuracy" in report:
        lines.append(f"accuracy {report['accuracy']:6.2%}")
    if "train_seconds" in report:
        lines.append(f"training {report['train_seconds']:.1f} s, "
                     f"{report['train_cpu_seconds']:.1f} CPU s")
    if report.get("peak_rss_bytes"):
        lines.append(f"peak memory {report['peak_rss_bytes'] / 2**20:,.0f} MiB")
    if "microseconds_per_query" in report:
        lines.append(f"query {report['microseconds_per_query']:.1f} microseconds")
    if "computed_share" in report:
        lines.append(f"output neurons computed {report['computed_share']:.2%}")
    return "\n".join(lines)


def silent(*_: object) -> None:
    """Print nothing."""
