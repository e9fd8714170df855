"""What PyTorch's contenders share: inputs, the loss over the labels of a row, sampled labels."""
import numpy as np
import torch

INPUT_STD = 2.5  # of the first layer, times sqrt(hidden units): as sparselsh initializes it


def embedding_bag(n_features, hidden):
    """The first layer for sparse rows, with sparse gradients."""
    bag = torch.nn.EmbeddingBag(n_features, hidden, mode="sum", sparse=True)
    torch.nn.init.normal_(bag.weight, std=INPUT_STD / hidden**0.5)
    return bag


def bag_inputs(x):
    """A csr_array as (ids, offsets, weights) for an EmbeddingBag."""
    return (torch.from_numpy(x.indices.astype(np.int32)),
            torch.from_numpy(x.indptr[:-1].astype(np.int32)), torch.from_numpy(x.data))


def softmax_loss(z, labels, columns):
    """Cross entropy against the uniform distribution over the labels of a row.

    z (n, n_computed) are outputs, labels a csr_array (n, n_labels); `columns` says in which column
    of z each label stands.
    """
    counts = np.diff(labels.indptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    fraction = torch.from_numpy((1 / counts[rows]).astype(np.float32))
    has_labels = torch.from_numpy((counts > 0).astype(np.float32))
    chosen = z[torch.from_numpy(rows), torch.from_numpy(columns)]
    return (torch.logsumexp(z, 1) @ has_labels - chosen @ fraction) / len(counts)


def sampled_labels(labels, n_sampled, rng):
    """The labels of a batch and labels at random, n_sampled together: sorted distinct ids."""
    n_labels = labels.shape[1]
    n_random = max(0, min(n_sampled, n_labels) - len(np.unique(labels.indices)))
    return np.unique(np.concatenate([labels.indices, rng.integers(n_labels, size=n_random)]))


def set_rate(optimizers, rate):
    """Set the learning rate of each optimizer."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def precision_at_1(best, labels):
    """The fraction of the rows whose best label is one of theirs."""
    parts = zip(best, labels.indptr[:-1], labels.indptr[1:], strict=True)
    return float(np.mean([j in labels.indices[a:b] for j, a, b in parts]))
