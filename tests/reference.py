"""Plain Python and NumPy twins of what the library computes, written to be read rather than to be fast."""
import numpy as np

# ---- Text files and metrics ------------------------------------------------------------------------------


def parse_rows(text, has_header):
    """Dense (X, Y, stored) of XMC or zero-based svmlight text; stored: which entries are there."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    shape = None
    if has_header:
        n_rows, *shape = map(int, lines[0].split())
        lines = lines[1 : 1 + n_rows]
    else:
        lines = [line for line in (line.split("#")[0] for line in lines) if line.strip()]
    rows = []
    for line in lines:
        labels, _, features = line.partition(" ")
        if ":" in labels:
            labels, features = "", line
        pairs = [pair.split(":") for pair in features.split()]
        rows.append(([int(label) for label in labels.split(",") if label.strip()],
                     [(int(j), np.float32(float(v))) for j, v in pairs]))
    if shape is None:
        shape = (1 + max((j for _, pairs in rows for j, _ in pairs), default=-1),
                 1 + max((label for labels, _ in rows for label in labels), default=-1))
    X = np.zeros((len(rows), shape[0]), np.float32)
    Y = np.zeros((len(rows), shape[1]), np.float32)
    stored = np.zeros(X.shape, bool)
    for i, (labels, pairs) in enumerate(rows):
        Y[i, labels] = 1
        for j, value in pairs:
            X[i, j] = value
            stored[i, j] = True
    return X, Y, stored


def metric_label_sets(Y):
    """Set of labels of each row, from a dense indicator or class ids."""
    Y = np.asarray(Y)
    return [{int(y)} for y in Y] if Y.ndim == 1 else [set(np.flatnonzero(row).tolist()) for row in Y]


def metric_precision_at_k(Y, ids, k):
    return np.mean([len(true & set(row[:k].tolist())) / k
                    for true, row in zip(metric_label_sets(Y), ids, strict=True)])


def metric_recall_at_k(Y, ids, k):
    return np.mean([len(true & set(row[:k].tolist())) / len(true)
                    for true, row in zip(metric_label_sets(Y), ids, strict=True) if true])


def metric_ndcg_at_k(Y, ids, k):
    ratios = []
    for true, row in zip(metric_label_sets(Y), ids, strict=True):
        if true:
            gain = sum(1 / np.log2(1 + rank) for rank, label in enumerate(row[:k], 1) if label in true)
            ideal = sum(1 / np.log2(1 + rank) for rank in range(1, min(k, len(true)) + 1))
            ratios.append(gain / ideal)
    return np.mean(ratios)


def metric_psp_at_k(Y, ids, k, p):
    got = best = 0.0
    for true, row in zip(metric_label_sets(Y), ids, strict=True):
        got += sum(1 / p[label] for label in row[:k] if label in true)
        best += sum(sorted((1 / p[label] for label in true), reverse=True)[:k])
    return got / best


def metric_neighbour_recall(ids, true_ids):
    ratios = []
    for row, true in zip(ids, true_ids, strict=True):
        true = set(true.tolist()) - {-1}
        if true:
            ratios.append(len(true & set(row.tolist())) / len(true))
    return np.mean(ratios)
