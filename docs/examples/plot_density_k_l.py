"""
Choosing density, K and L
=========================

Three numbers determine how much a layer computes: the **density** of the active sets, the number of
bits **K** of a bucket and the number **L** of tables. The defaults are made for layers of some ten
thousand neurons; this page shows what each number does, so that you know when to change it. All of
it is measured while this page is built, on a small task made up for it: the shapes of the curves
carry over to other data, the figures do not.
"""

# %%
# A task
# ------
#
# 6,000 classes in 300 families: a class has some features of its own and some of its family, so
# that the network can confuse it with others. A row has the features of its class and some random
# ones.

import textwrap
import time

import matplotlib.pyplot as plt
import numpy as np
import scipy.sparse as sp

import sparselsh as sl

LINE, OTHER = "#0f766e", "#c2410c"
N_CLASSES, N_FEATURES, N_ROWS = 6_000, 4_000, 16_000

rng = np.random.default_rng(0)


def sparse(n_rows, density):
    shape = (n_rows, N_FEATURES)
    return sp.random_array(shape, density=density, format="csr", rng=rng)


y = rng.integers(0, N_CLASSES, N_ROWS)
own = sparse(N_CLASSES, 0.002)
of_family = sparse(300, 0.004)
typical = (own + of_family[rng.integers(0, 300, N_CLASSES)]).tocsr()
noise = sparse(N_ROWS, 0.005)
X = (typical[y] + noise).astype(np.float32)
train, test = slice(0, 14_000), slice(14_000, None)


def trained(**options):
    """P@1 on the test rows, CPU seconds, fraction computed."""
    hidden = sl.Linear(N_FEATURES, 64)
    output = sl.LSHLinear(64, N_CLASSES, **options)
    net = sl.Network([hidden, output], random_state=0)
    begin = time.process_time()
    net.fit(X[train], y[train], epochs=3, batch_size=64, verbose=False)
    seconds = time.process_time() - begin
    ids, _ = net.topk(X[test], 1)
    p_at_1 = sl.metrics.precision_at_k(y[test], ids, 1)
    return p_at_1, seconds, net.history[-1]["computed_share"]


# %%
# Density
# -------
#
# A training step computes and updates the labels of the batch, the neurons that hashing finds, and
# random ones. With too few neurons, the loss misses too many of those that the network confuses
# with the label; with all of them (``density=1``), hashing is not needed.

densities = [0.02, 0.05, 0.1, 0.25, 0.5, 1.0]
runs = [trained(density=density) for density in densities]
precisions = [p for p, _, _ in runs]
times = [s / runs[-1][1] for _, s, _ in runs]


def percent(fraction, _):
    return f"{fraction:.0%}"


fig, (left, right) = plt.subplots(
    1, 2, figsize=(9, 3.4), layout="constrained"
)
left.plot(densities, precisions, "o-", color=LINE)
left.set(xscale="log", xlabel="density", ylabel="P@1 on test rows")
right.plot(densities, times, "o-", color=OTHER)
right.set(xscale="log", xlabel="density", ylim=(0, None))
right.set_ylabel("CPU time of training, density 1 being 1")
for ax in (left, right):
    ax.xaxis.set_major_formatter(percent)
plt.show()

# %%
# **How to read it:** take the smallest density from which the left curve is flat. On the right,
# hashing has a cost too: at high densities, and in layers of a few thousand neurons, a dense
# product is as fast as finding the active set and multiplying by it. Use ``density=1`` there. The
# labels of a batch are always active, so a small density is not reached where batches have many
# labels:

for density, (_, _, computed) in zip(densities, runs, strict=True):
    print(f"density {density:4.0%}: computed {computed:6.1%}")

# %%
# What the tables add
# -------------------
#
# Labels and random neurons alone (``candidates=0``) are a strong baseline. Each row of the batch
# may add the ``candidates`` neurons that share most buckets with it, which the network is most
# likely to confuse with the label. They displace random ones, which the network also needs: in a
# batch of 64 and a set of 1,200 neurons, 20 candidates per row leave none.

