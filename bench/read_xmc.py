"""CPU seconds to read an XMC text file: sparselsh, and scikit-learn's svmlight reader.

usage: python -P bench/read_xmc.py FILE [REPEATS]
"""
import statistics
import sys
import time

from sklearn.datasets import load_svmlight_file

from sparselsh.datasets import read_xmc


def with_sparselsh(path):
    return read_xmc(path)[0]


def with_sklearn(path):
    with open(path, "rb") as file:
        n_features = int(file.readline().split()[1])
        return load_svmlight_file(
            file, n_features=n_features, dtype="float32", multilabel=True, zero_based=True)[0]


def main(path, repeats=3):
    seconds = {with_sparselsh: [], with_sklearn: []}
    for _ in range(repeats):  # in turns, so that both meet the same state of a shared machine
        for read, spent in seconds.items():
            start = time.process_time()
            X = read(path)
            spent.append(time.process_time() - start)
    ours, theirs = map(statistics.median, seconds.values())
    for read, spent in seconds.items():
        print(f"{read.__name__}: {statistics.median(spent):.3f} CPU s, median of {repeats} "
              f"({min(spent):.3f} to {max(spent):.3f}); {X.shape[0]} rows, {X.nnz} values")
    print(f"ratio: {theirs / ours:.1f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
