"""
Choosing density, K and L
=========================

Three numbers say how much a layer computes: the **density** of the active sets, the bits **K** of a table's buckets
and the number **L** of tables. The defaults are made for layers of some ten thousand neurons; this page shows what
each does, so that you know when to change it. All of it is measured while this page is built, on a small task made
up for it: the shapes of the curves carry over to other data, the figures do not.
"""

# %%
# A task
# ------
#
# 6,000 classes in 300 families: a class has some features of its own and some of its family, so that a network
# has something to confuse. A row has the features of its class and some of no class.

import time

import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse as sp

import sparselsh as sl

LINE, OTHER = "#0f766e", "#c2410c"
N_CLASSES, N_FEATURES, N_ROWS = 6_000, 4_000, 16_000

rng = np.random.default_rng(0)
y = rng.integers(0, N_CLASSES, N_ROWS)
own = sp.random_array((N_CLASSES, N_FEATURES), density=0.002, format="csr", rng=rng)
of_family = sp.random_array((300, N_FEATURES), density=0.004, format="csr", rng=rng)
typical = (own + of_family[rng.integers(0, 300, N_CLASSES)]).tocsr()
noise = sp.random_array((N_ROWS, N_FEATURES), density=0.005, format="csr", rng=rng)
X = (typical[y] + noise).astype(np.float32)
train, test = slice(0, 14_000), slice(14_000, None)


def trained(**options):
    """P@1 on the test rows, CPU seconds of training, and the share of the outputs computed in it."""
    net = sl.Network([sl.Linear(N_FEATURES, 64), sl.LSHLinear(64, N_CLASSES, **options)], random_state=0)
    begin = time.process_time()
    net.fit(X[train], y[train], epochs=3, batch_size=64, verbose=False)
    seconds = time.process_time() - begin
    p_at_1 = sl.metrics.precision_at_k(y[test], net.topk(X[test], 1)[0], 1)
    return p_at_1, seconds, net.history[-1]["computed_share"]


# %%
# Density
# -------
#
# What is computed and updated in a step: the labels of the batch, the neurons that hashing finds, and others at
# random. Too few, and the loss sees too little of what else the network confuses with the label; all of them
# (``density=1``), and hashing is not needed.

densities = [0.02, 0.05, 0.1, 0.25, 0.5, 1.0]
runs = [trained(density=density) for density in densities]

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(densities, [p for p, _, _ in runs], "o-", color=LINE)
left.set(xscale="log", xlabel="density", ylabel="P@1 on test rows")
right.plot(densities, [s / runs[-1][1] for _, s, _ in runs], "o-", color=OTHER)
right.set(xscale="log", xlabel="density", ylabel="CPU time of training, density 1 being 1", ylim=(0, None))
for ax in (left, right):
    ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
plt.show()

# %%
# **Read it so:** take the smallest density from which the left curve is flat. On the right, hashing costs something
# too: at high densities, and in layers of few thousand neurons, a dense product is as fast as finding the active set
# and multiplying by it. Use ``density=1`` there. The labels of a batch are active in any case, so that a small density
# is not reached where batches have many labels:

for density, (_, _, share) in zip(densities, runs, strict=True):
    print(f"density {density:4.0%}: computed {share:6.1%}")

# %%
# What the tables add
# -------------------
#
# Labels and random neurons alone (``candidates=0``) are a strong start. Each row of the batch may add the
# ``candidates`` that share most buckets with it, which the network is most likely to confuse with the label. They
# take their room from the random ones, without which the network forgets what it need not confuse: in a batch of 64
# and a set of 1,200 neurons, 20 candidates leave none.

density = 0.2
quality = {n: trained(density=density, candidates=n)[0] for n in (0, 1, 2, 5, 20)}

fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
names = ["random only", *(f"{n} a row" for n in quality if n)]
bars = ax.barh(names, list(quality.values()), color=[OTHER] + [LINE] * (len(names) - 1))
ax.bar_label(bars, fmt="{:.1%}", padding=3)
ax.set(xlabel=f"P@1 at density {density:.0%}", xlim=(0, max(quality.values()) * 1.2))
ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
ax.invert_yaxis()
plt.show()

# %%
# **Read it so:** keep ``candidates`` times the batch size well below the size of the set, ``density`` times the
# neurons. The default, five in a batch of 256, is made for sets of some 4,000.
#
# The task and the density were chosen so that candidates help, and help a little; with others they cost. At a density
# of 5 % the same task gave 36.6 % by random neurons alone and 33.6 % with five candidates; a task of classes without
# families 54.7 and 49.1 % (one seed each). Try ``candidates=0`` on your data.

# %%
# K and L in closed form
# ----------------------
#
# A neuron at the cosine ``s`` is found with probability ``1 - (1 - p**K)**L``, where ``p = 1 - arccos(s) / π``; an
# unrelated one, at a right angle, with ``1 - (1 - 2**-K)**L``. :func:`sparselsh.choose_bits_and_tables` finds the
# fewest tables that reach a recall for the one without exceeding a share for the other.

similarities = [0.5, 0.6, 0.7, 0.8, 0.9]
for similarity in similarities:
    try:
        bits, tables = sl.choose_bits_and_tables(density=0.02, n_neurons=100_000, similarity=similarity, recall=0.9)
        print(f"cosine {similarity}: K = {bits:2}, L = {tables:3}")
    except ValueError as error:
        print(f"cosine {similarity}: {error}")

# %%
# Near neighbours need few tables; at a cosine of 0.5, which is 60 degrees, hash tables are out of breath. That is
# why layers centre their neurons before they hash (:doc:`plot_how_lsh_finds`), and why answers come from sketches,
# which need no bucket to be shared.
#
# The map below is the same law, for a wanted neuron at a cosine of 0.8: the colour says how surely it is found, the
# lines how many unrelated neurons come with it. Good settings lie far to the right on a line: up along it both K and
# L grow, and so do memory and the time of hashing.

K, L = np.meshgrid(np.arange(1, 17), np.arange(1, 129))
p = 1 - np.arccos(0.8) / np.pi
wanted, unrelated = 1 - (1 - p**K) ** L, 1 - (1 - 0.5**K) ** L

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
image = ax.pcolormesh(K, L, wanted, cmap="viridis", vmin=0, vmax=1)
lines = ax.contour(K, L, unrelated, levels=[0.001, 0.01, 0.1, 0.5], colors="white", linewidths=1)
ax.clabel(lines, fmt=lambda share: f"{share:.1%} unrelated")
ax.set(xlabel="K, bits a table", ylabel="L, tables", yscale="log")
fig.colorbar(image, label="probability of finding the wanted neuron")
plt.show()

# %%
# In short
# --------
#
# ==================================  ==============================================================================
# If ...                              then ...
# ==================================  ==============================================================================
# the layer has under 4,096 neurons   use ``density=1``
# quality falls short of density 1    raise ``density``; train an epoch more; compare ``candidates`` 0 and 5
# training is slow                    lower ``density`` while quality holds; smaller batches have fewer labels
# you ask, and do not train           leave K and L alone: ``topk`` uses sketches, ``LSHIndex(recall=...)`` sets them
# you need tables for your own use    ``LSHIndex("auto").fit(W, queries=H)`` chooses K and L; see ``report()``
# ==================================  ==============================================================================
