"""What each part of the demo's features contributes: P@1 of a dense NumPy network.

usage: python -P bench/demo_features.py [VARIANT ...] [--root FOLDER]

Without names all variants are measured, which takes about a minute per line on two cores. FOLDER
has other Python files than those of the standard library. The network is written in NumPy here, so
that the figures depend on the task and on nothing else of the library.
"""
import argparse
import time

import numpy as np

from sparselsh.cli import _demo

VARIANTS = {
    "all": {},
    "distances alone": {"AROUND_WEIGHT": 0.0},
    "around alone": {"NEAR_DISTANCES": ()},
    "around within 60": {"AROUND_DISTANCE": 60},
    "one weight": {"AROUND_WEIGHT": 1.0},
    "without rarity": {"_rarity": lambda entries: np.ones(len(entries))},
}


def adam(p, g, m, v, lr, step):
    """One step of Adam, in place."""
    m += 0.1 * (g - m)
    v += 0.001 * (g * g - v)
    p -= lr * np.sqrt(1 - 0.999**step) / (1 - 0.9**step) * m / (np.sqrt(v) + 1e-8)


def top_ids(task, hidden=_demo.N_HIDDEN, epochs=2, batch=256, lr=2e-2):
    """Train X -> linear hidden layer -> softmax; return the best five labels per test row."""
    X, y = task.X_train, task.Y_train.indices
    rng = np.random.default_rng(1)
    e = (rng.standard_normal((X.shape[1], hidden)) / np.sqrt(hidden)).astype(np.float32)
    w = np.zeros((len(task.labels), hidden), np.float32)
    b = np.zeros(len(task.labels), np.float32)
    state = [[np.zeros_like(p), np.zeros_like(p)] for p in (e, w, b)]
    n_batches = len(y) // batch
    for step in range(1, epochs * n_batches + 1):
        place = (step - 1) % n_batches
        if place == 0:
            order = rng.permutation(len(y))
        rows = order[place * batch:(place + 1) * batch]
        x = X[rows]
        h = x @ e
        z = h @ w.T + b
        np.exp(z - z.max(axis=1, keepdims=True), out=z)
        z /= z.sum(axis=1, keepdims=True)
        z[np.arange(batch), y[rows]] -= 1
        z /= batch
        rate = lr * (1 - step / (epochs * n_batches)) + 1e-5
        dh = z @ w
        adam(w, z.T @ h, *state[1], rate, step)
        adam(b, z.sum(axis=0), *state[2], rate, step)
        # only the features of the batch change; the others keep value and state
        used = np.unique(x.indices)
        parts = [a[used] for a in (e, *state[0])]
        adam(parts[0], x[:, used].T @ dh, *parts[1:], rate, step)
        for a, part in zip((e, *state[0]), parts, strict=True):
            a[used] = part
    z = (task.X_test @ e) @ w.T + b
    best = np.argpartition(-z, 5, axis=1)[:, :5]
    return np.take_along_axis(best, np.argsort(-np.take_along_axis(z, best, 1), axis=1), 1)


def main():
    """Print P@1 and the fraction of the rows whose label is in the top five, per variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", choices=[*VARIANTS, []], metavar="VARIANT",
                        help=", ".join(VARIANTS))
    parser.add_argument("--root", metavar="FOLDER")
    args = parser.parse_args()
    for name in args.variants or VARIANTS:
        settings = VARIANTS[name]
        before = {key: getattr(_demo, key) for key in settings}
        vars(_demo).update(settings)
        task = _demo.stdlib_task(root=args.root)
        vars(_demo).update(before)
        start = time.process_time()
        hits = top_ids(task) == task.Y_test.indices[:, None]
        print(f"{name:<18} P@1 {hits[:, 0].mean():6.1%}   "
              f"top 5 {hits.any(axis=1).mean():6.1%}   "
              f"{len(hits):,} test rows, {time.process_time() - start:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
