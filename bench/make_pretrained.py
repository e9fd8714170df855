"""Train an MLP with PyTorch, densely or with sampled softmax: what bench/pretrained.py converts.

usage: python -P bench/make_pretrained.py TRAIN TEST OUT.pt [--hidden 256] [--sampled 4096]
           [--dense-input --scale 255] [--activation gelu] [--rows 10000]

TRAIN and TEST are XMC text. The network is an nn.Sequential: an EmbeddingBag for sparse input, or a
Linear with --dense-input; an activation after each hidden layer; a Linear for the labels.
--sampled N computes the labels of a batch and labels at random, N together; 0 computes all of them.
OUT.pt holds the sizes and the state dict.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from sparselsh import datasets

sys.path.insert(0, str(Path(__file__).parent))
from torch_networks import (
    bag_inputs,
    embedding_bag,
    precision_at_1,
    sampled_labels,
    set_rate,
    softmax_loss,
)

ACTIVATIONS = {"relu": torch.nn.ReLU, "gelu": torch.nn.GELU}


def build(n_features, hidden, n_labels, dense_input, activation="relu"):
    """The network, not trained."""
    first = torch.nn.Linear if dense_input else embedding_bag
    layers = [first(n_features, hidden[0])]
    for n_in, n_out in zip(hidden, [*hidden[1:], n_labels], strict=True):
        layers += [ACTIVATIONS[activation](), torch.nn.Linear(n_in, n_out)]
    return torch.nn.Sequential(*layers)


def load(path):
    """The trained network of a file that this script has written."""
    saved = torch.load(path, weights_only=True)
    model = build(*saved["sizes"])
    model.load_state_dict(saved["state"])
    return model.eval()


def last_hidden(model, x, dense_input, scale):
    """Activations of the last hidden layer for the rows of x, a csr_array."""
    if dense_input:
        h = model[0](torch.from_numpy(x.toarray() / np.float32(scale)))
    else:
        ids, offsets, weights = bag_inputs(x)
        h = model[0](ids, offsets, per_sample_weights=weights)
    return model[1:-1](h)


def loss_of(model, h, labels, n_sampled, rng):
    """The loss over all labels, or over sampled ones."""
    out = model[-1]
    if not n_sampled:
        return softmax_loss(out(h), labels, labels.indices.astype(np.int64))
    ids = sampled_labels(labels, n_sampled, rng)
    rows = torch.from_numpy(ids)
    z = h @ torch.nn.functional.embedding(rows, out.weight, sparse=True).T + out.bias[rows]
    return softmax_loss(z, labels, np.searchsorted(ids, labels.indices))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("out")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256])
    parser.add_argument("--sampled", type=int, default=4096)
    parser.add_argument("--dense-input", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0,
                        help="divides the values of a dense input")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="relu")
    parser.add_argument("--rows", type=int, help="of TRAIN, from its begin; all by default")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    (X, Y), (X_test, Y_test) = (datasets.read_xmc(path) for path in (args.train, args.test))
    X, Y = X[:args.rows], Y[:args.rows]
    sizes = (X.shape[1], args.hidden, Y.shape[1], args.dense_input, args.activation)
    model = build(*sizes)
    sparse = [] if args.dense_input else [model[0].weight]
    if args.sampled:
        sparse.append(model[-1].weight)
    dense = [p for p in model.parameters() if all(p is not q for q in sparse)]
    optimizers = [torch.optim.Adam(dense, lr=args.lr)]
    if sparse:
        optimizers.append(torch.optim.SparseAdam(sparse, lr=args.lr))

    n_batches = -(-X.shape[0] // args.batch_size)
    begin = time.process_time()
    for epoch in range(args.epochs):
        order, total = rng.permutation(X.shape[0]), 0.0
        for number in range(n_batches):
            rows = order[number * args.batch_size:(number + 1) * args.batch_size]
            set_rate(optimizers, args.lr * (1 - (epoch + number / n_batches) / args.epochs))
            for optimizer in optimizers:
                optimizer.zero_grad()
            h = last_hidden(model, X[rows], args.dense_input, args.scale)
            loss = loss_of(model, h, Y[rows], args.sampled, rng)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / n_batches:.3f}, "
              f"{time.process_time() - begin:.0f} CPU s", flush=True)
        torch.save({"sizes": sizes, "state": model.state_dict()}, args.out)

    # evenly spaced test rows: files are often sorted
    n = X_test.shape[0]
    rows = np.unique(np.linspace(0, n - 1, min(2000, n)).astype(int))
    with torch.inference_mode():
        z = model[-1](last_hidden(model, X_test[rows], args.dense_input, args.scale))
    p_at_1 = precision_at_1(z.argmax(1).numpy(), Y_test[rows])
    print(f"P@1 {p_at_1:.4f} on {len(rows)} test rows")


if __name__ == "__main__":
    main()
