"""
The next item of a session
==========================

A shop wants to know what a visitor looks at next. A session is a row: the items seen so far, the last ones heavier. The
next item is its class, one of as many classes as there are items. The sessions are generated, so that the best possible
answer is known.
"""

# %%
# Sessions
# --------
# Every item has a handful of successors. A visitor goes on to one of them four times in five, to the first of them most
# often, and else to any item of the shop, the popular ones first.

import numpy as np
import scipy.sparse as sp

rng = np.random.default_rng(0)
n_items, n_sessions, length = 5_000, 40_000, 6
successors = rng.integers(0, n_items, (n_items, 4))
chance = np.array([0.55, 0.25, 0.15, 0.05])


def popular(n):
    """Items, the first ones most often."""
    return np.minimum((n_items * rng.random(n) ** 3).astype(int), n_items - 1)


sessions = np.empty((n_sessions, length + 1), int)
sessions[:, 0] = popular(n_sessions)
for step in range(1, length + 1):
    follows = successors[sessions[:, step - 1], rng.choice(4, n_sessions, p=chance)]
    sessions[:, step] = np.where(rng.random(n_sessions) < 0.8, follows, popular(n_sessions))

weights = np.tile(0.5 ** np.arange(length)[::-1], n_sessions)
rows = np.repeat(np.arange(n_sessions), length)
X = sp.csr_array((weights, (rows, sessions[:, :-1].ravel())), shape=(n_sessions, n_items), dtype=np.float32)
y = sessions[:, -1]
n_test = 3_000
print(f"{n_sessions:,} sessions, {n_items:,} items; the best guess is right {0.8 * chance[0]:.0%} of the time")

# %%
# Training
# --------
# The hidden layer turns a session into 64 numbers, the output layer computes a fifth of the items in each step. The
# training ends when the P@1 of the rows set aside has not grown for two epochs.

import sparselsh as sl

net = sl.Network([sl.Linear(n_items, 64), sl.LSHLinear(64, n_items, density=0.2)], random_state=0)
early = sl.callbacks.EarlyStopping(patience=2)
net.fit(X[n_test:], y[n_test:], epochs=8, validation=(X[:n_test], y[:n_test]), callbacks=early, verbose=False)
print(f"best epoch: {early.best_epoch}")
ax = net.plot_history()

# %%
# Asking
# ------
# `topk` looks at the items whose sketches are near: a few percent of all.

ids, scores = net.topk(X[:n_test], k=10)
exact, _ = net.topk(X[:n_test], k=10, exact=True)
for name, found in (("by hashing", ids), ("every item", exact)):
    at_1, hit_at_10 = sl.metrics.precision_at_k(y[:n_test], found, 1), (found == y[:n_test, None]).any(axis=1).mean()
    print(f"{name}: the next item is the first answer {at_1:.1%} of the time, among ten {hit_at_10:.1%}")

# %%
# What the search costs
# ---------------------
# An index over the weights of the output layer, calibrated on inputs of that layer, shows what recall costs: the more
# candidates get their inner product computed, the more of the true neighbours are found.

hidden, output = net.layers
H = X[:1_000] @ hidden.weight.T + hidden.bias
index = sl.LSHIndex(random_state=0, plan="sketches").fit(output.weight, output.bias, queries=H)
ax = index.plot_recall(H, k=10)
