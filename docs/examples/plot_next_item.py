"""
The next item of a session
==========================

A shop wants to know what a visitor looks at next. A row is a session: the items seen so far, later
ones with larger values. Its class is the next item, so there are as many classes as items. The
sessions are generated, so that the best possible prediction is known.
"""

# %%
# Sessions
# --------
# Every item has four successors. A visitor continues with one of them four times in five, most
# often with the first, and otherwise with any item of the shop, popular ones more often.

import numpy as np
import scipy.sparse as sp

rng = np.random.default_rng(0)
n_items, n_sessions, length = 5_000, 40_000, 6
successors = rng.integers(0, n_items, (n_items, 4))
chance = np.array([0.55, 0.25, 0.15, 0.05])


def popular(n):
    """Random items; small ids are more frequent."""
    items = (n_items * rng.random(n) ** 3).astype(int)
    return np.minimum(items, n_items - 1)


sessions = np.empty((n_sessions, length + 1), int)
sessions[:, 0] = popular(n_sessions)
for step in range(1, length + 1):
    choice = rng.choice(4, n_sessions, p=chance)
    following = successors[sessions[:, step - 1], choice]
    sessions[:, step] = np.where(
        rng.random(n_sessions) < 0.8, following, popular(n_sessions)
    )

weights = np.tile(0.5 ** np.arange(length)[::-1], n_sessions)
rows = np.repeat(np.arange(n_sessions), length)
columns = sessions[:, :-1].ravel()
X = sp.csr_array(
    (weights, (rows, columns)),
    shape=(n_sessions, n_items),
    dtype=np.float32,
)
y = sessions[:, -1]
X_train, y_train = X[3_000:], y[3_000:]
X_test, y_test = X[:3_000], y[:3_000]

print(f"{n_sessions:,} sessions, {n_items:,} items")
print(f"the best prediction is right in {0.8 * chance[0]:.0%}")

# %%
# Training
# --------
# The hidden layer turns a session into 64 numbers, and the output layer computes a fifth of the
# items in each step. The training ends when the P@1 of the rows set aside has not grown for two
# epochs.

import sparselsh as sl

hidden = sl.Linear(n_items, 64)
output = sl.LSHLinear(64, n_items, density=0.2)
net = sl.Network([hidden, output], random_state=0)

early = sl.callbacks.EarlyStopping(patience=2)
net.fit(
    X_train, y_train, epochs=8, validation=(X_test, y_test),
    callbacks=early, verbose=False,
)
print(f"best epoch: {early.best_epoch}")
ax = net.plot_history()

# %%
# Inference
# ---------
# `topk` computes the scores of the items whose sketches are near: a few percent of all.

found = {
    "with hashing": net.topk(X_test, k=10)[0],
    "every item": net.topk(X_test, k=10, exact=True)[0],
}
for name, ids in found.items():
    at_1 = sl.metrics.precision_at_k(y_test, ids, 1)
    at_10 = (ids == y_test[:, None]).any(axis=1).mean()
    print(f"{name}: {at_1:.1%} ranked first, {at_10:.1%} in ten")

# %%
# What the search costs
# ---------------------
# An index over the weights of the output layer, calibrated on inputs of that layer, shows what
# recall costs: the more candidates get their inner product computed, the more of the true
# neighbours are found.

H = X[:1_000] @ hidden.weight.T + hidden.bias
index = sl.LSHIndex(random_state=0, plan="sketches")
index.fit(output.weight, output.bias, queries=H)
ax = index.plot_recall(H, k=10)