density = 0.2
quality = {
    n: trained(density=density, candidates=n)[0]
    for n in (0, 1, 2, 5, 20)
}
names = ["random only", *(f"{n} per row" for n in quality if n)]
colors = [OTHER] + [LINE] * (len(names) - 1)

fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
bars = ax.barh(names, list(quality.values()), color=colors)
ax.bar_label(bars, fmt="{:.1%}", padding=3)
ax.set_xlabel(f"P@1 at density {density:.0%}")
ax.set_xlim(0, max(quality.values()) * 1.2)
ax.xaxis.set_major_formatter(percent)
ax.invert_yaxis()
plt.show()

# %%
# **How to read it:** keep ``candidates`` times the batch size well below the size of the set, which
# is ``density`` times the number of neurons. The default, five candidates in batches of 256, is
# made for sets of about 4,000.
#
# The task and the density were chosen so that candidates help, and they help a little; elsewhere
# they may cost. At a density of 5 % the same task gave 36.6 % with random neurons alone and 33.6 %
# with five candidates; a task of classes without families 54.7 and 49.1 % (one seed each). Try
# ``candidates=0`` on your data.

# %%
# K and L in closed form
# ----------------------
#
# A neuron at the cosine ``s`` is found with probability ``1 - (1 - p**K)**L``, where ``p = 1 -
# arccos(s) / π``; an unrelated one, at a right angle, with ``1 - (1 - 2**-K)**L``.
# :func:`sparselsh.choose_bits_and_tables` finds the fewest tables that reach a recall for the first
# without exceeding a fraction for the second.

for similarity in (0.5, 0.6, 0.7, 0.8, 0.9):
    try:
        bits, tables = sl.choose_bits_and_tables(
            density=0.02,
            n_neurons=100_000,
            similarity=similarity,
            recall=0.9,
        )
        print(f"cosine {similarity}: K = {bits:2}, L = {tables:3}")
    except ValueError as error:
        print(textwrap.fill(f"cosine {similarity}: {error}", 68))

# %%
# Near neighbours need few tables; at a cosine of 0.5, which is 60 degrees, too many tables would be
# needed. This is why layers centre their neurons before they hash them (:doc:`plot_how_lsh_finds`),
# and why inference uses sketches, which do not require a shared bucket.
#
# The map below shows the same law, for a wanted neuron at a cosine of 0.8: the colour is the
# probability that it is found, the lines are the fraction of unrelated neurons that are found with
# it. Good settings lie far to the right on a line. Further up on the line both K and L grow, and
# with them memory and the time of hashing.

K, L = np.meshgrid(np.arange(1, 17), np.arange(1, 129))
p = 1 - np.arccos(0.8) / np.pi
wanted = 1 - (1 - p**K) ** L
unrelated = 1 - (1 - 0.5**K) ** L

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
image = ax.pcolormesh(K, L, wanted, cmap="viridis", vmin=0, vmax=1)
levels = [0.001, 0.01, 0.1, 0.5]
lines = ax.contour(
    K, L, unrelated, levels=levels, colors="white", linewidths=1
)
ax.clabel(lines, fmt=lambda fraction: f"{fraction:.1%} unrelated")
ax.set(xlabel="K, bits per table", ylabel="L, tables", yscale="log")
fig.colorbar(image, label="probability of finding the wanted neuron")
plt.show()

# %%
# Summary
# -------
#
# - *The layer has fewer than 4,096 neurons:* use ``density=1``.
# - *Quality falls short of density 1:* raise ``density``; train one epoch more; compare
#   ``candidates`` 0 and 5.
# - *Training is slow:* lower ``density`` while quality holds; smaller batches have fewer labels.
# - *Only inference matters:* leave K and L alone. ``topk`` uses sketches, ``LSHIndex(recall=...)``
#   sets them.
# - *You need tables for your own use:* ``LSHIndex("auto").fit(W, queries=H)`` chooses K and L; see
#   ``report()``.
