"""Which cells to scan first: by the mean of their neurons, or as a classifier of queries says.

usage: python -P bench/routing.py LAYER.npz [LAYER.npz ...] [--steps 600] [--seed 0]

bench/make_layers.py makes the layers. The classifiers are trained on H to say in which cells the
20 best neurons are, as the index of MLANN is on queries: a softmax over inputs, one over the scores
by which cells are ordered today, and a network of 256 ReLU units. Printed are the sketches that a
scan in the order of each reads until it has 90, 95 and 98 % of the k best neurons of Q, k = 1, 5,
50. Needs torch, but for `--steps 0`, which leaves the classifiers out.
"""
import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import markdown_table

import sparselsh as sl

N_TAUGHT, KS, SHARES, BATCH = 20, (1, 5, 50), (0.9, 0.95, 0.98), 256


def main():
    """Print a table per layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="+")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sl.set_num_threads(1)
    for path in args.layers:
        with np.load(path) as file:
            W, bias, H, Q = (np.ascontiguousarray(file[key], np.float32)
                             for key in ("W", "bias", "H", "Q"))
        index = sl.LSHIndex(recall=0.95, plan="sketches", random_state=args.seed)
        index.fit(W, bias, queries=H)
        sketches = index._engine.sketches
        if sketches.cells is None:
            print(f"## {Path(path).stem}: it has no cells\n")
            continue
        print(f"## {Path(path).stem}: {sketches.n:,} sketches in {sketches.cells.n} cells\n")
        print(table(index, H, Q, args), "\n", flush=True)


def table(index, H, Q, args):
    """A row per order of the cells."""
    sketches = index._engine.sketches
    n, n_cells = sketches.n, sketches.cells.n
    cell = np.full(len(index), -1)
    cell[sketches.ids[:n]] = sketches.cell[:n]
    sizes = np.bincount(sketches.cell[:n], minlength=n_cells)

    means = [sketches.projected(X, 1)[:, sketches.n_bits:][:, :n_cells] + sketches.cells.biases
             for X in (H, Q)]
    inputs = [(X - H.mean(axis=0)) / (H.std(axis=0) + 1e-6) for X in (H, Q)]
    scores = [(X - means[0].mean(axis=0)) / (means[0].std(axis=0) + 1e-6) for X in means]
    wanted = shares_of_cells(cell[index.search(H, N_TAUGHT, exact=True)[0]], n_cells)
    orders = {"mean of the neurons": means[1]}
    networks = classifiers(inputs, scores, args.seed) if args.steps else {}
    for name, ((X, unseen), network) in networks.items():
        orders[name] = taught(network, X, wanted, unseen, args.steps)

    best = index.search(Q, KS[-1], exact=True)[0]
    rows = []
    for name, keys in orders.items():
        order = np.argsort(-keys, axis=1)
        rank, read = np.argsort(order, axis=1), np.cumsum(sizes[order], axis=1)
        row = [name]
        for k in KS:
            cells = cell[best[:, :k]]
            needed = np.take_along_axis(read, np.take_along_axis(rank, np.maximum(cells, 0), 1), 1)
            row += [f"{np.quantile(np.where(cells >= 0, needed, n), share):,.0f}"
                    for share in SHARES]
        rows.append(row)
    return markdown_table(("order", *(f"k={k}, {share:.0%}" for k in KS for share in SHARES)), rows,
                          left=1)


def shares_of_cells(cells, n_cells):
    """The share of the best neurons of each query that is in each cell; -1 is in none."""
    shares = np.stack([np.bincount(row[row >= 0], minlength=n_cells) for row in cells])
    return (shares / np.maximum(shares.sum(axis=1, keepdims=True), 1)).astype(np.float32)


def classifiers(inputs, scores, seed):
    """What each classifier of PyTorch is trained and asked on, and its network."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    n_in, n_cells = inputs[0].shape[1], scores[0].shape[1]
    return {"softmax of the query": (inputs, torch.nn.Linear(n_in, n_cells)),
            "softmax of the scores": (scores, torch.nn.Linear(n_cells, n_cells)),
            "256 ReLU units": (inputs, torch.nn.Sequential(
                torch.nn.Linear(n_in, 256), torch.nn.ReLU(), torch.nn.Linear(256, n_cells)))}


def taught(network, X, wanted, unseen, steps):
    """What a network says of unseen rows after training by cross entropy."""
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    X, wanted, unseen = (torch.tensor(a, dtype=torch.float32) for a in (X, wanted, unseen))
    for _ in range(steps):
        rows = torch.randint(0, len(X), (BATCH,))
        optimizer.zero_grad()
        loss = -(torch.log_softmax(network(X[rows]), 1) * wanted[rows]).sum(dim=1).mean()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return network(unseen).numpy()


if __name__ == "__main__":
    main()
