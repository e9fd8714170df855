"""Train an MLP with PyTorch, densely or with sampled softmax: what bench/pretrained.py converts.

usage: python -P bench/make_pretrained.py TRAIN TEST OUT.pt [--hidden 256] [--sampled 4096] [--dense-input --scale 255]

TRAIN and TEST are XMC text. The network is an nn.Sequential: an EmbeddingBag for the sparse input, or with
--dense-input a Linear; a ReLU after each hidden layer; a Linear for the labels. --sampled N computes the labels of a
batch and random ones, N together, and 0 all of them. OUT.pt holds the sizes and the state dict.
"""
import argparse
import time

import numpy as np
import torch

from sparselsh import datasets
from sparselsh._arrays import csr


def build(n_features, hidden, n_labels, dense_input):
    """The network, not trained."""
    if dense_input:
        layers = [torch.nn.Linear(n_features, hidden[0])]
    else:
        layers = [torch.nn.EmbeddingBag(n_features, hidden[0], mode="sum", sparse=True)]
        torch.nn.init.normal_(layers[0].weight, std=2.5 / hidden[0] ** 0.5)
    for n_in, n_out in zip(hidden, [*hidden[1:], n_labels], strict=True):
        layers += [torch.nn.ReLU(), torch.nn.Linear(n_in, n_out)]
    return torch.nn.Sequential(*layers)


def load(path):
    """The trained network of a file that this script has written."""
    saved = torch.load(path, weights_only=True)
    model = build(*saved["sizes"])
    model.load_state_dict(saved["state"])
    return model.eval()


def hidden_of(model, x, dense_input, scale):
    """Activations of the last hidden layer for the rows x, a CSR."""
    if dense_input:
        h = model[0](torch.from_numpy(x.to_dense() / np.float32(scale)))
    else:
        h = model[0](torch.from_numpy(x.indices), torch.from_numpy(x.indptr[:-1].astype(np.int32)),
                     per_sample_weights=torch.from_numpy(x.data))
    return model[1:-1](h)


def logits(model, h, labels, n_sampled, rng):
    """Scores of the labels that are computed, and the columns at which the true ones stand."""
    out = model[-1]
    if not n_sampled:
        return out(h), labels.indices.astype(np.int64)
    n_random = max(0, min(n_sampled, labels.n_columns) - len(np.unique(labels.indices)))
    ids = np.unique(np.concatenate([labels.indices, rng.integers(labels.n_columns, size=n_random)]))
    rows = torch.from_numpy(ids)
    weight = torch.nn.functional.embedding(rows, out.weight, sparse=True)
    return h @ weight.T + out.bias[rows], np.searchsorted(ids, labels.indices)


def loss_of(z, labels, columns):
    """Cross entropy against the uniform distribution over the labels of a sample."""
    counts = np.diff(labels.indptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    share = torch.from_numpy((1 / counts[rows]).astype(np.float32))
    some = torch.from_numpy((counts > 0).astype(np.float32))
    return (torch.logsumexp(z, 1) @ some - z[torch.from_numpy(rows), torch.from_numpy(columns)] @ share) / len(counts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("out")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256])
    parser.add_argument("--sampled", type=int, default=4096)
    parser.add_argument("--dense-input", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0, help="divides the values of a dense input")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    (X, Y), (X_test, Y_test) = (map(csr.from_scipy, datasets.read_xmc(path)) for path in (args.train, args.test))
    sizes = (X.n_columns, args.hidden, Y.n_columns, args.dense_input)
    model = build(*sizes)
    lazy = [] if args.dense_input else [model[0].weight]
    if args.sampled:
        lazy.append(model[-1].weight)
    dense = [p for p in model.parameters() if all(p is not q for q in lazy)]
    optimizers = [torch.optim.Adam(dense, lr=args.lr)] + ([torch.optim.SparseAdam(lazy, lr=args.lr)] if lazy else [])
    n_batches = -(-X.shape[0] // args.batch_size)
    begin = time.process_time()
    for epoch in range(args.epochs):
        order, total = rng.permutation(X.shape[0]), 0.0
        for number in range(n_batches):
            rows = order[number * args.batch_size:(number + 1) * args.batch_size]
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = args.lr * (1 - (epoch + number / n_batches) / args.epochs)
                optimizer.zero_grad()
            labels = Y.take(rows)
            h = hidden_of(model, X.take(rows), args.dense_input, args.scale)
            loss = loss_of(*reordered(logits(model, h, labels, args.sampled, rng), labels))
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / n_batches:.3f}, {time.process_time() - begin:.0f} CPU s", flush=True)
        torch.save({"sizes": sizes, "state": model.state_dict()}, args.out)
    with torch.inference_mode():
        some = X_test.slice(0, min(2000, X_test.shape[0]))
        best = model[-1](hidden_of(model, some, args.dense_input, args.scale)).argmax(1).numpy()
    hits = [j in Y_test.indices[a:b] for j, a, b in zip(best, Y_test.indptr[:-1], Y_test.indptr[1:], strict=False)]
    print(f"P@1 {np.mean(hits):.4f} on {len(hits)} test rows")


def reordered(pair, labels):
    z, columns = pair
    return z, labels, columns


if __name__ == "__main__":
    main()
